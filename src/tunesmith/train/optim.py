"""Optimizers by name, over parameter groups that say what decays.

What lives here: making an optimizer. What does not: its learning rate over time (`train.schedule`), clipping and
stepping (`train.loop`), saving its state (`train.checkpoint`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


def parameter_groups(parameters: Mapping[str, torch.nn.Parameter], *, weight_decay: float) -> list[dict[str, object]]:
    """Return groups of parameters: matrices decay, vectors (norms, biases) never do, as in transformers' Trainer."""
    decayed = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    others = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups: list[dict[str, object]] = []
    if decayed:
        groups.append({"params": decayed, "weight_decay": weight_decay})
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return groups


def adamw(parameters: Mapping[str, torch.nn.Parameter], *, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW with torch's defaults (beta 0.9 and 0.999, epsilon 1e-8); the loop sets the learning rate."""
    return torch.optim.AdamW(parameter_groups(parameters, weight_decay=weight_decay), lr=0.0, fused=True)
