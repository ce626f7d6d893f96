"""The scale of the loss in float16, whose gradients vanish below 6e-8 and overflow above 65,504.

    scale = LossScale.of(torch.float16)          # 65,536; 1 and fixed for every other number format
    loss = loss_pass.loss(batch, denominator=denominator / scale.value)
    scale.unscale_(parameters)                   # float32 gradients are themselves again
    scale = scale.after(finite=True)

What lives here: the scale and its rule, that of `torch.amp.GradScaler` (Micikevicius et al. 2018, section 3.2): half at
an overflow, whose step is left out, and double after 2,000 steps without one. What does not: the loop. The scale enters
through the loss's denominator, because our loss makes its gradient in the forward.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from tunesmith.errors import TrainingError

FIRST_SCALE = 65_536.0
GROWTH_STEPS = 2_000
SMALLEST_SCALE = 1.0
"""A gradient that overflows without any scale is no matter of scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossScale:
    """What the loss is multiplied by before the backward."""

    value: float = 1.0
    dynamic: bool = False
    clean_steps: int = 0
    """Steps without an overflow since the last change."""

    @classmethod
    def of(cls, dtype: torch.dtype) -> LossScale:
        """Return the scale that a run in this number format begins with."""
        return cls(value=FIRST_SCALE, dynamic=True) if dtype == torch.float16 else cls()

    def unscale_(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Divide gradients by the scale."""
        if not self.dynamic:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(1.0 / self.value)

    def after(self, *, finite: bool) -> LossScale:
        """Return the scale of the next step. Raises `TrainingError` where no scale is small enough."""
        if not self.dynamic:
            return self
        if finite:
            clean = self.clean_steps + 1
            grows = clean == GROWTH_STEPS
            return replace(self, value=self.value * 2 if grows else self.value, clean_steps=0 if grows else clean)
        if self.value / 2 < SMALLEST_SCALE:
            raise TrainingError(
                "gradients overflow float16 at every scale of the loss",
                where="train.dtype",
                hint="set train.dtype to bfloat16 or float32, or lower train.learning_rate",
            )
        return replace(self, value=self.value / 2, clean_steps=0)
