"""Parsing: an answer's ids or text back to content, reasoning and tool calls, and how it ended.

What lives here: reading what a model wrote under one template, found by probing the template. What does not: output
schemas (`schema`), control while generating (`serve`).

    parser = Parser.of(renderer)
    parser.parse("<think>\\nhm\\n</think>\\n\\nBlue.<|im_end|>")   # reasoning "hm", content "Blue.", status OK
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.chat.refusal import Refused
from tunesmith.chat.render import Renderer, require_tokenizer
from tunesmith.chat.toolcalls import ToolFormat, detect_format, read_calls, read_harmony_reasoning
from tunesmith.chat.traits import PROBE_TOOLS, ArgumentsForm, control_strings
from tunesmith.types import JSON, ToolCall

_USER, _ANSWER, _REASON = "Qparseuser", "Qparseanswer", "Qparsereason"


class ParseStatus(enum.StrEnum):
    """How an answer ended."""

    OK = "ok"
    """It ended with a stop, and all of it was read."""
    CUT = "cut"
    """No stop: the budget ran out."""
    OPEN_REASONING = "open_reasoning"
    """The reasoning never closed, so there is no content."""
    BAD_TOOL_CALL = "bad_tool_call"
    """A tool call was begun and cannot be read; its text stays in the content."""
    EMPTY = "empty"
    """It ended at once: neither content nor a tool call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """An answer, read."""

    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    status: ParseStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """Reads answers under one template."""

    renderer: Renderer
    stops: tuple[str, ...]
    opening: str
    """What an answer without reasoning begins with, after the generation prompt."""
    reasoning: tuple[str, str] | None
    """(text before the reasoning, text between reasoning and content), where the template renders reasoning."""
    close_tag: str | None
    """Control string that closes the reasoning."""
    tool_format: ToolFormat | None

    @classmethod
    def of(cls, renderer: Renderer, *, tool_format: ToolFormat | None = None) -> Parser:
        """Probe a template for what stands around answer, reasoning and tool calls.

        `tool_format` is the format in which calls are written as content, where the template renders none.
        """
        traits = renderer.traits
        plain = _target(renderer, {"content": _ANSWER})
        thought = _target(renderer, {"content": _ANSWER, "reasoning_content": _REASON})
        around = None
        if traits.renders_reasoning and thought is not None and _REASON in thought and _ANSWER in thought:
            before, _, after = thought.partition(_REASON)
            around = (before, after.partition(_ANSWER)[0])
        closing = control_strings(around[1], renderer.guard) if around else []
        stops = [*traits.stops, traits.implied_stop, traits.implied_call_stop]
        return cls(
            renderer=renderer,
            stops=tuple(stop for stop in stops if stop),
            opening=plain.partition(_ANSWER)[0] if plain is not None else "",
            reasoning=around,
            close_tag=closing[0] if closing else None,
            tool_format=tool_format or _tool_format(renderer),
        )

    def parse(self, text: str, *, ended: bool | None = None) -> Parsed:
        """Read an answer with its control strings.

        `ended` says whether a stop was seen; left out, it is whether the text holds one. What follows the first stop is
        not part of the answer.
        """
        ends = [position for stop in self.stops if (position := text.find(stop)) >= 0]
        stopped = bool(ends) if ended is None else ended
        body = text[: min(ends)] if ends else text
        if self.tool_format is ToolFormat.HARMONY:
            return self._parse_harmony(body, stopped)
        thought, rest, open_ended = self._split_reasoning(body)
        if open_ended:
            return Parsed(
                content="",
                reasoning=thought,
                status=ParseStatus.OPEN_REASONING if stopped else ParseStatus.CUT,
            )
        return self._finish(rest, thought, stopped)

    def parse_ids(self, ids: Sequence[int], *, stop_ids: Sequence[int] = ()) -> Parsed:
        """Read an answer as ids: a control string that the model spelt out as text stays text.

        `stop_ids` end it beside the template's own stops.
        """
        tokenizer, guard = require_tokenizer(self.renderer), self.renderer.guard
        stops = {*stop_ids, *(tokenizer.id_of(stop) for stop in self.stops)}
        end = next((index for index, token in enumerate(ids) if token in stops), None)
        text, owned = tokenizer.decode_mixed(ids if end is None else ids[:end], guard.strings)
        masked = guard.mask_text(text, keep=owned)
        parsed = self.parse(masked.text, ended=end is not None)
        return Parsed(
            content=masked.restore(parsed.content),
            reasoning=None if parsed.reasoning is None else masked.restore(parsed.reasoning),
            tool_calls=tuple(
                ToolCall(
                    name=masked.restore(call.name), arguments=_restored(call.arguments, masked.restore), id=call.id
                )
                for call in parsed.tool_calls
            ),
            status=parsed.status,
        )

    def _split_reasoning(self, body: str) -> tuple[str | None, str, bool]:
        """Return (reasoning, rest, whether the reasoning never closed)."""
        if self.reasoning is None or self.close_tag is None:
            return None, body.removeprefix(self.opening), False
        before, between = self.reasoning
        if body.startswith(before) and between in body:
            inner, _, rest = body[len(before) :].partition(between)
            return inner.strip("\n") or None, rest, False
        if self.opening and body.startswith(self.opening):
            return None, body.removeprefix(self.opening), False
        tag = before.strip()
        if tag and not body.lstrip().startswith(tag):
            return None, body, False
        inner, closed, rest = body.lstrip().removeprefix(tag).partition(self.close_tag)
        if not closed:
            return inner.strip("\n") or None, "", True
        return inner.strip("\n") or None, rest.lstrip("\n"), False

    def _parse_harmony(self, body: str, stopped: bool) -> Parsed:
        thought = read_harmony_reasoning(body)
        if thought is not None and body.count("<|channel|>") == 1:
            status = ParseStatus.OPEN_REASONING if stopped else ParseStatus.CUT
            return Parsed(content="", reasoning=thought, status=status)
        return self._finish(body, thought, stopped)

    def _finish(self, rest: str, thought: str | None, stopped: bool) -> Parsed:
        content, broken = rest, False
        calls: tuple[ToolCall, ...] = ()
        if self.tool_format is not None:
            read = read_calls(rest, self.tool_format)
            content, calls, broken = read.content, read.calls, read.broken is not None
        if not stopped:
            status = ParseStatus.CUT
        elif broken:
            status = ParseStatus.BAD_TOOL_CALL
        elif not content.strip() and not calls:
            status = ParseStatus.EMPTY
        else:
            status = ParseStatus.OK
        return Parsed(content=content, reasoning=thought, tool_calls=calls, status=status)


def _restored(value: JSON, restore: Callable[[str], str]) -> JSON:
    if isinstance(value, str):
        return restore(value)
    if isinstance(value, Mapping):
        return {restore(key): _restored(item, restore) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item, restore) for item in value]
    return value


def _target(renderer: Renderer, answer: Mapping[str, JSON], tools: Sequence[Mapping[str, JSON]] = ()) -> str | None:
    """Return what a template renders after the generation prompt for one answer, or `None` where it refuses."""
    user = {"role": "user", "content": _USER}
    try:
        prompt = renderer.prompt([user], tools).text
        full = renderer.full([user, {"role": "assistant", **answer}], tools).text
    except Refused:
        return None
    return full[len(prompt) :] if full.startswith(prompt) else None


def _tool_format(renderer: Renderer) -> ToolFormat | None:
    if renderer.traits.arguments is ArgumentsForm.NONE:
        return None
    tools = PROBE_TOOLS if renderer.traits.renders_tools else []
    call = {"id": "call12345", "type": "function", "function": {"name": "qprobetool", "arguments": {"a": "b"}}}
    for answer in ({"tool_calls": [call]}, {"content": "", "tool_calls": [call]}):
        target = _target(renderer, answer, tools)
        if target is not None:
            return detect_format(target)
    return None
