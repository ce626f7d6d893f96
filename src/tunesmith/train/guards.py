"""What makes a training run worthless, checked while it runs, so that it stops with the reason.

What lives here: NaN and infinity, gradients that vanish or never come, a loss that runs away, tensors that never learn.
What does not: hyper-parameters that look unwise before the run (`stages/train.check`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from tunesmith.errors import TrainingError
from tunesmith.train.world import whole

WINDOW = 8
"""Steps over which the loss is averaged before it is called diverging."""

RUNAWAY_NATS = 1.0
RUNAWAY_FACTOR = 1.5
"""A run diverges when the mean of the last 8 losses is above both the first 8's mean times 1.5 and that mean plus 1, in
one stage of a curriculum, or the validation loss is as far above the base's."""


def check_step(step: int, *, loss: float, grad_norm: float, row_ids: Sequence[str]) -> None:
    """Raise `TrainingError` when a step's loss or gradient is not a finite number, or the gradient is zero."""
    rows = ", ".join(row_ids[:4]) + (" ..." if len(row_ids) > 4 else "")
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        raise TrainingError(
            f"step {step}: the loss is {loss}, the gradient norm {grad_norm}",
            where=f"rows {rows}",
            hint="lower train.learning_rate, lengthen train.warmup_ratio, or set train.dtype to float32",
        )
    if grad_norm == 0.0:
        raise TrainingError(
            f"step {step}: every gradient is zero, so nothing is learned",
            where=f"rows {rows}",
            hint="the supervised tokens may be predicted perfectly already, or the adapter's targets get no gradient",
        )


def check_measured(step: int, measured: Mapping[str, float]) -> None:
    """Raise `TrainingError` when a figure of a validation is not a finite number: nothing compares with NaN."""
    for name, value in measured.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"after step {step}: {name} is {value}",
                where="the base model itself" if step == 0 else "the weights that were trained so far",
                hint="set train.dtype to bfloat16 or float32; if it is, lower train.learning_rate",
            )


def check_gradients(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Raise `TrainingError` for trained tensors that the first step's backward did not reach: no later one would."""
    without = [name for name, parameter in parameters.items() if parameter.grad is None]
    if without:
        raise TrainingError(
            f"{len(without)} of {len(parameters)} trainable tensors get no gradient",
            where=", ".join(without[:3]),
            hint="the loss does not depend on them: leave their layers out of train.adapter.targets",
        )


def check_divergence(step: int, *, early: Sequence[float], recent: Sequence[float]) -> None:
    """Raise `TrainingError` when the loss has run away from where the run began.

    `early` are the losses of the first steps or, in a run without validation rows, the base's on the rows of these.
    """
    if len(early) < WINDOW or len(recent) < WINDOW:
        return
    before, now = sum(early) / len(early), sum(recent) / len(recent)
    if now > before * RUNAWAY_FACTOR and now > before + RUNAWAY_NATS:
        raise TrainingError(
            f"step {step}: the loss diverges",
            expected=f"below its start, {before:.3f} over the first {WINDOW} steps",
            found=f"{now:.3f} over the last {WINDOW}",
            hint="lower train.learning_rate or lengthen train.warmup_ratio",
        )


def check_held_out(step: int, *, base: float, now: float, gained: bool) -> None:
    """Raise `TrainingError` when the validation loss has run away from the base model's and nothing was gained before.

    It sees a run that diverges within the steps that `check_divergence` takes for its start. `gained` says that weights
    better than the base are kept: then a loss that rises is overfitting, which patience and the best weights answer.
    """
    if step < WINDOW or gained:
        return
    if now > base * RUNAWAY_FACTOR and now > base + RUNAWAY_NATS:
        raise TrainingError(
            f"step {step}: the validation loss diverges",
            expected=f"below the base model's, {base:.3f}",
            found=f"{now:.3f}, and no validation before was better than the base's",
            hint="lower train.learning_rate or lengthen train.warmup_ratio",
        )


def check_learned(parameters: Mapping[str, torch.nn.Parameter], initial: Mapping[str, float]) -> None:
    """Raise `TrainingError` for a trained tensor that did not move, or that holds NaN or infinity, after the run.

    `initial` holds `fingerprint_of` each tensor before the first step.
    """
    for name, parameter in parameters.items():
        if not bool(torch.isfinite(whole(parameter.detach())).all()):
            raise TrainingError("a trained tensor holds NaN or infinity", where=name)
    still = [name for name, parameter in parameters.items() if fingerprint_of(parameter) == initial[name]]
    if still:
        raise TrainingError(
            f"{len(still)} of {len(parameters)} trainable tensors did not move",
            where=", ".join(still[:3]),
            hint="they get no gradient: check train.adapter.targets, and that the run has more steps than warm-up",
        )


def fingerprint_of(parameter: torch.Tensor) -> float:
    """Return a number that changes when a tensor does: its values weighted by their position."""
    values = whole(parameter.detach()).double().flatten()
    return float(torch.dot(values, torch.linspace(1.0, 2.0, values.numel(), dtype=torch.float64, device=values.device)))
