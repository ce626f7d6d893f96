"""How a started process finds its place in the world: from its environment to torch.distributed's default group.

    with joined(Place.from_environment(), layout="sharded", device="cpu") as (world, device): ...

What lives here: the names that torch's elastic agent, ours and Ray give a process, and the group made of them.
What does not: starting processes (`train.launch`), the sums themselves (`train.world`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from tunesmith.errors import TrainingError
from tunesmith.train.meeting import interface_towards
from tunesmith.train.world import Layout, World

ATTEMPT = "TUNESMITH_ATTEMPT"
"""torch's agents count their own restarts each, which differ between machines: this one all are told."""
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What the launcher told a process."""

    rank: int
    size: int
    local_rank: int
    """Rank among the processes of this machine: the number of its GPU."""
    attempt: int
    """How often the processes of this run were started again."""
    store: tuple[str, int] | None
    """Host and port of the launcher's key-value store; `None` where it made the group itself, as Ray Train does."""

    @classmethod
    def from_environment(cls) -> Place:
        """Read the variables that an agent sets."""
        return cls(
            rank=int(os.environ["RANK"]),
            size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            attempt=int(os.environ[ATTEMPT]),
            store=(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])),
        )


@contextlib.contextmanager
def joined(place: Place, *, layout: Layout, device: str) -> Iterator[tuple[World, str]]:
    """Join the group and yield this process's world and device; leave the group at the end.

    `device` is `cpu` (gloo) or `cuda` (NCCL, and gloo for what lives in memory). Raises `TrainingError` for a process
    without a GPU of its own.
    """
    if device != "cpu":
        if place.local_rank >= torch.cuda.device_count():
            raise TrainingError(
                f"process {place.rank} has no GPU of its own",
                where="train.parallel.processes",
                expected=f"at most {torch.cuda.device_count()} processes on this machine",
                found=f"process {place.local_rank + 1}",
            )
        device = f"cuda:{place.local_rank}"
        torch.cuda.set_device(device)
    if place.store is not None:
        _make_group(place, *place.store, device=device)
    yield World(layout=layout, rank=place.rank, size=place.size), device
    if place.store is not None:
        dist.destroy_process_group()  # not after an error: it may wait for a process that is gone


def _make_group(place: Place, host: str, port: int, *, device: str) -> None:
    interface = interface_towards(host)
    if interface is not None:  # else gloo asks the network for this machine's name, and NCCL takes what it likes
        for name in _INTERFACES:
            os.environ.setdefault(name, interface)
    # The launcher keeps one store over restarts: without a prefix of its own a second attempt would read the keys of
    # the first, and wait for processes that are gone.
    store = TCPStore(host, port, is_master=False)
    dist.init_process_group(
        "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
        store=PrefixStore(f"attempt-{place.attempt}", store),
        rank=place.rank,
        world_size=place.size,
    )
