"""Figures with intervals: shares (Wilson) and quantiles (order statistics), and how many there were.

What lives here: two estimates. What does not: which traces they are taken over (`monitor.kpis`).
A figure over nothing has no value; it is never zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy import stats

from tunesmith.types import JSON

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure with its two-sided 95% interval."""

    value: float | None
    """`None` where nothing was measured."""
    low: float | None
    high: float | None
    """`None` is unbounded: so few observations say nothing about that side."""
    n: int
    """Observations that the figure rests on."""

    def to_json(self) -> dict[str, JSON]:
        """Return the fields, rounded to six digits."""
        return {
            "value": _rounded(self.value),
            "low": _rounded(self.low),
            "high": _rounded(self.high),
            "n": self.n,
        }


NOTHING = Figure(value=None, low=None, high=None, n=0)


def share(hits: Iterable[bool]) -> Figure:
    """Return the share of true values with its Wilson score interval (Wilson 1927)."""
    values = list(hits)
    if not values:
        return NOTHING
    bounds = stats.binomtest(sum(values), len(values)).proportion_ci(CONFIDENCE, method="wilson")
    return Figure(value=sum(values) / len(values), low=float(bounds.low), high=float(bounds.high), n=len(values))


def quantile(values: Sequence[float], q: float) -> Figure:
    """Return a quantile with its distribution-free interval.

    The bounds are the order statistics between whose ranks Binomial(n, q) falls with 95% probability (Conover,
    Practical Nonparametric Statistics, 3.2). A bound whose rank would lie outside of the sample is `None`: the 95th
    percentile has no upper bound below 72 values or so.
    """
    if not values:
        return NOTHING
    ordered = sorted(values)
    n = len(ordered)
    tail = (1 - CONFIDENCE) / 2
    low_rank = int(stats.binom.ppf(tail, n, q))
    high_rank = int(stats.binom.ppf(1 - tail, n, q)) + 1
    return Figure(
        value=_interpolated(ordered, q),
        low=ordered[low_rank - 1] if low_rank >= 1 else None,
        high=ordered[high_rank - 1] if high_rank <= n else None,
        n=n,
    )


def _interpolated(ordered: Sequence[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
