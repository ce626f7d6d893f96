"""From examples to flat batches: which examples make a step, which share a pass, and how they lie in it.

    epoch order (seeded)  ->  steps of `batch_size` examples  ->  one share for each process
                          ->  micro-batches of at most `max_tokens`  ->  FlatBatch

What lives here: ordering, grouping, sharing of common prefixes, flattening. What does not: the loss (`train.loss`),
attention over the layout (`model.attention`).

A flat batch has no padding. Documents that begin with the same tokens (one system prompt) have those tokens once: their
hidden states are equal in every layer, because attention is causal, so the shared computation is exact, gradients
included. Documents are sorted inside a step so that equal beginnings meet; the loss is a sum, so order changes nothing.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from tunesmith.model.layout import Segment
from tunesmith.train.examples import ExampleTable, Ints

MIN_SHARED_TOKENS = 8
"""A shorter common prefix costs more in bookkeeping than it saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatBatch:
    """Documents end to end. T rows are computed; S predictions are scored."""

    ids: torch.Tensor
    """[T] token ids."""
    positions: torch.Tensor
    """[T] position of each row in its own document."""
    segments: tuple[Segment, ...]
    rows: torch.Tensor
    """[S] row whose hidden state makes the prediction; a row repeats where documents part after a shared prefix."""
    labels: torch.Tensor
    """[S] token to predict."""
    weights: torch.Tensor
    """[S] float32 loss weights, summed where documents share the prediction too."""
    num_tokens: int
    """Tokens of the documents, shared ones counted once for each document."""
    num_supervised: int
    """Tokens with a loss weight, counted likewise."""
    row_ids: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        """Rows that are computed: at most `num_tokens`."""
        return self.ids.numel()


class DataOrder(Protocol):
    """Which examples each optimizer step sees, as a pure function of the step: a run resumes anywhere in it."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the rows of the task."""
        ...

    def examples_of(self, step: int) -> list[int]:
        """Return the examples of 0-based `step`, the same in every process."""
        ...

    def begins_stage(self, step: int) -> bool:
        """Whether other rows than before begin with 0-based `step`: a training loss there says nothing of the last."""
        ...


@functools.lru_cache(maxsize=2)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def count_steps(num_examples: int, *, batch_size: int, num_epochs: float, max_steps: int | None) -> int:
    """Return the number of optimizer steps of a run."""
    steps = math.ceil(num_epochs * math.ceil(num_examples / batch_size))
    return min(steps, max_steps) if max_steps is not None else steps


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """The order where nothing is mixed: every example once an epoch."""

    num_examples: int
    batch_size: int
    total_steps: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the examples, the ragged last one included."""
        return math.ceil(self.num_examples / self.batch_size)

    def examples_of(self, step: int) -> list[int]:
        """Return the examples of 0-based `step`: an epoch is a permutation from (seed, epoch)."""
        epoch, at = divmod(step, self.steps_per_epoch)
        begin = at * self.batch_size
        chosen: list[int] = _epoch_order(self.num_examples, self.seed, epoch)[begin : begin + self.batch_size].tolist()
        return chosen

    def begins_stage(self, step: int) -> bool:
        """Whether this is the first step: all rows are alike."""
        return step == 0


def common_prefix(left: Ints, right: Ints) -> int:
    """Return how many tokens two examples share from the start."""
    length = min(len(left), len(right))
    differing = np.nonzero(left[:length] != right[:length])[0]
    return int(differing[0]) if differing.size else length


def shared_tokens(table: ExampleTable) -> int:
    """Return how many tokens all examples of a table begin with in common."""
    first, _ = table.example(0)
    shared = len(first)
    for index in range(1, len(table)):
        shared = min(shared, common_prefix(first[:shared], table.example(index)[0]))
        if not shared:
            break
    return shared


def divide(table: ExampleTable, indices: Sequence[int], *, parts: int) -> list[list[int]]:
    """Divide examples among processes so that their tokens come out even; a share is empty where examples are few.

    The longest example goes first to the process with the fewest tokens, the earlier one among equals: every process
    computes the same division.
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    tokens = [0] * parts
    for index in sorted(indices, key=lambda index: (-table.length(index), index)):
        least = tokens.index(min(tokens))
        shares[least].append(index)
        tokens[least] += table.length(index)
    return shares


def micro_batches(
    table: ExampleTable, indices: Sequence[int], *, max_tokens: int, share_prefixes: bool
) -> list[list[int]]:
    """Split a step's examples into passes of at most `max_tokens` computed rows, equal beginnings together.

    A single example longer than `max_tokens` makes a pass of its own.
    """
    order = sorted(indices, key=lambda index: (table.example(index)[0].tolist(), index))
    passes: list[list[int]] = []
    rows = 0
    for index in order:
        length = table.length(index)
        extra = length
        if passes and share_prefixes:
            shared = common_prefix(table.example(passes[-1][-1])[0], table.example(index)[0])
            extra = length - (shared if shared >= MIN_SHARED_TOKENS else 0)
        if passes and rows + extra <= max_tokens:
            passes[-1].append(index)
            rows += extra
        else:
            passes.append([index])
            rows = length
    return passes


def _prefix_groups(documents: Sequence[Ints]) -> list[tuple[int, int, int]]:
    """Partition sorted documents into runs `(begin, end, prefix length)` that save the most rows.

    A run of n documents with a common prefix of p tokens saves (n - 1) p. One level of sharing: a run is either kept
    whole or divided where its neighbours part earliest.
    """
    shared = [common_prefix(left, right) for left, right in itertools.pairwise(documents)]

    def best(begin: int, end: int) -> tuple[int, list[tuple[int, int, int]]]:
        if end - begin == 1:
            return 0, [(begin, end, 0)]
        prefix = min(shared[begin : end - 1])
        usable = prefix if prefix >= MIN_SHARED_TOKENS else 0
        whole = ((end - begin - 1) * usable, [(begin, end, usable)])
        cuts = [at + 1 for at in range(begin, end - 1) if shared[at] == prefix]
        if len(cuts) == end - begin - 1:
            return whole
        parts = [best(left, right) for left, right in zip([begin, *cuts], [*cuts, end], strict=True)]
        saved = sum(part[0] for part in parts)
        return whole if whole[0] >= saved else (saved, [group for part in parts for group in part[1]])

    return best(0, len(documents))[1] if documents else []


def flatten(
    table: ExampleTable, indices: Sequence[int], *, share_prefixes: bool, device: str | torch.device = "cpu"
) -> FlatBatch:
    """Lay examples end to end, common prefixes once."""
    ordered = sorted(indices, key=lambda index: (table.example(index)[0].tolist(), index))
    documents = [table.example(index) for index in ordered]
    groups = (
        _prefix_groups([ids for ids, _ in documents])
        if share_prefixes
        else [(at, at + 1, 0) for at in range(len(documents))]
    )
    ids: list[Ints] = []
    positions: list[np.ndarray] = []
    segments: list[Segment] = []
    scored: dict[tuple[int, int], float] = {}
    total = 0

    def lay(tokens: Ints, first_position: int, prefix: tuple[int, int]) -> int:
        nonlocal total
        start = total
        if len(tokens):
            ids.append(tokens)
            positions.append(np.arange(first_position, first_position + len(tokens)))
            total += len(tokens)
            segments.append(Segment(start=start, stop=total, prefix_start=prefix[0], prefix_stop=prefix[1]))
        return start

    for begin, end, prefix in groups:
        shared_start = lay(documents[begin][0][:prefix], 0, (0, 0))
        shared = (shared_start, shared_start + prefix) if prefix else (0, 0)
        for tokens, weights in documents[begin:end]:
            own_start = lay(tokens[prefix:], prefix, shared)
            for at in np.nonzero(weights)[0].tolist():
                before = at - 1
                row = shared_start + before if before < prefix else own_start + before - prefix
                key = (row, int(tokens[at]))
                scored[key] = scored.get(key, 0.0) + float(weights[at])
    return FlatBatch(
        ids=torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(device),
        positions=torch.from_numpy(np.concatenate(positions).astype(np.int64)).to(device),
        segments=tuple(segments),
        rows=torch.tensor([row for row, _ in scored], dtype=torch.int64, device=device),
        labels=torch.tensor([label for _, label in scored], dtype=torch.int64, device=device),
        weights=torch.tensor(list(scored.values()), dtype=torch.float32, device=device),
        num_tokens=sum(len(tokens) for tokens, _ in documents),
        num_supervised=sum(int(np.count_nonzero(weights)) for _, weights in documents),
        row_ids=tuple(table.row_ids[index] for index in ordered),
    )


def idle_batch(table: ExampleTable, *, device: str | torch.device = "cpu") -> FlatBatch:
    """Return the shortest example with every loss weight zero: for a process that must compute beside the others.

    Its loss and its gradients are zero, and it counts no tokens.
    """
    batch = flatten(table, [int(table.lengths.argmin())], share_prefixes=False, device=device)
    return replace(batch, weights=torch.zeros_like(batch.weights), num_tokens=0, num_supervised=0, row_ids=())
