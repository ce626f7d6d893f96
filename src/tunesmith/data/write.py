"""Rows on disk: the one Parquet schema of kept and rejected rows, written and read.

What lives here: `write_rows`, `read_rows`, and the same for rejected rows. What does not: reading what users bring
(`data.read`). Messages, tools and labels are JSON text: Arrow structs would add null keys to rows that lack a field.

    with RowWriter(path) as writer:
        for row in rows: writer.write(row)
    read_rows(path) -> list[Row]
"""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tunesmith.errors import DataError
from tunesmith.types import (
    JSON,
    Conversation,
    Message,
    Provenance,
    Row,
    RowKind,
    RowRole,
    canonical_json,
    sha256_hex,
)

ROW_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("messages", pa.string()),
        ("tools", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("line", pa.int64()),
        ("license", pa.string()),
        ("kind", pa.string()),
        ("generator", pa.string()),
        ("editor", pa.string()),
        ("collected_at", pa.string()),
        ("subject", pa.string()),
        ("role", pa.string()),
        ("group", pa.string()),
        ("labels", pa.string()),
        ("split", pa.string()),
        ("rejected", pa.string()),
        ("desirable", pa.bool_()),
    ]
)
"""Columns of a file of rows."""

REJECT_SCHEMA = pa.schema(
    [
        *ROW_SCHEMA,
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("matched_id", pa.string()),
        ("score", pa.float64()),
        ("raw", pa.string()),
    ]
)
"""Columns of a file of rejected rows: `raw` holds the input where no row could be made of it."""

_REPEATING = frozenset(
    ("source", "path", "license", "kind", "generator", "editor", "collected_at", "role", "labels", "split", "stage")
)
"""Columns that say the same of many rows."""

MAX_RAW_CHARS = 2000
_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A record that is not kept, and why. `row` is `None` where the input could not be read as a row."""

    stage: str
    reason: str
    detail: str
    source: str
    path: str
    line: int
    row: Row | None = None
    matched_id: str | None = None
    score: float | None = None
    raw: str | None = None

    @property
    def row_id(self) -> str:
        """Id of the row, or of the unreadable input at this place."""
        if self.row is not None:
            return self.row.id
        return sha256_hex(canonical_json([self.source, self.path, self.line, self.raw]))[:16]


def row_id(conversation: Conversation, *, source: str, path: str, line: int, rejected: tuple[Message, ...] = ()) -> str:
    """Return the id of a row: 16 hex digits over the conversation and the place it came from."""
    place = [source, path, line]
    worse = [message.to_json() for message in rejected]
    return sha256_hex(canonical_json([conversation.to_json(), worse, place]))[:16]


def content_hash(conversation: Conversation) -> str:
    """Return the sha256 of a conversation alone: the same text from two places has the same hash (opt-out, review)."""
    return sha256_hex(canonical_json(conversation.to_json()))


_IN_ORDER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _json_in_order(value: JSON) -> str:
    """JSON text with keys in the order they came: templates print tools and arguments in that order."""
    return _IN_ORDER.encode(value)


def row_to_record(row: Row) -> dict[str, Any]:
    """Return one row as the columns of `ROW_SCHEMA`."""
    origin = row.provenance
    return {
        "id": row.id,
        "messages": _json_in_order([message.to_json() for message in row.conversation.messages]),
        "tools": _json_in_order([dict(tool) for tool in row.conversation.tools]) if row.conversation.tools else None,
        "source": origin.source,
        "path": origin.path,
        "line": origin.line,
        "license": origin.license,
        "kind": origin.kind.value,
        "generator": origin.generator,
        "editor": origin.editor,
        "collected_at": origin.collected_at,
        "subject": origin.subject,
        "role": row.role.value,
        "group": row.group,
        "labels": canonical_json(dict(row.labels)),
        "split": row.split,
        "rejected": _json_in_order([message.to_json() for message in row.rejected]) if row.rejected else None,
        "desirable": row.desirable,
    }


def row_from_record(record: dict[str, Any]) -> Row:
    """Read one row from the columns of `ROW_SCHEMA`."""
    return Row(
        id=record["id"],
        conversation=conversation_of(record),
        provenance=Provenance(
            source=record["source"],
            path=record["path"],
            line=record["line"],
            license=record["license"],
            kind=RowKind(record["kind"]),
            generator=record["generator"],
            editor=record["editor"],
            collected_at=record["collected_at"],
            subject=record["subject"],
        ),
        role=RowRole(record["role"]),
        labels=_labels(record["labels"]),
        group=record["group"],
        split=record["split"],
        rejected=_messages(record["rejected"]) if record["rejected"] else (),
        desirable=record["desirable"],
    )


@functools.lru_cache(maxsize=1024)
def _labels(text: str) -> Mapping[str, str]:
    """The labels of a row; rows with the same ones share them."""
    labels: dict[str, str] = json.loads(text)
    return labels


def conversation_of(record: Mapping[str, Any]) -> Conversation:
    """Read the conversation from the columns `messages` and `tools`."""
    return Conversation(
        messages=_messages(record["messages"]),
        tools=tuple(json.loads(record["tools"])) if record["tools"] else (),
    )


def _messages(text: str) -> tuple[Message, ...]:
    return tuple(Message.from_json(message) for message in json.loads(text))


def _reject_to_record(reject: Reject) -> dict[str, Any]:
    record: dict[str, Any] = row_to_record(reject.row) if reject.row is not None else {}
    record.update(
        id=reject.row_id,
        source=reject.source,
        path=reject.path,
        line=reject.line,
        stage=reject.stage,
        reason=reject.reason,
        detail=reject.detail,
        matched_id=reject.matched_id,
        score=reject.score,
        raw=None if reject.raw is None else reject.raw[:MAX_RAW_CHARS],
    )
    return record


class ParquetWriter:
    """Write records of one schema in batches, so that a file larger than memory can be written. A context manager."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._batch: list[dict[str, Any]] = []
        self.num_rows = 0

    def write(self, record: dict[str, Any]) -> None:
        """Add one record; absent columns are null."""
        self._batch.append(record)
        self.num_rows += 1
        if len(self._batch) >= _BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            columns = {
                field.name: pa.array([record.get(field.name) for record in self._batch], type=field.type)
                for field in self._schema
            }
            self._writer.write_table(pa.table(columns, schema=self._schema))
            self._batch = []

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()


class RowWriter:
    """Write rows one by one. A context manager."""

    def __init__(self, path: Path) -> None:
        self._writer = ParquetWriter(path, ROW_SCHEMA)

    def write(self, row: Row) -> None:
        """Add one row."""
        self._writer.write(row_to_record(row))

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)


class RejectWriter:
    """Write rejected rows one by one. A context manager."""

    def __init__(self, path: Path) -> None:
        self._writer = ParquetWriter(path, REJECT_SCHEMA)

    def write(self, reject: Reject) -> None:
        """Add one rejected record."""
        self._writer.write(_reject_to_record(reject))

    def __enter__(self) -> RejectWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows to one Parquet file, in the order given."""
    with RowWriter(path) as writer:
        for row in rows:
            writer.write(row)


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a file that `write_rows` wrote. Raises `DataError` where it is not one."""
    with _without_collection():
        return list(iter_rows(path))


@contextmanager
def _without_collection() -> Iterator[None]:
    """Make many values that hold no circles without the collector, which would walk over all of them many times."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def iter_rows(path: Path) -> Iterator[Row]:
    """Read the rows of a file that `write_rows` wrote, one batch in memory at a time."""
    for record in _records(path, ROW_SCHEMA):
        yield row_from_record(record)


def write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    """Write rejected rows to one Parquet file, in the order given."""
    with RejectWriter(path) as writer:
        for reject in rejects:
            writer.write(reject)


def read_rejects(path: Path) -> list[Reject]:
    """Read all rejected rows of a file that `write_rejects` wrote."""
    return [_reject_from_record(record) for record in _records(path, REJECT_SCHEMA)]


def _reject_from_record(record: dict[str, Any]) -> Reject:
    return Reject(
        stage=record["stage"],
        reason=record["reason"],
        detail=record["detail"],
        source=record["source"],
        path=record["path"],
        line=record["line"],
        row=row_from_record(record) if record["messages"] is not None else None,
        matched_id=record["matched_id"],
        score=record["score"],
        raw=record["raw"],
    )


def _records(path: Path, schema: pa.Schema) -> Iterator[dict[str, JSON]]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read rows from {path.name}", where=str(path), found=str(error)) from error
    missing = [name for name in schema.names if name not in file.schema_arrow.names]
    if missing:
        raise DataError(
            f"{path.name} is not a file of rows",
            where=str(path),
            expected=f"columns {', '.join(schema.names)}",
            found=f"no column {', '.join(missing)}",
        )
    with file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=schema.names):
            columns = [_values(column, name) for name, column in zip(schema.names, batch.columns, strict=True)]
            for values in zip(*columns, strict=True):
                yield dict(zip(schema.names, values, strict=True))


def _values(column: pa.Array, name: str) -> list[Any]:
    """A column as Python values; of one whose values repeat, equal ones are one object: rows live long."""
    if not pa.types.is_string(column.type):
        return cast("list[Any]", column.to_pylist())
    if name not in _REPEATING:
        return cast("list[Any]", column.to_numpy(zero_copy_only=False).tolist())
    encoded = column.dictionary_encode()
    known = encoded.dictionary.to_pylist()
    return [None if place is None else known[place] for place in encoded.indices.to_pylist()]
