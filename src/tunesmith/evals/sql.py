"""SQL judged by running it: the query of an answer and the expected one on the same SQLite databases.

    databases = [Database(tables=(Table(name="data", columns=(Column(name="city"),), rows=(("Oslo",),)),))]
    match_sql("SELECT city FROM data", "select CITY from data", databases=databases).matches

What lives here: running a query that nobody has read, comparing results. What does not: making up databases for rows
that come without contents (`sql_databases`).

A query runs on a database of its own in memory, with statements other than one SELECT refused by SQLite's authorizer
(no ATTACH, no PRAGMA, no write), no random functions, and budgets on steps and cell length. The budget is counted in
virtual machine steps, not seconds, so the verdict is the same on a slow machine.
"""

from __future__ import annotations

import enum
import itertools
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Cell = str | int | float | None
ResultRow = tuple[Cell | bytes, ...]

MAX_STEPS = 1_000_000
"""Virtual machine steps of one query; a scan of a thousand rows takes about ten thousand."""
MAX_ROWS = 10_000
MAX_CELL_BYTES = 20_000
_STEPS_PER_CHECK = 1000
_DECIMALS = 9
"""Floats agree to nine significant digits: the order of a sum may differ between two right queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column. `numeric` lets `'6'` equal 6, as in a declared column; otherwise everything is text."""

    name: str
    numeric: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table and its contents."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """Tables to query. `nocase` compares text without case, for data whose literals have lost theirs (WikiSQL)."""

    tables: tuple[Table, ...]
    collation: Literal["binary", "nocase"] = "binary"


class SqlError(enum.StrEnum):
    """Why a query has no result."""

    EMPTY = "empty"
    """There is no query in the answer."""
    INVALID = "invalid"
    """SQLite refuses it: syntax, unknown table, column or function."""
    NOT_A_SELECT = "not_a_select"
    """It is more than one statement, or would do something other than read."""
    OVER_BUDGET = "over_budget"
    """Too many steps, too many rows or too long a cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Rows of a query, or why there are none."""

    rows: tuple[ResultRow, ...] = ()
    error: SqlError | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlVerdict:
    """Whether a query gives the expected results on every database."""

    matches: bool
    error: SqlError | None = None
    detail: str = ""
    informative: bool = True
    """Whether the expected query returned something other than nothing, nulls and zeros on some database. Where it
    never did, agreement says little."""


_FENCED = re.compile(r"```[ \t]*(?:sql|sqlite)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def extract_query(answer: str) -> str:
    """Return the query of an answer: the first fenced block, or the whole text; a final semicolon goes. No guessing."""
    fenced = _FENCED.search(answer)
    return (fenced.group(1) if fenced else answer).strip().rstrip(";").rstrip()


def match_sql(query: str, expected: str, *, databases: Sequence[Database]) -> SqlVerdict:
    """Compare a query with the expected one by their results on each database.

    Rows are compared as a bag: duplicates count, order does not, unless the expected query orders its rows at the top
    level. Columns are compared by position, their names do not count. 1 equals 1.0; text is compared as stored.
    Raises `ValueError` where the expected query itself does not run, or without databases.
    """
    if not databases:
        raise ValueError("no database to compare on")
    ordered, informative = is_ordered(expected), False
    for place, database in enumerate(databases):
        wanted = execute(expected, database)
        if wanted.error is not None:
            raise ValueError(f"the expected query does not run: {wanted.error.value}: {wanted.detail}: {expected}")
        informative = informative or any(cell not in (None, 0) for row in wanted.rows for cell in row)
        found = execute(query, database)
        if found.error is not None:
            return SqlVerdict(matches=False, error=found.error, detail=found.detail)
        if not same_rows(found.rows, wanted.rows, ordered=ordered):
            shown = f"database {place}: {_show(found.rows)} instead of {_show(wanted.rows)}"
            return SqlVerdict(matches=False, detail=shown)
    return SqlVerdict(matches=True, informative=informative)


def _show(rows: tuple[ResultRow, ...]) -> str:
    return f"{len(rows)} rows {list(rows[:3])!r}"[:160]


def same_rows(a: Sequence[ResultRow], b: Sequence[ResultRow], *, ordered: bool) -> bool:
    """Whether two results hold the same rows, in the same order where that counts."""
    left, right = [tuple(map(_comparable, row)) for row in a], [tuple(map(_comparable, row)) for row in b]
    return left == right if ordered else Counter(left) == Counter(right)


def _comparable(cell: Cell | bytes) -> tuple[str, Cell | bytes]:
    if isinstance(cell, (int, float)):
        value = float(cell)
        if math.isfinite(value) and value != 0:
            value = float(f"{value:.{_DECIMALS - 1}e}")
        return "number", cell if isinstance(cell, int) and abs(cell) > 1 << 53 else value
    return type(cell).__name__, cell


def is_ordered(query: str) -> bool:
    """Whether a query orders its rows at the top level: `ORDER BY` outside parentheses, strings and comments."""
    depth, words = 0, []
    for kind, token in sql_tokens(query):
        if kind == "mark":
            depth += {"(": 1, ")": -1}.get(token, 0)
        elif depth == 0:
            words.append(token.upper() if kind == "word" else "")
    return any(pair == ("ORDER", "BY") for pair in itertools.pairwise(words))


_TOKEN = re.compile(
    r"""(?P<skip>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))|(?P<text>'(?:[^']|'')*')|(?P<name>"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\])"""
    r"""|(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)|(?P<word>\w+)|(?P<mark><>|[<>!=]=|\|\||.)""",
    re.DOTALL,
)


def sql_tokens(query: str) -> list[tuple[str, str]]:
    """Return (kind, text) of each token: text, name (quoted), number, word, mark."""
    found = []
    for match in _TOKEN.finditer(query):
        kind = match.lastgroup
        if kind is not None and kind != "skip":
            found.append((kind, match.group()))
    return found


def plain_name(kind: str, token: str) -> str:
    """Return a name without its quotes; a bare word is its own name."""
    if kind != "name":
        return token
    return token[1:-1].replace('""', '"') if token.startswith('"') else token[1:-1]


# ----------------------------------------------------------------------------------------------------- execution

_ALLOWED_ACTIONS = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
_REFUSED_FUNCTIONS = frozenset(
    {"load_extension", "random", "randomblob", "readfile", "writefile", "edit", "fts3_tokenizer"}
)


def execute(query: str, database: Database) -> Result:
    """Run one query on a fresh copy of a database and return its rows or the reason why there are none."""
    if not query.strip():
        return Result(error=SqlError.EMPTY)
    stray = _stray_name(query, database)
    if stray is not None:
        return Result(error=SqlError.INVALID, detail=f"no such column: {stray}")
    connection = _build(database)
    try:
        return _run(connection, query)
    finally:
        connection.close()


def _build(database: Database) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
    for table in database.tables:
        columns = ", ".join(
            f"{_quoted(column.name)} {'NUMERIC' if column.numeric else 'TEXT'} COLLATE {database.collation.upper()}"
            for column in table.columns
        )
        connection.execute(f"CREATE TABLE {_quoted(table.name)} ({columns})")
        marks = ", ".join("?" * len(table.columns))
        connection.executemany(f"INSERT INTO {_quoted(table.name)} VALUES ({marks})", table.rows)
    return connection


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _run(connection: sqlite3.Connection, query: str) -> Result:
    refused: list[str] = []
    steps = 0

    def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _REFUSED_FUNCTIONS:
            refused.append(f"function {second}")
            return sqlite3.SQLITE_DENY
        if action not in _ALLOWED_ACTIONS:
            refused.append(f"action {action} on {first}")
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def count() -> int:
        nonlocal steps
        steps += _STEPS_PER_CHECK
        return int(steps > MAX_STEPS)

    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.set_authorizer(authorize)
    connection.set_progress_handler(count, _STEPS_PER_CHECK)
    try:
        rows = connection.execute(query).fetchmany(MAX_ROWS + 1)
    except sqlite3.ProgrammingError as error:  # more than one statement
        return Result(error=SqlError.NOT_A_SELECT, detail=str(error))
    except (sqlite3.Error, sqlite3.Warning) as error:
        if refused:
            return Result(error=SqlError.NOT_A_SELECT, detail=", ".join(refused))
        over = steps > MAX_STEPS or "too big" in str(error)
        return Result(error=SqlError.OVER_BUDGET if over else SqlError.INVALID, detail=str(error))
    except (OverflowError, UnicodeDecodeError) as error:
        return Result(error=SqlError.INVALID, detail=str(error))
    if len(rows) > MAX_ROWS:
        return Result(error=SqlError.OVER_BUDGET, detail=f"more than {MAX_ROWS} rows")
    return Result(rows=tuple(tuple(row) for row in rows))


def _stray_name(query: str, database: Database) -> str | None:
    """Return a double-quoted name that nothing is called.

    SQLite takes such a name for a string, so that `COUNT("no_such_column")` counts rows instead of failing.
    """
    known = {table.name.lower() for table in database.tables} | {"rowid", "oid", "_rowid_"}
    known |= {column.name.lower() for table in database.tables for column in table.columns}
    tokens = sql_tokens(query)
    used: list[str] = []
    for place, (kind, token) in enumerate(tokens):
        if kind == "name" and token.startswith('"'):
            name = plain_name(kind, token).lower()
            before, after = (tokens[i][1].upper() if 0 <= i < len(tokens) else "" for i in (place - 1, place + 1))
            is_alias = before in ("AS", "WITH", "RECURSIVE") or after == "AS" or tokens[max(place - 1, 0)][0] == "name"
            (known.add if is_alias else used.append)(name)
    return next((name for name in used if name not in known), None)
