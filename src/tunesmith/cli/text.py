"""Text: numbers, times and settings in the words that every verb's tables use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith.types import JSON

_MINUTE = 60
_HOUR = 3600
_SHOWN_CHARS = 100


def duration(seconds: float | None) -> str:
    """Return `0.4 s`, `12 s`, `3 min 05 s` or `2 h 10 min`."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{int(seconds // _MINUTE)} min {int(seconds % _MINUTE):02d} s"
    return f"{int(seconds // _HOUR)} h {int(seconds % _HOUR // _MINUTE):02d} min"


def size(num_bytes: float | None) -> str:
    """Return `12 kB`, `3.4 MB` or `1.2 GB`."""
    if num_bytes is None:
        return "-"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def figure(value: JSON) -> str:
    """Return one value for a table cell: numbers with thousands or four digits, long values cut with an ellipsis."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if value in ({}, [], ()):
        return "none"
    text = ", ".join(figure(item) for item in value) if isinstance(value, (list, tuple)) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def is_number(value: JSON) -> bool:
    """Whether a value is a figure: a number, and not yes or no."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def leaves(value: Mapping[str, JSON], prefix: str = "") -> Iterator[tuple[str, JSON]]:
    """Yield (dotted key, value) of nested mappings; mappings in a list are stepped into, other lists are values."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            yield from leaves(item, f"{name}.")
        elif isinstance(item, (list, tuple)) and any(isinstance(part, Mapping) for part in item):
            for index, part in enumerate(item):
                yield from leaves({f"{name}[{index}]": part})
        else:
            yield name, item
