"""The optimizers that a recipe may name, with their settings.

    optimizer: {kind: adamw, beta2: 0.95}
    optimizer: {kind: torch, name: NAdam, arguments: {decoupled_weight_decay: true}}
    optimizer: {kind: file, path: my_optimizer.py}      # it holds `def optimizer(groups, **arguments)`

What lives here: keys, and refusing what cannot be made before anything is trained. What does not: making them
(`train.optim`, where each kind is registered).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.core.spec import ContentPath, Spec


class AdamW(Spec):
    """AdamW."""

    kind: Literal["adamw"]
    """Optimizer: AdamW, one fused kernel a step."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean of gradients."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the mean of squared gradients."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared mean."""


class Adafactor(Spec):
    """Adafactor: second moments as one row and one column of each matrix, a fraction of AdamW's memory."""

    kind: Literal["adafactor"]
    """Optimizer: Adafactor."""


class AdamW8bit(Spec):
    """AdamW whose states lie in 8 bits, a quarter of AdamW's memory."""

    kind: Literal["adamw_8bit"]
    """Optimizer: AdamW with states in 8 bits, by bitsandbytes; needs `tunesmith[qlora]`."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean of gradients."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the mean of squared gradients."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared mean."""


class Muon(Spec):
    """Muon for matrices, its step scaled to AdamW's, and AdamW for the rest."""

    kind: Literal["muon"]
    """Optimizer: Muon."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the mean of gradients."""


class Sgd(Spec):
    """Stochastic gradient descent."""

    kind: Literal["sgd"]
    """Optimizer: gradient descent with momentum."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean of gradients."""


Arguments = dict[str, bool | int | float | str | None]


class TorchOptimizer(Spec):
    """An optimizer of torch by the name of its class."""

    kind: Literal["torch"]
    """Optimizer: a class of `torch.optim`."""
    name: str
    """Name of the class, such as NAdam."""
    arguments: Arguments = Field(default_factory=dict)
    """Its own arguments besides parameters, learning rate and weight decay, which the run gives."""


class FileOptimizer(Spec):
    """An optimizer of your own."""

    kind: Literal["file"]
    """Optimizer: what a function of a Python file returns."""
    path: ContentPath
    """A Python file with `def optimizer(groups, **arguments)`, which returns a `torch.optim.Optimizer` over them."""
    arguments: Arguments = Field(default_factory=dict)
    """What the function is called with besides the groups."""


OptimizerSpec = Annotated[
    AdamW | AdamW8bit | Adafactor | Muon | Sgd | TorchOptimizer | FileOptimizer, Field(discriminator="kind")
]


def check_optimizer(spec: OptimizerSpec) -> None:
    """Raise `PlanError` where an optimizer of torch or of a file cannot be made."""
    if isinstance(spec, TorchOptimizer | FileOptimizer):
        from tunesmith.train.optim import try_out

        try_out(spec.kind, **settings_of(spec))


def settings_of(spec: OptimizerSpec) -> dict[str, Any]:
    """Return what the maker of this kind is called with."""
    return spec.model_dump(exclude={"kind"})
