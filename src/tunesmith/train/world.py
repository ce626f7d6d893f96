"""The processes of one run as the engine sees them: who am I, how many are we, and sums over all of us.

    World()                                       one process: every sum is its own value
    World(layout="replicated", rank=1, size=2)    each process holds all weights; gradients are summed after the passes
    World(layout="sharded", rank=1, size=2)       each process holds a slice of every weight; FSDP2 sums gradients

What lives here: the collectives that the loop and the checkpoints need, over torch.distributed's default group, and the
two views of a sharded tensor. What does not: starting processes (`train.launch`), slicing a model (`model.sharding`).

Every process of a world must make the same calls in the same order. A world of one never touches torch.distributed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

Layout = Literal["alone", "replicated", "sharded"]

T = TypeVar("T")

BUCKET_ELEMENTS = 16_777_216
"""Gradients travel in pieces of at most 64 MB of float32: large enough for full speed, small beside a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Where this process stands among those of its run."""

    layout: Layout = "alone"
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def totals(self, *values: float) -> tuple[float, ...]:
        """Return the sum of each value over all processes, the same in every process."""
        if self.size == 1:
            return values
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def gathered(self, value: T) -> list[T]:
        """Return every process's value, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agreed(self, value: T) -> T:
        """Return the first process's value: what all go by where clocks or measurements differ."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def seed_apart_(self, seed: int) -> None:
        """Give every process but the first random numbers of its own, for dropout and noise."""
        if not self.leads:
            torch.manual_seed(seed * 1_000_003 + self.rank)

    def wait(self) -> None:
        """Return when every process has called this."""
        if self.size > 1:
            dist.barrier()

    def sum_gradients_(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes.

        A process whose share of the step gave a parameter no gradient counts as zero; a parameter that got none
        anywhere keeps none. Sharded weights are left alone: FSDP2 has summed them in the backward.
        """
        if self.layout != "replicated" or self.size == 1:
            return
        everyone = list(parameters)
        present = torch.tensor([parameter.grad is not None for parameter in everyone], dtype=torch.int32)
        dist.all_reduce(present)
        trained = [parameter for parameter, count in zip(everyone, present.tolist(), strict=True) if count]
        for bucket in _buckets(trained):
            sizes = [parameter.numel() for parameter in bucket]
            flat = torch.cat([_gradient(parameter).flatten() for parameter in bucket])
            dist.all_reduce(flat)
            for parameter, total in zip(bucket, torch.split(flat, sizes), strict=True):
                parameter.grad = total.view_as(parameter).clone()


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(parameters: Iterable[torch.nn.Parameter]) -> Iterable[list[torch.nn.Parameter]]:
    """Yield runs of parameters of one dtype with at most `BUCKET_ELEMENTS` numbers; a larger one stands alone."""
    bucket: list[torch.nn.Parameter] = []
    elements = 0
    for parameter in parameters:
        full = elements + parameter.numel() > BUCKET_ELEMENTS
        if bucket and (full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, elements = [], 0
        bucket.append(parameter)
        elements += parameter.numel()
    if bucket:
        yield bucket


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor; every process of a sharded world must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return the slice of a tensor that this process holds, sharing its memory; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
