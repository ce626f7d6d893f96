"""Made-up databases on which two queries that mean different things give different results.

    table = read_table('Table data("city", "year")')
    databases = make_databases(table, "SELECT \\"city\\" FROM data WHERE \\"year\\" > 1990")

What lives here: contents for tables that come as a list of columns only. What does not: running queries (`sql`).

For each comparison in the expected query (`column = literal`, `column > literal`) there are rows on both sides of it:
some that meet all comparisons, some that miss exactly one, some at random. Every column has values of its own, repeats
and, where no comparison needs it, nulls; so another column, another aggregate, a dropped or changed condition shows.
The idea is that of test suite accuracy (Zhong, Yu and Klein 2020). Agreement on all of them is strong evidence that two
queries mean the same, not proof.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

from tunesmith.errors import DataError
from tunesmith.evals.sql import Cell, Column, Database, Table, plain_name, sql_tokens

ROWS_PER_CASE = 5
RANDOM_ROWS = 10
REPEAT_SHARE = 0.3
"""Share of the values in a column without comparison that come from a small pool and so recur."""
_OPERATORS = frozenset({"=", "==", "!=", "<>", "<", ">", "<=", ">=", "LIKE"})
_NUMERIC_AGGREGATES = frozenset({"SUM", "AVG", "TOTAL", "MAX", "MIN"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    column: str
    operator: str
    literal: Cell


def read_table(text: str) -> Table:
    """Read a line such as `Table data("a", "b")` from a prompt, without contents. Raises `DataError` where none is."""
    match = re.search(r'\bTable\s+(\w+)\s*\(\s*("(?:[^"]|"")*"(?:\s*,\s*"(?:[^"]|"")*")*)\s*\)', text)
    if match is None:
        raise DataError(
            "the prompt declares no table", expected='a line such as Table data("a", "b")', found=text[:120]
        )
    names = [name[1:-1].replace('""', '"') for name in re.findall(r'"(?:[^"]|"")*"', match.group(2))]
    return Table(name=match.group(1), columns=tuple(Column(name=name) for name in names), rows=())


def make_databases(
    table: Table, expected: str, *, count: int = 10, seed: int = 0, collation: Literal["binary", "nocase"] = "nocase"
) -> list[Database]:
    """Return `count` databases of one table filled to tell other queries from `expected`. Deterministic in `seed`.

    Columns that the query compares with numbers, or aggregates, are numeric. `nocase` is the default because literals
    in the data sets that need made-up contents have lost their case.
    """
    comparisons = _comparisons(expected, table)
    numeric = {item.column.lower() for item in comparisons if isinstance(item.literal, (int, float))}
    numeric |= _aggregated(expected, table)
    typed = tuple(Column(name=column.name, numeric=column.name.lower() in numeric) for column in table.columns)
    databases = []
    for number in range(count):
        source = random.Random(f"{seed}/{number}/{table.name}/{expected}")
        rows = _rows(typed, comparisons, source)
        databases.append(Database(tables=(Table(name=table.name, columns=typed, rows=rows),), collation=collation))
    return databases


def _comparisons(query: str, table: Table) -> list[_Comparison]:
    """Find `column operator literal` in a query, wherever it stands."""
    names = {column.name.lower(): column.name for column in table.columns}
    tokens = sql_tokens(query)
    found = []
    for place in range(len(tokens) - 2):
        (kind, name), (_, operator), (literal_kind, literal) = tokens[place : place + 3]
        bare = plain_name(kind, name).lower()
        if kind not in ("name", "word") or bare not in names or operator.upper() not in _OPERATORS:
            continue
        sign = 1
        if literal == "-" and place + 3 < len(tokens):
            sign, (literal_kind, literal) = -1, tokens[place + 3]
        if literal_kind == "text":
            value: Cell = literal[1:-1].replace("''", "'")
        elif literal_kind == "number":
            value = sign * (float(literal) if any(mark in literal for mark in ".eE") else int(literal))
        else:
            continue
        found.append(_Comparison(column=names[bare], operator=operator.upper(), literal=value))
    return found


def _aggregated(query: str, table: Table) -> set[str]:
    names = {column.name.lower() for column in table.columns}
    tokens = sql_tokens(query)
    found = set()
    for (_, function), (_, mark), (kind, name) in zip(tokens, tokens[1:], tokens[2:], strict=False):
        bare = plain_name(kind, name).lower()
        if function.upper() in _NUMERIC_AGGREGATES and mark == "(" and bare in names:
            found.add(bare)
    return found


def _rows(
    columns: tuple[Column, ...], comparisons: list[_Comparison], source: random.Random
) -> tuple[tuple[Cell, ...], ...]:
    met = dict.fromkeys(range(len(comparisons)), True)
    cases = [met, *({**met, missed: False} for missed in met)]
    rows: list[list[Cell]] = []
    for case in [case for case in cases for _ in range(ROWS_PER_CASE)]:
        rows.append([_cell(column, place, comparisons, case, source) for place, column in enumerate(columns)])
    for place, column in enumerate(columns):
        if not any(item.column == column.name for item in comparisons):
            for row in source.sample(range(ROWS_PER_CASE), source.randrange(1, ROWS_PER_CASE - 1)):
                rows[row][place] = None  # tells COUNT(column) from COUNT(*) and from COUNT(another)
    for _ in range(RANDOM_ROWS):
        case = {number: source.random() < 0.5 for number in met}
        rows.append([_cell(column, place, comparisons, case, source) for place, column in enumerate(columns)])
    rows += [source.choice(rows[:ROWS_PER_CASE]), source.choice(rows)]  # repeated rows tell DISTINCT apart
    source.shuffle(rows)
    return tuple(map(tuple, rows))


def _cell(
    column: Column, place: int, comparisons: list[_Comparison], case: dict[int, bool], source: random.Random
) -> Cell:
    """Return a value that meets or misses the comparisons on this column as the case says, as far as they agree."""
    own = [(item, case[i]) for i, item in enumerate(comparisons) if item.column == column.name]
    if not own:
        number = source.randrange(1, 8) if source.random() < REPEAT_SHARE else source.randrange(1, 5000)
        return number * 10 + place if column.numeric else f"{column.name} {number}"
    drawn = [_towards(item, meets, column, source) for item, meets in own]
    return max(drawn, key=lambda value: sum(_meets(value, item) == meets for item, meets in own))


def _towards(item: _Comparison, meets: bool, column: Column, source: random.Random) -> Cell:
    """Return a value near a literal, or now and then far from it, that meets or misses its comparison."""
    literal, operator = item.literal, item.operator
    if operator in ("=", "==", "LIKE", "!=", "<>"):
        wanted = meets == (operator in ("=", "==", "LIKE"))
        if isinstance(literal, (int, float)):
            return literal if wanted else literal + source.choice([-1, 1]) * _step(literal, source)
        text = str(literal)
        if operator == "LIKE":
            text = text.replace("%", "").replace("_", "x")
        return text if wanted else source.choice([f"{text} {source.randrange(9)}", text[:-1], f"{column.name} 0"])
    if meets == (operator in ("<=", ">=")) and source.random() < 0.3:
        return literal  # the boundary itself tells < from <=
    above = meets == (operator in (">", ">="))
    if isinstance(literal, (int, float)):
        return literal + (1 if above else -1) * _step(literal, source)
    text = str(literal)
    return f"{text}{source.choice('abc')}" if above else text[:-1]


def _step(literal: float, source: random.Random) -> int | float:
    near = source.choice([1, 2, 7]) if isinstance(literal, int) else source.choice([0.01, 0.5, 4.25])
    return near if source.random() < 0.75 else near + abs(literal) * source.choice([2, 20])


def _meets(value: Cell, item: _Comparison) -> bool:
    literal = item.literal
    if isinstance(value, (int, float)) != isinstance(literal, (int, float)):
        value, literal = str(value), str(literal)
    if item.operator in ("=", "==", "LIKE"):
        return value == literal
    if item.operator in ("!=", "<>"):
        return value != literal
    less, equal = value < literal, value == literal  # type: ignore[operator]
    return {"<": less, "<=": less or equal, ">": not less and not equal, ">=": not less}[item.operator]
