"""Coefficients equal published worked examples, and are undefined rather than perfect without variation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evals.agreement import Scale, Weights, cohen_kappa, fleiss_kappa, krippendorff_alpha, with_interval

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
UNITS = [list(unit) for unit in zip(*OBSERVERS, strict=True)]


@pytest.mark.parametrize(("scale", "alpha"), [(Scale.NOMINAL, 0.743), (Scale.ORDINAL, 0.815), (Scale.INTERVAL, 0.849)])
def test_krippendorffs_own_example(scale, alpha):
    assert krippendorff_alpha(UNITS, scale=scale) == pytest.approx(alpha, abs=6e-4)


def test_cohens_textbook_example():
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_fleiss_worked_example():
    # Fleiss 1971 as tabulated in the common worked example: 10 subjects, 14 raters, 5 categories, kappa 0.210
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)


def test_weights_forgive_near_misses():
    first, second = [1, 2, 3, 4, 5, 1, 5, 3], [2, 2, 3, 5, 5, 1, 4, 3]
    plain, linear, quadratic = (cohen_kappa(first, second, weights=w, order=range(1, 6)) for w in Weights)
    assert plain < linear < quadratic < 1
    # quadratic kappa is 1 - mean squared difference / expected squared difference under independence
    a, b = np.array(first), np.array(second)
    expected = np.mean(np.subtract.outer(a, b) ** 2)
    assert quadratic == pytest.approx(1 - np.mean((a - b) ** 2) / expected)
    # an unused category keeps its place, so 5 against 3 is as far as 3 against 1
    assert cohen_kappa([1, 5, 3], [1, 3, 3], weights=Weights.QUADRATIC, order=[1, 2, 3, 4, 5]) == pytest.approx(
        cohen_kappa([1, 5, 3], [1, 3, 3], weights=Weights.QUADRATIC, order=[1, 3, 5])
    )


RATINGS = st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=2), min_size=2, max_size=30)


@given(RATINGS)
def test_coefficients_do_not_depend_on_names_or_order_and_never_pass_1(ratings):
    first, second = [a for a, _ in ratings], [b for _, b in ratings]
    kappa = cohen_kappa(first, second)
    assert kappa == pytest.approx(cohen_kappa(second, first), nan_ok=True) if kappa is not None else True
    named = cohen_kappa([f"c{5 - a}" for a in first], [f"c{5 - b}" for b in second])
    assert (kappa is None) == (named is None)
    for scale in Scale:
        alpha = krippendorff_alpha(ratings, scale=scale)
        assert alpha is None or alpha <= 1 + 1e-12
        if alpha is not None and first == second:
            assert alpha == pytest.approx(1)
    nominal = krippendorff_alpha(ratings, scale=Scale.NOMINAL)
    counts = [[item.count(c) for c in range(1, 5)] for item in ratings]
    fleiss = fleiss_kappa(counts)
    if nominal is not None and fleiss is not None:
        # without gaps alpha is Fleiss' kappa with a small-sample correction
        n = 2 * len(ratings)
        assert nominal == pytest.approx(1 - (1 - fleiss) * (n - 1) / n)


def test_with_one_category_agreement_is_undefined_rather_than_perfect():
    assert cohen_kappa(["ok"] * 9, ["ok"] * 9) is None
    assert fleiss_kappa([[3, 0], [3, 0]]) is None
    assert krippendorff_alpha([[1, 1], [1, 1]], scale=Scale.NOMINAL) is None
    assert krippendorff_alpha([[1, None], [None, 2]], scale=Scale.NOMINAL) is None
    assert with_interval([(1, 1)] * 5, lambda items: krippendorff_alpha(items, scale=Scale.NOMINAL)) is None


def test_chance_agrees_at_zero_and_the_interval_holds_it():
    random = np.random.default_rng(5)
    items = [tuple(random.integers(0, 3, 2).tolist()) for _ in range(400)]
    found = with_interval(items, lambda sample: cohen_kappa([a for a, _ in sample], [b for _, b in sample]))
    assert abs(found.value) < 0.1
    assert found.low < 0 < found.high


@pytest.mark.parametrize(
    "call",
    [
        lambda: cohen_kappa([], []),
        lambda: cohen_kappa([1], [1, 2]),
        lambda: cohen_kappa([1], [2], weights=Weights.LINEAR),
        lambda: cohen_kappa([1], [9], order=[1, 2]),
        lambda: fleiss_kappa([[1, 2], [1, 1]]),
        lambda: fleiss_kappa([[1, 0]]),
        lambda: fleiss_kappa([]),
    ],
)
def test_ratings_that_cannot_be_compared_are_refused(call):
    with pytest.raises(ValueError, match=r".+"):
        call()
