"""Files that users bring, opened as streams of records, whatever their format.

What lives here: which file is of which format, folders of files, compressed files. What does not: what a record means
(`data.shapes`), who it belongs to (`data.read`).

    for part in parts_of(Path("exports")):            # one file, or all files of a folder in order of name
        for record in read_records(part.path): ...    # a Record, or a BadRecord that says what is wrong there

A problem of the whole file (unreadable, not UTF-8, no records, not a known format) raises `DataError`; a problem of one
record is a `BadRecord`, so that the caller can count it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from tunesmith.data.records import BadRecord, Record, unreadable
from tunesmith.data.tables import read_table
from tunesmith.data.textfiles import json_kind, read_csv, read_json_array, read_json_lines, read_text
from tunesmith.errors import DataError

FORMATS: Mapping[str, str] = {
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
"""File name ending -> format. A `.json` file may hold one array, or one object a line: its first characters decide.
Each ending but those of Parquet and Arrow may be followed by `.gz`."""

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
_NO_DATA = {"dataset_info.json", "state.json", "dataset_dict.json"}


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

    Raises `DataError` for a folder without files of a known format.
    """
    if not path.is_dir():
        return [Part(path=path, name=path.name)]
    splits = path / "dataset_dict.json"
    if splits.exists():
        names = json.loads(splits.read_text(encoding="utf-8"))["splits"]
        return [part for name in names for part in _saved(path / name, prefix=f"{name}/", side=SIDES.get(name))]
    if (path / "state.json").exists():
        return _saved(path, prefix="", side=None)
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    known = [file for file in files if _suffix(file) in FORMATS and file.name not in _NO_DATA]
    known = [file for file in known if _suffix(file) not in _TEXTS] or known
    if not known:
        raise DataError(
            f"the folder {path.name} holds no data",
            where=str(path),
            expected=f"files whose names end in {', '.join(FORMATS)}",
            found=", ".join(file.name for file in files[:5]) or "no file",
        )
    return [Part(path=file, name=file.relative_to(path).as_posix()) for file in known]


def _saved(folder: Path, *, prefix: str, side: str | None) -> list[Part]:
    """The files of one saved data set, in its own order."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    names = [entry["filename"] for entry in state["_data_files"]]
    return [Part(path=folder / name, name=prefix + name, side=side) for name in names]


def read_records(path: Path, *, encoding: str = "utf-8") -> Iterator[Record | BadRecord]:
    """Yield the records of a file, one at a time, in order.

    Raises `DataError` for a file that cannot be opened, is not of a known format, is not in `encoding`, or is empty.
    """
    kind = _format_of(path)
    if kind in ("parquet", "arrow"):
        yield from _not_empty(read_table(path, kind), path)
        return
    try:
        with _opened(path) as handle:
            if kind == "json":
                kind = json_kind(handle, path)
            if kind == "json lines":
                records = read_json_lines(handle, path, encoding)
            elif kind == "json":
                records = read_json_array(handle, path, encoding)
            elif kind == "csv":
                records = read_csv(handle, path, encoding, delimiter="\t" if _suffix(path) == ".tsv" else ",")
            else:
                records = read_text(handle, path, encoding)
            yield from _not_empty(records, path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path.name} is not whole", where=str(path), expected="a gzip file", found=str(error)
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _format_of(path: Path) -> str:
    try:
        return FORMATS[_suffix(path)]
    except KeyError:
        raise DataError(
            f"{path.name} is of no known format",
            where=str(path),
            expected=f"a name that ends in {', '.join(FORMATS)}",
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
