"""Slice a model over processes with FSDP2, and run functions where its weights are whole.

    sharded = shard_(model, mesh, compute_dtype=None)
    loss = sharded(loss_pass.loss, batch, denominator=512.0)     # gathers, computes, gives the memory back
    loss.backward()                                              # likewise; gradients are summed and sliced

What lives here: what is sliced together and how gradients are reduced. What does not: starting processes
(`train.launch`), who computes what (`train.loop`), files (`train.shards`).

Each decoder layer is gathered by itself, just before it computes; embeddings, last norm and head together. A frozen
weight is sliced as well and has no gradient to reduce.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

P = ParamSpec("P")
T = TypeVar("T")


class ShardedModel(torch.nn.Module):
    """A sliced model; calling it with a function runs the function between FSDP2's gathering and releasing.

    FSDP2 works around a module's `forward`. Our passes call parts of the model (its layers without its head), so the
    outermost forward is this one, and the pass runs inside.
    """

    def __init__(self, model: PreTrainedModel, *, compute_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype

    def forward(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns."""
        return function(*args, **kwargs)


def shard_(model: PreTrainedModel, mesh: DeviceMesh, *, compute_dtype: torch.dtype | None) -> ShardedModel:
    """Replace every parameter of the model by this process's slice, on the mesh's device.

    Parameters keep their dtype; `compute_dtype` is what they are rounded to while gathered, with gradients reduced in
    float32, and `None` leaves them. Gradients are summed over processes, not averaged: the loss of each process is
    already its share of one global mean.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype,
        reduce_dtype=None if compute_dtype is None else torch.float32,
        cast_forward_inputs=False,  # a batch's loss weights are float32 whatever the weights are
    )
    settings: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "reshard_after_forward": True}
    layers = set(model._no_split_modules or ())
    for module in [module for module in model.modules() if type(module).__name__ in layers]:
        fully_shard(module, **settings)
    sharded = ShardedModel(model, compute_dtype=compute_dtype)
    fully_shard(sharded, **settings)
    for module in sharded.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    return sharded
