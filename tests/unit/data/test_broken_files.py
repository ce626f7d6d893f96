"""Files that are broken, packed, or of another kind than their name says: read, or refused by place and reason."""

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import zipfile

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from tunesmith.data.files import parts_of, read_records
from tunesmith.data.read import Origin, rows_of
from tunesmith.data.records import BadRecord, Record
from tunesmith.data.write import Reject
from tunesmith.errors import DataError
from tunesmith.types import Row

RECORDS = [{"prompt": f"What is {i} + {i}? Grüße 日本", "completion": f"{2 * i}"} for i in range(20)]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
BYTES = LINES.encode()
PRETTY = "\n".join(json.dumps(record, ensure_ascii=False, indent=2) for record in RECORDS)


def zipped(**members: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "."), text)
    return out.getvalue()


READABLE = {
    "gzip": ("a.jsonl.gz", gzip.compress(BYTES)),
    "gzip without its ending": ("a.jsonl", gzip.compress(BYTES)),
    "an ending without gzip": ("a.jsonl.gz", BYTES),
    "bzip2": ("a.jsonl.bz2", bz2.compress(BYTES)),
    "xz": ("a.jsonl.xz", lzma.compress(BYTES)),
    "zstd": ("a.jsonl.zst", pa.Codec("zstd").compress(BYTES, asbytes=True)),
    "zip": ("a.zip", zipped(rows__jsonl=LINES)),
    "an array in a zip of its name": ("a.json.zip", zipped(a__json=json.dumps(RECORDS))),
    "zip with what macOS adds": ("a.zip", zipped(**{"a__jsonl": LINES, "__MACOSX/._a.jsonl": "x"})),
    "byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + BYTES),
    "mark before an array": ("a.json", b"\xef\xbb\xbf" + json.dumps(RECORDS).encode()),
    "CRLF": ("a.jsonl", LINES.replace("\n", "\r\n").encode()),
    "CR": ("a.jsonl", LINES.replace("\n", "\r").encode()),
    "array named jsonl": ("a.jsonl", json.dumps(RECORDS).encode()),
    "pretty array named jsonl": ("a.jsonl", json.dumps(RECORDS, indent=1).encode()),
    "lines named json": ("a.json", BYTES),
    "objects over several lines": ("a.json", PRETTY.encode()),
    "objects over several lines named jsonl": ("a.jsonl", PRETTY.encode()),
    "record separators": ("a.json", "".join(f"\x1e{line}\n" for line in LINES.splitlines()).encode()),
    "commas behind the lines": ("a.jsonl", LINES.replace("}\n", "},\n").encode()),
    "a comma behind the last element": ("a.json", ("[" + LINES.replace("}\n", "},\n") + "]").encode()),
    "comma": (
        "a.csv",
        b"prompt,completion\n" + b"".join(f'"{r["prompt"]}",{r["completion"]}\n'.encode() for r in RECORDS),
    ),
    "semicolon": (
        "a.csv",
        b"prompt;completion\n" + b"".join(f"{r['prompt']};{r['completion']}\n".encode() for r in RECORDS),
    ),
    "tab": (
        "a.csv",
        b"prompt\tcompletion\r\n" + b"".join(f"{r['prompt']}\t{r['completion']}\r\n".encode() for r in RECORDS),
    ),
    "Excel": (
        "a.csv",
        b"sep=|\nprompt|completion\n" + b"".join(f"{r['prompt']}|{r['completion']}\n".encode() for r in RECORDS),
    ),
}


@pytest.mark.parametrize("case", READABLE)
def test_what_can_be_read_gives_every_record(tmp_path, case):
    name, content = READABLE[case]
    (tmp_path / name).write_bytes(content)
    assert [record.value for record in read_records(tmp_path / name)] == RECORDS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be", "utf-8-sig", "cp1252"])
def test_another_encoding_is_read_where_it_is_said(tmp_path, encoding):
    rows = [{**record, "prompt": f"Grüße {index}"} for index, record in enumerate(RECORDS)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for name, content in (("a.jsonl", text), ("a.json", json.dumps(rows, ensure_ascii=False, indent=1))):
        (tmp_path / name).write_bytes(content.encode(encoding))
        assert [record.value for record in read_records(tmp_path / name, encoding=encoding)] == rows
    (tmp_path / "a.csv").write_bytes("prompt,completion\nGrüße,da\n".encode(encoding))
    (record,) = read_records(tmp_path / "a.csv", encoding=encoding)
    assert (record.line, record.value["prompt"]) == (2, "Grüße")


def test_an_encoding_that_does_not_exist_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(BYTES)
    with pytest.raises(DataError, match="'klingon' is not an encoding"):
        list(read_records(tmp_path / "a.jsonl", encoding="klingon"))


HEAD = b"prompt,completion\n"
REFUSED = {
    "utf-16": ("a.jsonl", LINES.encode("utf-16"), "encoding: utf-16"),
    "utf-16 without a mark": ("a.jsonl", LINES.encode("utf-16-le"), "encoding: utf-16-le"),
    "utf-32": ("a.csv", LINES.encode("utf-32"), "encoding: utf-32"),
    "latin-1": ("a.csv", HEAD + "Größe,groß\n".encode("latin-1"), "a.csv:2, byte 3"),
    "bytes in the middle": ("a.jsonl", BYTES.replace(b"6 + 6", b"6 \xff 6"), "a.jsonl:7"),
    "NUL bytes": ("a.jsonl", b"\0" * 4096, "NUL bytes only"),
    "gzip cut off": ("a.jsonl.gz", gzip.compress(BYTES)[:-9], "not whole"),
    "bzip2 cut off": ("a.jsonl.bz2", bz2.compress(BYTES)[:-9], "not whole"),
    "xz cut off": ("a.jsonl.xz", lzma.compress(BYTES)[:-9], "not whole"),
    "zstd cut off": ("a.jsonl.zst", pa.Codec("zstd").compress(BYTES, asbytes=True)[:-9], "not whole"),
    "zip cut off": ("a.zip", zipped(a__jsonl=LINES)[:-30], "not whole"),
    "zip of two": ("a.zip", zipped(a__jsonl=LINES, b__jsonl=LINES), "a.jsonl, b.jsonl"),
    "Git LFS": ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "git lfs pull"),
    "a web page": ("a.jsonl", b"<!DOCTYPE html>\n<html>404</html>", "web page"),
    "two arrays": ("a.json", json.dumps(RECORDS).encode() + b"\n" + json.dumps(RECORDS).encode(), "a.json:2"),
    "array cut off": ("a.json", json.dumps(RECORDS, indent=1).encode()[:-40], "a.json:78"),
    "an array that nests too deep": ("a.json", b'[{"a":' + b"[" * 99_999 + b"]" * 99_999 + b"}]", "levels"),
    "NaN in an array": ("a.json", b'[{"prompt": "a",\n "completion": NaN}]', "NaN is not JSON"),
    "Parquet cut off": ("a.parquet", b"PAR1" + b"\0" * 90, "not a readable parquet file"),
    "Parquet in gzip": ("a.parquet.gz", gzip.compress(b"PAR1" + b"\0" * 90), "unpack it"),
    "a sheet": ("a.xlsx", b"PK\3\4", "save the sheet as CSV"),
    "twice one name": ("a.csv", b"prompt,completion,completion\na,b,c\n", "'completion' stands twice"),
    "a quote that stays open": ("a.csv", HEAD + b'a,b\n"c,d\ne,f\n', "a.csv:3"),
    "blank lines": ("a.jsonl", b"\n\r\n  \n", "holds no records"),
    "a header alone": ("a.csv", HEAD, "holds no records"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_place(tmp_path, case):
    name, content, said = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_records(tmp_path / name))
    text = str(caught.value)
    assert said in text
    assert name in text
    assert "found:" in text


BAD_LINES = {
    '{"prompt": "a", "compl': ("bad_json", "a string that does not end at character 17"),
    '{"prompt": "a", "completion": ': ("bad_json", "the end of the text"),
    "{'prompt': 'a'}": ("bad_json", "single quote"),
    '{"prompt": "a\0b"}': ("bad_json", "U+0000"),
    '{"prompt": "a"}{"prompt": "b"}': ("bad_json", "more text after the object"),
    '{"prompt": NaN}': ("bad_json", "NaN is not JSON"),
    '{"n": ' + "9" * 5000 + "}": ("bad_json", "4,300 digits"),
    '{"prompt": ' + "[" * 99_999 + "]" * 99_999 + "}": ("too_deep", "levels"),
    '{"prompt": ' + "[" * 300 + "]" * 300 + "}": ("too_deep", "found 301"),
    '{"prompt": "a", "prompt": "b", "completion": "c"}': ("duplicate_key", "'prompt' twice"),
    "[1, 2]": ("not_an_object", "a list"),
    "null": ("not_an_object", "nothing"),
}


@pytest.mark.parametrize("line", BAD_LINES, ids=[f"{reason}-{said[:20]}" for reason, said in BAD_LINES.values()])
def test_a_bad_line_costs_that_line_and_says_why(tmp_path, line):
    reason, said = BAD_LINES[line]
    (tmp_path / "a.jsonl").write_text(LINES + line + "\n" + LINES, encoding="utf-8")
    records = list(read_records(tmp_path / "a.jsonl"))
    (bad,) = [record for record in records if isinstance(record, BadRecord)]
    assert (bad.line, bad.reason, len(records)) == (21, reason, 41)
    assert said in bad.detail
    assert "expected" in bad.detail
    assert len(bad.detail) < 300


def test_a_key_that_recurs_inside_is_no_duplicate(tmp_path):
    value = {"prompt": 'say "prompt"', "completion": '{"prompt": 1}', "more": {"prompt": 2}}
    (tmp_path / "a.jsonl").write_text(json.dumps(value))
    assert [record.value for record in read_records(tmp_path / "a.jsonl")] == [value]


def test_columns_without_a_name_are_called_by_number(tmp_path):
    (tmp_path / "a.csv").write_text(",prompt,completion\n0,a,b\n")
    (record,) = read_records(tmp_path / "a.csv")
    assert record.value == {"column 1": "0", "prompt": "a", "completion": "b"}


def test_a_parquet_row_with_broken_text_is_one_bad_record(tmp_path):
    texts = pa.array([b"fine", b"\xff", b"fine too"]).view(pa.string())
    pq.write_table(pa.table({"prompt": texts, "completion": ["a", "b", "c"]}), tmp_path / "a.parquet")
    records = list(read_records(tmp_path / "a.parquet"))
    assert [type(record) for record in records] == [Record, BadRecord, Record]
    assert (records[1].line, records[1].reason) == (2, "unreadable_value")
    assert "'prompt'" in records[1].detail


def test_tables_that_are_cut_off_or_name_a_column_twice_are_refused(tmp_path):
    table = pa.Table.from_pylist(RECORDS * 50)
    pq.write_table(table, tmp_path / "a.parquet")
    with ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=f"{name} is not a readable"):
            list(read_records(tmp_path / name))
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["x", "x"]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="two columns named 'x'"):
        list(read_records(tmp_path / "b.parquet"))


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "tickets.jsonl").write_text(LINES)
    with pytest.raises(DataError, match=r"near it: tickets\.jsonl"):
        list(read_records(tmp_path / "ticket.jsonl"))


def test_links_in_a_folder_are_followed_to_files_and_refused_otherwise(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    (tmp_path / "a.jsonl").write_text(LINES)
    (folder / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    assert [part.name for part in parts_of(folder)] == ["a.jsonl"]
    for name, target in (("gone.jsonl", "nowhere.jsonl"), ("self", "."), ("loop.jsonl", "loop.jsonl")):
        (folder / name).symlink_to(target)
        with pytest.raises(DataError, match=f"{name} is a link that is not followed"):
            parts_of(folder)
        os.unlink(folder / name)


def test_files_of_a_folder_that_all_name_a_side_keep_it(tmp_path):
    for name in ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert [part.side for part in parts_of(tmp_path)] == ["test", "train", "train"]
    (tmp_path / "extra.parquet").write_bytes(b"")
    assert {part.side for part in parts_of(tmp_path)} == {None}


def test_a_folder_that_datasets_did_not_finish_is_refused(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(DataError, match=r"cannot read state\.json"):
        parts_of(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="_data_files"):
        parts_of(tmp_path)


def test_a_file_of_two_shapes_says_so_row_by_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(LINES + '{"instruction": "i", "output": "o"}\n')
    _, items = rows_of(read_records(path), Origin(name="a"), name="a.jsonl")
    *rows, reject = items
    assert all(isinstance(row, Row) for row in rows)
    assert isinstance(reject, Reject)
    assert (reject.line, reject.reason) == (21, "other_shape")
    assert "the shape alpaca" in reject.detail


@pytest.mark.parametrize(
    ("name", "record", "said"),
    [
        ("a.jsonl", {"Instruction": "a", "outptu": "b"}, "columns: {instruction: Instruction, output: outptu}"),
        ("a.jsonl", {"Question ": "a", "Answers": "b"}, "columns: {prompt: Question , completion: Answers}"),
        ("a.json", {"version": 1, "data": [{"prompt": "a"}]}, "jq -c '.data[]' a.json"),
        ("a.jsonl", {"messages": None}, "'messages' (nothing)"),
        ("dataset_info.json", {"x": {"file_name": "x.json"}}, "dataset: NAME"),
    ],
)
def test_records_without_a_shape_get_the_mapping_that_would_give_them_one(name, record, said):
    with pytest.raises(DataError) as caught:
        rows_of(iter([Record(line=1, value=record)]), Origin(name="a"), name=name)
    assert said in str(caught.value)


_READ = """
import sys
from pathlib import Path
from tunesmith.data.files import read_records
count = sum(1 for _ in read_records(Path(sys.argv[1])))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(count, peak.split()[1])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory of a process is read from /proc")
@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_memory_does_not_grow_with_the_number_of_records(tmp_path, form):
    peaks = []
    for copies in (1, 40):
        lines = LINES.splitlines() * 250 * copies
        path = tmp_path / f"{copies}.{form}"
        path.write_text("\n".join(lines) if form == "jsonl" else "[" + ",\n".join(lines) + "]", encoding="utf-8")
        done = subprocess.run([sys.executable, "-c", _READ, str(path)], capture_output=True, text=True, check=True)
        count, peak = map(int, done.stdout.split())
        assert count == 5000 * copies
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 20_000
