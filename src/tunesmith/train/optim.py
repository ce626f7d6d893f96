"""Optimizers by name, over parameter groups that say what decays and how fast it learns.

    optimizer = make("adamw", parameter_groups(parameters, weight_decay=0.01), beta2=0.95)

What lives here: the registry of kinds, and making an optimizer. What does not: its learning rate over time
(`train.schedule`), clipping and stepping (`train.loop`), saving its state (`train.checkpoint`).

The loop sets `group["lr"]` to the schedule's rate times `group["lr_scale"]` before each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import PlanError, nearest
from tunesmith.model.quantised import kernels
from tunesmith.user_code import load_function

Group = dict[str, Any]
Maker = Callable[..., torch.optim.Optimizer]
"""`maker(groups, **settings)`."""

_MAKERS: dict[str, Maker] = {}


def kind(name: str) -> Callable[[Maker], Maker]:
    """Register the maker of a kind of optimizer."""

    def register(maker: Maker) -> Maker:
        _MAKERS[name] = maker
        return maker

    return register


def make(name: str, groups: Sequence[Group], /, **settings: Any) -> torch.optim.Optimizer:
    """Return an optimizer of a registered kind over parameter groups."""
    made = _MAKERS[name](groups, **settings)
    for group in made.param_groups:
        group.setdefault("lr_scale", 1.0)  # What a user's own function leaves out.
    return made


def try_out(name: str, /, **settings: Any) -> None:
    """Make an optimizer over a small matrix and step it. Raises `PlanError` where it cannot be made or moves none."""
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    made = make(name, [{"params": [parameter], "weight_decay": 0.0, "lr_scale": 1.0, "lr": 0.0}], **settings)
    if not made.param_groups or "lr" not in made.param_groups[0]:
        raise PlanError("the optimizer has no groups with a learning rate", where="train.optimizer")
    for group in made.param_groups:
        group["lr"] = 0.1
    parameter.grad = torch.ones(2, 2)
    try:
        made.step()
    except Exception as error:
        raise PlanError(
            "the optimizer does not step", where="train.optimizer", found=f"{type(error).__name__}: {error}"
        ) from error
    if bool((parameter == 1).all()):
        raise PlanError(
            "the optimizer changes nothing",
            where="train.optimizer",
            expected="a step along the gradient at the learning rate of its groups",
            hint="read the rate from group['lr'] at every step: the schedule sets it",
        )


def parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter], *, weight_decay: float, lora_plus_ratio: float = 1.0
) -> list[Group]:
    """Return groups of parameters: matrices decay, vectors (norms, biases) never do, as in transformers' Trainer.

    `lora_plus_ratio` is how much faster the B matrices of an adapter learn than all else (LoRA+, Hayou et al. 2024).
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        scale = lora_plus_ratio if ".lora_B." in name else 1.0
        groups.setdefault((decay, scale), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "lr_scale": scale, "lr": 0.0}
        for (decay, scale), members in groups.items()
    ]


@kind("adamw")
def adamw(
    groups: Sequence[Group], *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019), one fused kernel a step."""
    return torch.optim.AdamW(list(groups), lr=0.0, betas=(beta1, beta2), eps=epsilon, fused=True)


@kind("adamw_8bit")
def adamw_8bit(
    groups: Sequence[Group], *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
) -> torch.optim.Optimizer:
    """Return AdamW with states in 8 bits, in blocks of 256 (Dettmers et al. 2022); small tensors keep 32.

    Raises `PlanError` where bitsandbytes is not installed.
    """
    kernels()
    from bitsandbytes.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(list(groups), lr=0.0, betas=(beta1, beta2), eps=epsilon)
    return made


@kind("adafactor")
def adafactor(groups: Sequence[Group]) -> torch.optim.Optimizer:
    """Return Adafactor (Shazeer and Stern 2018): second moments of a matrix as one row and one column."""
    return torch.optim.Adafactor(list(groups), lr=0.0)


@kind("sgd")
def sgd(groups: Sequence[Group], *, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Return stochastic gradient descent with momentum."""
    return torch.optim.SGD(list(groups), lr=0.0, momentum=momentum)


@kind("torch")
def from_torch(groups: Sequence[Group], *, name: str, arguments: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return an optimizer of `torch.optim` by the name of its class. Raises `PlanError` for what is none."""
    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and key not in ("Optimizer", "LBFGS")
    }
    if name not in known:
        raise PlanError(
            f"torch.optim has no optimizer {name!r} for steps of one gradient",
            where="train.optimizer.name",
            found=name,
            hint=f"nearest: {', '.join(nearest(name, known))}",
        )
    made: torch.optim.Optimizer = _made(
        known[name], groups, arguments, what=f"torch.optim.{name}", defaults={"lr": 0.0}
    )
    return made


@kind("file")
def from_file(groups: Sequence[Group], *, path: str, arguments: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return what the function `optimizer` of a Python file makes. Raises `PlanError` where it cannot be had."""
    where = Path(path)
    function = load_function(where, "optimizer", parameters="groups", error=PlanError)
    made = _made(function, groups, arguments, what=f"optimizer of {where.name}", defaults={})
    if not isinstance(made, torch.optim.Optimizer):
        raise PlanError(
            f"optimizer of {where.name} returned no optimizer",
            where=path,
            expected="a torch.optim.Optimizer",
            found=type(made).__name__,
        )
    return made


def _made(
    maker: Callable[..., Any], groups: Sequence[Group], arguments: Mapping[str, Any], *, what: str, defaults: Group
) -> Any:
    try:
        return maker(list(groups), **defaults, **arguments)
    except Exception as error:
        raise PlanError(
            f"{what} cannot be made with these arguments",
            where="train.optimizer.arguments",
            found=f"{type(error).__name__}: {error}",
        ) from error


@kind("muon")
def muon(groups: Sequence[Group], *, momentum: float = 0.95) -> torch.optim.Optimizer:
    """Return Muon (Jordan et al. 2024) for matrices, its step scaled to AdamW's so that rates carry over.

    Vectors, and matrices with more than 16,384 rows (embeddings and heads, which Muon is not for), take AdamW.
    """
    matrices: list[Group] = []
    others: list[Group] = []
    for group in groups:
        for chosen, members in (
            (matrices, [p for p in group["params"] if _is_muons(p)]),
            (others, [p for p in group["params"] if not _is_muons(p)]),
        ):
            if members:
                chosen.append({**group, "params": members})
    first = torch.optim.Muon(matrices, lr=0.0, momentum=momentum, adjust_lr_fn="match_rms_adamw") if matrices else None
    second = adamw(others) if others else None
    if first is None or second is None:
        only = first or second
        assert only is not None
        return only
    return PairedOptimizer(first, second)


MUON_MAX_ROWS = 16_384


def _is_muons(parameter: torch.nn.Parameter) -> bool:
    return parameter.ndim == 2 and max(parameter.shape) <= MUON_MAX_ROWS


class PairedOptimizer(torch.optim.Optimizer):
    """Two optimizers over different parameters, stepped, saved and restored as one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})
        # One set of groups: what the loop writes into them, the parts read.
        self.param_groups = [*first.param_groups, *second.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step both."""
        assert closure is None
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return one state, the second's parameters numbered after the first's."""
        first, second = (part.state_dict() for part in self.parts)
        offset = _count(first)
        state = first["state"] | {index + offset: slots for index, slots in second["state"].items()}
        return {"state": state, "param_groups": [*first["param_groups"], *second["param_groups"]]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both from what `state_dict` returned."""
        offset = 0
        for part in self.parts:
            whole = part.state_dict()
            count = _count(whole)
            whole["state"] = {
                index - offset: slots
                for index, slots in state_dict["state"].items()
                if offset <= index < offset + count
            }
            part.load_state_dict(whole)
            offset += count
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _count(state_dict: Mapping[str, Any]) -> int:
    return sum(len(group["params"]) for group in state_dict["param_groups"])
