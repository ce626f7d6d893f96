"""A pattern: one way in which a type of personal data or secret is written.

What lives here: what a pattern is, and what its `fit` is made of. What does not: the patterns themselves
(`data.personal`, `data.secrets` and what they name), searching with them (`data.patterns`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

Fit = Callable[[re.Match[str]], "tuple[int, int] | None"]
"""A match -> where the value is, or `None` where it is none after all."""

_PLACEHOLDER = re.compile(r"<?[A-Z][A-Z_]*_\d{1,9}>")
"""What `data.redact` writes; its beginning may be cut off where a window begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One way in which a type is written."""

    kind: str
    regex: re.Pattern[str]
    fit: Fit
    hints: tuple[str, ...] = ()
    """Pieces of the text in lower case without which the regex cannot match: the cheap test that comes first."""
    digits: int = 0
    """Digits that must stand in one chain, spaces and strokes between them allowed, for the same reason."""


def whole(match: re.Match[str]) -> tuple[int, int]:
    """The match, or its group `value`, is the value."""
    return match.span("value") if "value" in match.re.groupindex else match.span()


def where(holds: Callable[[re.Match[str]], bool]) -> Fit:
    """Return a fit that takes the match where a condition holds."""

    def fit(match: re.Match[str]) -> tuple[int, int] | None:
        return whole(match) if holds(match) else None

    return fit


def compact(match: re.Match[str]) -> str:
    """Return the value of a match in capitals, without spaces, points and strokes."""
    start, end = whole(match)
    return re.sub(r"[\s./-]", "", match.string[start:end]).upper()


def before(match: re.Match[str], regex: re.Pattern[str], num_chars: int) -> bool:
    """Whether something stands in the characters shortly before the value."""
    left = left_of(match, num_chars + 1)
    return regex.search(left, max(0, len(left) - num_chars)) is not None


def left_of(match: re.Match[str], num_chars: int) -> str:
    """Return the characters before the value, a name like `card_number` as words, and placeholders as blanks.

    `<NATIONAL_ID_1>` says what stood there and nothing about the number behind it.
    """
    start = whole(match)[0]
    left = match.string[max(0, start - num_chars) : start]
    return _PLACEHOLDER.sub(lambda found: " " * len(found.group()), left).replace("_", " ")
