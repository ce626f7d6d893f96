"""Optimizers by name, over parameter groups that say what decays and how fast it learns.

What lives here: making an optimizer. What does not: its learning rate over time (`train.schedule`), clipping and
stepping (`train.loop`), saving its state (`train.checkpoint`).

The loop sets `group["lr"]` to the schedule's rate times `group["lr_scale"]` before each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tunesmith.model.quantised import kernels

Group = dict[str, Any]


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


def adamw(
    groups: Sequence[Group], *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019), one fused kernel a step."""
    return torch.optim.AdamW(list(groups), lr=0.0, betas=(beta1, beta2), eps=epsilon, fused=True)


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


def adafactor(groups: Sequence[Group]) -> torch.optim.Optimizer:
    """Return Adafactor (Shazeer and Stern 2018): second moments of a matrix as one row and one column."""
    return torch.optim.Adafactor(list(groups), lr=0.0)


def sgd(groups: Sequence[Group], *, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Return stochastic gradient descent with momentum."""
    return torch.optim.SGD(list(groups), lr=0.0, momentum=momentum)


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
