"""Records: what stands at one place of a file, before anyone knows what it means.

What lives here: `Record`, `BadRecord`, and words for what was found. What does not: opening files (`data.files`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import DataError
from tunesmith.types import JSON

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


def type_name(value: JSON) -> str:
    """Return the JSON name of a value's type, as an error message says it."""
    if value is None:
        return "nothing"
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def excerpt(text: str) -> str:
    """Return the beginning of a text, for an error message."""
    return text if len(text) <= _EXCERPT_CHARS else text[: _EXCERPT_CHARS - 3] + "..."


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error of a file that the operating system will not give."""
    return DataError(
        f"cannot read {path.name}",
        where=str(path),
        expected="a file that can be opened",
        found=error.strerror or str(error),
        hint="check the path and its permissions; relative paths are read from the folder of the recipe",
    )
