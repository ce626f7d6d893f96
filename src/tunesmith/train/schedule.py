"""Learning rate over the steps of a run, as a pure function of the step.

    lr_at(step) = peak * warm-up share * decay

What lives here: shapes by their field-standard names. What does not: choosing the peak (`stages/train` warns).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

ScheduleName = Literal["linear", "cosine", "constant", "wsd"]

WSD_DECAY_SHARE = 0.2
"""Share of the steps in which warmup-stable-decay falls to zero (Hägele et al. 2024, 10 to 20%)."""


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _linear(progress: float) -> float:
    return 1.0 - progress


def _constant(progress: float) -> float:
    return 1.0


def _wsd(progress: float) -> float:
    return min(1.0, (1.0 - progress) / WSD_DECAY_SHARE)


DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _wsd,
}
"""Name -> decay factor at a progress from 0 (warm-up done) towards 1 (end)."""


def learning_rate_at(step: int, *, total_steps: int, peak: float, warmup_ratio: float, schedule: ScheduleName) -> float:
    """Return the learning rate of 0-based `step`.

    Warm-up takes `ceil(warmup_ratio * total_steps)` steps and rises linearly from 0: step 0 of a run with warm-up has
    rate 0, as in transformers' schedules, with which this agrees for linear, cosine and constant.
    """
    warmup = math.ceil(warmup_ratio * total_steps)
    if step < warmup:
        return peak * step / max(1, warmup)
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * max(0.0, DECAYS[schedule](min(1.0, progress)))
