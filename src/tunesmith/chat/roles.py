"""Roles: which message each character and token of a rendering belongs to.

What lives here: attributing a rendering to roles, for reports and previews. What does not: masks, which never rest on
it (`mask`).

A message owns what its addition to the conversation adds to the rendering, header and terminator included; an injected
default system prompt counts as `system`, what no message adds as `template`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.chat.refusal import Refused
from tunesmith.chat.render import Renderer, Shaped
from tunesmith.chat.template import RawMessage
from tunesmith.types import JSON

TEMPLATE = "template"
"""Role of what no message adds."""


@dataclass(frozen=True, slots=True)
class RoleRange:
    """A half-open range of characters and the role that it belongs to."""

    start: int
    end: int
    role: str


def role_ranges(
    renderer: Renderer, messages: Sequence[RawMessage], tools: Sequence[Mapping[str, JSON]] = ()
) -> list[RoleRange]:
    """Return ranges that cover the whole rendering, in order."""
    shaped = renderer.shape(messages, tools)
    whole = renderer.text(shaped, len(shaped.messages), prompt=False).plain
    cuts = [_end_of(renderer, shaped, count, whole) for count in range(1, len(shaped.messages))]
    ranges: list[RoleRange] = []
    start = 0
    for message, end in zip(shaped.messages, [*cuts, len(whole)], strict=True):
        end = max(end, start)
        default = renderer.traits.default_system
        if start == 0 and default and message["role"] not in ("system", "developer"):
            at = whole.find(default, 0, end)
            if at >= 0:
                ranges.append(RoleRange(0, at + len(default), "system"))
                start = at + len(default)
        if end > start:
            ranges.append(RoleRange(start, end, str(message["role"])))
        start = end
    return ranges


def _end_of(renderer: Renderer, shaped: Shaped, count: int, whole: str) -> int:
    """Return where the first `count` messages end in the whole rendering."""
    try:
        part = renderer.text(shaped, count, prompt=False).plain
    except Refused:
        return 0
    length = 0
    for a, b in zip(part, whole, strict=False):
        if a != b:
            break
        length += 1
    said = shaped.messages[count - 1].get("content")
    if length == len(part) or not isinstance(said, str) or not said.strip():
        return length
    # The whole writes this turn otherwise (a thought that only the last turn keeps): it ends behind what it says
    at = whole.find(said.strip(), length)
    tail = part.rpartition(said.strip())[2]
    end = at + len(said.strip())
    return length if at < 0 else end + (len(tail) if whole.startswith(tail, end) else 0)


def count_by_role(
    renderer: Renderer, messages: Sequence[RawMessage], tools: Sequence[Mapping[str, JSON]] = ()
) -> Counter[str]:
    """Return the number of tokens of each role in the whole rendering; a token counts where it begins."""
    shaped = renderer.shape(messages, tools)
    encoded = renderer.encode(renderer.text(shaped, len(shaped.messages), prompt=False))
    ranges = role_ranges(renderer, messages, tools)
    return Counter(role_at(ranges, start) for start, _ in encoded.offsets)


def role_at(ranges: Sequence[RoleRange], position: int) -> str:
    """Return the role of a character."""
    for item in ranges:
        if item.start <= position < item.end:
            return item.role
    return TEMPLATE
