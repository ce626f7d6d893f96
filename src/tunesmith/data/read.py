"""Files that users bring, read record by record.

What lives here: JSON lines, JSON, CSV, Parquet, Arrow and text files, opened as a stream of records with their line,
and nothing of what a record means (`data.shapes`).

    for record in read_records(Path("tickets.jsonl")):
        record.line, record.value     # a dict, or a BadRecord that says what is wrong with that line

A problem of the whole file (unreadable, not UTF-8, no records, not a known format) raises `DataError`; a problem of one
record is a `BadRecord`, so that the caller can count it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

from tunesmith.errors import DataError
from tunesmith.types import JSON

SUFFIXES: Mapping[str, str] = {
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".md": "text",
}
"""File name ending -> format. A `.json` file may hold one array, or one object a line: its first characters decide."""

_CHUNK_BYTES = 1 << 20
_EXCERPT_CHARS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One object of a file."""

    line: int
    """1-based line where it starts, or 1-based record number where the format has no lines."""
    value: Mapping[str, JSON]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """One place of a file where no object could be read."""

    line: int
    reason: str
    detail: str
    raw: str


def read_records(path: Path, *, encoding: str = "utf-8") -> Iterator[Record | BadRecord]:
    """Yield the records of a file, one at a time, in order.

    Raises `DataError` for a file that cannot be opened, is not of a known format, is not in `encoding`, or is empty.
    """
    kind = _format_of(path)
    if kind in ("parquet", "arrow"):
        yield from _not_empty(_read_table(path, kind), path)
        return
    try:
        with path.open("rb") as handle:
            if kind == "json":
                kind = _json_kind(handle, path)
            if kind == "json lines":
                records = _read_json_lines(handle, path, encoding)
            elif kind == "json":
                records = _read_json_array(handle, path, encoding)
            elif kind == "csv":
                records = _read_csv(handle, path, encoding)
            else:
                records = _read_text(handle, path, encoding)
            yield from _not_empty(records, path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot read {path.name}",
        where=str(path),
        expected="a file that can be opened",
        found=error.strerror or str(error),
        hint="check the path and its permissions; relative paths are read from the folder of the recipe",
    )


def _format_of(path: Path) -> str:
    if path.is_dir():
        raise DataError(
            f"{path.name} is a folder", where=str(path), expected="a file", hint="name the files in it as sources"
        )
    try:
        return SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise DataError(
            f"{path.name} is of no known format",
            where=str(path),
            expected=f"a name that ends in {', '.join(SUFFIXES)}",
            found=path.suffix or "no ending",
        ) from None


def _not_empty(records: Iterator[Record | BadRecord], path: Path) -> Iterator[Record | BadRecord]:
    count = 0
    for count, record in enumerate(records, start=1):  # noqa: B007 - the last value says whether there was one
        yield record
    if count == 0:
        raise DataError(
            f"{path.name} holds no records",
            where=f"{path}:1",
            expected="at least one record",
            found=f"{path.stat().st_size} bytes and no record in them",
        )


def _json_kind(handle: BinaryIO, path: Path) -> str:
    """Whether a `.json` file is one array (or object) or one object a line, from its first line that is not blank."""
    first = b""
    for line in handle:
        first = line.removeprefix(b"\xef\xbb\xbf").strip()
        if first:
            break
    handle.seek(0)
    if not first.startswith(b"{"):
        return "json"
    try:
        json.loads(first)
    except ValueError:
        return "json"
    return "json lines"


def _decode(data: bytes, *, path: Path, line: int, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        hint = "save the file as UTF-8, or set the source's encoding (for example latin-1) if that is what it is"
        raise DataError(
            f"{path.name} is not {encoding}",
            where=f"{path}:{line + data[: error.start].count(10)}, byte {error.start + 1}",
            expected=f"text in {encoding}",
            found=f"the byte 0x{data[error.start]:02x}",
            hint=hint,
        ) from error
    except LookupError as error:
        raise DataError(
            f"{encoding!r} is not an encoding", where=str(path), expected="for example utf-8 or latin-1"
        ) from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _excerpt(text: str) -> str:
    return text if len(text) <= _EXCERPT_CHARS else text[: _EXCERPT_CHARS - 3] + "..."


def _checked(value: JSON, *, line: int, raw: str) -> Record | BadRecord:
    if isinstance(value, dict):
        return Record(line=line, value=value)
    detail = f"expected an object, found {type_name(value)}: {_excerpt(raw)}"
    return BadRecord(line=line, reason="not_an_object", detail=detail, raw=raw)


def type_name(value: JSON) -> str:
    """Return the JSON name of a value's type, as an error message says it."""
    if value is None:
        return "nothing"
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _bad_json(error: ValueError | RecursionError, *, line: int, raw: str) -> BadRecord:
    if isinstance(error, json.JSONDecodeError):
        what = error.msg[0].lower() + error.msg[1:]
        detail = f"expected one JSON object, found {what} at character {error.pos + 1} of {len(raw)}: {_excerpt(raw)}"
    else:
        detail = f"expected one JSON object: {error}: {_excerpt(raw)}"
    return BadRecord(line=line, reason="bad_json", detail=detail, raw=raw)


def _read_json_lines(handle: BinaryIO, path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    for number, data in enumerate(handle, start=1):
        if number == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        text = _decode(data, path=path, line=number, encoding=encoding).strip()
        if not text:
            continue
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            yield _bad_json(
                ValueError(str(error)) if isinstance(error, RecursionError) else error, line=number, raw=text
            )
            continue
        yield _checked(value, line=number, raw=text)


def _read_json_array(handle: BinaryIO, path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    """Yield the elements of one JSON array without holding the file: decode one element, drop its text, go on."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    reader = _TextChunks(handle, path, encoding)
    first = reader.next_character()
    if first == "":
        return
    if first != "[":
        found = f"an object with the keys {_top_keys(reader)}" if first == "{" else f"text that starts with {first!r}"
        raise DataError(
            f"{path.name} is not a list of records",
            where=f"{path}:{reader.line}",
            expected="a JSON array of objects, or one JSON object a line",
            found=found,
            hint="if the records stand under one key, write them out as JSON lines",
        )
    reader.skip(1)
    while (character := reader.next_character()) not in ("]", ""):
        if character == ",":
            reader.skip(1)
            continue
        line = reader.line
        try:
            value, text = reader.decode_one(decoder)
        except ValueError as error:
            raise DataError(
                f"{path.name} is broken JSON",
                where=f"{path}:{line}",
                expected="a JSON array whose elements are objects",
                found=f"{error}: {_excerpt(reader.rest)}",
                hint="the file may be cut off; write it again, or as JSON lines, where one broken line costs one row",
            ) from error
        yield _checked(value, line=line, raw=text)
    if reader.next_character() == "":
        raise DataError(
            f"{path.name} is cut off",
            where=f"{path}:{reader.line}",
            expected="a closing ] of the JSON array",
            found="the end of the file",
        )


def _top_keys(reader: _TextChunks) -> str:
    try:
        value = json.loads(reader.rest)
    except ValueError:
        return f"in {_excerpt(reader.rest)}"
    return ", ".join(list(value)[:5])


class _TextChunks:
    """Text of a file from the current place on, read as needed; knows its line."""

    def __init__(self, handle: BinaryIO, path: Path, encoding: str) -> None:
        self._handle = handle
        self._path = path
        self._encoding = encoding
        self._text = ""
        self._at = 0
        self._held = b""
        self._ended = False
        self.line = 1
        self._read_lines = 1

    def _more(self, num_bytes: int = _CHUNK_BYTES) -> bool:
        if self._ended:
            return False
        data = self._handle.read(num_bytes)
        if not data:
            self._ended = True
        data = self._held + data
        # Only whole lines are decoded, so that no character is cut; a file of one line is taken at its end.
        cut = len(data) if self._ended else data.rfind(b"\n") + 1
        self._held = data[cut:]
        part = data[:cut]
        if self._read_lines == 1:
            part = part.removeprefix(b"\xef\xbb\xbf")
        text = _decode(part, path=self._path, line=self._read_lines, encoding=self._encoding)
        self._read_lines += part.count(b"\n")
        self._text = self._text[self._at :] + text
        self._at = 0
        return True

    def next_character(self) -> str:
        """Return the next character that is not blank, without taking it; empty at the end."""
        while True:
            while self._at < len(self._text):
                character = self._text[self._at]
                if not character.isspace():
                    return character
                self.skip(1)
            if not self._more():
                return ""

    def skip(self, count: int) -> None:
        """Take characters."""
        self.line += self._text.count("\n", self._at, self._at + count)
        self._at += count

    @property
    def rest(self) -> str:
        """What was read and not taken."""
        return self._text[self._at :]

    def decode_one(self, decoder: json.JSONDecoder) -> tuple[JSON, str]:
        """Take one JSON value and return it with its text. Raises `ValueError` where there is none."""
        size = _CHUNK_BYTES
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except ValueError:
                if not self._more(size):
                    raise
                size *= 2  # so that one huge element is not decoded again for each megabyte
                continue
            if end == len(self._text) and self._more(size):
                continue  # a number could go on
            text = self._text[self._at : end]
            self.skip(end - self._at)
            return value, text


def _read_csv(handle: BinaryIO, path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    def lines() -> Iterator[str]:
        for number, data in enumerate(handle, start=1):
            yield _decode(
                data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data, path=path, line=number, encoding=encoding
            )

    reader = csv.reader(lines(), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    csv.field_size_limit(1 << 30)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = _csv_header(cells, path)
            elif len(cells) != len(header):
                raw = ",".join(cells)
                detail = f"expected {len(header)} cells ({', '.join(header)}), found {len(cells)}: {_excerpt(raw)}"
                yield BadRecord(line=line, reason="bad_csv", detail=detail, raw=raw)
            else:
                yield Record(line=line, value=dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{path.name} is broken CSV",
            where=f"{path}:{start}",
            expected="cells that quote commas, quotes and line breaks",
            found=str(error),
        ) from error


def _csv_header(cells: list[str], path: Path) -> list[str]:
    header = [cell.strip() for cell in cells]
    if "" in header or len(set(header)) != len(header):
        raise DataError(
            f"{path.name} has no usable header",
            where=f"{path}:1",
            expected="a first line with one different name for each column",
            found=", ".join(repr(cell) for cell in header),
        )
    return header


def _read_text(handle: BinaryIO, path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    for number, data in enumerate(handle, start=1):
        text = _decode(
            data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data, path=path, line=number, encoding=encoding
        ).strip()
        if text:
            yield Record(line=number, value={"text": text})


def _read_table(path: Path, kind: str) -> Iterator[Record | BadRecord]:
    try:
        if kind == "parquet":
            with pq.ParquetFile(path) as file:
                batches = file.iter_batches(batch_size=1024)
                yield from _batches_to_records(batches)
        else:
            yield from _batches_to_records(_arrow_batches(path))
    except OSError as error:
        if error.strerror:
            raise _unreadable(path, error) from error
        raise _broken_table(path, kind, error) from error
    except pa.ArrowException as error:
        raise _broken_table(path, kind, error) from error


def _broken_table(path: Path, kind: str, error: Exception) -> DataError:
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
            reader = pa.ipc.open_stream(source)  # what `datasets` writes
        except pa.ArrowInvalid:
            yield from feather.read_table(source).to_batches(max_chunksize=1024)
            return
        with reader:
            yield from reader


def _batches_to_records(batches: Iterator[Any]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            yield Record(line=number, value=_without_nulls(value))


def _without_nulls(value: JSON) -> JSON:
    """Drop null keys at every depth: Arrow gives each struct the union of all keys, nulls where a row had none."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
