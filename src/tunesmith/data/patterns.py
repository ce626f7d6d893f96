"""Personal data and secrets in a text: found by pattern, checksum and context.

What lives here: `find`, and what a pattern is. What does not: the patterns (`data.personal`, `data.secrets`), replacing
what is found (`data.redact`).

    find("mail me at ann@example.org")  ->  [Span(start=11, end=26, kind="EMAIL")]

A run of digits is personal data only where a checksum (Luhn, mod 97, ...), a fixed shape or a word beside it says so.
Order numbers, versions, dates, prices and times are never found: the tests hold a list of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One found value: characters `start` to `end` of the text."""

    start: int
    end: int
    kind: str


Fit = Callable[[re.Match[str]], "tuple[int, int] | None"]
"""A match -> where the value is, or `None` where it is none after all."""


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
    start = whole(match)[0]
    return regex.search(match.string, max(0, start - num_chars), start) is not None


_CHAINS = bytes(code if 48 <= code <= 57 else 124 for code in range(256))
_LINKS = b" ./-()\t\n"


def longest_chain(text: str) -> int:
    """Return how many digits stand in one chain at most: letters and other signs break a chain, spaces do not."""
    return max(map(len, text.encode("utf-8", "replace").translate(_CHAINS, _LINKS).split(b"|")))


def find(text: str) -> list[Span]:
    """Return the personal data and secrets of a text, in order, without overlaps."""
    lower = text.lower()
    digits = longest_chain(text)
    found: list[Span] = []
    for pattern in all_patterns():
        if digits < pattern.digits or (pattern.hints and not any(hint in lower for hint in pattern.hints)):
            continue
        for match in pattern.regex.finditer(text):
            fitted = pattern.fit(match)
            span = None if fitted is None else _free(fitted, found)
            if span is not None:
                found.append(Span(start=span[0], end=span[1], kind=pattern.kind))
    return sorted(found, key=lambda span: span.start)


def _free(span: tuple[int, int], found: list[Span]) -> tuple[int, int] | None:
    """What of a span is before the next stronger one; `None` where a stronger one covers its beginning."""
    start, end = span
    for other in found:
        if other.start <= start < other.end:
            return None
        if start < other.start < end:
            end = other.start
    return start, end


_PATTERNS: list[Pattern] = []


def all_patterns() -> list[Pattern]:
    """Return all patterns, strongest first: where two match the same characters the earlier one names them."""
    if not _PATTERNS:
        from tunesmith.data.personal import PERSONAL
        from tunesmith.data.secrets import SECRETS

        _PATTERNS.extend((*SECRETS, *PERSONAL))
    return _PATTERNS
