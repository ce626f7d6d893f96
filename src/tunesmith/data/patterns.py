"""Personal data and secrets in a text: found by pattern, checksum and context.

What lives here: `find`. What does not: what a pattern is (`data.matching`), the patterns (`data.personal`,
`data.secrets`), replacing what is found (`data.redact`).

    find("mail me at ann@example.org")  ->  [Span(start=11, end=26, kind="EMAIL")]

A run of digits is personal data only where a checksum (Luhn, mod 97, ...), a fixed shape or a word beside it says so.
Order numbers, versions, dates, prices and times are never found: the tests hold a list of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.data.personal import PERSONAL
from tunesmith.data.secrets import SECRETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One found value: characters `start` to `end` of the text."""

    start: int
    end: int
    kind: str


PATTERNS = (*SECRETS, *PERSONAL)
"""All patterns, strongest first: where two match the same characters the earlier one names them."""
_WITHIN_REACH = [
    tuple(pattern for pattern in PATTERNS if pattern.digits <= digits)
    for digits in range(max(pattern.digits for pattern in PATTERNS) + 1)
]
"""Digits in one chain -> the patterns that may match: most texts have none, and most patterns need some."""
_CHAINS = bytes(code if 48 <= code <= 57 else 124 for code in range(256))
_LINKS = b" ./-()\t\n"


def longest_chain(text: str) -> int:
    """Return how many digits stand in one chain at most: letters and other signs break a chain, spaces do not."""
    chains = text.encode("utf-8", "replace").translate(_CHAINS, _LINKS).strip(b"|")
    return max(map(len, chains.split(b"|"))) if chains else 0


def find(text: str) -> list[Span]:
    """Return the personal data and secrets of a text, in order, without overlaps."""
    lower = text.lower()
    found: list[Span] = []
    for pattern in _WITHIN_REACH[min(longest_chain(text), len(_WITHIN_REACH) - 1)]:
        for hint in pattern.hints:
            if hint in lower:
                break
        else:
            if pattern.hints:
                continue
        for match in pattern.regex.finditer(text):
            fitted = pattern.fit(match)
            span = None if fitted is None else _free(_behind_escape(text, *fitted), found)
            if span is not None:
                found.append(Span(start=span[0], end=span[1], kind=pattern.kind))
    return sorted(found, key=lambda span: span.start)


def _behind_escape(text: str, start: int, end: int) -> tuple[int, int]:
    """A value in the source text of a program does not begin with the letter of an escape: `"\\nann@example.org"`."""
    return (start + 1 if start and text[start - 1] == "\\" and text[start] in "nrt" else start), end


def _free(span: tuple[int, int], found: list[Span]) -> tuple[int, int] | None:
    """What of a span is before the next stronger one; `None` where a stronger one covers its beginning."""
    start, end = span
    for other in found:
        if other.start <= start < other.end:
            return None
        if start < other.start < end:
            end = other.start
    return start, end
