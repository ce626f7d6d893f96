"""Compare two systems on the same items.

What lives here: the paired difference with its interval and p-value, what difference the items could show at all, and
non-inferiority. What does not: one system's interval (`evals.stats`).

    comparison = compare(base_scores, tuned_scores)
    comparison.difference, comparison.low, comparison.high, comparison.p
    comparison.minimum_detectable         # a true difference smaller than this would mostly be missed
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from tunesmith.evals.stats import (
    LEVEL,
    LEVELS,
    Floats,
    bootstrap_mean,
    cluster_indices,
    cluster_variance,
    critical,
)
from tunesmith.types import JSON

POWER = 0.8
"""Chance of finding a true difference of the minimum detectable size."""

Direction = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Challenger minus reference over the items that both answered."""

    difference: float
    p: float
    """Two-sided: the chance of a difference this large, either way, if the two were alike."""
    n: int
    intervals: Mapping[float, tuple[float, float]]
    method: str
    minimum_detectable: float | None
    """Smallest true difference that these items would show at the 5% level four times of five; `None` where the items
    leave no spread to work it out from."""
    only_reference: int | None = None
    """Items that only the reference got right; `None` unless scores are 0 or 1."""
    only_challenger: int | None = None
    clusters: int | None = None

    @property
    def low(self) -> float | None:
        """Lower bound at 95%."""
        return self.intervals[LEVEL][0] if LEVEL in self.intervals else None

    @property
    def high(self) -> float | None:
        """Upper bound at 95%."""
        return self.intervals[LEVEL][1] if LEVEL in self.intervals else None

    @property
    def resolved(self) -> bool:
        """Whether the 95% interval excludes no difference."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def to_json(self) -> dict[str, JSON]:
        """Return the shape of `results.json` (docs/evaluation.md)."""
        return {
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "p": self.p,
            "n": self.n,
            "level": LEVEL,
            "method": self.method,
            "resolved": self.resolved,
            "minimum_detectable": self.minimum_detectable,
            "only_reference": self.only_reference,
            "only_challenger": self.only_challenger,
            "clusters": self.clusters,
            "intervals": {f"{level:g}": list(bounds) for level, bounds in self.intervals.items()},
        }


def compare(
    reference: Sequence[float], challenger: Sequence[float], *, clusters: Sequence[Hashable] | None = None
) -> Comparison:
    """Return challenger minus reference, item by item.

    0/1 scores without clusters: Tango's score interval and McNemar's exact test. Everything else: BCa bootstrap over
    items or clusters, and a t test with (items or clusters) - 1 degrees of freedom on the differences.
    Raises `ValueError` without items.
    """
    if len(reference) != len(challenger) or not reference:
        raise ValueError(f"paired scores need the same items: {len(reference)} against {len(challenger)}")
    a, b = np.asarray(reference, dtype=float), np.asarray(challenger, dtype=float)
    differences = b - a
    labels = cluster_indices(clusters, a.size)
    groups = int(labels.max()) + 1
    grouped = groups < a.size
    binary = bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all())
    only_b, only_a = int((differences > 0).sum()), int((differences < 0).sum())
    if binary and not grouped:
        bounds: dict[float, tuple[float, float]] = {
            level: tango(only_b, only_a, a.size, level=level) for level in LEVELS
        }
        p, method = mcnemar_exact(only_b, only_a), "tango score interval, mcnemar exact"
    else:
        bounds = _difference_bounds(differences, labels, groups)
        p, method = _t_test(differences, labels, groups), "bca bootstrap, t test"
    return Comparison(
        difference=float(differences.mean()),
        p=p,
        n=a.size,
        intervals=bounds,
        method=method + (" over clusters" if grouped else ""),
        minimum_detectable=_minimum_detectable(differences, labels, groups),
        only_reference=only_a if binary else None,
        only_challenger=only_b if binary else None,
        clusters=groups if grouped else None,
    )


def mcnemar_exact(b: int, c: int) -> float:
    """Return the two-sided exact p-value of `b` against `c` discordant pairs (binomial with 1/2)."""
    n = b + c
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1))
    return min(1.0, 2 * tail / (1 << n))


def tango(b: int, c: int, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Return the score interval of the paired difference (b - c)/n (Tango 1998), found by bisection.

    It keeps its coverage for small n and for differences near 0 and 1, where the usual standard error is 0.
    """
    z = critical(level)
    observed = (b - c) / n

    def score(delta: float) -> float:
        # q: the restricted estimate of the rate of c-type pairs under a difference of delta
        square = -b - c + (2 * n - b + c) * delta
        constant = -c * delta * (1 - delta)
        q = (math.sqrt(max(0.0, square * square - 8 * n * constant)) - square) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        gap = b - c - n * delta
        if variance <= 0:
            return 0.0 if gap == 0 else math.copysign(math.inf, gap)
        return float(gap / math.sqrt(variance))

    def bisect(low: float, high: float, target: float) -> float:
        for _ in range(60):
            middle = (low + high) / 2
            if score(middle) > target:  # the score falls as delta grows
                low = middle
            else:
                high = middle
        return (low + high) / 2

    lower = -1.0 if observed <= -1 else bisect(-1.0, observed, z)
    upper = 1.0 if observed >= 1 else bisect(observed, 1.0, -z)
    return lower, upper


def _difference_bounds(differences: Floats, labels: np.ndarray, groups: int) -> dict[float, tuple[float, float]]:
    if groups < 2:
        return {}
    if groups >= 8:
        return bootstrap_mean(differences, labels)
    mean, error = float(differences.mean()), math.sqrt(cluster_variance(differences, labels, groups))
    return {
        level: (mean - critical(level, degrees=groups - 1) * error, mean + critical(level, degrees=groups - 1) * error)
        for level in LEVELS
    }


def _t_test(differences: Floats, labels: np.ndarray, groups: int) -> float:
    mean = float(differences.mean())
    if mean == 0 or groups < 2:
        return 1.0
    error = math.sqrt(cluster_variance(differences, labels, groups))
    if error == 0:
        return 0.0
    from scipy.special import stdtr

    return float(2 * stdtr(groups - 1, -abs(mean) / error))


def _minimum_detectable(differences: Floats, labels: np.ndarray, groups: int) -> float | None:
    if groups < 2:
        return None
    error = math.sqrt(cluster_variance(differences, labels, groups))
    return minimum_detectable_effect(error) if error > 0 else None


def minimum_detectable_effect(standard_error: float, *, alpha: float = 0.05, power: float = POWER) -> float:
    """Return the smallest true difference found with chance `power`: (z_{1-alpha/2} + z_power) x standard error."""
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * standard_error


def items_needed(effect: float, *, disagreement: float, alpha: float = 0.05, power: float = POWER) -> int:
    """Return how many paired 0/1 items find a difference of `effect` where the systems disagree on a share of items.

    n = (z_{1-alpha/2} + z_power)^2 (disagreement - effect^2) / effect^2 (Miller 2024 with binary scores).
    """
    assert 0 < abs(effect) <= disagreement <= 1, (effect, disagreement)
    normal = NormalDist()
    z = normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)
    return math.ceil(z * z * (disagreement - effect * effect) / (effect * effect))


def non_inferiority(
    comparison: Comparison, *, margin: float, better: Direction, confidence: float = 0.95
) -> Literal["pass", "fail", "not_resolvable"]:
    """Judge "the challenger is not worse than the reference by `margin` or more".

    `pass` where the one-sided bound at `confidence` excludes a loss of `margin`; `fail` where it excludes a loss
    smaller than `margin`; otherwise the items cannot tell.
    """
    level = round(2 * confidence - 1, 6)
    if level not in comparison.intervals:
        return "not_resolvable"
    low, high = comparison.intervals[level]
    least, most = (-high, -low) if better == "higher" else (low, high)  # the loss, smallest and largest
    if most < margin:
        return "pass"
    return "fail" if least > margin else "not_resolvable"
