"""What another threshold would keep: the compared pairs of a curation as a table, settled again without comparing.

What lives here: `near_pairs.parquet` out and in, and the difference that a threshold makes. What does not: how pairs
are compared (`data.compare`) and settled (`data.dedup`).

    at_threshold(artifact / "near_pairs.parquet", 0.7)  ->  Outcome(threshold=0.7, dropped={"near_duplicate": 31}, ...)

The table holds each pair that is a near-duplicate at `FLOOR` or above, with the facts about its rows that decide which
of them stays. The same functions settle it as settled the curation, so that the recipe's own threshold gives the rows
that were dropped, and any other the rows that a new run would drop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunesmith.data.compare import FLOOR, PairTable
from tunesmith.data.dedup import STAYING, Standing, settle
from tunesmith.errors import DataError
from tunesmith.types import Row, sha256_hex

_PAIR_COLUMNS = {
    "prompt_scores": pa.float64(),
    "prompt_at": pa.float64(),
    "scores": pa.float64(),
    "same_at": pa.float64(),
    "contrary": pa.bool_(),
    "equal": pa.bool_(),
}
_ROW_COLUMNS = {
    "id": pa.string(),
    "order": pa.int64(),
    "rank": pa.int64(),
    "side": pa.string(),
    "task": pa.string(),
    "pinned": pa.bool_(),
}
SCHEMA = pa.schema(
    [(f"{end}_{name}", kind) for end in ("left", "right") for name, kind in _ROW_COLUMNS.items()]
    + list(_PAIR_COLUMNS.items())
)
"""`*_at` are the largest thresholds at which the prompts, or the whole rows, are near-duplicates (-inf: at none)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a threshold makes of the pairs."""

    threshold: float
    dropped: dict[str, int]
    """Reason -> rows that go."""
    flagged: dict[str, int]
    """Reason -> rows that stay, flagged."""
    dropped_ids: frozenset[str]


def write_pairs(
    path: Path, pairs: PairTable, standing: Standing, rows: Sequence[Row], *, pinned: frozenset[str]
) -> None:
    """Write the pairs, in order of their rows."""
    order = np.lexsort((pairs.right, pairs.left))
    columns: dict[str, list[object] | np.ndarray] = {}
    for end, numbers in (("left", pairs.left[order].tolist()), ("right", pairs.right[order].tolist())):
        columns |= {
            f"{end}_id": [rows[row].id for row in numbers],
            f"{end}_order": numbers,
            f"{end}_rank": [int(standing.rank[row]) for row in numbers],
            f"{end}_side": [standing.sides[row] for row in numbers],
            f"{end}_task": [standing.tasks[row] and sha256_hex(standing.tasks[row])[:16] for row in numbers],
            f"{end}_pinned": [rows[row].id in pinned for row in numbers],
        }
    columns |= {name: getattr(pairs, name)[order] for name in _PAIR_COLUMNS}
    pq.write_table(pa.table(columns, schema=SCHEMA), path, compression="zstd")


def at_threshold(path: Path, threshold: float) -> Outcome:
    """Return what curation would drop and flag as duplicates at a threshold from `FLOOR` up."""
    if not FLOOR <= threshold <= 1:
        raise DataError(
            f"no pairs are known for the threshold {threshold:g}",
            where=str(path),
            expected=f"{FLOOR:g} to 1: pairs that are less near were not kept",
            hint="set curate.near_duplicates in the recipe and run it",
        )
    table = pq.read_table(path, schema=SCHEMA)
    known: dict[int, tuple[str, int, str, str, bool]] = {}
    for end in ("left", "right"):
        columns = [table[f"{end}_{name}"].to_pylist() for name in _ROW_COLUMNS]
        known.update({order: (name, *facts) for name, order, *facts in zip(*columns, strict=True)})
    orders = sorted(known)
    place = {order: number for number, order in enumerate(orders)}
    left, right = (
        np.array([place[order] for order in table[f"{end}_order"].to_pylist()], dtype=np.int64)
        for end in ("left", "right")
    )
    pairs = PairTable(left=left, right=right, **{name: table[name].to_numpy() for name in _PAIR_COLUMNS})
    standing = Standing(
        sides=[known[order][2] for order in orders],
        tasks=[known[order][3] for order in orders],
        rank=np.array([known[order][1] for order in orders], dtype=np.int64),
    )
    dropped: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    gone = set()
    for duplicate in settle(standing, pairs, threshold=threshold):
        name, *_, pinned = known[orders[duplicate.row]]
        if duplicate.kind in STAYING or (duplicate.kind == "near_duplicate" and pinned):
            flagged[duplicate.kind] += 1
        else:
            dropped[duplicate.kind] += 1
            gone.add(name)
    return Outcome(threshold=threshold, dropped=dict(dropped), flagged=dict(flagged), dropped_ids=frozenset(gone))
