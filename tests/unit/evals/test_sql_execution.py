"""A query is judged by its results; it can read one database and do nothing else."""

from __future__ import annotations

import pytest

from tunesmith.errors import DataError
from tunesmith.evals.sql import (
    Column,
    Database,
    SqlError,
    Table,
    execute,
    extract_query,
    is_ordered,
    match_sql,
    same_rows,
)
from tunesmith.evals.sql_databases import make_databases, read_table

CITIES = Table(
    name="data",
    columns=(Column(name="city"), Column(name="year", numeric=True), Column(name="size of it", numeric=True)),
    rows=(("Oslo", 1048, 0.7), ("Bergen", 1070, None), ("oslo", 1048, 0.7), ("Tromsø", 1794, 0.07)),
)
DB = Database(tables=(CITIES, Table(name="other", columns=(Column(name="k"),), rows=(("x",),))))


def rows(query, database=DB):
    result = execute(query, database)
    assert result.error is None, result
    return list(result.rows)


def test_a_query_returns_its_rows():
    assert rows('SELECT city FROM data WHERE "size of it" < 0.5') == [("Tromsø",)]
    assert rows("WITH a AS (SELECT 1 AS n) SELECT n FROM a") == [(1,)]
    assert rows("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 3) SELECT i FROM n") == [
        (1,),
        (2,),
        (3,),
    ]
    assert rows("SELECT count(*) FROM data JOIN other") == [(4,)]


def test_numbers_in_quotes_equal_numbers_in_numeric_columns_only():
    assert len(rows("SELECT 1 FROM data WHERE year = '1048'")) == 2
    assert rows("SELECT 1 FROM data WHERE city = 1048") == []


def test_case_counts_unless_the_database_says_otherwise():
    assert len(rows("SELECT 1 FROM data WHERE city = 'oslo'")) == 1
    assert len(rows("SELECT 1 FROM data WHERE city = 'oslo'", Database(tables=(CITIES,), collation="nocase"))) == 2


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("", SqlError.EMPTY),
        ("  \n", SqlError.EMPTY),
        ("SELEC 1", SqlError.INVALID),
        ("SELECT nothing FROM data", SqlError.INVALID),
        ('SELECT "nothing" FROM data', SqlError.INVALID),
        ('SELECT COUNT("nothing") FROM data', SqlError.INVALID),
        ("SELECT * FROM nowhere", SqlError.INVALID),
        ("SELECT readfile('/etc/passwd')", SqlError.INVALID),
        ("the answer is 42", SqlError.INVALID),
        ("SELECT 'a\x00b', \x00", SqlError.NOT_A_SELECT),
        ("SELECT 1; DROP TABLE data", SqlError.NOT_A_SELECT),
        ("DELETE FROM data", SqlError.NOT_A_SELECT),
        ("INSERT INTO data VALUES (1, 2, 3)", SqlError.NOT_A_SELECT),
        ("UPDATE data SET city = 1", SqlError.NOT_A_SELECT),
        ("DROP TABLE data", SqlError.NOT_A_SELECT),
        ("CREATE TABLE x (a)", SqlError.NOT_A_SELECT),
        ("ATTACH DATABASE '{tmp}/stolen.db' AS x", SqlError.NOT_A_SELECT),
        ("VACUUM INTO '{tmp}/stolen.db'", SqlError.NOT_A_SELECT),
        ("PRAGMA table_info(data)", SqlError.NOT_A_SELECT),
        ("SELECT * FROM pragma_table_info('data')", SqlError.NOT_A_SELECT),
        ("SELECT load_extension('x')", SqlError.NOT_A_SELECT),
        ("SELECT random()", SqlError.NOT_A_SELECT),
        ("BEGIN", SqlError.NOT_A_SELECT),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT max(i) FROM n", SqlError.OVER_BUDGET),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 20000) SELECT i FROM n", SqlError.OVER_BUDGET),
        ("SELECT zeroblob(1000000000)", SqlError.OVER_BUDGET),
        ("SELECT count(*) FROM data a, data b, data c, data d, data e, data f, data g, data h, data i, data j", SqlError.OVER_BUDGET),
    ],
)  # fmt: skip
def test_each_query_that_gives_no_result_says_why_and_leaves_no_trace(query, error, tmp_path):
    result = execute(query.replace("{tmp}", str(tmp_path)), DB)
    assert result.error is error, result
    assert result.rows == ()
    assert list(tmp_path.iterdir()) == []


def test_a_budget_gives_the_same_verdict_every_time():
    query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 60000) SELECT count(*) FROM n"
    assert len({str(execute(query, DB)) for _ in range(3)}) == 1


def verdict(query, expected):
    return match_sql(query, expected, databases=[DB])


def test_rows_are_a_bag_unless_the_expected_query_orders_them():
    assert verdict("SELECT city FROM data ORDER BY year DESC", "SELECT city FROM data").matches
    assert not verdict("SELECT city FROM data", "SELECT city FROM data ORDER BY year DESC").matches
    assert not verdict("SELECT DISTINCT year FROM data", "SELECT year FROM data").matches
    assert not verdict("SELECT year, city FROM data", "SELECT city, year FROM data").matches


def test_names_of_columns_and_kinds_of_numbers_do_not_count():
    assert verdict("SELECT year * 1.0 AS y FROM data", "SELECT year FROM data").matches
    assert verdict('SELECT SUM("size of it") FROM data', 'SELECT 0.07 + 0.7 + 0.7 AS "total"').matches
    assert not verdict("SELECT CAST(year AS TEXT) FROM data", "SELECT year FROM data").matches
    assert not same_rows([(None,)], [(0,)], ordered=False)
    assert not same_rows([("1",)], [(1,)], ordered=False)
    assert not same_rows([(2**62,)], [(2**62 + 1,)], ordered=False)


def test_an_agreement_on_nothing_is_marked_as_saying_little():
    assert (
        verdict("SELECT city FROM data WHERE year < 0", "SELECT year FROM data WHERE city = 'Rome'").informative
        is False
    )
    assert verdict("SELECT city FROM data", "SELECT city FROM data").informative


def test_an_expected_query_that_does_not_run_is_our_error_not_a_wrong_answer():
    with pytest.raises(ValueError, match="expected query does not run"):
        verdict("SELECT 1", "SELECT nothing FROM data")
    with pytest.raises(ValueError, match="no database"):
        match_sql("SELECT 1", "SELECT 1", databases=[])


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a limit 1", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT 'ORDER BY' FROM t -- ORDER BY a", False),
        ('SELECT "order by" FROM t /* ORDER BY a */', False),
        ("SELECT row_number() OVER (ORDER BY a) FROM t", False),
    ],
)
def test_only_a_top_level_order_by_orders(query, ordered):
    assert is_ordered(query) is ordered


@pytest.mark.parametrize(
    ("answer", "query"),
    [
        ("SELECT 1;", "SELECT 1"),
        ("Here:\n```sql\nSELECT 1;\n```\nbye", "SELECT 1"),
        ("```\nSELECT 1", "SELECT 1"),
        (" SELECT 1 ", "SELECT 1"),
    ],
)
def test_a_query_is_taken_out_of_its_answer(answer, query):
    assert extract_query(answer) == query


def test_aliases_in_double_quotes_are_no_strays():
    assert rows('SELECT d."city" AS "c d" FROM data AS "d" WHERE "d"."year" > 1700 ORDER BY "c d"') == [("Tromsø",)]
    assert rows('WITH "n" AS (SELECT 1 AS "i") SELECT "i" FROM "n"') == [(1,)]


def test_made_up_databases_repeat_and_differ_and_tell_neighbours_apart():
    table = read_table('Table data("city", "year", "a ""b""")\nQuestion: which?')
    assert [column.name for column in table.columns] == ["city", "year", 'a "b"']
    gold = 'SELECT "city" FROM data WHERE "year" > 1990 AND "a ""b""" = \'x\''
    databases = make_databases(table, gold)
    assert databases == make_databases(table, gold)
    assert databases != make_databases(table, gold, seed=1)
    assert len({database.tables[0].rows for database in databases}) == len(databases)
    assert match_sql(gold.lower(), gold, databases=databases).informative
    for damaged in (
        gold.replace(">", ">="),
        gold.replace("1990", "1991"),
        gold.replace("'x'", "'y'"),
        gold.split(" AND")[0],
        gold.replace('"city"', 'DISTINCT "city"'),
        gold.replace('SELECT "city"', 'SELECT "year"'),
        gold.replace('SELECT "city"', 'SELECT COUNT("city")'),
        gold.replace("AND", "OR"),
    ):
        assert not match_sql(damaged, gold, databases=databases).matches, damaged


@pytest.mark.parametrize("prompt", ["", "Table data()", "data(a, b)", 'Table data("a" "b")'])
def test_a_prompt_without_a_table_is_refused(prompt):
    with pytest.raises(DataError, match="declares no table"):
        read_table(prompt)
