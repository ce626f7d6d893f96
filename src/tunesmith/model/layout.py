"""How the documents of a flat batch lie, and what attention over them needs, made once for all layers.

    rows      0 1 2 3 | 4 5 6 | 7 8 9 10
    segment   prefix  | doc A | doc B           A and B attend to the prefix and, causally, to themselves

What lives here: `Segment`, `DocumentLayout`, the buckets of similar segments, and lengths for kernels that need no
buckets. What does not: attention itself (`model.attention`), building batches (`train.batches`).

Shapes: T rows of the flat batch, H query heads, K key heads, G = H / K, D head size, N segments of a bucket,
L own rows of a segment (padded inside a bucket), P rows of its prefix.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

LONG_KEYS = 1024
"""Segments that see more keys are computed block by block, their probabilities made again in the backward."""

MAX_PADDING = 1.25
"""Segments of one bucket differ in length by at most this factor."""

KEYS_MULTIPLE = 16
"""Numbers of keys are padded to whole vectors: on CPU a softmax over 126 columns takes longer than over 128."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Rows `[start, stop)` of a flat batch: one document, or the prefix of several, or what follows such a prefix."""

    start: int
    stop: int
    prefix_start: int = 0
    prefix_stop: int = 0
    """Rows that stand before this segment in its document and are shared with others; equal when there are none."""

    @property
    def length(self) -> int:
        """Number of own rows."""
        return self.stop - self.start

    @property
    def prefix_length(self) -> int:
        """Number of shared rows before this segment."""
        return self.prefix_stop - self.prefix_start


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """How many heads there are, and where they lie in a packed row: queries, then keys, then values."""

    num_queries: int
    num_keys: int

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.num_queries // self.num_keys

    @property
    def total(self) -> int:
        """Heads of a packed row."""
        return self.num_queries + 2 * self.num_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Segments of similar length with the same prefix, computed as one padded batch.

    Indices point into head rows: row `t` of the batch has its head `h` at `t * heads + h`. Padding reads row `T - 1`
    and writes row `T`, which is thrown away.
    """

    batch: int
    """N x K."""
    length: int
    """Own rows L, padding included."""
    num_prefix: int
    prefix: slice
    queries: torch.Tensor
    """[N x K x G x L] head rows of the queries in packed rows."""
    keys: torch.Tensor
    """[N x K x (P + L)] head rows of the keys in packed rows; those of the values lie K further."""
    outputs: torch.Tensor
    """[N x K x G x L] head rows of the queries in rows of H heads, padding beyond the last row."""
    own_keys: torch.Tensor
    """[N x K x L] head rows of own keys in packed rows, padding beyond the last row."""
    padding: torch.Tensor
    """Which of `queries` are padding."""
    bias: torch.Tensor
    """[G x L, P + L] 0, or minus infinity where a query must not see a key. Padding stands behind every real query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What kernels for documents of any length are told. S keys: a prefix counts once for each of its documents."""

    query_ends: torch.Tensor
    """[N + 1] int32, cumulative."""
    key_ends: torch.Tensor
    """[N + 1] int32, cumulative."""
    longest_queries: int
    longest_keys: int
    key_rows: torch.Tensor | None
    """[S] row of each key, or `None` where every document sees its own rows only and S = T."""
    own_keys: torch.Tensor | None
    """[T] where among the keys each row stands as its document's own."""
    prefixes: tuple[tuple[slice, torch.Tensor], ...]
    """Rows of each shared prefix [P], and where its documents read them among the keys [documents, P]."""


class DocumentLayout:
    """How the documents of a flat batch lie, with everything that attention needs, made once for all layers."""

    def __init__(self, segments: Sequence[Segment], device: str | torch.device = "cpu") -> None:
        self.segments = tuple(segments)
        self.num_rows = max(segment.stop for segment in segments)
        corners = [(part.start, part.stop, part.prefix_start, part.prefix_stop) for part in segments]
        self.documents = torch.tensor(corners, dtype=torch.int64)
        self.device = torch.device(device)
        self._plans: dict[tuple[Heads, int | None, torch.dtype], tuple[list[Bucket], list[Segment]]] = {}

    def plan(self, heads: Heads, window: int | None, dtype: torch.dtype) -> tuple[list[Bucket], list[Segment]]:
        """Return the buckets of short segments, and the long segments that go block by block."""
        key = (heads, window, dtype)
        if key not in self._plans:
            short = [segment for segment in self.segments if segment.prefix_length + segment.length <= LONG_KEYS]
            long = [segment for segment in self.segments if segment.prefix_length + segment.length > LONG_KEYS]
            buckets = [self._bucket(members, heads, window, dtype) for members in _similar(short)]
            self._plans[key] = (buckets, long)
        return self._plans[key]

    @functools.cached_property
    def lengths(self) -> Lengths:
        """The layout for kernels of variable length. Segments cover the rows in order."""
        ends, key_ends = [0], [0]
        key_rows: list[torch.Tensor] = []
        own: list[torch.Tensor] = []
        reads: dict[tuple[int, int], list[torch.Tensor]] = defaultdict(list)
        for segment in self.segments:
            assert segment.start == ends[-1], "segments leave a gap"
            ends.append(segment.stop)
            first, prefix = key_ends[-1], (segment.prefix_start, segment.prefix_stop)
            key_ends.append(first + segment.prefix_length + segment.length)
            key_rows += [torch.arange(*prefix), torch.arange(segment.start, segment.stop)]
            own.append(torch.arange(first + segment.prefix_length, key_ends[-1]))
            if segment.prefix_length:
                reads[prefix].append(torch.arange(first, first + segment.prefix_length))
        return Lengths(
            query_ends=torch.tensor(ends, dtype=torch.int32, device=self.device),
            key_ends=torch.tensor(key_ends, dtype=torch.int32, device=self.device),
            longest_queries=max(segment.length for segment in self.segments),
            longest_keys=max(segment.prefix_length + segment.length for segment in self.segments),
            key_rows=torch.cat(key_rows).to(self.device) if reads else None,
            own_keys=torch.cat(own).to(self.device) if reads else None,
            prefixes=tuple((slice(*rows), torch.stack(places).to(self.device)) for rows, places in reads.items()),
        )

    def _bucket(self, members: Sequence[Segment], heads: Heads, window: int | None, dtype: torch.dtype) -> Bucket:
        prefix = slice(members[0].prefix_start, members[0].prefix_stop)
        num_prefix = prefix.stop - prefix.start
        longest = max(segment.length for segment in members)
        length = -(-(num_prefix + longest) // KEYS_MULTIPLE) * KEYS_MULTIPLE - num_prefix
        starts = torch.tensor([segment.start for segment in members])[:, None]
        lengths = torch.tensor([segment.length for segment in members])[:, None]
        position = torch.arange(length)[None, :]
        is_padding = position >= lengths
        rows = starts + position
        # [N, K, G, L]: head k * G + g of each row.
        head = torch.arange(heads.num_queries).view(heads.num_keys, heads.group, 1)
        key_head = torch.arange(heads.num_keys)[:, None]
        read = rows.masked_fill(is_padding, self.num_rows - 1)
        written = rows.masked_fill(is_padding, self.num_rows)
        seen = torch.cat((torch.arange(prefix.start, prefix.stop).expand(len(members), -1), read), dim=1)
        padding = is_padding[:, None, None, :].expand(-1, heads.num_keys, heads.group, -1)
        blocked = blocked_keys(length, num_prefix, num_prefix + length, window, device=self.device)
        bias = torch.zeros(blocked.shape, dtype=dtype, device=self.device).masked_fill_(blocked, float("-inf"))
        first_key = heads.num_queries
        return Bucket(
            batch=len(members) * heads.num_keys,
            length=length,
            num_prefix=num_prefix,
            prefix=prefix,
            queries=(read[:, None, None, :] * heads.total + head).flatten().to(self.device),
            keys=(seen[:, None, :] * heads.total + first_key + key_head).flatten().to(self.device),
            outputs=(written[:, None, None, :] * heads.num_queries + head).flatten().to(self.device),
            own_keys=(written[:, None, :] * heads.total + first_key + key_head).flatten().to(self.device),
            padding=padding.flatten().nonzero()[:, 0].to(self.device),
            bias=bias.repeat(heads.group, 1),
        )


def _similar(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Divide segments into runs with one prefix and similar lengths."""
    by_prefix: dict[tuple[int, int], list[Segment]] = defaultdict(list)
    for segment in segments:
        by_prefix[segment.prefix_start, segment.prefix_stop].append(segment)
    runs = []
    for same_prefix in by_prefix.values():
        ordered = sorted(same_prefix, key=lambda segment: segment.length)
        while ordered:
            longest = ordered[-1].length
            members = [segment for segment in ordered if segment.length * MAX_PADDING >= longest]
            ordered = ordered[: len(ordered) - len(members)]
            runs.append(members)
    return runs


def blocked_keys(
    num_queries: int, first_query: int, num_keys: int, window: int | None, *, device: torch.device
) -> torch.Tensor:
    """Return a [num_queries, num_keys] mask, true where query `first_query + i` must not see key `j`."""
    queries = torch.arange(first_query, first_query + num_queries, device=device)[:, None]
    keys = torch.arange(num_keys, device=device)[None, :]
    blocked = keys > queries
    if window is not None:
        blocked |= keys <= queries - window
    return blocked
