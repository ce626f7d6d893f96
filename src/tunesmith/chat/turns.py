"""Turns: the loss policy, and from it the turns of a conversation that train, as text.

What lives here: which turns train, their prompt, target and stop, the weights of their characters. What does not:
tokens (`mask`), rendering (`render`).

For each trained turn k, with messages[:k] before it:

    prompt   = render(messages[:k], generation prompt)                               never trains
    target   = render(messages[:k+1]) after the prompt, up to and with the first stop     trains
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.chat.render import Renderer, Shaped, Text, squash
from tunesmith.chat.template import REASONING_KEYS, RawMessage
from tunesmith.types import JSON

Mark = tuple[int, int, float]
"""(start, end, weight) of a range of characters."""


class TrainOn(enum.StrEnum):
    """Which assistant turns train."""

    ALL = "all"
    """Every assistant turn that is not flagged `train: false`."""
    LAST = "last"
    """The last assistant turn only."""
    FLAGGED = "flagged"
    """Turns with `train: true`, or with a weight."""


class Reasoning(enum.StrEnum):
    """What happens to the reasoning of a trained turn."""

    TRAIN = "train"
    MASK = "mask"
    """It stands before the answer and does not train."""
    DROP = "drop"
    """It is taken out of the conversation before rendering."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One trained turn: its serving prompt, its text up to the stop, and the weights of its characters."""

    index: int
    """Of its message."""
    prompt: Text
    text: Text
    """Prompt and target."""
    marks: tuple[Mark, ...]
    """(start, end, weight) in characters of `text`, ascending, covering the target."""
    appended_stop: str | None


def plan_turns(
    renderer: Renderer,
    messages: Sequence[RawMessage],
    tools: Sequence[Mapping[str, JSON]] = (),
    *,
    train_on: TrainOn,
    reasoning: Reasoning,
) -> tuple[list[Turn], Text]:
    """Return the trained turns as text, and the rendering of the whole conversation. Raises `Refused` as `train`."""
    if reasoning is Reasoning.DROP:
        messages = [without_reasoning(message) for message in messages]
    weights = turn_weights(messages, train_on)
    if not weights:
        raise Refused(
            RefusalKind.NO_TARGET,
            "no turn of this conversation trains",
            found=" ".join(str(message.get("role")) for message in messages) or "no messages",
            expected=f"an assistant turn that train_on: {train_on.value} takes",
        )
    shaped = renderer.shape(messages, tools)
    turns = [_turn(renderer, shaped, messages, index, weight, reasoning) for index, weight in weights.items()]
    whole = renderer.text(shaped, len(shaped.messages), prompt=False)
    renderer.check_nothing_dropped(shaped, turns[-1].prompt.plain, upto=turns[-1].index)
    return turns, whole


def turn_weights(messages: Sequence[RawMessage], train_on: TrainOn) -> dict[int, float]:
    """Return the weight of each turn that trains, by index, under `train_on` and the messages' own flags."""
    turns = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
    if train_on is TrainOn.LAST:
        turns = turns[-1:]
    out: dict[int, float] = {}
    for index in turns:
        flag, weight = messages[index].get("train"), messages[index].get("weight")
        if not isinstance(flag, bool | None) or not (weight is None or _is_weight(weight)):
            raise Refused(
                RefusalKind.BAD_INPUT,
                "what says how a turn trains cannot be read",
                where=f"message {index + 1}",
                expected="train: true or false, weight: a number from 0",
                found=f"train: {flag!r}, weight: {weight!r}",
            )
        wanted = flag is not False if train_on is not TrainOn.FLAGGED else (flag is True or (flag is None and weight))
        factor = 1.0 if weight is None else float(weight)
        if wanted and factor > 0:
            out[index] = factor
    return out


def without_reasoning(message: RawMessage) -> dict[str, JSON]:
    """Return the message without reasoning, neither in its own field nor as a leading think block of the content."""
    out = {key: value for key, value in message.items() if key not in REASONING_KEYS}
    content = out.get("content")
    if message.get("role") == "assistant" and isinstance(content, str):
        head, tag, tail = content.partition("</think>")
        if tag and head.lstrip().startswith("<think>"):
            out["content"] = tail.lstrip("\n")
    return out


def _turn(
    renderer: Renderer,
    shaped: Shaped,
    messages: Sequence[RawMessage],
    index: int,
    weight: float,
    reasoning: Reasoning,
) -> Turn:
    text = renderer.text(shaped, index + 1, prompt=False)
    prompt = renderer.text(shaped, index, prompt=True) if index else _opening_prompt(renderer, shaped, text)
    if index and not text.startswith(prompt):
        text = _behind_prompt(renderer, shaped, index, prompt, text) or text
    if not text.startswith(prompt):
        raise Refused(
            RefusalKind.NOT_SERVING_PREFIX,
            "the training text of a turn does not begin with the prompt that a server would send",
            where=f"{renderer.template.name}, message {index + 1}",
            expected=f"...{prompt.plain[-60:]!r}",
            found=f"...{_after_common(text.plain, prompt.plain)!r}",
            hint="set the template's arguments (such as enable_thinking) to fit the data, set reasoning: drop, "
            "or use a template made for training",
        )
    message = shaped.messages[index]
    _check_header_supplied(renderer, text.guarded[len(prompt.plain) :], index)
    text, appended = _with_stop(renderer, text, len(prompt.plain), calls=bool(message.get("tool_calls")))
    _check_answer_kept(renderer, message, text.plain[len(prompt.plain) :], index)
    marks = _marks(messages[index], text, len(prompt.plain), weight, reasoning)
    return Turn(index, prompt, text, marks, appended)


def _behind_prompt(renderer: Renderer, shaped: Shaped, index: int, prompt: Text, text: Text) -> Text | None:
    """Return prompt and answer where a template writes the messages before an answered turn otherwise, else `None`.

    Mistral's published templates put the system prompt at the last user message, and leave it out once there is an
    answer behind it. The answer is what follows the last message and the same header as in the prompt; the header holds
    a control string, which content cannot.
    """
    content = (shaped.masked or shaped).messages[index - 1].get("content")
    said = content.strip() if isinstance(content, str) else ""
    header = prompt.guarded.rpartition(said)[2] if said and said in prompt.guarded else ""
    at = text.guarded.rfind(said + header)
    if at < 0 or not renderer.guard.pattern.search(header):
        return None
    return prompt + text.cut(at + len(said + header), len(text.plain))


def _check_header_supplied(renderer: Renderer, target: str, index: int) -> None:
    opener = renderer.traits.opener
    if opener is not None and target.lstrip().startswith(opener):
        raise Refused(
            RefusalKind.NOT_SERVING_PREFIX,
            "the generation prompt does not open the assistant's turn: its header would train as if it were the answer",
            where=f"{renderer.template.name}, message {index + 1}",
            found=target[:60],
            hint="add {% if add_generation_prompt %} with the assistant's header at the end of the template",
        )


def _opening_prompt(renderer: Renderer, shaped: Shaped, text: Text) -> Text:
    """Return what stands before the answer of a conversation that the assistant opens.

    No server is sent an empty conversation, so the prefix is read off the rendering: what stays the same when the
    content changes, and ends with the generation prompt.
    """
    first = shaped.messages[0]
    other = Shaped([{**first, "content": "Qprobeopening"}], shaped.tools, None)
    probe = renderer.text(other, 1, prompt=False).plain
    before = probe.partition("Qprobeopening")[0]
    prompt = text.cut(0, len(before))
    if prompt.guarded != before or not before.endswith(renderer.traits.generation_prompt):
        raise Refused(
            RefusalKind.NOT_SERVING_PREFIX,
            "the conversation opens with the assistant, and the template's rendering of that has no prompt before it",
            where=renderer.template.name,
            hint="begin the conversation with a system or user message",
        )
    return prompt


def _with_stop(renderer: Renderer, text: Text, start: int, *, calls: bool) -> tuple[Text, str | None]:
    """Cut the text after the first stop behind `start`; append the implied stop where the rendering has none."""
    traits = renderer.traits
    ends = [
        (position, position + len(stop)) for stop in traits.stops if (position := text.guarded.find(stop, start)) >= 0
    ]
    if ends:
        return text.cut(0, min(ends)[1]), None
    stop = traits.implied_call_stop if calls else traits.implied_stop
    if stop is None:
        raise Refused(
            RefusalKind.NO_STOP,
            "nothing in the rendering ends the assistant's turn: the model would never learn to stop",
            where=renderer.template.name,
            expected=" or ".join(traits.stops) or "a control token after the answer, such as eos_token",
            found=text.plain[-60:],
            hint="give the template its eos_token, or use a template that ends assistant turns",
        )
    stripped = text.cut(0, max(start, len(text.guarded.rstrip())))
    return stripped + Text(stop, stop), stop


def _check_answer_kept(renderer: Renderer, message: RawMessage, target: str, index: int) -> None:
    where = f"{renderer.template.name}, message {index + 1}"
    content = message.get("content")
    said = content if isinstance(content, str) else "".join(part["text"] for part in content or ())
    if said.strip() not in target and squash(said) not in squash(target):
        thinking = "</think>" in said
        raise Refused(
            RefusalKind.REASONING_DROPPED if thinking else RefusalKind.CONTENT_DROPPED,
            "the chat template leaves out a part of what the assistant says",
            where=where,
            expected=said.strip()[:80],
            found=target[:80],
            hint="set reasoning: drop to leave it out knowingly" if thinking else "use a template that keeps it",
        )
    thought = message.get("reasoning_content")
    if isinstance(thought, str) and squash(thought) not in squash(target):
        raise Refused(
            RefusalKind.REASONING_DROPPED,
            "the chat template leaves out the reasoning of a trained turn",
            where=where,
            found=thought.strip()[:80],
            hint="set reasoning: drop to leave it out knowingly, or use a template that renders it",
        )
    for call in message.get("tool_calls") or ():
        if call["function"]["name"] not in target:
            raise Refused(
                RefusalKind.TOOL_CALLS_DROPPED,
                "the chat template leaves out a tool call",
                where=where,
                found=str(call["function"]["name"]),
                hint="use a template that renders every tool call",
            )


def _marks(message: RawMessage, text: Text, start: int, weight: float, reasoning: Reasoning) -> tuple[Mark, ...]:
    """Return the weights of the target's characters."""
    end = len(text.plain)
    spans = message.get("spans") or ()
    spans = spans if isinstance(spans, (list, tuple)) else (spans,)
    hide = reasoning is Reasoning.MASK and (
        message.get("reasoning_content") or "</think>" in str(message.get("content"))
    )
    if not spans and not hide:
        return ((start, end, weight),)
    content = message.get("content") or ""
    answer = content if isinstance(content, str) else "".join(part["text"] for part in content)
    if hide:
        answer = answer.rpartition("</think>")[2]
    at, skipped = _locate(text.plain, answer, start)
    marks: list[Mark] = [(at, end, weight)] if hide else [(start, end, weight)]
    for span in spans:
        if not _is_span(span, len(answer)):
            raise Refused(
                RefusalKind.BAD_INPUT,
                "a weighted span does not lie in the content",
                expected=f"[start, end, weight] in {len(answer)} characters",
                found=repr(span)[:80],
            )
        low, high, factor = span
        first, last = at + max(low - skipped, 0), at + min(max(high - skipped, 0), len(answer.strip()))
        marks = _override(marks, first, last, weight * factor)
    return tuple(mark for mark in marks if mark[0] < mark[1])


def _is_span(span: JSON, length: int) -> bool:
    if not isinstance(span, (list, tuple)) or len(span) != 3 or not all(isinstance(x, int | float) for x in span):
        return False
    low, high, factor = span
    return isinstance(low, int) and isinstance(high, int) and 0 <= low <= high <= length and _is_weight(factor)


def _is_weight(value: JSON) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _locate(text: str, answer: str, start: int) -> tuple[int, int]:
    """Return (position of the answer in the text, leading characters that the template trimmed)."""
    at = text.rfind(answer, start)
    if at >= 0 and answer:
        return at, 0
    kept = answer.strip()
    at = text.rfind(kept, start) if kept else -1
    if at < 0:
        if not kept:
            return max(start, len(text)), 0
        raise Refused(
            RefusalKind.CONTENT_DROPPED,
            "the answer is not in the rendering as it stands, so its parts cannot be weighted",
            found=answer[:80],
        )
    return at, len(answer) - len(answer.lstrip())


def _override(marks: Sequence[Mark], low: int, high: int, weight: float) -> list[Mark]:
    out: list[Mark] = []
    for start, end, value in marks:
        out.append((start, min(end, low), value))
        out.append((max(start, low), min(end, high), weight))
        out.append((max(start, high), end, value))
    return sorted(mark for mark in out if mark[0] < mark[1])


def group_turns(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Join turns whose texts are prefixes of one another."""
    groups: list[list[Turn]] = []
    for turn in turns:
        if groups and turn.prompt.startswith(groups[-1][-1].text):
            groups[-1].append(turn)
        else:
            groups.append([turn])
    return groups


def _after_common(text: str, prompt: str) -> str:
    length = 0
    for a, b in zip(text, prompt, strict=False):
        if a != b:
            break
        length += 1
    return text[max(0, length - 20) : length + 40]
