"""Statistics against scipy and against laws."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats

from tunesmith.evals.compare import compare, items_needed, mcnemar_exact, non_inferiority, tango
from tunesmith.evals.stats import corrected_rate, critical, estimate, holm, wilson, zero_failures_upper

scores_01 = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60)


@given(st.integers(1, 400), st.data())
def test_wilson_equals_scipy(n, data):
    k = data.draw(st.integers(0, n))
    expected = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_exact_binomial_test(b, c):
    expected = scipy_stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_at_least_p_at_most_bonferroni_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    for p, a in zip(p_values, adjusted, strict=True):
        assert p <= a <= min(1.0, p * len(p_values)) + 1e-12
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_zero_failures_is_about_three_over_n():
    assert zero_failures_upper(30) == pytest.approx(0.095, abs=1e-3)
    assert zero_failures_upper(1000) == pytest.approx(3 / 1000, rel=0.01)


@given(scores_01)
def test_an_interval_holds_its_figure_and_wider_levels_hold_narrower_ones(scores):
    found = estimate(scores)
    levels = sorted(found.intervals)
    for level in levels:
        low, high = found.intervals[level]
        assert 0 <= low <= found.value <= high <= 1
    for inner, outer in itertools.pairwise(levels):
        assert found.intervals[outer][0] <= found.intervals[inner][0]
        assert found.intervals[outer][1] >= found.intervals[inner][1]


def test_repeating_every_item_adds_no_certainty_when_the_copies_share_a_cluster():
    scores = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0] * 10
    alone = estimate(scores)
    copied = estimate(scores * 5, clusters=list(range(len(scores))) * 5)
    assert copied.high - copied.low >= 0.98 * (alone.high - alone.low)
    fooled = estimate(scores * 5)
    assert fooled.high - fooled.low < 0.5 * (alone.high - alone.low)


def test_one_cluster_leaves_no_interval():
    found = estimate([1.0, 0.0, 1.0], clusters=["a", "a", "a"])
    assert found.low is None
    assert estimate([0.5]).low is None


def test_no_scores_is_an_error_not_a_zero():
    with pytest.raises(ValueError, match="no scores"):
        estimate([])


@given(st.integers(1, 80), st.data())
def test_tango_holds_the_observed_difference_and_mirrors(n, data):
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    low, high = tango(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    mirror = tango(c, b, n)
    assert (low, high) == pytest.approx((-mirror[1], -mirror[0]), abs=1e-9)


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (3, 0, 30), (40, 38, 170), (1, 9, 20)])
def test_at_the_bounds_of_tango_the_score_statistic_is_critical(b, c, n):
    """The restricted estimate is found here by a numeric search over the likelihood, not by the closed form."""
    for bound, sign in zip(tango(b, c, n), (1, -1), strict=True):

        def minus_log_likelihood(q, bound=bound):
            p_b, p_c, rest = q + bound, q, 1 - 2 * q - bound
            return -sum(k * math.log(max(p, 1e-300)) for k, p in ((b, p_b), (c, p_c), (n - b - c, rest)))

        low, high = max(0.0, -bound), (1 - bound) / 2
        q = optimize.minimize_scalar(
            minus_log_likelihood, bounds=(low, high), options={"xatol": 1e-12}, method="bounded"
        ).x
        statistic = (b - c - n * bound) / math.sqrt(n * (2 * q + bound - bound**2))
        assert statistic == pytest.approx(sign * critical(0.95), abs=2e-3)


@given(scores_01, st.integers(0, 5))
def test_a_system_compared_with_itself_shows_nothing(scores, seed):
    comparison = compare(scores, scores)
    assert comparison.difference == 0
    assert comparison.p == 1
    assert not comparison.resolved


def test_comparing_different_items_is_refused():
    with pytest.raises(ValueError, match="same items"):
        compare([1.0], [1.0, 0.0])


def test_a_continuous_comparison_agrees_with_scipy():
    a = [0.1, 0.5, 0.3, 0.9, 0.4, 0.8, 0.35, 0.77, 0.2, 0.6]
    b = [0.2, 0.7, 0.3, 0.95, 0.6, 0.7, 0.55, 0.9, 0.1, 0.9]
    assert compare(a, b).p == pytest.approx(scipy_stats.ttest_rel(b, a).pvalue)


def test_non_inferiority_passes_fails_and_abstains():
    base = [1.0] * 400
    slightly_worse = [1.0] * 396 + [0.0] * 4
    much_worse = [1.0] * 300 + [0.0] * 100
    few = compare([1.0] * 10, [1.0] * 10)
    assert non_inferiority(compare(base, slightly_worse), margin=0.05, better="higher") == "pass"
    assert non_inferiority(compare(base, much_worse), margin=0.05, better="higher") == "fail"
    assert non_inferiority(few, margin=0.05, better="higher") == "not_resolvable"
    loss = compare([2.0 + i / 100 for i in range(30)], [2.01 + i / 100 + (i % 3) / 1000 for i in range(30)])
    assert non_inferiority(loss, margin=0.05, better="lower") == "pass"
    assert non_inferiority(loss, margin=0.005, better="lower") == "fail"


def test_items_needed_agrees_with_the_published_table():
    """MEASURED: 80% power, disagreement 10 and 20%: 5 points need 307 and 621, 10 points 71 and 150 items."""
    for effect, disagreement, n in ((0.05, 0.1, 307), (0.05, 0.2, 621), (0.1, 0.1, 71), (0.1, 0.2, 150)):
        assert items_needed(effect, disagreement=disagreement) == pytest.approx(n, rel=0.02)


def test_a_perfect_detector_changes_nothing_and_a_blind_one_is_refused():
    found = corrected_rate(30, 100, sensitivity=(500, 500), specificity=(500, 500))
    assert found.value == pytest.approx(0.3)
    with pytest.raises(ValueError, match="chance"):
        corrected_rate(30, 100, sensitivity=(5, 10), specificity=(5, 10))


@given(st.floats(0.5, 0.999), st.integers(1, 200))
def test_critical_values_equal_scipy(level, degrees):
    assert critical(level, degrees=degrees) == pytest.approx(scipy_stats.t.ppf((1 + level) / 2, degrees), rel=1e-6)
    assert math.isclose(critical(level), scipy_stats.norm.ppf((1 + level) / 2), rel_tol=1e-9)
