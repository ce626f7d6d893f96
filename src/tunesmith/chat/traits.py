"""Traits: what a chat template does, found by rendering probes, never by its name.

What lives here: which text ends an assistant turn, what the generation prompt is, whether tools, tool calls and
reasoning reach the rendering, which form tool arguments must have, whether a system prompt is injected, whether the
clock is read. What does not: anything about one conversation (`mask`).

    user "U" + assistant "A"            ...A<|end|>\\n<|endoftext|>
    user "U" + assistant "A" + user     ...A<|end|>\\n<|user|>...
                                           ^^^^^^^^ what both have in common ends a turn
"""

from __future__ import annotations

import enum
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.chat.control import BRACKETED, Guard
from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.chat.template import ChatTemplate, RawMessage, normalise
from tunesmith.types import JSON

_USER, _ANSWER, _NEXT, _SYSTEM = "Qprobeuser", "Qprobeanswer", "Qprobenext", "Qprobesystem"
_REASON, _TOOL, _ARGUMENT, _VALUE = "Qprobereason", "qprobetool", "qprobeargument", "qprobevalue"

PROBE_TOOLS: list[dict[str, JSON]] = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "Probe.",
            "parameters": {
                "type": "object",
                "properties": {_ARGUMENT: {"type": "string", "description": "Probe."}},
                "required": [_ARGUMENT],
            },
        },
    }
]


class ArgumentsForm(enum.StrEnum):
    """How a template wants the arguments of a tool call."""

    OBJECT = "object"
    STRING = "string"
    EITHER = "either"
    NONE = "none"
    """The template leaves tool calls out."""


class ContentForm(enum.StrEnum):
    """How a template wants a message's text."""

    STRING = "string"
    PARTS = "parts"
    """As a list of `{"type": "text", "text": ...}` only."""
    EITHER = "either"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What one template does with one set of variables."""

    stops: tuple[str, ...]
    """Control strings that end an assistant turn in the rendering: of an answer first, of a tool call after."""
    implied_stop: str | None
    """Where the rendering of a last turn ends without a control string: the one that opens the next user turn."""
    implied_call_stop: str | None
    """The same for a turn with tool calls: the control string that opens the tool's result."""
    opener: str | None
    """Control string that opens the turn behind an answer. The generation prompt writes it; an answer never does."""
    generation_prompt: str
    """Text that `add_generation_prompt` adds after a user turn."""
    arguments: ArgumentsForm
    calls_need_content: bool
    """Whether a turn with tool calls must carry content, if only an empty one."""
    renders_tools: bool
    renders_reasoning: bool
    """Whether `reasoning_content` of the last turn reaches the rendering."""
    takes_system: bool
    default_system: str | None
    """System prompt that the template injects where the conversation has none."""
    content: ContentForm
    reads_clock: bool


def find_traits(template: ChatTemplate, variables: Mapping[str, JSON], guard: Guard) -> Traits:
    """Probe a template. Raises `Refused` where it cannot render a user turn and an answer."""
    probe = _Probe(template, variables, ContentForm.STRING)
    content = _find_content_form(template, variables)
    if content is ContentForm.PARTS:
        probe = _Probe(template, variables, content)
    user, answer = _message("user", _USER), _message("assistant", _ANSWER)
    prompt = probe.render([user])
    full = probe.render([user, answer], prompt=False)
    if _ANSWER not in full:
        raise Refused(
            RefusalKind.CONTENT_DROPPED,
            "the chat template leaves out what the assistant says",
            where=template.name,
            found=full[-120:],
            hint="choose a template that renders assistant turns",
        )
    stops, implied, opener = _find_stops(probe, guard, full)
    calls = _find_calls(probe, guard, stops)
    reasoned = probe.attempt([user, {**answer, "reasoning_content": _REASON}], prompt=False)
    return Traits(
        stops=(*stops, *(stop for stop in calls.stops if stop not in stops)),
        implied_stop=implied,
        implied_call_stop=calls.implied_stop if implied else None,
        opener=opener,
        generation_prompt=prompt[_shared(prompt, probe.render([user], prompt=False)) :],
        arguments=calls.arguments,
        calls_need_content=calls.need_content,
        renders_tools=_TOOL in (probe.attempt([user], tools=PROBE_TOOLS) or ""),
        renders_reasoning=_REASON in (reasoned or ""),
        takes_system=_SYSTEM in (probe.attempt([_message("system", _SYSTEM), user]) or ""),
        default_system=_find_default_system(probe, user),
        content=content,
        reads_clock=probe.clock_reads > 0,
    )


@functools.lru_cache(maxsize=256)
def _cached(text: str, name: str, variables: str, guard: Guard) -> Traits:
    return find_traits(ChatTemplate(text, name=name), json.loads(variables), guard)


def traits_of(template: ChatTemplate, variables: Mapping[str, JSON], guard: Guard) -> Traits:
    """Return `find_traits`, remembered per template, variables and guard."""
    return _cached(template.text, template.name, json.dumps(dict(variables), sort_keys=True), guard)


class _Probe:
    """Renders small conversations of sentinels, at a clock that stands still, and counts how often it is read."""

    def __init__(self, template: ChatTemplate, variables: Mapping[str, JSON], content: ContentForm) -> None:
        self.template = template
        self.variables = variables
        self.content = content
        self.clock_reads = 0

    def render(
        self,
        messages: Sequence[RawMessage],
        *,
        prompt: bool = True,
        tools: Sequence[Mapping[str, JSON]] | None = None,
    ) -> str:
        shaped = [as_parts(message) for message in messages] if self.content is ContentForm.PARTS else messages
        return self.template.render(
            normalise(shaped), tools=tools, add_generation_prompt=prompt, variables=self.variables, now=self._now
        )

    def attempt(
        self,
        messages: Sequence[RawMessage],
        *,
        prompt: bool = True,
        tools: Sequence[Mapping[str, JSON]] | None = None,
    ) -> str | None:
        """Render, or return `None` where the template refuses the probe: that is the answer to the probe."""
        try:
            return self.render(messages, prompt=prompt, tools=tools)
        except Refused:
            return None

    def _now(self, pattern: str) -> str:
        self.clock_reads += 1
        return "2000-01-01"


def as_parts(message: RawMessage) -> dict[str, JSON]:
    """Return a message whose text is a list of one part."""
    content = message.get("content")
    if not isinstance(content, str):
        return dict(message)
    return {**message, "content": [{"type": "text", "text": content}]}


def _shared(one: str, other: str) -> int:
    """Length of the longest common prefix."""
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length


def _message(role: str, content: str) -> dict[str, JSON]:
    return {"role": role, "content": content}


def _find_stops(probe: _Probe, guard: Guard, full: str) -> tuple[list[str], str | None, str | None]:
    """Return (stops of an answer, implied stop, what opens the turn behind it)."""
    last = full.rpartition(_ANSWER)[2]
    longer = probe.attempt(
        [_message("user", _USER), _message("assistant", _ANSWER), _message("user", _NEXT)], prompt=False
    )
    middle = longer.rpartition(_ANSWER)[2] if longer and _ANSWER in longer else last
    found = control_strings(last[: _shared(last, middle)], guard)
    if found:
        opening = _openings(probe, guard)
        while len(found) > 1 and found[-1] in opening:
            found.pop()
        header = middle.partition(found[-1])[2].partition(_NEXT)[0] if _NEXT in middle else ""
        return [found[-1]], None, next(iter(control_strings(header, guard)), None)
    found = control_strings(last, guard)
    if found:
        return [found[0]], None, None
    found = control_strings(middle.partition(_NEXT)[0], guard)
    opens_at_once = bool(found) and middle.lstrip().startswith(found[0])
    return [], found[0] if opens_at_once else None, None


def _openings(probe: _Probe, guard: Guard) -> set[str]:
    """Return control strings that open a turn, whoever speaks: they end none.

    Some templates write the next turn's opening behind every answer (Command A with retrieval).
    """
    user = _message("user", _USER)
    heads = []
    for said, messages in ((_USER, [user]), (_SYSTEM, [_message("system", _SYSTEM), user])):
        text = probe.attempt(messages)
        if text is not None and said in text:
            heads.append(set(control_strings(text.partition(said)[0], guard)))
    return set.intersection(*heads) if heads else set()


def control_strings(text: str, guard: Guard) -> list[str]:
    """Return the control strings of a text in order: those that the guard knows, else what looks like one."""
    known = guard.pattern.findall(text)
    return known or [match.group() for match in BRACKETED.finditer(text)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calls:
    """What a template does with tool calls."""

    arguments: ArgumentsForm = ArgumentsForm.NONE
    stops: tuple[str, ...] = ()
    """Further stops of a turn with tool calls."""
    implied_stop: str | None = None
    need_content: bool = False


def _find_calls(probe: _Probe, guard: Guard, stops: Sequence[str]) -> _Calls:
    seen: dict[ArgumentsForm, str] = {}
    implied: str | None = None
    need_content = True
    for form, arguments in (
        (ArgumentsForm.OBJECT, {_ARGUMENT: _VALUE}),
        (ArgumentsForm.STRING, json.dumps({_ARGUMENT: _VALUE})),
    ):
        call = {"id": "call12345", "type": "function", "function": {"name": _TOOL, "arguments": arguments}}
        for message in (
            {"role": "assistant", "tool_calls": [call]},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ):
            text = probe.attempt([_message("user", _USER), message], prompt=False, tools=PROBE_TOOLS)
            tail = (text or "").partition(_USER)[2]
            if _TOOL in tail and _carries_arguments(tail):
                seen[form] = tail
                implied = implied or _opens_result(probe, guard, message)
                need_content = need_content and "content" in message
                break
    if not seen:
        return _Calls()
    after = next(iter(seen.values())).rpartition(_VALUE)[2]
    found = control_strings(after, guard)
    more = bool(found and stops and not any(stop in found for stop in stops))
    return _Calls(
        arguments=ArgumentsForm.EITHER if len(seen) == 2 else next(iter(seen)),
        stops=(found[-1],) if more else (),
        implied_stop=implied,
        need_content=need_content,
    )


def _opens_result(probe: _Probe, guard: Guard, call: RawMessage) -> str | None:
    """Return the control string that opens a tool's result right after a call."""
    user = _message("user", _USER)
    result = {"role": "tool", "name": _TOOL, "tool_call_id": "call12345", "content": _NEXT}
    text = probe.attempt([user, call, result], prompt=False, tools=PROBE_TOOLS)
    bare = probe.attempt([user, call], prompt=False, tools=PROBE_TOOLS)
    if text is None or bare is None or not text.startswith(bare):
        return None
    found = control_strings(text[len(bare) :].partition(_NEXT)[0], guard)
    return found[0] if found and text[len(bare) :].lstrip().startswith(found[0]) else None


def _carries_arguments(text: str) -> bool:
    """Whether name and value of the probe's argument stand in the text, not as JSON inside a JSON string."""
    return _ARGUMENT in text and _VALUE in text and f'\\"{_ARGUMENT}' not in text


def _find_default_system(probe: _Probe, user: RawMessage) -> str | None:
    bare = probe.attempt([user])
    given = probe.attempt([_message("system", _SYSTEM), user])
    if bare is None or given is None or given.count(_SYSTEM) != 1:
        return None
    before, _, after = given.partition(_SYSTEM)
    if not (before and bare.startswith(before) and bare.endswith(after) and len(bare) > len(before) + len(after)):
        return None
    text = bare[len(before) : len(bare) - len(after)]
    return text if text.strip() and not re.search(re.escape(_USER), text) else None


def _find_content_form(template: ChatTemplate, variables: Mapping[str, JSON]) -> ContentForm:
    messages = [_message("user", _USER), _message("assistant", _ANSWER)]
    as_string = _Probe(template, variables, ContentForm.STRING).attempt(messages, prompt=False)
    as_list = _Probe(template, variables, ContentForm.PARTS).attempt(messages, prompt=False)
    if as_list is None or _ANSWER not in as_list:
        return ContentForm.STRING
    if as_string is not None and _ANSWER in as_string:
        return ContentForm.EITHER if as_string == as_list else ContentForm.STRING
    return ContentForm.PARTS
