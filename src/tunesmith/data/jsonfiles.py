"""JSON files of records: one object a line, one array, or objects that follow each other over several lines.

What lives here: bytes in, records out, one at a time and with their line. What does not: which file is of which format
(`data.files`), CSV and plain text (`data.textfiles`).
"""

from __future__ import annotations

import codecs
import enum
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from tunesmith.data.packed import unknown_encoding
from tunesmith.data.records import BadRecord, Record, excerpt, type_name
from tunesmith.data.textfiles import decoded, not_encoded
from tunesmith.errors import DataError
from tunesmith.types import JSON

_CHUNK_BYTES = 1 << 20
_BOM = "\ufeff"
_BLANK = " \t\r\n\x1e" + _BOM
"""What may stand between JSON values; U+001E starts a record of RFC 7464."""
MAX_DEPTH = 100
"""Levels of lists and objects inside a record: deeper ones end a recursion somewhere, and no training row has them."""
_MAX_DIGITS = "integer string conversion"
"""How Python words that it does not read integers of more than 4,300 digits."""


class JsonKind(enum.Enum):
    """How a file holds JSON."""

    LINES = "one object a line"
    ARRAY = "one array"
    VALUES = "objects one after the other, over several lines each"


def json_kind(head: bytes, *, named_lines: bool) -> JsonKind:
    """Say how a file holds JSON, from its first bytes; `named_lines` is what the file's name says, for doubtful cases.

    One object a line, unless the file starts with `[`, or its first line is no whole object and the next does not start
    one.
    """
    lines = [line for raw in head.splitlines() if (line := raw.removeprefix(b"\xef\xbb\xbf").strip(b" \t\x1e"))]
    first, more = (lines[0] if lines else b""), lines[1:]
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        whole = False
    else:
        whole = True
    if first.startswith(b"["):
        return JsonKind.LINES if whole and more and named_lines else JsonKind.ARRAY
    if first.startswith(b"{"):
        if whole or len(first) >= len(head) - 8:
            return JsonKind.LINES
        one_a_line = more[0].startswith(b"{") if more else named_lines
        return JsonKind.LINES if one_a_line else JsonKind.VALUES
    return JsonKind.LINES if named_lines else JsonKind.ARRAY


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _checked(value: JSON, *, line: int, raw: str) -> Record | BadRecord:
    if not isinstance(value, dict):
        detail = f"expected an object, found {type_name(value)}: {excerpt(raw)}"
        return BadRecord(line=line, reason="not_an_object", detail=detail, raw=raw)
    if raw.count("[") + raw.count("{") > MAX_DEPTH and (depth := _depth(value)) > MAX_DEPTH:
        detail = f"expected at most {MAX_DEPTH} levels of lists and objects, found {depth}: {excerpt(raw)}"
        return BadRecord(line=line, reason="too_deep", detail=detail, raw=raw)
    twice = [key for key in value if raw.count(f'"{key}"') > 1]
    if twice and (key := _key_that_stands_twice(raw)) is not None:
        detail = f"expected each key once, found {key!r} twice, and only one of its values can be read: {excerpt(raw)}"
        return BadRecord(line=line, reason="duplicate_key", detail=detail, raw=raw)
    return Record(line=line, value=value)


def _key_that_stands_twice(raw: str) -> str | None:
    """A key that stands twice in the object itself (JSON leaves open what that means), or `None`."""
    keys: list[str] = []

    def keep(pairs: list[tuple[str, JSON]]) -> JSON:
        keys[:] = [key for key, _ in pairs]  # the outermost object is the last to end
        return None

    json.JSONDecoder(object_pairs_hook=keep).raw_decode(raw)
    return next((key for key in keys if keys.count(key) > 1), None)


def _depth(value: JSON) -> int:
    """Levels of lists and objects, without recursion."""
    deepest, left = 0, [(value, 1)]
    while left:
        at, depth = left.pop()
        if isinstance(at, (dict, list)):
            deepest = max(deepest, depth)
            left += [(inner, depth + 1) for inner in (at.values() if isinstance(at, dict) else at)]
    return deepest


def _fault(error: ValueError | RecursionError, text: str) -> str:
    """Say what is wrong with a text that is no JSON, and show the place."""
    if isinstance(error, RecursionError):
        return f"more than {MAX_DEPTH} levels of lists and objects: {excerpt(text)}"
    if not isinstance(error, json.JSONDecodeError):
        what = "a number of more than 4,300 digits" if _MAX_DIGITS in str(error) else str(error)
        return f"{what}: {excerpt(text)}"
    at = error.pos
    character = text[at : at + 1]
    if error.msg.startswith("Unterminated string"):
        what = "a string that does not end"
    elif not text[at:].strip():
        what = "the end of the text"
    elif error.msg.startswith("Invalid control character"):
        what = f"the control character U+{ord(character):04X}"
    elif error.msg == "Extra data":
        what = "more text after the object"
    elif character == "'":
        what = "a single quote (Python's notation, not JSON's)"
    else:
        what = f"{error.msg[0].lower()}{error.msg[1:]}, found {character!r}"
    return f"{what} at character {at + 1} of {len(text)}: {excerpt(text, around=at)}"


def _bad_json(error: ValueError | RecursionError, *, line: int, raw: str) -> BadRecord:
    detail = f"expected one JSON object, found {_fault(error, raw)}"
    reason = "too_deep" if isinstance(error, RecursionError) else "bad_json"
    return BadRecord(line=line, reason=reason, detail=detail, raw=raw)


def _one_value(text: str) -> JSON:
    """Decode a line; the comma of an array that was taken apart may end it."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[error.pos :].strip() == ",":
            return json.loads(text[: error.pos], parse_constant=_refuse_constant)
        raise


def read_json_lines(lines: Iterable[bytes], path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    """Yield one object a line; blank lines are none."""
    for number, data in enumerate(lines, start=1):
        if number == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        text = decoded(data, path=path, line=number, encoding=encoding).strip(_BLANK)
        if not text:
            continue
        try:
            value = _one_value(text)
        except (ValueError, RecursionError) as error:
            yield _bad_json(error, line=number, raw=text)
            continue
        yield _checked(value, line=number, raw=text)


def read_json_values(handle: BinaryIO, path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    """Yield the elements of one JSON array, or objects that follow each other, without holding the file.

    One element is decoded, its text dropped, and so on. Raises `DataError` where an element cannot be decoded: what
    follows has no place any more.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    reader = _TextChunks(handle, path, encoding)
    first = reader.next_character()
    if first == "":
        return
    if first not in "[{":
        raise DataError(
            f"{path.name} is not a list of records",
            where=f"{path}:{reader.line}",
            expected="a JSON array of objects, or one JSON object a line",
            found=f"text that starts with {excerpt(reader.rest.lstrip())}",
        )
    end = "]" if first == "[" else ""
    reader.skip(1 if end else 0)
    while (character := reader.next_character()) not in (end, ""):
        if character == ",":
            reader.skip(1)
            continue
        line = reader.line
        try:
            value, text = reader.decode_one(decoder)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path.name} is broken JSON",
                where=f"{path}:{line}",
                expected="a JSON array whose elements are objects" if end else "one JSON object after the other",
                found=_fault(error, reader.rest),
                hint="the file may be cut off; write it again, or as JSON lines, where one broken line costs one row",
            ) from error
        yield _checked(value, line=line, raw=text)
    if end:
        _end_array(reader, path)


def _end_array(reader: _TextChunks, path: Path) -> None:
    """Raise `DataError` unless the array is closed and nothing stands behind it."""
    if reader.next_character() == "":
        raise DataError(
            f"{path.name} is cut off",
            where=f"{path}:{reader.line}",
            expected="a closing ] of the JSON array",
            found="the end of the file",
            hint="the last records may be missing: write it again",
        )
    reader.skip(1)
    if reader.next_character() != "":
        raise DataError(
            f"{path.name} goes on behind its array",
            where=f"{path}:{reader.line}",
            expected="the end of the file after the closing ] of the JSON array",
            found=excerpt(reader.rest.lstrip()),
            hint="write one array, or one JSON object a line",
        )


class _TextChunks:
    """Text of a file from the current place on, read as needed; knows its line."""

    def __init__(self, handle: BinaryIO, path: Path, encoding: str) -> None:
        try:
            self._decoder = codecs.getincrementaldecoder(encoding)()
        except LookupError as error:
            raise unknown_encoding(path, encoding) from error
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
            raise not_encoded(error, path=self._path, line=self._bytes_lines, encoding=self._encoding) from error
        self._bytes_lines += data.count(b"\n")
        self._text = self._text[self._at :] + text
        self._at = 0
        return True

    def next_character(self) -> str:
        """Return the next character that is not blank, without taking it; empty at the end."""
        while True:
            while self._at < len(self._text):
                character = self._text[self._at]
                if character not in _BLANK:
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
