"""Keys and values of what was computed already, for `model.decoder`.

What lives here: where each row's positions stand, and which rows attend together. What does not: arithmetic.

Shapes: B running rows, R new rows, N tokens of all new rows end to end, H key-value heads, E head size, P prefix
tokens, T positions of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tunesmith.model.decoder import Decoder

_PART_ROWS = 16
"""Rows that attend together where lengths differ much."""
_WORTH_PARTING = 1.3
"""Attention over all rows at once is given up where it computes this many times the positions."""
MASKED = -1e30
"""Added to the score of a position that is not there: finite, so that a row of padding gives no NaN."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of tokens that all rows begin with, one of each a layer."""

    keys: list[torch.Tensor]
    """(H, E, P)."""
    values: list[torch.Tensor]
    """(H, P, E)."""
    rows: list[torch.Tensor]
    """(P, 2 H, E): both, as `Block` has them."""
    length: int


@dataclass(frozen=True, slots=True)
class Block:
    """Keys and values of new rows, end to end."""

    rows: list[torch.Tensor]
    """(N, 2 H, E) for each layer: keys, then values."""
    lengths: list[int]

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)

    def as_prefix(self) -> Prefix:
        """Return the only row as what others begin with."""
        (length,) = self.lengths
        heads = self.rows[0].shape[1] // 2
        return Prefix(
            keys=[part[:, :heads].permute(1, 2, 0).contiguous() for part in self.rows],
            values=[part[:, heads:].transpose(0, 1).contiguous() for part in self.rows],
            rows=self.rows,
            length=length,
        )


class Cache:
    """Keys and values of running rows, all aligned to one clock.

    Every row writes its next position at the same index `end`, whatever its own length: row b owns the indices from
    `start_B[b]` to `end`. A step thus writes one slice, and a row that ended can be replaced in place.
    """

    def __init__(self, decoder: Decoder, *, rows: int, capacity: int) -> None:
        shape = (rows, decoder.num_kv_heads, capacity, decoder.head_size)
        self.rows, self.capacity, self.end = rows, capacity, 0
        self.keys, self.values = (
            [torch.zeros(shape, dtype=decoder.dtype) for _ in range(decoder.num_layers)] for _ in range(2)
        )
        """(B, H, T, E) for each layer."""
        self.start_B = torch.zeros(rows, dtype=torch.long)
        # Positions of the future stay at 0: a row only ever masks what lies before its start
        self.bias_BT = torch.zeros(rows, capacity, dtype=decoder.dtype)

    @property
    def begin(self) -> int:
        """First index that any row owns."""
        return int(self.start_B.min())

    def spans(self) -> list[tuple[slice, int]]:
        """Return the parts of the rows that attend together, each with the first index that any of its rows owns.

        Rows of very different length are cut into parts of `_PART_ROWS`: one product over all of them would compute
        every row as long as the longest.
        """
        starts = self.start_B.tolist()
        parts = [slice(first, first + _PART_ROWS) for first in range(0, self.rows, _PART_ROWS)]
        begins = [min(starts[part]) for part in parts]
        together = self.rows * (self.end + 1 - min(begins))
        apart = sum((self.end + 1 - b) * len(starts[part]) for part, b in zip(parts, begins, strict=True))
        if together <= _WORTH_PARTING * apart:
            return [(slice(0, self.rows), min(begins))]
        return list(zip(parts, begins, strict=True))

    def put_(self, slots: Sequence[int], block: Block) -> None:
        """Let new rows take `slots`; their last position becomes the one before `end`.

        The buffer must hold the block: rows may be wider than `end` only while no row owns anything.
        """
        width = block.width
        if width > self.end:
            assert self.begin >= self.end, "a wider row joined rows that are running"
            self.end = width
            self.start_B.fill_(width)
        lengths = torch.tensor(block.lengths)
        slot_N = torch.tensor(slots).repeat_interleave(lengths)
        place_N = torch.cat([torch.arange(self.end - length, self.end) for length in block.lengths])
        for layer, part in enumerate(block.rows):
            heads = part.shape[1] // 2
            self.keys[layer][slot_N, :, place_N] = part[:, :heads]
            self.values[layer][slot_N, :, place_N] = part[:, heads:]
        for slot, length in zip(slots, block.lengths, strict=True):
            self.start_B[slot] = self.end - length
            self.bias_BT[slot, : self.end - length] = MASKED
            self.bias_BT[slot, self.end - length :] = 0

    def free_(self, slots: Sequence[int]) -> None:
        """Let the rows in `slots` own nothing; a step still computes them, from nothing, until they are replaced."""
        for slot in slots:
            self.start_B[slot] = self.end
            self.bias_BT[slot, : self.end] = MASKED

    def keep_(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order; those that stay where they are are not copied."""
        moved = [place for place, row in enumerate(rows) if row != place]
        sources = [rows[place] for place in moved]

        def kept(part: torch.Tensor) -> torch.Tensor:
            part[moved] = part[sources]
            return part[: len(rows)]

        self.keys, self.values = [kept(part) for part in self.keys], [kept(part) for part in self.values]
        self.start_B, self.bias_BT = kept(self.start_B), kept(self.bias_BT)
        self.rows = len(rows)

    def make_room_(self) -> None:
        """Move what rows own to the front when the clock has reached the end of the buffer."""
        if self.end < self.capacity:
            return
        shift = self.begin
        assert shift > 0, "the buffer is as long as its longest row"
        keep = self.end - shift
        for layer in range(len(self.keys)):
            self.keys[layer][:, :, :keep] = self.keys[layer][:, :, shift : self.end].clone()
            self.values[layer][:, :, :keep] = self.values[layer][:, :, shift : self.end].clone()
        self.bias_BT[:, :keep] = self.bias_BT[:, shift : self.end].clone()
        self.bias_BT[:, keep:] = 0
        self.start_B -= shift
        self.end = keep
