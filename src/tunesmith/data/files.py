"""Files that users bring, opened as streams of records, whatever their format.

What lives here: which file is of which format, folders of files, compressed files. What does not: what a record means
(`data.shapes`), who it belongs to (`data.read`).

    for part in parts_of(Path("exports")):            # one file, or all files of a folder in order of name
        for record in read_records(part.path): ...    # a Record, or a BadRecord that says what is wrong there

A problem of the whole file (unreadable, not UTF-8, no records, not a known format) raises `DataError`; a problem of one
record is a `BadRecord`, so that the caller can count it.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from tunesmith.data.jsonfiles import JsonKind, json_kind, read_json_lines, read_json_values
from tunesmith.data.packed import ENDINGS, packing_of, plain_name, unpacked, with_ascii_lines
from tunesmith.data.records import BadRecord, Record, unreadable
from tunesmith.data.tables import read_table
from tunesmith.data.textfiles import lines_of, read_csv, read_text
from tunesmith.errors import DataError, nearest

FORMATS: Mapping[str, str] = {
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".jsonlines": "json lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".md": "text",
}
"""File name ending -> format. Whether JSON stands in one array or one object a line is seen from its first characters.
Each ending but those of Parquet and Arrow may be followed by one of `packed.ENDINGS`."""

_TABLES = ("parquet", "arrow")
_OTHER_FORMATS: Mapping[str, str] = {
    ".xlsx": "save the sheet as CSV",
    ".xls": "save the sheet as CSV",
    ".ods": "save the sheet as CSV",
    ".tar": "unpack it and name the folder",
    ".tgz": "unpack it and name the folder",
    ".7z": "unpack it and name the folder",
    ".rar": "unpack it and name the folder",
    ".db": "read it as a query: ingest.sql with url: sqlite:///FILE",
    ".sqlite": "read it as a query: ingest.sql with url: sqlite:///FILE",
    ".pkl": "a pickle runs code when it is read: write JSON lines instead",
    ".pt": "a pickle runs code when it is read: write JSON lines instead",
}
"""Endings that are not read -> what to do with such a file."""
_HEAD_BYTES = 1 << 16

SIDES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
    "heldout": "test",
}
"""Names of a side of a split, as files have them -> ours."""

_TEXTS = (".txt", ".md")
NO_DATA = {
    "config.json",
    "croissant.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "metadata.json",
    "package.json",
    "schema.json",
    "state.json",
}
"""Files that lie beside data and hold none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of a source."""

    path: Path
    name: str
    """Its path from the source's folder, or its name: what rows and errors say."""
    side: str | None = None
    """Side of a split, where the folder says so."""


def parts_of(path: Path) -> list[Part]:
    """Return the files of a source: the file itself, or those of a folder, `datasets.save_to_disk` folders included.

    Where every file of a folder names a side of a split, as the hub's `train-00000-of-00002.parquet` or `test/a.jsonl`
    do, and they name more than one, rows keep that side.
    Raises `DataError` for a folder without files of a known format.
    """
    if not path.is_dir():
        return [Part(path=path, name=path.name)]
    splits = path / "dataset_dict.json"
    if splits.exists():
        names = _saved_names(splits, "splits")
        return [part for name in names for part in _saved(path / name, prefix=f"{name}/", side=SIDES.get(name))]
    if (path / "state.json").exists() and (path / "dataset_info.json").exists():
        return _saved(path, prefix="", side=None)
    files = [file for file in _files_in(path) if has_known_ending(file) and file.name not in NO_DATA]
    known = [file for file in files if _suffix(file) not in _TEXTS] or files
    if not known:
        there = [entry.name for entry in sorted(path.iterdir())[:5]]
        raise DataError(
            f"the folder {path.name} holds no data",
            where=str(path),
            expected=f"files whose names end in {', '.join(FORMATS)}",
            found=", ".join(there) or "no file",
        )
    parts = [Part(path=file, name=file.relative_to(path).as_posix()) for file in known]
    sides = [side_named(part.name) for part in parts]
    if None in sides or len(set(sides)) < 2:
        return parts
    return [replace(part, side=side) for part, side in zip(parts, sides, strict=True)]


def side_named(name: str) -> str | None:
    """Return the side of a split that a file's name, or else a folder above it, says; the last word counts."""
    for part in reversed(Path(name).parts):
        words = re.split(r"[._\-\s]+", part.lower())
        side = next((SIDES[word] for word in reversed(words) if word in SIDES), None)
        if side is not None:
            return side
    return None


def _files_in(folder: Path) -> list[Path]:
    """Files below a folder in order of name, hidden ones aside. A link that leads to no file is an error."""
    found = []
    for entry in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in entry.relative_to(folder).parts):
            continue
        if entry.is_symlink() and not entry.is_file():
            raise DataError(
                f"{entry.name} is a link that is not followed",
                where=str(entry),
                expected="a file, or a link to one",
                found=f"a link to {os.readlink(entry)}, " + ("a folder" if entry.is_dir() else "which is not there"),
                hint="name what it leads to as a source of its own, or remove it",
            )
        if entry.is_file():
            found.append(entry)
    return found


def _saved(folder: Path, *, prefix: str, side: str | None) -> list[Part]:
    """The files of one saved data set, in its own order."""
    names = _saved_names(folder / "state.json", "_data_files")
    return [Part(path=folder / name, name=prefix + name, side=side) for name in names]


def _saved_names(file: Path, key: str) -> list[str]:
    """A list of names out of what `datasets.save_to_disk` wrote beside the data."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))[key]
        return [str(entry["filename"]) if isinstance(entry, dict) else str(entry) for entry in value]
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file.name} is not what datasets.save_to_disk writes",
            where=str(file),
            expected=f"a JSON object with the list {key!r}",
            found=f"{type(error).__name__}: {error}",
            hint="save the data set again",
        ) from error


def nearest_files(path: Path) -> str:
    """Say what stands where a file was expected: nothing, and the names there that are nearest."""
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    if not path.parent.is_dir():
        return f"nothing, and no folder {path.parent}"
    return (
        f"nothing; near it: {', '.join(nearest(path.name, siblings))}" if siblings else "nothing, the folder is empty"
    )


def read_records(path: Path, *, encoding: str = "utf-8") -> Iterator[Record | BadRecord]:
    """Yield the records of a file, one at a time, in order.

    Raises `DataError` for a file that cannot be opened, is not of a known format, is not in `encoding`, or is empty.
    """
    if not path.exists() and not path.is_symlink():
        raise DataError(
            f"cannot read {path.name}: no such file", where=str(path), expected="a file", found=nearest_files(path)
        )
    kind = _format_of(path)
    with unpacked(path) as handle:
        head = handle.read(_HEAD_BYTES)
    _refuse_other(path, head, encoding)
    if kind in _TABLES:
        _refuse_packed(path, kind)
        yield from _not_empty(read_table(path, kind), path)
        return
    with unpacked(path) as packed:
        handle, readable = with_ascii_lines(packed, path, encoding)
        if readable != encoding:
            head = head.decode(encoding, "ignore").encode()
        yield from _not_empty(_records_of(kind, handle, head, path, readable), path)


def _records_of(kind: str, handle: BinaryIO, head: bytes, path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    lines = lines_of(handle, head)
    if kind == "csv":
        return read_csv(lines, path, encoding, head=head, usual="\t" if _suffix(path) == ".tsv" else ",")
    if kind == "text":
        return read_text(lines, path, encoding)
    if json_kind(head, named_lines=kind == "json lines") is JsonKind.LINES:
        return read_json_lines(lines, path, encoding)
    return read_json_values(handle, path, encoding)


def _refuse_other(path: Path, head: bytes, encoding: str) -> None:
    """Raise `DataError` for a file whose first bytes say that it is something else than its name says."""
    is_ascii = b"\n".decode(encoding, "replace") == "\n" if _is_known(encoding) else True
    what = found = hint = None
    if head.startswith(b"version https://git-lfs"):
        what, found = "is a pointer of Git LFS and not the data", "version https://git-lfs..."
        hint = "git lfs pull"
    elif head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        what, found, hint = "is a web page and not the data", "<html>", "download the file itself"
    elif _format_of(path) in _TABLES:
        return
    elif is_ascii and head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        name = "utf-32" if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")) else "utf-16"
        what, found, hint = f"is not {encoding}", f"the mark of {name}", f"encoding: {name} for this source"
    elif head and not head.strip(b"\0"):
        what, found, hint = "was not written", "NUL bytes only", "fetch it again: a disk or a copy failed"
    elif is_ascii and 4 * head[:1024].count(0) >= len(head[:1024]) > 0:
        name = ("utf-16" if head[2:4].count(0) < 2 else "utf-32") + ("-be" if head[:1] == b"\0" else "-le")
        what, found = (
            f"is not {encoding}",
            "a NUL byte in every other place" if head[2:4].count(0) < 2 else "three NUL bytes in every four",
        )
        hint = f"encoding: {name} for this source, if it is text"
    if what is not None:
        raise DataError(
            f"{path.name} {what}", where=f"{path}:1", expected=f"records in {encoding}", found=found, hint=hint
        )


def _is_known(encoding: str) -> bool:
    try:
        codecs.lookup(encoding)
    except LookupError:
        return False
    return True


def _refuse_packed(path: Path, kind: str) -> None:
    packing = packing_of(path)
    if packing is not None:
        raise DataError(
            f"{path.name} is packed twice",
            where=str(path),
            expected=f"a {kind} file, which is compressed inside",
            found=packing,
            hint="unpack it",
        )


def has_known_ending(path: Path) -> bool:
    """Whether a file's name ends as that of a format that is read, packed or not."""
    return path.suffix.lower() == ".zip" or _suffix(path) in FORMATS


def _suffix(path: Path) -> str:
    return Path(plain_name(path)).suffix.lower()


def _format_of(path: Path) -> str:
    suffix = _suffix(path)
    if suffix in FORMATS:
        return FORMATS[suffix]
    raise DataError(
        f"{path.name} is of no known format",
        where=str(path),
        expected=f"a name that ends in {', '.join(FORMATS)}, packed ({', '.join(ENDINGS)}) or not",
        found=suffix or "no ending",
        hint=_OTHER_FORMATS.get(suffix, "name it by its format, or write it as JSON lines"),
    )


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
