"""Encoded training sequences as flat arrays, read from the `examples` artefact.

What lives here: reading `train.parquet` and `val.parquet` and checking what they must hold. What does not: making them
(`stages/encode`), ordering and batching them (`train.batches`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tunesmith.errors import DataError, TrainingError
from tunesmith.types import Example

Ints = np.ndarray[Any, np.dtype[np.int32]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleTable:
    """All examples of one side, end to end: example `i` is `[offsets[i], offsets[i + 1])`."""

    row_ids: tuple[str, ...]
    ids: Ints
    weights: Floats
    """`weights[j]` is the loss weight of predicting `ids[j]` from what precedes it in its example; 0 is masked."""
    offsets: np.ndarray[Any, np.dtype[np.int64]]

    def __len__(self) -> int:
        return len(self.row_ids)

    def example(self, index: int) -> tuple[Ints, Floats]:
        """Return ids and weights of one example, as views."""
        begin, end = self.offsets[index], self.offsets[index + 1]
        return self.ids[begin:end], self.weights[begin:end]

    def length(self, index: int) -> int:
        """Return the number of tokens of one example."""
        return int(self.offsets[index + 1] - self.offsets[index])

    @property
    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Number of tokens of each example."""
        return np.diff(self.offsets)

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all examples."""
        return int(self.offsets[-1])

    @property
    def num_supervised(self) -> int:
        """Number of tokens that carry a loss weight."""
        return int(np.count_nonzero(self.weights))

    @property
    def num_supervised_each(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Number of tokens of each example that carry a loss weight."""
        before = np.concatenate(([0], np.cumsum(self.weights != 0, dtype=np.int64)))
        counts: np.ndarray[Any, np.dtype[np.int64]] = np.diff(before[self.offsets])
        return counts

    def weight_of(self, indices: Iterable[int]) -> float:
        """Return the sum of the loss weights of some examples: the denominator of a step."""
        return float(sum(self.example(index)[1].sum(dtype=np.float64) for index in indices))

    def digest(self) -> str:
        """Return the sha256 of everything that training sees, as 64 hex digits."""
        state = hashlib.sha256()
        for array in (self.offsets, self.ids, self.weights):
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()


def table_of(examples: Iterable[Example]) -> ExampleTable:
    """Return the flat arrays of examples. Raises `TrainingError` for one that cannot train."""
    examples = list(examples)
    lengths = [len(example.ids) for example in examples]
    table = ExampleTable(
        row_ids=tuple(example.row_id for example in examples),
        ids=np.fromiter((token for example in examples for token in example.ids), np.int32, sum(lengths)),
        weights=np.fromiter((weight for example in examples for weight in example.weights), np.float32),
        offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64),
    )
    return checked(table, where="examples")


def read_examples(path: Path) -> ExampleTable:
    """Read `train.parquet` or `val.parquet` of an `examples` artefact (row_id, ids, weights).

    Raises `DataError` for other columns, `TrainingError` for examples that cannot train.
    """
    table = pq.read_table(path)
    expected = {"row_id", "ids", "weights"}
    if not expected <= set(table.column_names):
        raise DataError(
            "not a file of encoded examples",
            where=str(path),
            expected=", ".join(sorted(expected)),
            found=", ".join(table.column_names),
        )
    ids = table.column("ids").combine_chunks()
    weights = table.column("weights").combine_chunks()
    if len(table) == 0:
        return table_of(())
    offsets = ids.offsets.to_numpy().astype(np.int64)
    if not np.array_equal(offsets, weights.offsets.to_numpy().astype(np.int64)):
        raise DataError("ids and weights of an example differ in length", where=str(path))
    return checked(
        ExampleTable(
            row_ids=tuple(table.column("row_id").to_pylist()),
            ids=ids.values.to_numpy(zero_copy_only=False).astype(np.int32, copy=False),
            weights=weights.values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False),
            offsets=offsets,
        ),
        where=str(path),
    )


def checked(table: ExampleTable, *, where: str) -> ExampleTable:
    """Return the table. Raises `TrainingError` for an example without a supervised token, or a supervised first one."""
    for index in range(len(table)):
        _, weights = table.example(index)
        if not weights.size or not np.isfinite(weights).all() or weights.min() < 0:
            raise TrainingError(
                f"example {table.row_ids[index]} has no tokens, or a loss weight below zero", where=where
            )
        if weights[0] != 0:
            raise TrainingError(
                f"example {table.row_ids[index]} supervises its first token, which nothing predicts", where=where
            )
        if not weights.any():
            raise TrainingError(
                f"example {table.row_ids[index]} has no supervised token: it would train nothing",
                where=where,
                hint="its answer was masked or cut; see the encode stage's rejects",
            )
    return table
