"""Several training seeds: what another seed would change, apart from what other items would.

    figure = over_seeds([{"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 1.0}])    # one table of item scores for each seed
    figure.estimate.value       # mean over seeds and items
    figure.seeds.values         # one mean for each seed, and their standard deviation
    figure.items                # the interval of other items, for these seeds
    figure.estimate.low         # both kinds of noise together

What lives here: the two parts and their sum, of one system and of its difference to the base. What does not: one seed's
figures (`evals.results`), reading evaluations (`stages.seeds`).

How they are added: the bounds of items (Wilson, BCa) and those of seeds (Student's t with seeds - 1 degrees of freedom)
each lie some way from the mean; the joint bound lies the root of the sum of their squares away (MOVER: Zou and Donner
2008). It keeps the skew of a proportion near 1 and is never too narrow; with two or three seeds t is so wide that it
covers 96 to 99% where 95% is stated. More seeds are the cure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import stdev

from tunesmith.evals.compare import Comparison, compare, minimum_detectable_effect
from tunesmith.evals.stats import LEVEL, Estimate, critical, estimate, seed_spread
from tunesmith.types import JSON

Scores = Mapping[str, float]
"""Item -> score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedNoise:
    """One figure for each training seed."""

    values: tuple[float, ...]
    spread: Estimate
    """Their mean, with a t interval."""

    @property
    def deviation(self) -> float:
        """Standard deviation between seeds."""
        return stdev(self.values)

    def to_json(self) -> dict[str, JSON]:
        """Return `{values, mean, sd, low, high, n}`."""
        return {
            "values": list(self.values),
            "mean": self.spread.value,
            "sd": self.deviation,
            "low": self.spread.low,
            "high": self.spread.high,
            "n": len(self.values),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedFigure:
    """A metric of one system over seeds."""

    estimate: Estimate
    """Mean over seeds and items; its intervals hold both kinds of noise."""
    items: Estimate
    """The same mean; its intervals hold the noise of items alone."""
    seeds: SeedNoise

    def to_json(self) -> dict[str, JSON]:
        """Return an entry of `results.json` with `seeds` and `items` beside it."""
        items = {"low": self.items.low, "high": self.items.high, "method": self.items.method}
        return {**self.estimate.to_json(), "seeds": self.seeds.to_json(), "items": items}


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedDifference:
    """Tuned minus base over seeds, on the same items."""

    comparison: Comparison
    """Mean difference; intervals and p-value hold both kinds of noise."""
    items: Comparison
    seeds: SeedNoise

    def to_json(self) -> dict[str, JSON]:
        """Return an entry of `paired` with `seeds` and `items` beside it."""
        items = {"low": self.items.low, "high": self.items.high, "p": self.items.p}
        return {**self.comparison.to_json(), "seeds": self.seeds.to_json(), "items": items}


def over_seeds(by_seed: Sequence[Scores], *, clusters: Mapping[str, str] | None = None) -> SeedFigure:
    """Return a metric's mean over seeds, on the items that every seed has a score for.

    Raises `ValueError` for fewer than two seeds, or where they share no item.
    """
    shared = _shared(by_seed)
    means = [sum(scores[item] for scores in by_seed) / len(by_seed) for item in shared]
    items = estimate(means, clusters=_labels(shared, clusters))
    seeds = _noise([sum(scores[item] for item in shared) / len(shared) for scores in by_seed])
    joint = replace(
        items,
        intervals=_joint(
            items.value, items.intervals, seeds.spread.intervals, within=(0, 1) if _binary(by_seed) else None
        ),
        method=f"{items.method} and t over {len(by_seed)} seeds",
    )
    return SeedFigure(estimate=joint, items=items, seeds=seeds)


def difference_over_seeds(
    base: Scores, by_seed: Sequence[Scores], *, clusters: Mapping[str, str] | None = None
) -> SeedDifference:
    """Return the mean difference of all seeds to one base. Raises `ValueError` as `over_seeds` does."""
    shared = _shared([base, *by_seed], fewest=3)
    means = [sum(scores[item] for scores in by_seed) / len(by_seed) for item in shared]
    items = compare([base[item] for item in shared], means, clusters=_labels(shared, clusters))
    seeds = _noise([sum(scores[item] - base[item] for item in shared) / len(shared) for scores in by_seed])
    within = (-1, 1) if _binary([base, *by_seed]) else None
    bounds = _joint(items.difference, items.intervals, seeds.spread.intervals, within=within)
    error = seeds.deviation / math.sqrt(len(by_seed))
    if items.minimum_detectable is not None:
        error = math.hypot(error, items.minimum_detectable / minimum_detectable_effect(1.0))
    joint = replace(
        items,
        intervals=bounds,
        p=_p_value(items, seeds),
        method=f"{items.method} and t over {len(by_seed)} seeds",
        minimum_detectable=minimum_detectable_effect(error) if error > 0 else None,
        only_reference=None,
        only_challenger=None,
    )
    return SeedDifference(comparison=joint, items=items, seeds=seeds)


def _shared(tables: Sequence[Scores], *, fewest: int = 2) -> list[str]:
    if len(tables) < fewest:
        raise ValueError("several seeds are needed to tell their noise from that of items")
    shared = [item for item in tables[0] if all(item in table for table in tables)]
    if not shared:
        raise ValueError("the seeds share no item")
    return shared


def _labels(items: Sequence[str], clusters: Mapping[str, str] | None) -> list[str] | None:
    return None if clusters is None else [clusters[item] for item in items]


def _noise(values: Sequence[float]) -> SeedNoise:
    return SeedNoise(values=tuple(values), spread=seed_spread(values))


def _joint(
    value: float,
    items: Mapping[float, tuple[float, float]],
    seeds: Mapping[float, tuple[float, float]],
    *,
    within: tuple[float, float] | None = None,
) -> dict[float, tuple[float, float]]:
    """Return bounds whose distance from the value is the root of the sum of squares of both distances.

    `within` is where the figure must lie: few seeds give bounds beyond it.
    """
    least, most = within or (-math.inf, math.inf)
    return {
        level: (
            max(least, value - math.hypot(value - items[level][0], value - seeds[level][0])),
            min(most, value + math.hypot(items[level][1] - value, seeds[level][1] - value)),
        )
        for level in items
        if level in seeds
    }


def _binary(tables: Sequence[Scores]) -> bool:
    return all(score in (0.0, 1.0) for table in tables for score in table.values())


def _p_value(items: Comparison, seeds: SeedNoise) -> float:
    """Return the two-sided p-value that belongs to the joint interval, never below that of items alone.

    The distance of 0 from the difference, in units of the interval's half on that side, is read as a normal deviate.
    """
    bounds = _joint(items.difference, items.intervals, seeds.spread.intervals)
    if LEVEL not in bounds or items.difference == 0:
        return 1.0
    low, high = bounds[LEVEL]
    half = items.difference - low if items.difference > 0 else high - items.difference
    if half == 0:
        return items.p
    from scipy.special import ndtr

    return max(items.p, float(2 * ndtr(-abs(items.difference) / half * critical(LEVEL))))
