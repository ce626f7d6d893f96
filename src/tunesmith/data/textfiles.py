"""Text files of records: their lines, CSV and TSV, plain text.

What lives here: bytes in, records out, one at a time and with their line. What does not: JSON (`data.jsonfiles`), which
file is of which format (`data.files`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from tunesmith.data.packed import unknown_encoding
from tunesmith.data.records import BadRecord, Record, excerpt
from tunesmith.errors import DataError

_CHUNK_BYTES = 1 << 20


def lines_of(handle: BinaryIO, head: bytes) -> Iterator[bytes]:
    """Yield the lines of a file; they end with the byte 13 where no byte 10 is in sight (classic Mac OS)."""
    if b"\r" not in head or b"\n" in head:
        yield from handle
        return
    rest = b""
    while data := handle.read(_CHUNK_BYTES):
        *whole, rest = (rest + data).replace(b"\n", b"\r").split(b"\r")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def decoded(data: bytes, *, path: Path, line: int, encoding: str) -> str:
    """Return the text of one line. Raises `DataError` where its bytes are not of the encoding."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise not_encoded(error, path=path, line=line, encoding=encoding) from error
    except LookupError as error:
        raise unknown_encoding(path, encoding) from error


def not_encoded(error: UnicodeDecodeError, *, path: Path, line: int, encoding: str) -> DataError:
    """The error of bytes that are not of an encoding; `line` is the line where `error.object` begins."""
    before = error.object[: error.start]
    return DataError(
        f"{path.name} is not {encoding}",
        where=f"{path}:{line + before.count(10)}, byte {error.start - before.rfind(10)}",
        expected=f"text in {encoding}",
        found=f"the byte 0x{error.object[error.start]:02x}",
        hint="save the file as UTF-8, or set the source's encoding (for example latin-1) if that is what it is",
    )


_DELIMITERS = ",;\t|"


def read_csv(
    lines: Iterable[bytes], path: Path, encoding: str, *, head: bytes, usual: str
) -> Iterator[Record | BadRecord]:
    """Yield the lines of a CSV file whose first line names the columns; the line of a record is where it starts.

    Cells are divided by what divides the names of the columns: comma, semicolon, tab or bar. Excel's `sep=;` is obeyed.
    """
    first = next((line for line in head.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()), b"")
    said = first.strip().lower()
    declared = said.startswith(b"sep=") and len(said) == 5
    delimiter = chr(said[4]) if declared else _delimiter(first, usual)

    def texts() -> Iterator[str]:
        for number, data in enumerate(lines, start=1):
            yield decoded(
                data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data, path=path, line=number, encoding=encoding
            )

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    csv.field_size_limit(1 << 30)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not cells or (declared and line == 1):
                continue
            if header is None:
                header = _csv_header(cells, path, line)
            elif len(cells) != len(header):
                raw = delimiter.join(cells)
                detail = f"expected {len(header)} cells ({', '.join(header)}), found {len(cells)}: {excerpt(raw)}"
                yield BadRecord(line=line, reason="bad_csv", detail=detail, raw=raw)
            else:
                yield Record(line=line, value=dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{path.name} is broken CSV",
            where=f"{path}:{start}",
            expected=f'cells divided by {delimiter!r}; quotes (") around those that hold one, or a line break',
            found=str(error).split(" - ")[0],
            hint='a quote inside a quoted cell is written twice: "5"" disk"',
        ) from error


def _delimiter(first: bytes, usual: str) -> str:
    """What divides the cells of a first line most often, quoted parts aside."""
    bare = b"".join(first.split(b'"')[::2]).decode("ascii", "replace")
    candidates: list[str] = [usual, *_DELIMITERS]
    return max(candidates, key=bare.count)


def _csv_header(cells: list[str], path: Path, line: int) -> list[str]:
    """Names of the columns; a column without one (an index that was written along) is called by its number."""
    header = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, start=1)]
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None or not any(cell.strip() for cell in cells):
        raise DataError(
            f"{path.name} has no usable header",
            where=f"{path}:{line}",
            expected="a first line with one different name for each column",
            found=", ".join(repr(cell) for cell in cells) + (f": {twice!r} stands twice" if twice else ""),
            hint="name the columns in the first line, each by a name of its own",
        )
    return header


def read_text(lines: Iterable[bytes], path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    """Yield one text a line that is not blank."""
    for number, data in enumerate(lines, start=1):
        text = decoded(
            data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data, path=path, line=number, encoding=encoding
        ).strip()
        if text:
            yield Record(line=number, value={"text": text})
