"""WikiSQL's queries agree with themselves on made-up databases, and nearly every damaged one is told apart."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from tunesmith.evals.sql import match_sql
from tunesmith.evals.sql_databases import make_databases, read_table

FILE = Path(__file__).parents[2] / "../shared/data/sql_wikisql.val.jsonl"
QUERY = re.compile(r'SELECT (?:(\w+)\()?("(?:[^"]|"")*")\)? FROM data(?: WHERE (.*))?$')
CONDITION = re.compile(r"""("(?:[^"]|"")*") ([<>=]+) ('(?:[^']|'')*'|-?[\d.]+)""")


def _damage(query, columns, source):
    """Queries that mean something else: another column, aggregate, condition, operator or literal."""
    aggregate, column, where = QUERY.match(query).groups()
    rest = f" WHERE {where}" if where else ""
    others = [f'"{name}"' for name in columns if f'"{name}"' != column]
    yield query.replace(column, source.choice(others), 1)
    for name in {"COUNT", "MAX", "MIN", "SUM", "AVG"} - {aggregate}:
        yield f"SELECT {name}({column}) FROM data{rest}"
    selected = f"{aggregate}({column})" if aggregate else column
    conditions = ["".join((c, " ", o, " ", v)) for c, o, v in CONDITION.findall(where or "")]
    for place, condition in enumerate(conditions):
        kept = conditions[:place] + conditions[place + 1 :]
        yield f"SELECT {selected} FROM data" + (" WHERE " + " AND ".join(kept) if kept else "")
        name, operator, value = CONDITION.match(condition).groups()
        other = source.choice([f'"{c}"' for c in columns if f'"{c}"' != name])
        yield query.replace(condition, f"{other} {operator} {value}")
        yield query.replace(condition, f"{name} {'<' if operator != '<' else '>'} {value}")
        yield query.replace(
            condition, f"{name} {operator} {value[:-1]}zz'" if value[0] == "'" else f"{name} {operator} {value}3"
        )


def test_expected_queries_agree_with_themselves_and_damaged_ones_do_not():
    if not FILE.exists():
        pytest.skip(f"{FILE} is not here")
    source, tried, missed = random.Random(7), 0, []
    for line in FILE.read_text().splitlines()[::6]:
        row = json.loads(line)
        _, user, gold = (message["content"] for message in row["messages"])
        table = read_table(user)
        databases = make_databases(table, gold)
        itself = match_sql(gold, gold, databases=databases)
        assert itself.matches, row["id"]
        assert itself.informative, row["id"]
        for query in _damage(gold, [column.name for column in table.columns], source):
            tried += 1
            if query != gold and match_sql(query, gold, databases=databases).matches:
                missed.append((gold, query))
    assert tried > 500
    assert len(missed) / tried < 0.005, missed
