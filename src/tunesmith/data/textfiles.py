"""Text files of records: JSON lines, one JSON array, CSV and TSV, plain text.

What lives here: an open file in, records out, one at a time and with their line. What does not: which file is of which
format (`data.files`).
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tunesmith.data.records import BadRecord, Record, excerpt, type_name
from tunesmith.errors import DataError
from tunesmith.types import JSON

_CHUNK_BYTES = 1 << 20
_BOM = "\ufeff"


def json_kind(handle: BinaryIO, path: Path) -> str:
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
        raise _not_encoded(error, path=path, line=line, encoding=encoding) from error
    except LookupError as error:
        raise _no_encoding(path, encoding) from error


def _not_encoded(error: UnicodeDecodeError, *, path: Path, line: int, encoding: str) -> DataError:
    """The error of bytes that are not of an encoding; `line` is the line where `error.object` begins."""
    before = error.object[: error.start]
    return DataError(
        f"{path.name} is not {encoding}",
        where=f"{path}:{line + before.count(10)}, byte {error.start - before.rfind(10)}",
        expected=f"text in {encoding}",
        found=f"the byte 0x{error.object[error.start]:02x}",
        hint="save the file as UTF-8, or set the source's encoding (for example latin-1) if that is what it is",
    )


def _no_encoding(path: Path, encoding: str) -> DataError:
    return DataError(f"{encoding!r} is not an encoding", where=str(path), expected="for example utf-8 or latin-1")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _checked(value: JSON, *, line: int, raw: str) -> Record | BadRecord:
    if isinstance(value, dict):
        return Record(line=line, value=value)
    detail = f"expected an object, found {type_name(value)}: {excerpt(raw)}"
    return BadRecord(line=line, reason="not_an_object", detail=detail, raw=raw)


def _bad_json(error: ValueError | RecursionError, *, line: int, raw: str) -> BadRecord:
    if isinstance(error, json.JSONDecodeError):
        what = error.msg[0].lower() + error.msg[1:]
        detail = f"expected one JSON object, found {what} at character {error.pos + 1} of {len(raw)}: {excerpt(raw)}"
    else:
        detail = f"expected one JSON object: {error}: {excerpt(raw)}"
    return BadRecord(line=line, reason="bad_json", detail=detail, raw=raw)


def read_json_lines(handle: BinaryIO, path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    """Yield one object a line; blank lines are none."""
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


def read_json_array(handle: BinaryIO, path: Path, encoding: str) -> Iterator[Record | BadRecord]:
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
                found=f"{error}: {excerpt(reader.rest)}",
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
        return f"in {excerpt(reader.rest)}"
    return ", ".join(list(value)[:5])


class _TextChunks:
    """Text of a file from the current place on, read as needed; knows its line."""

    def __init__(self, handle: BinaryIO, path: Path, encoding: str) -> None:
        try:
            self._decoder = codecs.getincrementaldecoder(encoding)()
        except LookupError as error:
            raise _no_encoding(path, encoding) from error
        self._handle = handle
        self._path = path
        self._encoding = encoding
        self._text = ""
        self._at = 0
        self._ended = False
        self._bytes_lines = 1
        self.line = 1

    def _more(self, num_bytes: int = _CHUNK_BYTES) -> bool:
        if self._ended:
            return False
        data = self._handle.read(num_bytes)
        self._ended = not data
        try:
            text = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            # Bytes that the decoder held back from the last chunk are part of a character, so no line ends in them.
            raise _not_encoded(error, path=self._path, line=self._bytes_lines, encoding=self._encoding) from error
        self._bytes_lines += data.count(b"\n")
        self._text = self._text[self._at :] + text
        self._at = 0
        return True

    def next_character(self) -> str:
        """Return the next character that is not blank, without taking it; empty at the end."""
        while True:
            while self._at < len(self._text):
                character = self._text[self._at]
                if not character.isspace() and character != _BOM:
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


def read_csv(handle: BinaryIO, path: Path, encoding: str, *, delimiter: str) -> Iterator[Record | BadRecord]:
    """Yield the lines of a CSV file whose first line names the columns; the line of a record is where it starts."""

    def lines() -> Iterator[str]:
        for number, data in enumerate(handle, start=1):
            yield _decode(
                data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data, path=path, line=number, encoding=encoding
            )

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
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
                detail = f"expected {len(header)} cells ({', '.join(header)}), found {len(cells)}: {excerpt(raw)}"
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


def read_text(handle: BinaryIO, path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    """Yield one text a line that is not blank."""
    for number, data in enumerate(handle, start=1):
        text = _decode(
            data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data, path=path, line=number, encoding=encoding
        ).strip()
        if text:
            yield Record(line=number, value={"text": text})
