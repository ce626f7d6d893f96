"""Names of people, places and organisations: found by a tagger, replaced like every other value of a conversation.

What lives here: what of a tagged piece of text is a name, where it may be replaced, and that one which is found once is
found wherever else the conversation writes it. What does not: the tagger (`data.ner`), the patterns, which come first
(`data.patterns`), replacing (`data.redact`).

    "Ann Lee wrote from ann.lee@example.org"  ->  PERSON "Ann Lee", EMAIL "ann.lee@example.org"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.patterns import Span, find
from tunesmith.data.redact import Find, redact_row
from tunesmith.types import Row

Tag = Callable[[Sequence[str]], list[list[Span]]]
"""Texts -> the names of each, as a tagger sees them; asked for many texts at once, because that is faster."""
ROWS_AT_ONCE = 256
_NEVER = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|<[A-Z][A-Z_]*_\d+>", re.DOTALL)
"""Where no name is replaced: code, and placeholders of an earlier pass."""
_BEFORE = re.compile(r"[\W\d_]*")
_AFTER = re.compile(r"(?:['’]s)?[\W\d_]*$")
_IMPOSSIBLE = re.compile(r"[\d<>{}\[\]|=/\\@#_*:;\"]")
_ALSO_WORDS = frozenset(("Bill", "Chase", "Drew", "Frank", "Grace", "Grant", "Hope", "Joy", "Mark", "May", "Will"))
"""Names that begin sentences as other words: replaced where the tagger sees them, not wherever they stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Which names are replaced, and who finds them."""

    tag: Tag
    kinds: frozenset[str]
    """PERSON, LOCATION, ORGANIZATION: other spans of the tagger are left out."""
    spare: frozenset[str] = frozenset()
    """Names that stay, in any case: public figures, products, the firm's own name."""


def with_finders(rows: Sequence[Row], names: Names | None) -> Iterator[tuple[Row, Find]]:
    """Yield each row with what finds its personal data: the patterns and, where they are asked for, its names."""
    if names is None:
        yield from ((row, find) for row in rows)
        return
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = rows[start : start + ROWS_AT_ONCE]
        texts = [_texts(row) for row in block]
        unique = list(dict.fromkeys(text for of_row in texts for text in of_row))
        tagged = dict(zip(unique, names.tag(unique), strict=True))
        for row, of_row in zip(block, texts, strict=True):
            yield row, _finder({text: tagged[text] for text in of_row}, names)


def _texts(row: Row) -> list[str]:
    """Every text of a row that redaction looks at."""
    seen: list[str] = []

    def remember(text: str) -> list[Span]:
        seen.append(text)
        return []

    redact_row(row, find_spans=remember)
    return seen


def _finder(tagged: dict[str, list[Span]], names: Names) -> Find:
    """Return what finds the patterns of one conversation, and every occurrence of its names beside them."""
    spare = {_same(name) for name in names.spare}
    seen: dict[str, list[Span]] = {}
    kind_of: dict[str, str] = {}
    for text, spans in tagged.items():
        taken = _taken(text)
        for span in spans:
            name = _name(text, span, taken) if span.kind in names.kinds else None
            if name is None or _same(text[name.start : name.end]) in spare:
                continue
            seen.setdefault(text, []).append(name)
            kind_of.setdefault(_same(text[name.start : name.end]), name.kind)
    if not kind_of:
        return find
    # not folded: what is written in another case is often another word
    written = {text[span.start : span.end] for text, spans in seen.items() for span in spans} - _ALSO_WORDS
    anywhere = _anywhere(written)

    def patterns_and_names(text: str) -> list[Span]:
        found = find(text)
        taken = _taken(text, found)
        again = [] if anywhere is None else [match.span() for match in anywhere.finditer(text)]
        places = [(span.start, span.end) for span in seen.get(text, ())] + again
        for start, end in places:
            if all(end <= other_start or other_end <= start for other_start, other_end in taken):
                found.append(Span(start=start, end=end, kind=kind_of[_same(text[start:end])]))
                taken.append((start, end))
        return sorted(found, key=lambda span: span.start)

    return patterns_and_names


def _anywhere(written: set[str]) -> re.Pattern[str] | None:
    """A regex that matches any of these names as whole words, the longest first, whatever space is between words."""
    longest_first = sorted(written, key=lambda name: (-len(name), name))
    choices = "|".join(r"\s+".join(map(re.escape, name.split())) for name in longest_first)
    return re.compile(rf"(?<!\w)(?:{choices})(?!\w)") if choices else None


def _taken(text: str, found: Sequence[Span] | None = None) -> list[tuple[int, int]]:
    spans = find(text) if found is None else found
    return [(span.start, span.end) for span in spans] + [match.span() for match in _NEVER.finditer(text)]


def _name(text: str, span: Span, taken: Sequence[tuple[int, int]]) -> Span | None:
    """What of a tagged piece is a name: its longest free part on one line, without signs and possessive at its ends."""
    pieces = [(span.start, span.end)]
    breaks = [match.span() for match in re.finditer(r"\s*\n\s*", text[span.start : span.end])]
    for cut_start, cut_end in [*taken, *((span.start + start, span.start + end) for start, end in breaks)]:
        pieces = [
            piece
            for start, end in pieces
            for piece in ((start, min(end, cut_start)), (max(start, cut_end), end))
            if piece[0] < piece[1]
        ]
    for start, end in sorted(pieces, key=lambda piece: (piece[0] - piece[1], piece[0])):
        before = _BEFORE.match(text, start, end)
        start = start if before is None else before.end()
        after = _AFTER.search(text[start:end])
        end = end if after is None else start + after.start()
        piece = text[start:end]
        if len(piece) > 1 and not _IMPOSSIBLE.search(piece) and any(c.isalpha() and not c.islower() for c in piece):
            return Span(start=start, end=end, kind=span.kind)
    return None


def _same(name: str) -> str:
    return " ".join(name.casefold().split())
