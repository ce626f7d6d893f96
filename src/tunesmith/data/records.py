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


def excerpt(text: str, *, around: int = 0) -> str:
    """Return the beginning of a text, or what stands around a place in it, for an error message."""
    start = max(0, min(around - _EXCERPT_CHARS // 2, len(text) - _EXCERPT_CHARS))
    part = text[start : start + _EXCERPT_CHARS]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in part)
    return f"{'...' if start else ''}{shown}{'...' if start + len(part) < len(text) else ''}"


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error of a file that the operating system will not give."""
    return DataError(
        f"cannot read {path.name}",
        where=str(path),
        expected="a file that can be opened",
        found=error.strerror or str(error),
        hint="check the path and its permissions; relative paths are read from the folder of the recipe",
    )
