"""Redaction: personal data and secrets become typed placeholders, the same value the same one within a conversation.

What lives here: a conversation in, the redacted one and a count out. What does not: what counts as personal data
(`data.patterns`).

    user: "I am ann@example.org"   assistant: "Thank you, ann@example.org"
    ->    "I am <EMAIL_1>"                    "Thank you, <EMAIL_1>"

JSON stays JSON: each of its strings is searched by itself, behind the words of its key. Redacting twice changes
nothing. Values are never stored: reports see a masked sample.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tunesmith.data.jsontext import Scalar, is_json, scalars
from tunesmith.data.patterns import Span, find
from tunesmith.types import Message, Row, ToolCall

MAX_SAMPLE_CHARS = 48
_GROUPED = {"PHONE", "IBAN", "CARD", "BANK_ACCOUNT", "NATIONAL_ID", "MAC_ADDRESS"}
"""Types whose values people group as they like: the same letters and digits are the same value."""
MAX_PASSES = 5
"""Searches of a row; two are enough but where replaced values stood in a chain."""
_PLACEHOLDER = re.compile(r"<([A-Z][A-Z_]*)_(\d{1,9})>")
_AFTER_KEY = re.compile(r"[\"']\s*:\s*$")
_BEFORE_NEXT = re.compile(r"\s*[,}\]]")
_KEY_END_CHARS = 8
"""A bare number between `"key":` and `,` or `}` is a value of JSON inside a text: its placeholder needs quotes."""
Find = Callable[[str], list[Span]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redacted:
    """A row without its personal data."""

    row: Row
    counts: dict[str, int]
    """Type -> replaced occurrences."""
    samples: tuple[tuple[str, str], ...]
    """(type, masked value) of each different value."""


def redact_row(row: Row, *, kinds: frozenset[str] | None = None, find_spans: Find = find) -> Redacted:
    """Replace personal data in all turns, calls and the rejected answer of a row.

    `kinds` limits the types that are replaced; `None` replaces all that are found. What was replaced may have hidden a
    neighbour (a card number right behind another number), so texts are searched until nothing more is found.
    """
    messages, rejected = row.conversation.messages, row.rejected
    names = _Names(kinds, find_spans, (*messages, *rejected))
    for _ in range(MAX_PASSES):
        before = names.counts.total()
        messages = tuple(names.message(message) for message in messages)
        rejected = tuple(names.message(message) for message in rejected)
        if names.counts.total() == before:
            break
    if not names.counts:
        return Redacted(row=row, counts={}, samples=())
    changed = replace(row, conversation=replace(row.conversation, messages=messages), rejected=rejected)
    return Redacted(row=changed, counts=dict(names.counts), samples=tuple(names.samples))


def redact_rows(rows: Sequence[Row], *, kinds: frozenset[str] | None = None) -> list[Redacted | None]:
    """Redact a part of the rows by the patterns; `None` stands for a row without personal data."""
    redacted = (redact_row(row, kinds=kinds) for row in rows)
    return [one if one.counts else None for one in redacted]


def masked(value: str) -> str:
    """Return a value of which only its shape can be read: first and last character stay, digits and letters go."""
    value = value if len(value) <= MAX_SAMPLE_CHARS else value[:MAX_SAMPLE_CHARS] + "…"
    inner = "".join("9" if c.isdigit() else "x" if c.isalpha() else c for c in value[1:-1])
    return f"{value[:1]}{inner}{value[-1:]}" if len(value) > 4 else "x" * len(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Characters `start` to `end` of a text that become another text, and the types that go with them."""

    start: int
    end: int
    text: str
    kinds: tuple[str, ...]


class _Names:
    """The placeholders of one conversation."""

    def __init__(self, kinds: frozenset[str] | None, find_spans: Find, messages: Sequence[Message]) -> None:
        self._kinds = kinds
        self._find = find_spans
        self._placeholders: dict[tuple[str, str], str] = {}
        self._numbers = _numbers_of(messages)
        self.counts: Counter[str] = Counter()
        self.samples: list[tuple[str, str]] = []

    def message(self, message: Message) -> Message:
        places = self._places(message.content) if message.content else []
        content = self._replaced(message.content, places) if message.content else message.content
        reasoning = self._text(message.reasoning) if message.reasoning else message.reasoning
        calls = tuple(self._call(call) for call in message.tool_calls)
        if content == message.content and reasoning == message.reasoning and calls == message.tool_calls:
            return message
        spans = _moved(message.spans, places) if message.spans else ()
        return replace(message, content=content, reasoning=reasoning, tool_calls=calls, spans=spans)

    def _call(self, call: ToolCall) -> ToolCall:
        """Arguments are searched as JSON text: the names of arguments tell what their values are."""
        if isinstance(call.arguments, str):
            return replace(call, arguments=self._text(call.arguments))
        written = json.dumps(call.arguments, ensure_ascii=False)
        after = self._text(written)
        return call if after == written else replace(call, arguments=json.loads(after))

    def _text(self, text: str) -> str:
        return self._replaced(text, self._places(text))

    def _replaced(self, text: str, places: Sequence[_Place]) -> str:
        out = []
        at = 0
        for place in places:
            out += [text[at : place.start], place.text]
            at = place.end
            self.counts.update(place.kinds)
        return "".join([*out, text[at:]])

    def _places(self, text: str) -> list[_Place]:
        if not is_json(text):
            return self._places_in_prose(text)
        return [place for scalar in scalars(text) for place in self._places_in_scalar(text, scalar)]

    def _places_in_prose(self, text: str) -> list[_Place]:
        places = []
        for start, end, kind in self._spans(text):
            name = self._placeholder(kind, text[start:end])
            bare = text[start:end].isdigit() and _AFTER_KEY.search(text, max(0, start - _KEY_END_CHARS), start)
            name = f'"{name}"' if bare and _BEFORE_NEXT.match(text, end) else name
            places.append(_Place(start=start, end=end, text=name, kinds=(kind,)))
        return places

    def _places_in_scalar(self, text: str, scalar: Scalar) -> list[_Place]:
        """A string is searched as what it says, a whole number as its digits, both behind the words of their key."""
        if not (scalar.is_string or scalar.value.isdigit()):
            return []
        before = f"{scalar.words}: " if scalar.words else ""
        spans = [
            (max(0, start - len(before)), end - len(before), kind)
            for start, end, kind in self._spans(before + scalar.value)
            if end > len(before)
        ]
        names = [self._placeholder(kind, scalar.value[start:end]) for start, end, kind in spans]
        if not spans:
            return []
        if not scalar.is_string:
            return [_Place(start=scalar.start, end=scalar.end, text=f'"{names[0]}"', kinds=(spans[0][2],))]
        first = scalar.start + 1
        if text[first : scalar.end - 1] == scalar.value:
            return [
                _Place(start=first + start, end=first + end, text=name, kinds=(kind,))
                for (start, end, kind), name in zip(spans, names, strict=True)
            ]
        said, at = "", 0
        for (start, end, _), name in zip(spans, names, strict=True):
            said, at = said + scalar.value[at:start] + name, end
        written = json.dumps(said + scalar.value[at:], ensure_ascii=text.isascii())
        return [_Place(start=scalar.start, end=scalar.end, text=written, kinds=tuple(kind for *_, kind in spans))]

    def _spans(self, text: str) -> list[tuple[int, int, str]]:
        found = self._find(text)
        return [(span.start, span.end, span.kind) for span in found if self._kinds is None or span.kind in self._kinds]

    def _placeholder(self, kind: str, value: str) -> str:
        same = value.casefold()
        key = kind, "".join(filter(str.isalnum, same)) if kind in _GROUPED else "".join(same.split())
        if key not in self._placeholders:
            self._numbers[kind] += 1
            self._placeholders[key] = f"<{kind}_{self._numbers[kind]}>"
            self.samples.append((kind, masked(value)))
        return self._placeholders[key]


def _numbers_of(messages: Sequence[Message]) -> Counter[str]:
    """Type -> highest number of a placeholder that stands in the conversation already."""
    numbers: Counter[str] = Counter()
    for message in messages:
        calls = [json.dumps(call.arguments, ensure_ascii=False) for call in message.tool_calls]
        for text in (message.content, message.reasoning, *calls):
            for match in _PLACEHOLDER.finditer(text) if text and "<" in text else ():
                numbers[match.group(1)] = max(numbers[match.group(1)], int(match.group(2)))
    return numbers


def _moved(weighted: Sequence[tuple[int, int, float]], places: Sequence[_Place]) -> tuple[tuple[int, int, float], ...]:
    """Loss-weighted parts of a text, moved to where they stand after replacing; a cut value counts whole."""

    def moved(at: int, *, to_end: bool) -> int:
        shift = 0
        for place in places:
            if place.end <= at:
                shift += len(place.text) - (place.end - place.start)
            elif place.start < at:
                return place.start + shift + (len(place.text) if to_end else 0)
        return at + shift

    return tuple((moved(start, to_end=False), moved(end, to_end=True), factor) for start, end, factor in weighted)


def placeholder_detail(counts: dict[str, int]) -> str:
    """Return what was replaced, for the lineage: `EMAIL 2, PHONE 1`."""
    return json.dumps(dict(sorted(counts.items())))
