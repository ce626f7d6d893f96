"""Redaction: personal data and secrets become typed placeholders, the same value the same one within a conversation.

What lives here: a conversation in, the redacted one and a count out. What does not: what counts as personal data
(`data.patterns`).

    user: "I am ann@example.org"   assistant: "Thank you, ann@example.org"
    ->    "I am <EMAIL_1>"                    "Thank you, <EMAIL_1>"

Redacting twice changes nothing. Values are never stored: reports see a masked sample.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tunesmith.data.patterns import Span, find
from tunesmith.types import JSON, Message, Row, ToolCall

MAX_SAMPLE_CHARS = 48
_GROUPED = {"PHONE", "IBAN", "CARD", "BANK_ACCOUNT", "NATIONAL_ID", "MAC_ADDRESS"}
"""Types whose values people group as they like: the same letters and digits are the same value."""
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

    `kinds` limits the types that are replaced; `None` replaces all that are found.
    """
    names = _Names(kinds, find_spans)
    messages = tuple(names.message(message) for message in row.conversation.messages)
    rejected = tuple(names.message(message) for message in row.rejected)
    if not names.counts:
        return Redacted(row=row, counts={}, samples=())
    changed = replace(row, conversation=replace(row.conversation, messages=messages), rejected=rejected)
    return Redacted(row=changed, counts=dict(names.counts), samples=tuple(names.samples))


def masked(value: str) -> str:
    """Return a value of which only its shape can be read: first and last character stay, digits and letters go."""
    value = value if len(value) <= MAX_SAMPLE_CHARS else value[:MAX_SAMPLE_CHARS] + "…"
    inner = "".join("9" if c.isdigit() else "x" if c.isalpha() else c for c in value[1:-1])
    return f"{value[:1]}{inner}{value[-1:]}" if len(value) > 4 else "x" * len(value)


class _Names:
    """The placeholders of one conversation."""

    def __init__(self, kinds: frozenset[str] | None, find_spans: Find) -> None:
        self._kinds = kinds
        self._find = find_spans
        self._placeholders: dict[tuple[str, str], str] = {}
        self._numbers: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.samples: list[tuple[str, str]] = []

    def message(self, message: Message) -> Message:
        content = self.text(message.content) if message.content else message.content
        reasoning = self.text(message.reasoning) if message.reasoning else message.reasoning
        calls = tuple(self.call(call) for call in message.tool_calls)
        if content == message.content and reasoning == message.reasoning and calls == message.tool_calls:
            return message
        spans = message.spans
        if spans and content != message.content:
            assert message.content is not None
            spans = self._moved(message.content, spans)
        return replace(message, content=content, reasoning=reasoning, tool_calls=calls, spans=spans)

    def _moved(self, text: str, weighted: Sequence[tuple[int, int, float]]) -> tuple[tuple[int, int, float], ...]:
        """Loss-weighted parts of a text, moved to where they stand after replacing; a cut value counts whole."""
        places = [
            (span.start, span.end, len(self._placeholder(span.kind, text[span.start : span.end])))
            for span in self._spans(text)
        ]

        def moved(at: int, *, to_end: bool) -> int:
            shift = 0
            for start, end, length in places:
                if end <= at:
                    shift += length - (end - start)
                elif start < at:
                    return start + shift + (length if to_end else 0)
            return at + shift

        return tuple((moved(start, to_end=False), moved(end, to_end=True), factor) for start, end, factor in weighted)

    def call(self, call: ToolCall) -> ToolCall:
        if isinstance(call.arguments, str):
            return replace(call, arguments=self.text(call.arguments))
        return replace(call, arguments=self.value(dict(call.arguments)))

    def value(self, value: JSON) -> JSON:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        return value

    def text(self, text: str) -> str:
        spans = self._spans(text)
        return self._replaced(text, spans) if spans else text

    def _spans(self, text: str) -> list[Span]:
        return [span for span in self._find(text) if self._kinds is None or span.kind in self._kinds]

    def _replaced(self, text: str, spans: Sequence[Span]) -> str:
        out = []
        at = 0
        for span in spans:
            out += [text[at : span.start], self._placeholder(span.kind, text[span.start : span.end])]
            at = span.end
            self.counts[span.kind] += 1
        return "".join([*out, text[at:]])

    def _placeholder(self, kind: str, value: str) -> str:
        same = value.casefold()
        key = kind, "".join(filter(str.isalnum, same)) if kind in _GROUPED else "".join(same.split())
        if key not in self._placeholders:
            self._numbers[kind] += 1
            self._placeholders[key] = f"<{kind}_{self._numbers[kind]}>"
            self.samples.append((kind, masked(value)))
        return self._placeholders[key]


def placeholder_detail(counts: dict[str, int]) -> str:
    """Return what was replaced, for the lineage: `EMAIL 2, PHONE 1`."""
    return json.dumps(dict(sorted(counts.items())))
