"""Files of every format give the same records; what is broken is said with its place."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import jsonfiles
from tunesmith.data.files import parts_of, read_records
from tunesmith.data.records import BadRecord, Record
from tunesmith.data.tables import read_query
from tunesmith.errors import DataError

VALUES = [{"prompt": f"line {n}\nand \u00fcber \U0001f600", "completion": str(n)} for n in range(30)]


def as_lines(path):
    path.write_text("\n".join(json.dumps(value, ensure_ascii=False) for value in VALUES), encoding="utf-8")


def as_gzip(path):
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, VALUES)).encode()))


def as_array(path):
    path.write_text(json.dumps(VALUES, ensure_ascii=False, indent=2), encoding="utf-8")


def as_one_line(path):
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(VALUES, ensure_ascii=False).encode())


def as_csv(path):
    cells = [f'"{value["prompt"]}",{value["completion"]}' for value in VALUES]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["prompt,completion", *cells]).encode())


def as_parquet(path):
    pq.write_table(pa.Table.from_pylist(VALUES), path)


def as_stream(path):
    table = pa.Table.from_pylist(VALUES)
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def as_arrow_file(path):
    table = pa.Table.from_pylist(VALUES)
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", as_lines),
        ("lines_named.json", as_lines),
        ("a.jsonl.gz", as_gzip),
        ("a.json", as_array),
        ("b.json", as_one_line),
        ("a.csv", as_csv),
        ("a.parquet", as_parquet),
        ("a.arrow", as_stream),
        ("b.arrow", as_arrow_file),
    ],
)
def test_every_format_gives_the_same_records(tmp_path, name, write):
    write(tmp_path / name)
    assert [record.value for record in read_records(tmp_path / name)] == VALUES


def test_lines_are_those_of_the_file(tmp_path):
    as_array(tmp_path / "a.json")
    lines = (tmp_path / "a.json").read_text().splitlines()
    starts = [number for number, line in enumerate(lines, start=1) if line.strip() == "{"]
    assert [record.line for record in read_records(tmp_path / "a.json")] == starts
    as_csv(tmp_path / "a.csv")
    assert [record.line for record in read_records(tmp_path / "a.csv")] == [2 + 2 * n for n in range(30)]


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.lists(st.text())), min_size=1))
@settings(max_examples=40)
def test_an_array_streams_in_pieces_of_any_size(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("array") / "a.json"
    try:
        path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    except UnicodeEncodeError:
        return
    usual = jsonfiles._CHUNK_BYTES
    jsonfiles._CHUNK_BYTES = 7
    try:
        assert [record.value for record in read_records(path)] == values
    finally:
        jsonfiles._CHUNK_BYTES = usual


def refused(path, **settings):
    with pytest.raises(DataError) as caught:
        list(read_records(path, **settings))
    return str(caught.value)


def test_latin_1_is_refused_with_line_and_byte_and_read_when_said(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "plain"}\n{"text": "caf\u00e9"}\n'.encode("latin-1"))
    text = refused(path)
    assert "a.jsonl:2, byte 14" in text
    assert "0xe9" in text
    assert "latin-1" in text
    assert [record.value["text"] for record in read_records(path, encoding="latin-1")] == ["plain", "caf\u00e9"]
    array = tmp_path / "a.json"
    array.write_bytes('[{"text": "plain"},\n {"text": "caf\u00e9"}]'.encode("latin-1"))
    assert "a.json:2, byte 15" in refused(array)


def test_a_line_cut_in_half_costs_that_line_only(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b\n\n[1]\nNaN\n{"x": NaN}\n{"text": "c"}\n')
    records = list(read_records(path))
    assert [(record.line, type(record)) for record in records] == [
        (1, Record),
        (2, BadRecord),
        (4, BadRecord),
        (5, BadRecord),
        (6, BadRecord),
        (7, Record),
    ]
    assert [record.reason for record in records if isinstance(record, BadRecord)] == [
        "bad_json",
        "not_an_object",
        "bad_json",
        "bad_json",
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "holds no records"),
        ("a.json", b"  \n", "holds no records"),
        ("a.json", b"[]", "holds no records"),
        ("a.csv", b"a,b\n", "holds no records"),
        ("a.json", b'[{"a": 1}, {"a": ', "broken JSON"),
        ("a.json", b'[{"a": 1}', "cut off"),
        ("a.json", b'"text"', "text that starts with"),
        ("a.csv", b"a,a\n1,2\n", "header"),
        ("a.csv", b'a,b\n"1,2\n', "broken CSV"),
        ("a.parquet", b"PAR1nothing", "not a readable parquet file"),
        ("a.arrow", b"nothing", "not a readable arrow file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}', mtime=0)[:-4], "not whole"),
        ("a.xlsx", b"PK", "no known format"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    text = refused(tmp_path / name)
    assert said in text
    assert name in text


def test_a_file_that_is_not_there_or_closed_to_us_is_named(tmp_path):
    assert "no such file" in refused(tmp_path / "a.jsonl")
    path = tmp_path / "b.jsonl"
    path.write_text("{}")
    path.chmod(0)
    if not os.access(path, os.R_OK):
        assert "Permission denied" in refused(path)


def test_a_row_of_a_csv_with_other_cells_is_one_bad_record(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n1,2,3\n")
    _, bad = read_records(tmp_path / "a.csv")
    assert (bad.line, bad.reason) == (3, "bad_csv")
    assert "expected 2 cells (a, b), found 3" in bad.detail


def test_a_folder_is_its_data_files_in_order_of_name(tmp_path):
    for name in ("b.jsonl", "a.parquet", "sub/c.json", "README.md", ".hidden.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [part.name for part in parts_of(tmp_path)] == ["a.parquet", "b.jsonl", "sub/c.json"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data"):
        parts_of(tmp_path / "empty")


def test_folders_that_datasets_saves_are_read_with_their_sides(tmp_path):
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list(VALUES)
    datasets.DatasetDict({"train": one, "validation": one.select([0, 1])}).save_to_disk(str(tmp_path / "saved"))
    parts = parts_of(tmp_path / "saved")
    assert [part.side for part in parts] == ["train", "val"]
    assert [record.value for record in read_records(parts[0].path)] == VALUES
    one.save_to_disk(str(tmp_path / "one"))
    (part,) = parts_of(tmp_path / "one")
    assert [record.value for record in read_records(part.path)] == VALUES


def test_a_query_is_read_and_its_errors_hide_the_password(tmp_path):
    import sqlalchemy as sa

    url = f"sqlite:///{tmp_path / 'a.db'}"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("create table t (prompt text, completion text, score numeric, day text)"))
        for value in VALUES:
            connection.execute(sa.text("insert into t values (:prompt, :completion, 1.5, null)"), value)
    records = list(read_query(url, "select * from t order by rowid"))
    assert [record.value for record in records] == [{**value, "score": 1.5} for value in VALUES]
    with pytest.raises(DataError, match="no such table"):
        list(read_query(url, "select * from u"))
    with pytest.raises(DataError) as caught:
        list(read_query("nodialect://me:hunter2@host/db", "select 1"))
    assert "hunter2" not in str(caught.value)
