"""Tables of records: Parquet, Arrow (files and streams), and the rows of an SQL query, one batch in memory at a time.

What lives here: a table in, records out, numbered from 1. What does not: text files (`data.textfiles`).

Arrow gives each struct the union of all keys, with nulls where a row had none: null keys are dropped at every depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
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
                _refuse_twins(file.schema_arrow.names, path)
                yield from table_records(file.iter_batches(batch_size=_BATCH_ROWS))
        else:
            yield from table_records(_arrow_batches(path))
    except OSError as error:
        if error.strerror:
            raise unreadable(path, error) from error
        raise _broken(path, kind, error) from error
    except pa.ArrowException as error:
        raise _broken(path, kind, error) from error


def _refuse_twins(names: list[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path.name} has two columns named {twice[0]!r}",
            where=str(path),
            expected="one different name for each column",
            found=", ".join(names),
            hint="rename or drop one of them",
        )


def table_records(batches: Iterator[Any]) -> Iterator[Record | BadRecord]:
    """The rows of record batches; a row with a value that Python cannot hold is a bad record, not the end of all."""
    number = 0
    for batch in batches:
        try:
            values = batch.to_pylist()
        except (ValueError, OverflowError):  # text that is not UTF-8, a date after the year 9999
            yield from _one_by_one(batch, number)
        else:
            for line, value in enumerate(values, start=number + 1):
                yield Record(line=line, value=_plain(value))
        number += batch.num_rows


def _one_by_one(batch: Any, number: int) -> Iterator[Record | BadRecord]:
    for index in range(batch.num_rows):
        line = number + index + 1
        value: dict[str, JSON] = {}
        problem = None
        for name in batch.schema.names:
            try:
                value[name] = batch.column(name)[index].as_py()
            except (ValueError, OverflowError) as error:
                problem = f"field {name!r}: expected a value that can be read, found {error}"
        if problem is None:
            yield Record(line=line, value=_plain(value))
        else:
            yield BadRecord(line=line, reason="unreadable_value", detail=problem, raw=repr(value))


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
            _refuse_twins(file.schema.names, path)
            for index in range(file.num_record_batches):
                yield from _small(file.get_batch(index))
            return
        with stream:
            _refuse_twins(stream.schema.names, path)
            for batch in stream:
                yield from _small(batch)


def _small(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, _BATCH_ROWS):
        yield batch.slice(start, _BATCH_ROWS)


def read_query(url: str, query: str) -> Iterator[Record | BadRecord]:
    """Yield the rows of an SQL query on any database that SQLAlchemy knows. Raises `DataError`."""
    import sqlalchemy as sa

    try:
        at = sa.engine.make_url(url)
        if at.get_backend_name() == "sqlite" and at.database not in (None, "", ":memory:"):
            _refuse_new_database(Path(str(at.database)))
        engine = sa.create_engine(at)
        with engine.connect().execution_options(stream_results=True, max_row_buffer=_BATCH_ROWS) as connection:
            result = connection.execute(sa.text(query))
            names = list(result.keys())
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise DataError(
                    f"the query gives two columns named {twice!r}",
                    where=at.render_as_string(hide_password=True),
                    expected="one different name for each column",
                    found=", ".join(names),
                    hint=f"give one of them another name: SELECT a.{twice} AS other",
                )
            number = 0
            for part in result.mappings().partitions(_BATCH_ROWS):
                for row in part:
                    number += 1
                    yield Record(line=number, value=_plain(dict(row)))
    except (sa.exc.SQLAlchemyError, ImportError) as error:
        raise DataError(
            "the SQL source cannot be read",
            where=re.sub(r"//([^:/@]*):[^@]*@", r"//\1:***@", url),
            expected="a URL that SQLAlchemy can open and a query that it can run",
            found=str(error).splitlines()[0],
            hint="a database other than SQLite needs its driver: pip install 'tunesmith[postgres]' for PostgreSQL",
        ) from error


def _refuse_new_database(path: Path) -> None:
    """SQLite makes an empty database where there is none."""
    if not path.exists():
        raise DataError(
            "the SQLite database is not there",
            where=str(path.absolute()),
            expected="a file",
            found="nothing",
            hint="write the path as sqlite:////absolute/path.db, or start in the folder that it is relative to",
        )


def _plain(value: Any) -> JSON:
    """As JSON: null keys dropped, dates as ISO 8601, decimals as numbers, bytes as text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).decode("utf-8", "surrogateescape")
    return value if isinstance(value, (str, bool, int, float)) or value is None else str(value)
