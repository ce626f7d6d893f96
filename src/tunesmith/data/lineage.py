"""Lineage: each thing that was done to a row, so that any row can be asked why it is or is not there.

What lives here: `Action`, the ledger of a stage, and the `lineage.parquet` that it becomes. What does not: the rows.

    ledger = Ledger("curate")
    ledger.drop(row, reason="licence_unknown", detail="no licence is said; the recipe allows CC0-1.0")
    ledger.keep(row)
    in = kept + dropped by reason: `Ledger.balance` holds the stage to it
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tunesmith.data.write import Reject, content_hash
from tunesmith.types import Row

ACTION_TYPE = pa.struct(
    [
        ("stage", pa.string()),
        ("action", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("matched_id", pa.string()),
        ("score", pa.float64()),
        ("before_hash", pa.string()),
        ("after_hash", pa.string()),
    ]
)
"""One action. Hashes are `content_hash` of the conversation before and after it."""

LINEAGE_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("line", pa.int64()),
        ("fate", pa.string()),
        ("reason", pa.string()),
        ("matched_id", pa.string()),
        ("before_hash", pa.string()),
        ("after_hash", pa.string()),
        ("actions", pa.list_(ACTION_TYPE)),
    ]
)
"""Columns of `lineage.parquet`, one record a row. `fate` is `keep` or `drop`, `reason` and `matched_id` are those of
the drop, the hashes those of the row as it came in and as it left (null where it was dropped)."""

_BATCH_ROWS = 65_536

ActionKind = Literal["keep", "change", "drop", "flag"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing that was done to one row."""

    row_id: str
    stage: str
    action: ActionKind
    reason: str | None
    detail: str | None
    matched_id: str | None
    score: float | None
    before_hash: str
    after_hash: str | None
    source: str
    path: str
    line: int


class Ledger:
    """What a stage did to its rows; it owns the count that must come out even."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.actions: list[Action] = []
        """Changes, flags and drops, in order."""
        self.kept: list[Row] = []
        """The rows that leave the stage: most of them have no other action, so that none is made for them here."""
        self.rejects: list[Reject] = []
        self.dropped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.flagged: Counter[str] = Counter()

    def keep(self, row: Row) -> None:
        """Say that a row leaves the stage; nothing else is done to it any more."""
        self.kept.append(row)

    def change(self, before: Row, after: Row, *, reason: str, detail: str) -> None:
        """Say that a row's text was changed; the row keeps its id."""
        assert before.id == after.id
        self.changed[reason] += 1
        hashes = content_hash(before.conversation), content_hash(after.conversation)
        self.actions.append(self._action("change", before, reason, detail, before=hashes[0], after=hashes[1]))

    def flag(
        self, row: Row, *, reason: str, detail: str, matched_id: str | None = None, score: float | None = None
    ) -> None:
        """Say that a row is worth a look; it stays."""
        self.flagged[reason] += 1
        digest = content_hash(row.conversation)
        self.actions.append(
            self._action("flag", row, reason, detail, before=digest, after=digest, matched_id=matched_id, score=score)
        )

    def drop(
        self, row: Row, *, reason: str, detail: str, matched_id: str | None = None, score: float | None = None
    ) -> None:
        """Say that a row leaves the data, and keep it among the rejects."""
        self.dropped[reason] += 1
        digest = content_hash(row.conversation)
        self.actions.append(
            self._action("drop", row, reason, detail, before=digest, after=None, matched_id=matched_id, score=score)
        )
        origin = row.provenance
        self.rejects.append(
            Reject(
                stage=self.stage,
                reason=reason,
                detail=detail,
                source=origin.source,
                path=origin.path,
                line=origin.line,
                row=row,
                matched_id=matched_id,
                score=score,
            )
        )

    def balance(self, num_in: int) -> None:
        """Hold the stage to its account: every row that came in was kept or dropped, once."""
        num_dropped = sum(self.dropped.values())
        num_kept = len(self.kept)
        assert num_in == num_kept + num_dropped, f"{num_in} rows in, {num_kept} kept, {num_dropped} dropped"

    def by_row(self) -> Iterator[list[Action]]:
        """Yield the actions on each row, in the order in which the rows were first acted on; a keep comes last."""
        acted: dict[str, list[Action]] = {}
        for action in self.actions:
            acted.setdefault(action.row_id, []).append(action)
        for row in self.kept:
            if row.id in acted:
                acted[row.id].append(self._kept(row))
        yield from acted.values()
        for row in self.kept:
            if row.id not in acted:
                yield [self._kept(row)]

    def _kept(self, row: Row) -> Action:
        digest = content_hash(row.conversation)
        return self._action("keep", row, before=digest, after=digest)

    def _action(
        self,
        action: ActionKind,
        row: Row,
        reason: str | None = None,
        detail: str | None = None,
        *,
        before: str,
        after: str | None,
        matched_id: str | None = None,
        score: float | None = None,
    ) -> Action:
        origin = row.provenance
        return Action(
            row_id=row.id,
            stage=self.stage,
            action=action,
            reason=reason,
            detail=detail,
            matched_id=matched_id,
            score=score,
            before_hash=before,
            after_hash=after,
            source=origin.source,
            path=origin.path,
            line=origin.line,
        )


def write_lineage(path: Path, ledger: Ledger) -> None:
    """Write one record for each row, in the order in which the rows were first acted on."""
    rows = ledger.by_row()
    with pq.ParquetWriter(path, LINEAGE_SCHEMA, compression="zstd") as writer:
        writer.write_table(_table(list(itertools.islice(rows, _BATCH_ROWS))))
        while batch := list(itertools.islice(rows, _BATCH_ROWS)):
            writer.write_table(_table(batch))


def _table(rows: list[list[Action]]) -> pa.Table:
    """Return one record a row, built column by column: a million rows are not made into a million dicts."""
    flat = [action for done in rows for action in done]
    parts = [pa.array([getattr(action, part.name) for action in flat], part.type) for part in ACTION_TYPE]
    ends = pa.array([0, *itertools.accumulate(len(done) for done in rows)], pa.int32())
    drops = [done[-1] if done[-1].action == "drop" else None for done in rows]
    columns = [
        [done[0].row_id for done in rows],
        [done[0].source for done in rows],
        [done[0].path for done in rows],
        [done[0].line for done in rows],
        ["keep" if drop is None else "drop" for drop in drops],
        [None if drop is None else drop.reason for drop in drops],
        [None if drop is None else drop.matched_id for drop in drops],
        [done[0].before_hash for done in rows],
        [done[-1].after_hash for done in rows],
    ]
    actions = pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays(parts, fields=list(ACTION_TYPE)))
    arrays = [pa.array(values, part.type) for values, part in zip(columns, LINEAGE_SCHEMA, strict=False)]
    return pa.Table.from_arrays([*arrays, actions.cast(LINEAGE_SCHEMA.field("actions").type)], schema=LINEAGE_SCHEMA)


def read_lineage(path: Path, *, row_id: str | None = None) -> list[Action]:
    """Read all actions of a file, or those of one row, row by row."""
    filters = [("row_id", "=", row_id)] if row_id is not None else None
    table: Any = pq.read_table(path, filters=filters)
    place = ("row_id", "source", "path", "line")
    return [
        Action(**{name: record[name] for name in place}, **action)
        for record in table.to_pylist()
        for action in record["actions"]
    ]
