"""Agreement between raters beyond chance: Cohen's and Fleiss' kappa, Krippendorff's alpha.

    cohen_kappa(["good", "bad", "good"], ["good", "bad", "bad"])
    krippendorff_alpha([[1, 1, None], [2, 3, 3]], scale=Scale.ORDINAL)      # one row an item, one column a rater

What lives here: coefficients and their intervals. What does not: who rated what (`votes`, `judge`).

1 is perfect, 0 is what chance would give, below 0 is worse than chance. With one category used throughout, chance
agrees fully and no coefficient is defined: the answer is `None`, never 1. Which to take: two raters who both rated
everything, Cohen; the same number of raters an item, not the same people, Fleiss; gaps, or an order among the
categories, Krippendorff.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tunesmith.evals.stats import LEVELS, Estimate

Item = TypeVar("Item")
Matrix = npt.NDArray[np.float64]
RESAMPLES = 1000
SEED = 20_240_614


class Weights(enum.StrEnum):
    """How far apart two different ratings are in a weighted kappa."""

    NONE = "none"
    LINEAR = "linear"
    QUADRATIC = "quadratic"


class Scale(enum.StrEnum):
    """What the values of a rating are, which decides how far apart two of them are."""

    NOMINAL = "nominal"
    ORDINAL = "ordinal"
    INTERVAL = "interval"


def cohen_kappa(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    *,
    weights: Weights = Weights.NONE,
    order: Sequence[Hashable] | None = None,
) -> float | None:
    """Return Cohen's kappa of two raters over the same items; `None` where chance agreement is 1.

    Weighted kappas need `order`, the categories from low to high; a category that nobody used keeps its place in it.
    Source: Cohen 1960, 1968. Raises `ValueError` for lists of different or no length and for ratings outside `order`.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"two raters need ratings of the same items: {len(first)} against {len(second)}")
    if weights is not Weights.NONE and order is None:
        raise ValueError("a weighted kappa needs the order of the categories")
    categories = list(order) if order is not None else sorted({*first, *second}, key=repr)
    place = {category: index for index, category in enumerate(categories)}
    if unknown := {*first, *second} - place.keys():
        raise ValueError(f"ratings outside the order of categories: {sorted(map(repr, unknown))}")
    size = len(categories)
    table = np.zeros((size, size))
    for a, b in zip(first, second, strict=True):
        table[place[a], place[b]] += 1
    table /= len(first)
    steps = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(float)
    distance = {Weights.NONE: (steps > 0).astype(float), Weights.LINEAR: steps, Weights.QUADRATIC: steps**2}[weights]
    by_chance = float((np.outer(table.sum(axis=1), table.sum(axis=0)) * distance).sum())
    # kappa = 1 - observed disagreement / disagreement by chance
    return None if by_chance == 0 else 1 - float((table * distance).sum()) / by_chance


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Return Fleiss' kappa; `counts[i][j]` is how many raters put item i into category j.

    Source: Fleiss 1971. `None` where chance agreement is 1. Raises `ValueError` unless every item has the same number
    of ratings, two or more.
    """
    table = np.asarray(counts, dtype=float)
    if table.ndim != 2 or table.size == 0 or table.min() < 0:
        raise ValueError("counts need one row an item and one column a category")
    raters = table.sum(axis=1)
    if raters.min() != raters.max() or raters[0] < 2:
        raise ValueError("Fleiss' kappa needs the same number of ratings, two or more, for every item")
    n = raters[0]
    observed = float(((table**2).sum(axis=1) - n).mean() / (n * (n - 1)))
    by_chance = float(((table.sum(axis=0) / table.sum()) ** 2).sum())
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def krippendorff_alpha(ratings: Sequence[Sequence[float | str | None]], *, scale: Scale) -> float | None:
    """Return Krippendorff's alpha; `ratings[i][r]` is rater r's rating of item i, `None` where there is none.

    Items with fewer than two ratings cannot be paired and drop out. Ordinal and interval scales need numbers. `None`
    where all paired ratings are one value, or none can be paired.
    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    units = [[value for value in item if value is not None] for item in ratings]
    units = [unit for unit in units if len(unit) >= 2]
    pooled = Counter(value for unit in units for value in unit)
    if len(pooled) < 2:
        return None
    values = sorted(pooled) if scale is not Scale.NOMINAL else sorted(pooled, key=repr)
    place = {value: index for index, value in enumerate(values)}
    coincidence = np.zeros((len(values), len(values)))
    for unit in units:
        counts = np.bincount([place[value] for value in unit], minlength=len(values)).astype(float)
        # every ordered pair of ratings of one unit, weighing 1 / (m - 1) so that a unit weighs its m ratings
        coincidence += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    distance = _distance(values, coincidence.sum(axis=0), scale=scale)
    margins = coincidence.sum(axis=0)
    total = margins.sum()
    expected = float((np.outer(margins, margins) * distance).sum()) / (total - 1)
    return float(1 - (coincidence * distance).sum() / expected)


def _distance(values: Sequence[float | str], margins: Matrix, *, scale: Scale) -> Matrix:
    """Return squared distances between values. Ordinal: how many ratings lie between two ranks, ends counted half."""
    size = len(values)
    if scale is Scale.NOMINAL:
        return 1.0 - np.eye(size)
    if scale is Scale.INTERVAL:
        numbers = np.asarray(values, dtype=float)
        return np.asarray(np.subtract.outer(numbers, numbers) ** 2)
    middle = np.cumsum(margins) - margins / 2
    return np.asarray(np.subtract.outer(middle, middle) ** 2)


def with_interval(
    items: Sequence[Item], coefficient: Callable[[Sequence[Item]], float | None], *, seed: int = SEED
) -> Estimate | None:
    """Return a coefficient over items with percentile bootstrap intervals, items resampled whole.

    `coefficient` takes items (one rating of each rater, say) and returns one of the figures above. `None` where it is
    not defined on all items. Resamples on which it is not defined are left out; where these are over a fifth, no
    interval is stated.
    """
    value = coefficient(items)
    if value is None:
        return None
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        found = coefficient([items[int(place)] for place in random.integers(0, len(items), len(items))])
        if found is not None and math.isfinite(found):
            drawn.append(found)
    bounds = {}
    if len(items) >= 2 and len(drawn) >= 0.8 * RESAMPLES:
        for level in LEVELS:
            low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
            bounds[level] = (float(low), float(high))
    return Estimate(value=value, n=len(items), intervals=bounds, method="percentile bootstrap over items")
