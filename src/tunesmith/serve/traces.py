"""Traces: what was asked and answered, and what people said about it, in SQLite or PostgreSQL.

What lives here: the two tables, reading and writing them, copying a closed span into one file that becomes an
artifact. What does not: redaction (the caller passes text that is already safe to keep), figures (`monitor`).

    store = TraceStore("sqlite:///traces.sqlite")
    store.add_trace(trace)
    store.add_feedback(Feedback(trace_id=trace.id, time=time.time(), rating=-1.0))
    store.copy_span(Path("closed.sqlite"), since=0.0, until=time.time())
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import unicodedata
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from tunesmith.errors import ServeError
from tunesmith.types import Feedback, Trace

SCHEMA_VERSION = 1
"""Version of the tables; a database of another version is refused, never guessed at."""

_BUSY_SECONDS = 30.0
_metadata = sa.MetaData()

_meta = sa.Table(
    "tunesmith_meta",
    _metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("value", sa.String(200), nullable=False),
)
_traces = sa.Table(
    "traces",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("time", sa.Float, nullable=False, index=True),
    sa.Column("model", sa.String(300), nullable=False),
    sa.Column("contract_sha256", sa.String(64), nullable=False),
    sa.Column("adapter_sha256", sa.String(64)),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("error", sa.String(100)),
    sa.Column("messages", sa.JSON(none_as_null=True)),
    sa.Column("completion", sa.Text),
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("completion_tokens", sa.Integer),
    sa.Column("finish_reason", sa.String(32)),
    sa.Column("parse_ok", sa.Boolean),
    sa.Column("schema_ok", sa.Boolean),
    sa.Column("guard_flags", sa.JSON, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("latency_ms", sa.Float),
    sa.Column("ttft_ms", sa.Float),
    sa.Column("streamed", sa.Boolean, nullable=False),
    sa.Column("deviation", sa.JSON, nullable=False),
    sa.Column("consent", sa.Boolean),
    sa.Column("leak_key", sa.String(64), index=True),
    sa.Column("tags", sa.JSON, nullable=False),
)
_feedback = sa.Table(
    "feedback",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("trace_id", sa.String(64), sa.ForeignKey("traces.id"), nullable=False, index=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("rating", sa.Float),
    sa.Column("comment", sa.Text),
    sa.Column("correction", sa.Text),
    sa.Column("tags", sa.JSON, nullable=False),
)
_TRACE_COLUMNS = tuple(column.name for column in _traces.columns)
_FEEDBACK_COLUMNS = tuple(column.name for column in _feedback.columns if column.name != "number")


def new_trace_id() -> str:
    """Return `chatcmpl-` and a time-ordered UUID version 7 (RFC 9562 section 5.7), so ids sort by arrival."""
    stamp = time.time_ns() // 1_000_000
    value = (stamp & ((1 << 48) - 1)) << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return f"chatcmpl-{uuid.UUID(int=value).hex}"


_NOT_WORD = re.compile(r"[\W_]+")


def leak_key(text: str) -> str:
    """Return the sha256 of the text's letters and digits, case and width folded (NFKC).

    Two messages that differ in case, spacing or punctuation alone share a key; one changed digit does not.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return hashlib.sha256(_NOT_WORD.sub(" ", folded).strip().encode()).hexdigest()


class TraceStore:
    """Traces and feedback behind one SQLAlchemy URL. Safe to use from several threads and processes."""

    def __init__(self, url: str) -> None:
        """Open or create the tables.

        Raises `ServeError` where the database cannot be reached or holds tables of another version.
        """
        self.url = url
        try:
            self._engine = sa.create_engine(url)
            if self._engine.dialect.name == "sqlite":
                sa.event.listen(self._engine, "connect", _prepare_sqlite)
            _metadata.create_all(self._engine)
            with self._engine.begin() as connection:
                found = connection.execute(sa.select(_meta.c.value).where(_meta.c.key == "version")).scalar()
                if found is None:
                    connection.execute(sa.insert(_meta).values(key="version", value=str(SCHEMA_VERSION)))
        except (SQLAlchemyError, ImportError) as error:
            raise ServeError(
                "the trace database cannot be opened",
                where=_without_password(url),
                found=str(error).splitlines()[0],
                hint="give --traces a SQLAlchemy URL, such as sqlite:///traces.sqlite or postgresql+psycopg://...",
            ) from error
        if found is not None and found != str(SCHEMA_VERSION):
            self._engine.dispose()
            raise ServeError(
                "the trace database was written by another version of tunesmith",
                where=_without_password(url),
                expected=f"tables of version {SCHEMA_VERSION}",
                found=f"version {found}",
                hint="give --traces another database; the old one can still be read by the version that wrote it",
            )

    def add_trace(self, trace: Trace) -> None:
        """Write one trace. An id is written once; a second write of it is an error of the database."""
        values = {name: getattr(trace, name) for name in _TRACE_COLUMNS}
        values["messages"] = None if trace.messages is None else [dict(message) for message in trace.messages]
        values["guard_flags"] = list(trace.guard_flags)
        values["deviation"] = dict(trace.deviation)
        values["tags"] = dict(trace.tags)
        with self._engine.begin() as connection:
            connection.execute(sa.insert(_traces).values(values))

    def add_feedback(self, feedback: Feedback) -> bool:
        """Write one piece of feedback; return False, and write nothing, where no such trace exists."""
        with self._engine.begin() as connection:
            known = connection.execute(sa.select(_traces.c.id).where(_traces.c.id == feedback.trace_id)).first()
            if known is None:
                return False
            values = {name: getattr(feedback, name) for name in _FEEDBACK_COLUMNS}
            values["tags"] = dict(feedback.tags)
            connection.execute(sa.insert(_feedback).values(values))
        return True

    def traces(self, *, since: float = 0.0, until: float | None = None) -> Iterator[Trace]:
        """Yield the traces with `since <= time < until` in order of arrival, without loading all of them."""
        query = sa.select(_traces).where(_span(_traces.c.time, since, until)).order_by(_traces.c.time, _traces.c.id)
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=1000).execute(query).mappings():
                yield _trace(row)

    def feedback(self, *, since: float = 0.0, until: float | None = None) -> Iterator[Feedback]:
        """Yield the feedback on traces of that span, oldest first. The span is the trace's time, not the feedback's."""
        query = (
            sa.select(*(_feedback.c[name] for name in _FEEDBACK_COLUMNS))
            .join(_traces, _traces.c.id == _feedback.c.trace_id)
            .where(_span(_traces.c.time, since, until))
            .order_by(_feedback.c.number)
        )
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=1000).execute(query).mappings():
                yield Feedback(**row)

    def find(self, trace_id: str) -> Trace | None:
        """Return one trace, or `None`."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(_traces).where(_traces.c.id == trace_id)).mappings().first()
        return None if row is None else _trace(row)

    def copy_span(self, target: Path, *, since: float = 0.0, until: float | None = None) -> tuple[int, int]:
        """Copy a span into one new SQLite file without side files; return the numbers of traces and feedback.

        The file is complete and closed when this returns, so its sha256 is its identity.
        """
        assert not target.exists(), target
        copy = TraceStore(f"sqlite:///{target}")
        num_traces = num_feedback = 0
        with copy._writing() as connection:
            for trace in self.traces(since=since, until=until):
                values = {name: getattr(trace, name) for name in _TRACE_COLUMNS}
                connection.execute(sa.insert(_traces).values(values))
                num_traces += 1
            for item in self.feedback(since=since, until=until):
                connection.execute(
                    sa.insert(_feedback).values({name: getattr(item, name) for name in _FEEDBACK_COLUMNS})
                )
                num_feedback += 1
        copy._fold()
        return num_traces, num_feedback

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections. The last one of a SQLite file also writes its log back into the file."""
        self._engine.dispose()

    def _fold(self) -> None:
        """Leave write-ahead mode, so that the SQLite file stands alone. Nobody else may have it open."""
        self._engine.dispose()
        with self._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=DELETE")
        self._engine.dispose()


def open_closed_span(path: Path) -> tuple[list[Trace], list[Feedback]]:
    """Read all of a `traces.sqlite` that `copy_span` made, without writing a byte beside it.

    Raises `ServeError` where the file is no trace database of this version.
    """
    engine = sa.create_engine(f"sqlite:///file:{path}?mode=ro&immutable=1&uri=true")
    try:
        with engine.connect() as connection:
            version = connection.execute(sa.select(_meta.c.value).where(_meta.c.key == "version")).scalar()
            traces = connection.execute(sa.select(_traces).order_by(_traces.c.time, _traces.c.id)).mappings().all()
            feedback = (
                connection.execute(
                    sa.select(*(_feedback.c[name] for name in _FEEDBACK_COLUMNS)).order_by(_feedback.c.number)
                )
                .mappings()
                .all()
            )
    except SQLAlchemyError as error:
        raise ServeError("this is no trace database", where=str(path), found=str(error).splitlines()[0]) from error
    finally:
        engine.dispose()
    if version != str(SCHEMA_VERSION):
        raise ServeError(
            "the trace file was written by another version of tunesmith",
            where=str(path),
            expected=str(SCHEMA_VERSION),
            found=str(version),
        )
    return [_trace(row) for row in traces], [Feedback(**row) for row in feedback]


def _trace(row: Any) -> Trace:
    values = dict(row)
    messages: Sequence[Any] | None = values["messages"]
    values["messages"] = None if messages is None else tuple(messages)
    values["guard_flags"] = tuple(values["guard_flags"])
    return Trace(**values)


def _span(column: sa.Column[float], since: float, until: float | None) -> sa.ColumnElement[bool]:
    clause = column >= since
    return clause if until is None else sa.and_(clause, column < until)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(_BUSY_SECONDS * 1000)}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return url.split("://")[0]
