"""Does a nominal 95% interval hold the truth 95 times of 100? Simulated at the sizes that users have.

The band is 93 to 97.5%, widened by two standard errors of the simulation itself.
"""

import math

import numpy as np
import pytest

from tunesmith.evals import stats
from tunesmith.evals.compare import compare, tango
from tunesmith.evals.stats import corrected_rate, estimate, seed_spread, wilson

LOW, HIGH = 0.93, 0.975


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 600)


def assert_covers(hits: list[bool]) -> None:
    rate, noise = float(np.mean(hits)), 2 * math.sqrt(0.05 * 0.95 / len(hits))
    assert LOW - noise <= rate <= HIGH + noise, f"covered {rate:.3f} of {len(hits)}"


@pytest.mark.parametrize("n", [30, 50, 100, 170, 500, 1000])
def test_wilson_covers_proportions_near_one(n):
    """Exact, not simulated: binomial weights, averaged over true rates from 0.8 to 0.99."""
    ks = np.arange(n + 1)
    bounds = np.array([wilson(int(k), n) for k in ks])
    log_choose = np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in ks])
    rates = []
    for p in np.linspace(0.8, 0.99, 60):
        weights = np.exp(log_choose + ks * math.log(p) + (n - ks) * math.log1p(-p))
        rates.append(float(weights[(bounds[:, 0] <= p) & (p <= bounds[:, 1])].sum()))
    assert LOW <= float(np.mean(rates)) <= HIGH


def test_the_textbook_interval_would_fail_this_test():
    """The check can fail: p +- 1.96 sqrt(p(1-p)/n) at p = 0.97, n = 20 covers under 50%."""
    random = np.random.default_rng(1)
    hits = []
    for k in random.binomial(20, 0.97, 2000):
        p = k / 20
        hits.append(abs(p - 0.97) <= 1.96 * math.sqrt(p * (1 - p) / 20))
    with pytest.raises(AssertionError, match="covered"):
        assert_covers(hits)


@pytest.mark.parametrize(
    ("groups", "size", "p", "correlation"),
    [(50, 4, 0.7, 0.3), (50, 4, 0.7, 0.9), (50, 4, 0.95, 0.6), (20, 5, 0.8, 0.5), (100, 2, 0.9, 0.5)],
)
def test_clustered_proportions_are_covered_and_the_naive_interval_is_not(groups, size, p, correlation):
    random = np.random.default_rng(2)
    hits, naive = [], []
    labels = np.repeat(np.arange(groups), size).tolist()
    scale = 1 / correlation - 1
    for _ in range(700):
        rates = random.beta(p * scale, (1 - p) * scale, groups)
        scores = (random.random((groups, size)) < rates[:, None]).astype(float).ravel().tolist()
        found = estimate(scores, clusters=labels)
        hits.append(found.low <= p <= found.high)
        low, high = wilson(sum(scores), len(scores))
        naive.append(low <= p <= high)
    assert_covers(hits)
    if size * correlation > 1.4:
        assert np.mean(naive) < 0.9


@pytest.mark.parametrize("n", [20, 50, 170])
def test_bootstrap_covers_the_mean_of_bounded_scores(n):
    random = np.random.default_rng(3)
    hits = []
    for _ in range(400):
        scores = random.beta(0.6, 0.4, n)
        scores[random.random(n) < 0.3] = 1.0
        found = estimate(scores.tolist())
        assert found.method == "bca bootstrap"
        hits.append(found.low <= 0.3 + 0.7 * 0.6 <= found.high)
    assert_covers(hits)


@pytest.mark.parametrize(("groups", "size"), [(10, 5), (50, 4)])
def test_bootstrap_resamples_groups_whole(groups, size):
    random = np.random.default_rng(4)
    labels = np.repeat(np.arange(groups), size).tolist()
    hits = []
    for _ in range(500):
        shared = random.normal(0, 1, groups)
        scores = (shared[:, None] + random.normal(0, 1, (groups, size))).ravel()
        found = estimate(scores.tolist(), clusters=labels)
        hits.append(found.low <= 0 <= found.high)
    assert_covers(hits)


@pytest.mark.parametrize("n", [30, 100, 170, 500])
@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.5, 0.02), (0.9, 0.01), (0.2, 0.05)])
def test_the_paired_interval_covers_0_1_scores(n, rates):
    random = np.random.default_rng(5)
    known: dict[tuple[int, int], tuple[float, float]] = {}
    hits = []
    for b, c, _ in random.multinomial(n, [*rates, 1 - sum(rates)], size=1500).tolist():
        low, high = known.setdefault((b, c), tango(b, c, n))
        hits.append(low <= rates[0] - rates[1] <= high)
    assert_covers(hits)


def test_the_paired_interval_covers_clustered_and_graded_scores():
    random = np.random.default_rng(6)
    groups, size, gain = 40, 3, 0.1
    labels = np.repeat(np.arange(groups), size).tolist()
    hits = []
    for _ in range(400):
        hard = random.normal(0, 0.3, (groups, 1))
        better_by = gain + random.normal(0, 0.1, (groups, 1)) + random.normal(0, 0.2, (groups, size))
        base = hard + random.normal(0, 0.2, (groups, size))
        found = compare(base.ravel().tolist(), (base + better_by).ravel().tolist(), clusters=labels)
        hits.append(found.low <= gain <= found.high)
    assert_covers(hits)


def test_a_rate_corrected_for_its_detector_covers_the_true_rate():
    random = np.random.default_rng(7)
    rate, sensitivity, specificity = 0.3, 0.85, 0.92
    hits, raw = [], []
    for _ in range(1500):
        positives = random.binomial(200, rate * sensitivity + (1 - rate) * (1 - specificity))
        found = corrected_rate(
            int(positives),
            200,
            sensitivity=(int(random.binomial(70, sensitivity)), 70),
            specificity=(int(random.binomial(70, specificity)), 70),
        )
        hits.append(found.low <= rate <= found.high)
        low, high = wilson(int(positives), 200)
        raw.append(low <= rate <= high)
    assert_covers(hits)
    assert np.mean(raw) < np.mean(hits)


def test_seeds_are_covered_by_t():
    random = np.random.default_rng(8)
    hits = []
    for _ in range(1500):
        found = seed_spread(random.normal(0.8, 0.02, 4).tolist())
        hits.append(found.low <= 0.8 <= found.high)
    assert_covers(hits)


def test_no_false_alarm_more_often_than_the_level_says():
    """Under no difference McNemar's exact p is below 0.05 in at most 5% of the runs."""
    random = np.random.default_rng(9)
    alarms = []
    for _ in range(400):
        base = (random.random(150) < 0.8).astype(float)
        tuned = (random.random(150) < 0.8).astype(float)
        alarms.append(compare(base.tolist(), tuned.tolist()).p < 0.05)
    assert np.mean(alarms) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


def test_minimum_detectable_effect_is_found_four_times_of_five():
    random = np.random.default_rng(10)
    n, up, down = 300, 0.20, 0.10
    effects, found = [], []
    for b, c, _ in random.multinomial(n, [up, down, 1 - up - down], size=300).tolist():
        base = [0.0] * b + [1.0] * c + [1.0] * (n - b - c)
        tuned = [1.0] * b + [0.0] * c + [1.0] * (n - b - c)
        comparison = compare(base, tuned)
        effects.append(comparison.minimum_detectable)
        found.append(comparison.resolved)
    # the true effect is 0.10; power follows from it by the same formula
    se = float(np.mean(effects)) / (1.959964 + 0.841621)
    expected_power = 0.5 * (1 + math.erf(((up - down) / se - 1.959964) / math.sqrt(2)))
    assert abs(np.mean(found) - expected_power) < 0.06
