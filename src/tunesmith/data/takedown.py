"""Takedown, over files: which rows an opt-out names, and which files hold them.

What lives here: opt-out files, and two questions to one Parquet file of rows, rejects, lineage or examples. What does
not: which files belong to which artifact and what was made from them (`api.survey`).

    opt_out = read_opt_out(Path("opt-out.yaml"))        # sources: [...], subjects: [...], content_hashes: [...]
    named = named_rows(Path("rows.parquet"), opt_out)
    held_rows(Path("train.parquet"), {row.row_id for row in named})

Ids follow a row from ingest to the examples that train, whatever is done to its text on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from tunesmith.data.policy import OptOut
from tunesmith.data.write import content_hash, conversation_of
from tunesmith.errors import DataError, nearest

KEYS = ("sources", "subjects", "content_hashes")
_ID_COLUMNS = ("row_id", "id")
_HASH_COLUMNS = ("before_hash", "after_hash")
_BATCH_ROWS = 8192
_HASH_DIGITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRow:
    """A row that an opt-out names."""

    row_id: str
    source: str
    path: str
    line: int
    why: str
    """`source`, `subject` or `content`."""
    content: str | None = None
    """Hash of the conversation as this file holds it; `None` where the file holds no text."""
    prompt: str | None = None
    """Hash of the conversation without its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRow:
    """A row as one file holds it."""

    row_id: str
    reason: str | None = None
    """Why it was dropped, where the file holds dropped rows."""
    matched_id: str | None = None
    """The row that it was dropped for."""


def read_opt_out(path: Path) -> OptOut:
    """Read an opt-out file, YAML or JSON. Raises `DataError` for an unknown key, or a value that is no list of text."""
    try:
        # BaseLoader: ids such as 0042 or no stay what is written
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError("cannot read an opt-out file", where=str(path), found=str(error).splitlines()[0]) from error
    if not isinstance(value, dict) or not value:
        raise DataError("an opt-out file is empty", where=str(path), expected=f"lists under {', '.join(KEYS)}")
    for key, items in value.items():
        if key not in KEYS:
            raise DataError(
                "an opt-out file has a key that nobody reads",
                where=f"{path}: {key}",
                expected=f"one of {', '.join(KEYS)}",
                found=key,
                hint=f"nearest: {nearest(key, KEYS)[0]}",
            )
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise DataError("an opt-out file holds lists of text", where=f"{path}: {key}", found=str(items)[:80])
    return make_opt_out(**{key: value.get(key, []) for key in KEYS}, where=str(path))


def make_opt_out(
    *, sources: Sequence[str], subjects: Sequence[str], content_hashes: Sequence[str], where: str
) -> OptOut:
    """Return an opt-out. Raises `DataError` for a content hash that is none: it would match nothing, silently."""
    for digest in content_hashes:
        if len(digest) != _HASH_DIGITS or set(digest) - set("0123456789abcdef"):
            raise DataError(
                "this is not a content hash",
                where=where,
                expected="64 hex digits, as before_hash and after_hash of lineage.parquet show them",
                found=digest,
                hint="tunesmith explain SOURCE:LINE shows a row's hashes",
            )
    return OptOut(sources=frozenset(sources), subjects=frozenset(subjects), content_hashes=frozenset(content_hashes))


def named_rows(path: Path, opt_out: OptOut) -> list[NamedRow]:
    """Return the rows of a Parquet file that an opt-out names, in the file's order, each id once.

    A file that does not say where its rows came from names none.
    """
    with pq.ParquetFile(path) as file:
        names = set(file.schema_arrow.names)
        id_column = next((column for column in _ID_COLUMNS if column in names), None)
        if id_column is None or not {"source", "path", "line"} <= names:
            return []
        wanted = [*(column for column in ("source", "subject", *_HASH_COLUMNS) if column in names)]
        by_text = bool(opt_out.content_hashes) and "messages" in names
        columns = [id_column, "path", "line", *wanted, *(["messages", "tools"] if "messages" in names else [])]
        found: dict[str, NamedRow] = {}
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(dict.fromkeys(columns))):
            kept = batch if by_text else batch.filter(_mask(batch, opt_out))
            for record in kept.to_pylist():
                row = _named(record, id_column, opt_out)
                if row is not None:
                    found.setdefault(row.row_id, row)
    return list(found.values())


def _mask(batch: pa.RecordBatch, opt_out: OptOut) -> Any:
    mask = pc.is_in(batch.column("source"), value_set=pa.array(sorted(opt_out.sources), pa.string()))
    for column, values in (
        ("subject", opt_out.subjects),
        *((column, opt_out.content_hashes) for column in _HASH_COLUMNS),
    ):
        if column in batch.schema.names:
            mask = pc.or_(mask, pc.is_in(batch.column(column), value_set=pa.array(sorted(values), pa.string())))
    return mask


def _named(record: Mapping[str, Any], id_column: str, opt_out: OptOut) -> NamedRow | None:
    conversation = conversation_of(record) if record.get("messages") is not None else None
    content = None if conversation is None else content_hash(conversation)
    if record["source"] in opt_out.sources:
        why = "source"
    elif record.get("subject") in opt_out.subjects and record.get("subject") is not None:
        why = "subject"
    elif {content, *(record.get(column) for column in _HASH_COLUMNS)} & opt_out.content_hashes:
        why = "content"
    else:
        return None
    return NamedRow(
        row_id=record[id_column],
        source=record["source"],
        path=record["path"],
        line=record["line"],
        why=why,
        content=content,
        prompt=None if conversation is None else content_hash(conversation.prompt),
    )


def held_rows(path: Path, ids: frozenset[str]) -> list[HeldRow]:
    """Return the rows of a Parquet file that have one of the ids, each once; none where the file has no ids."""
    with pq.ParquetFile(path) as file:
        names = set(file.schema_arrow.names)
        id_column = next((column for column in _ID_COLUMNS if column in names), None)
        if id_column is None or not ids:
            return []
        columns = [id_column, *(column for column in ("reason", "matched_id") if column in names)]
        values = pa.array(sorted(ids), pa.string())
        found: dict[str, HeldRow] = {}
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            if not pa.types.is_string(batch.column(id_column).type):
                return []
            for record in batch.filter(pc.is_in(batch.column(id_column), value_set=values)).to_pylist():
                found[record[id_column]] = HeldRow(
                    row_id=record[id_column], reason=record.get("reason"), matched_id=record.get("matched_id")
                )
    return list(found.values())


def is_ledger(path: Path) -> bool:
    """Whether a Parquet file tells what was done to rows, and holds none of them."""
    return "actions" in pq.read_schema(path).names


def holds_rejects(path: Path) -> bool:
    """Whether a Parquet file holds rows that were dropped."""
    names = set(pq.read_schema(path).names)
    return {"stage", "reason"} <= names
