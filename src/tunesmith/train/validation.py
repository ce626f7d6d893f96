"""What is measured of a model while it trains, and which figure decides what is kept and when the run stops.

    Figure(name="val_loss", better="lower", every=50, measure=lambda: 1.2)
    Figure(name="exact_match", better="higher", every=100, measure=answer_and_score)

What lives here: when a figure is due, and the verdict on a new one. What does not: measuring (functions handed in),
keeping weights (`train.loop`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tunesmith.train.checkpoint import Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing that is measured before the first step, every so many steps, and after the last."""

    name: str
    better: Literal["lower", "higher"]
    every: int
    """Optimizer steps."""
    measure: Callable[[], float]
    """Returns the figure, the same in every process."""

    def beats(self, value: float, other: float) -> bool:
        """Whether `value` is better than `other`."""
        return value < other if self.better == "lower" else value > other

    def gained(self, best: Mapping[str, float], *, over: Mapping[str, float]) -> bool:
        """Whether the best measurements so far, by name, hold a better value of this figure than `over`."""
        return self.name in best and self.beats(best[self.name], over[self.name])


def measure_due(figures: Sequence[Figure], counters: Counters, *, last_step: int) -> dict[str, float]:
    """Return the figures that are due after `counters.step` steps, by name; none that were measured there already."""
    if counters.last_evaluated == counters.step:
        return {}
    is_last = counters.step == last_step
    return {figure.name: figure.measure() for figure in figures if is_last or counters.step % figure.every == 0}


def judged(counters: Counters, measured: Mapping[str, float], *, by: Figure | None) -> tuple[Counters, bool]:
    """Return the counters after these measurements, and whether the weights are the best so far under `by`;
    nothing is best where nothing decides.

    What the untrained model has is noted and is never the best: a run that learns nothing must not look like one.
    """
    counters = replace(counters, last_evaluated=counters.step)
    if counters.step == 0:
        return replace(counters, first=dict(measured)), False
    if by is None or by.name not in measured:
        return counters, False
    value = measured[by.name]
    if by.name in counters.best and not by.beats(value, counters.best[by.name]):
        return replace(counters, evals_since_best=counters.evals_since_best + 1), False
    return replace(counters, best=dict(measured), best_step=counters.step, evals_since_best=0), True
