"""Tables of records: Parquet, Arrow (files and streams), and the rows of an SQL query, one batch in memory at a time.

What lives here: a table in, records out, numbered from 1. What does not: text files (`data.textfiles`).

Arrow gives each struct the union of all keys, with nulls where a row had none: null keys are dropped at every depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from tunesmith.data.records import BadRecord, Record, unreadable
from tunesmith.errors import DataError
from tunesmith.types import JSON

_BATCH_ROWS = 1024


def read_table(path: Path, kind: str) -> Iterator[Record | BadRecord]:
    """Yield the rows of a Parquet or Arrow file. Raises `DataError` where it is none, or broken."""
    try:
        if kind == "parquet":
            with pq.ParquetFile(path) as file:
                yield from _records(batch.to_pylist() for batch in file.iter_batches(batch_size=_BATCH_ROWS))
        else:
            yield from _records(batch.to_pylist() for batch in _arrow_batches(path))
    except OSError as error:
        if error.strerror:
            raise unreadable(path, error) from error
        raise _broken(path, kind, error) from error
    except pa.ArrowException as error:
        raise _broken(path, kind, error) from error


def _broken(path: Path, kind: str, error: Exception) -> DataError:
    return DataError(
        f"{path.name} is not a readable {kind} file",
        where=str(path),
        expected=f"a whole {kind} file",
        found=str(error).splitlines()[0],
        hint="the file may be cut off or of another format",
    )


def _arrow_batches(path: Path) -> Iterator[Any]:
    with pa.memory_map(str(path)) as source:
        try:
            stream = ipc.open_stream(source)  # what `datasets` writes
        except pa.ArrowInvalid:
            file = ipc.open_file(source)
            for index in range(file.num_record_batches):
                yield from _small(file.get_batch(index))
            return
        with stream:
            for batch in stream:
                yield from _small(batch)


def _small(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, _BATCH_ROWS):
        yield batch.slice(start, _BATCH_ROWS)


def read_query(url: str, query: str) -> Iterator[Record | BadRecord]:
    """Yield the rows of an SQL query on any database that SQLAlchemy knows. Raises `DataError`."""
    import sqlalchemy as sa

    try:
        engine = sa.create_engine(url)
        with engine.connect().execution_options(stream_results=True, max_row_buffer=_BATCH_ROWS) as connection:
            result = connection.execute(sa.text(query))
            yield from _records([dict(row) for row in part] for part in result.mappings().partitions(_BATCH_ROWS))
    except (sa.exc.SQLAlchemyError, ImportError) as error:
        shown = sa.engine.make_url(url).render_as_string(hide_password=True) if "://" in url else url
        raise DataError(
            "the SQL source cannot be read",
            where=shown,
            expected="a URL that SQLAlchemy can open and a query that it can run",
            found=str(error).splitlines()[0],
            hint="for databases other than SQLite install their driver, such as psycopg for PostgreSQL",
        ) from error


def _records(batches: Iterator[list[dict[str, Any]]]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for value in batch:
            number += 1
            yield Record(line=number, value=_plain(value))


def _plain(value: Any) -> JSON:
    """As JSON: null keys dropped, dates as ISO 8601, decimals as numbers, bytes as text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).decode("utf-8", "surrogateescape")
    return value
