"""An optimizer's state by the names of the parameters that it belongs to, and back.

What lives here: names instead of torch's numbers, which depend on groups. What does not: files (`train.checkpoint`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tunesmith.types import JSON


def state_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> tuple[dict[str, torch.Tensor], dict[str, JSON]]:
    """Return optimizer slots as `{parameter name}/{slot}` tensors, and slots that are plain numbers as JSON."""
    order = _names_in_order(optimizer, parameters)
    slots: dict[str, torch.Tensor] = {}
    plain: dict[str, JSON] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for slot, value in _unwrapped(state):
            key = f"{order[index]}/{slot}"
            if isinstance(value, torch.Tensor):
                slots[key] = value
            else:
                plain[key] = value
    return slots, plain


def _unwrapped(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a parameter's slots; bitsandbytes puts its 8-bit ones into a mapping, and takes them back without it."""
    for slot, value in state.items():
        yield from value.items() if isinstance(value, Mapping) else [(slot, value)]


def restore_(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    slots: Mapping[str, torch.Tensor],
    plain: Mapping[str, JSON],
) -> None:
    """Put back what `state_of` returned, in place."""
    order = _names_in_order(optimizer, parameters)
    whole = optimizer.state_dict()
    by_name: dict[str, dict[str, JSON]] = {}
    for key, value in (*slots.items(), *plain.items()):
        name, _, slot = key.rpartition("/")
        by_name.setdefault(name, {})[slot] = value
    whole["state"] = {index: by_name[name] for index, name in enumerate(order) if name in by_name}
    optimizer.load_state_dict(whole)


def _names_in_order(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]) -> list[str]:
    """Return parameter names in the order in which the optimizer numbers them: group after group."""
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
