"""Which examples a run sees, in which order, where its sources have shares of their own.

    parts = [Part(name="warm", length=1, shares={"general": 0.5}), Part(name="task", length=4, shares={"general": 0.1})]
    mixed_order(parts, trained, origins, num_epochs=2, seed=0)  ->  example numbers, from the first step to the last

What lives here: the order, and the account of it by source. What does not: reading a recipe, warnings (`stages`).

Shares are shares of the trained tokens, because these are what the loss is a mean over. At each position:

    the share that is furthest behind  ->  its source that was passed over least  ->  that source's next example

A source is a stream of passes, each a permutation from (seed, source, pass). The whole order is computed before the
first step from the examples and the settings alone: nothing that a run goes through can change it, a step number is
all that a resume needs, and processes divide steps that they all know.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tunesmith.errors import DataError, PlanError
from tunesmith.types import RowRole, canonical_json, sha256_hex

Order = np.ndarray[Any, np.dtype[np.int64]]
ROLES = tuple(role.value for role in RowRole)
_TINY = 1e-9
"""Shares are written in decimals: what they miss one by is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """Where each example comes from."""

    sources: tuple[str, ...]
    roles: tuple[str, ...]

    def digest(self) -> str:
        """Return the sha256 of both, as 64 hex digits: with the settings and the examples it decides the order."""
        return sha256_hex(canonical_json([self.sources, self.roles]))

    def of_role(self, role: str) -> set[str]:
        """Return the sources that have examples of a role."""
        return {source for source, its in zip(self.sources, self.roles, strict=True) if its == role}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One stage of a curriculum; a constant mix has one."""

    name: str
    length: float
    """In trained tokens, relative to the other parts."""
    shares: Mapping[str, float]
    """`task`, `general` or a source -> share of the trained tokens; what is left of 1 is the task's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """The order of a whole run."""

    order: Order
    begins: tuple[int, ...]
    """Position at which each part begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedPlan:
    """Which examples each optimizer step sees: consecutive pieces of the order."""

    order: Order
    parts: tuple[tuple[str, int], ...]
    """(name, position at which it begins) of each part."""
    batch_size: int
    num_epochs: float
    max_steps: int | None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        steps = math.ceil(len(self.order) / self.batch_size)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which the task's examples are passed over once, on average over the run."""
        return max(1, round(math.ceil(len(self.order) / self.batch_size) / self.num_epochs))

    def examples_of(self, step: int) -> list[int]:
        """Return the examples of 0-based `step`."""
        chosen: list[int] = self.order[step * self.batch_size : (step + 1) * self.batch_size].tolist()
        return chosen

    def begins_stage(self, step: int) -> bool:
        """Whether a part begins among the examples of 0-based `step`."""
        return any(begin // self.batch_size == step for _, begin in self.parts)

    def spans(self) -> list[tuple[str, int, int]]:
        """Return (name, begin, end) of each part, in positions of the order."""
        ends = [*(begin for _, begin in self.parts[1:]), len(self.order)]
        return [(name, begin, end) for (name, begin), end in zip(self.parts, ends, strict=True)]


def read_origins(path: Path) -> Origins:
    """Read source and role of each example. Raises `DataError` where the file does not hold them."""
    table = pq.ParquetFile(path)
    if not {"source", "role"} <= set(table.schema_arrow.names):
        raise DataError(
            "the encoded examples do not say which source they are of",
            where=str(path),
            expected="columns source and role",
            found=", ".join(table.schema_arrow.names),
            hint="run encode again",
        )
    columns = table.read(columns=["source", "role"])
    return Origins(sources=tuple(columns["source"].to_pylist()), roles=tuple(columns["role"].to_pylist()))


def pools_of(part: Part, origins: Origins) -> dict[str, tuple[float, frozenset[str]]]:
    """Return what a part draws on: name -> (share, sources), no source in two of them.

    A role stands for its sources that are not named themselves. Raises `PlanError` for a name that is neither a role
    nor a source, and for a share of what has no examples.
    """
    shares = dict(part.shares)
    rest = 1 - sum(shares.values())
    if "task" not in shares and rest > _TINY:
        shares["task"] = rest
    named = {name for name in shares if name not in ROLES}
    known = set(origins.sources)
    pools = {}
    for name, share in shares.items():
        if share <= 0:
            continue
        sources = origins.of_role(name) - named if name in ROLES else {name} & known
        if not sources:
            raise PlanError(
                f"the mix gives {share:.0%} to {name!r}, and no training example is of it",
                where="train.mix",
                expected=f"a role ({', '.join(ROLES)}) or a source: {', '.join(sorted(known))}",
                found=name,
                hint="general data needs a source with role: general in ingest" if name == "general" else None,
            )
        pools[name] = (share, frozenset(sources))
    return pools


class _Stream:
    """A source's examples, pass after pass, each in another order."""

    def __init__(self, name: str, examples: Order, trained: int, seed: int) -> None:
        self.name = name
        self.trained = trained
        """Trained tokens of one pass."""
        self.drawn = 0
        """Trained tokens drawn so far."""
        self._examples = examples
        self._seed = [seed, int(sha256_hex(name)[:8], 16)]
        self._drawing = self._draw()

    @property
    def progress(self) -> float:
        """Passes done, by trained tokens."""
        return self.drawn / self.trained

    def next(self) -> int:
        """Return the next example."""
        return next(self._drawing)

    def _draw(self) -> Iterator[int]:
        at_pass = 0
        while True:
            order = np.random.default_rng([*self._seed, at_pass]).permutation(len(self._examples))
            yield from self._examples[order].tolist()
            at_pass += 1


class _Pool:
    """Sources that have one share together: the next example is of the source that was passed over least."""

    def __init__(self, share: float, streams: Sequence[_Stream]) -> None:
        self.share = share
        self.drawn = 0
        self._waiting = [(stream.progress, stream.name, stream) for stream in streams]
        heapq.heapify(self._waiting)

    def draw(self, trained: Sequence[int]) -> int:
        """Return the next example, and count its tokens."""
        _, name, stream = self._waiting[0]
        example = stream.next()
        stream.drawn += trained[example]
        self.drawn += trained[example]
        heapq.heapreplace(self._waiting, (stream.progress, name, stream))
        return example


def mixed_order(parts: Sequence[Part], trained: Order, origins: Origins, *, num_epochs: float, seed: int) -> Mixed:
    """Return the order of a whole run.

    `trained` has the trained tokens of each example, all above 0. `num_epochs` counts passes over the task's examples:
    the run ends when it has drawn that many of their tokens, and general examples come on top of them. With one part,
    or parts that draw on the whole task, every example of the task is seen `num_epochs` times, rounded up or down.
    Raises `PlanError` where a share has no examples, or no part trains the task.
    """
    counts = trained.tolist()
    general = origins.of_role(RowRole.GENERAL)
    task_tokens = sum(count for count, role in zip(counts, origins.roles, strict=True) if role == RowRole.TASK)
    drawn_from = [pools_of(part, origins) for part in parts]
    task_share = [sum(share for share, sources in pools.values() if not sources <= general) for pools in drawn_from]
    whole = sum(part.length for part in parts)
    task_of_all = sum(part.length / whole * share for part, share in zip(parts, task_share, strict=True))
    if task_of_all <= _TINY:
        raise PlanError("the mix trains no row of the task", where="train.mix", expected="a share above 0 for the task")
    total_tokens = num_epochs * task_tokens / task_of_all

    by_source: dict[str, list[int]] = {}
    for index, source in enumerate(origins.sources):
        by_source.setdefault(source, []).append(index)
    streams = {
        source: _Stream(source, np.asarray(indices), sum(counts[index] for index in indices), seed)
        for source, indices in by_source.items()
    }
    order: list[int] = []
    begins = []
    drawn = task_drawn = 0
    planned = 0.0
    is_task = [role == RowRole.TASK for role in origins.roles]
    for number, (part, pools_by_name) in enumerate(zip(parts, drawn_from, strict=True), start=1):
        begins.append(len(order))
        planned += part.length / whole * total_tokens
        pools = [
            _Pool(share, [streams[source] for source in sorted(sources)])
            for _, (share, sources) in sorted(pools_by_name.items(), key=lambda item: (-item[1][0], item[0]))
        ]
        ends_with_task = number == len(parts) and task_share[number - 1] > 0
        here = 0
        # Whole numbers of passes come out exactly where the task's own tokens end the run, not the sum of all.
        while task_drawn < num_epochs * task_tokens if ends_with_task else drawn < planned:
            pool = max(pools, key=lambda pool: pool.share * here - pool.drawn)
            example = pool.draw(counts)
            order.append(example)
            here += counts[example]
            drawn += counts[example]
            task_drawn += counts[example] if is_task[example] else 0
    return Mixed(order=np.asarray(order, dtype=np.int64), begins=tuple(begins))


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAccount:
    """What a run, or a part of one, sees of one source."""

    source: str
    role: str
    examples: int
    """Examples that the source has."""
    seen: int
    """Times that one of them is trained on."""
    never_seen: int
    epochs: float
    """`seen / examples`."""
    trained_tokens: int
    """Trained tokens that are drawn."""


def account(order: Order, trained: Order, origins: Origins) -> tuple[SourceAccount, ...]:
    """Return the account of each source over an order, or over a piece of one, in order of names."""
    times = np.bincount(order, minlength=len(trained))
    names = np.asarray(origins.sources)
    out = []
    for source in sorted(set(origins.sources)):
        indices = np.flatnonzero(names == source)
        seen = int(times[indices].sum())
        out.append(
            SourceAccount(
                source=source,
                role=origins.roles[indices[0]],
                examples=len(indices),
                seen=seen,
                never_seen=int((times[indices] == 0).sum()),
                epochs=seen / len(indices),
                trained_tokens=int((times[indices] * trained[indices]).sum()),
            )
        )
    return tuple(out)


def share_of_general(accounts: Sequence[SourceAccount]) -> float:
    """Return the general rows' share of the trained tokens."""
    total = sum(item.trained_tokens for item in accounts)
    general = sum(item.trained_tokens for item in accounts if item.role == RowRole.GENERAL)
    return general / total if total else 0.0
