"""The law of masks, checked from outside: what a sequence trains against what a server would send.

What lives here: the check, written against the public renderer and parser only, so that it shares no code with `mask`.
What does not: making sequences.

    for each trained turn: the ids before its first trained id are the serving prompt of the messages before it;
    its trained ids read back as the message and end with a stop; no other id trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.chat.mask import Trained
from tunesmith.chat.parse import Parser, ParseStatus
from tunesmith.chat.render import Renderer, require_tokenizer
from tunesmith.chat.template import REASONING_KEYS, RawMessage
from tunesmith.errors import ContractError
from tunesmith.types import JSON


def check_law(
    renderer: Renderer,
    messages: Sequence[RawMessage],
    tools: Sequence[Mapping[str, JSON]],
    sequences: Sequence[Trained],
    *,
    turns: Sequence[int],
    parser: Parser | None = None,
) -> None:
    """Raise `ContractError` where sequences break the law. `turns` are the messages that should train."""
    parser = parser or Parser.of(renderer)
    seen = [turn for sequence in sequences for turn in sequence.turns]
    _require(sorted(seen) == sorted(turns), "other turns train than should", expected=turns, found=seen)
    for sequence in sequences:
        inside: set[int] = set()
        for turn, length in zip(sequence.turns, sequence.prompt_lengths, strict=True):
            if turn:
                serving = renderer.prompt(messages[:turn], tools).ids
                _require(
                    sequence.ids[:length] == serving,
                    f"the prefix of turn {turn} is not the serving prompt",
                    expected=serving[-12:],
                    found=sequence.ids[max(0, length - 12) : length],
                )
            end = length
            while end < len(sequence.ids) and sequence.weights[end] > 0:
                end += 1
            inside.update(range(length, end))
            _check_target(renderer, parser, messages[turn], sequence.ids[length:end], turn)
        outside = [i for i, weight in enumerate(sequence.weights) if weight > 0 and i not in inside]
        _require(not outside, "ids train outside of the trained turns", expected="none", found=outside[:8])
        _require(sequence.weights[0] == 0, "the first id trains", expected=0, found=sequence.weights[0])


def _check_target(renderer: Renderer, parser: Parser, message: RawMessage, ids: Sequence[int], turn: int) -> None:
    tokenizer = require_tokenizer(renderer)
    stops = {tokenizer.id_of(stop) for stop in parser.stops}
    _require(bool(ids) and ids[-1] in stops, f"turn {turn} does not end with a stop", expected=stops, found=ids[-3:])
    _require(
        not any(token in stops for token in ids[:-1]), f"turn {turn} has a stop inside", expected="one", found=list(ids)
    )
    parsed = parser.parse_ids(ids)
    _require(
        parsed.status in (ParseStatus.OK, ParseStatus.EMPTY),
        f"turn {turn} cannot be read back",
        expected="ok",
        found=parsed.status.value,
    )
    content = message.get("content") or ""
    _require(
        parsed.content.strip() == str(content).strip(),
        f"turn {turn} reads back as another answer",
        expected=content,
        found=parsed.content,
    )
    thought = next((message[key] for key in REASONING_KEYS if message.get(key)), None)
    _require(
        (parsed.reasoning or "").strip() == (thought or "").strip(),
        f"turn {turn} reads back with other reasoning",
        expected=thought,
        found=parsed.reasoning,
    )
    wanted = [call["function"] for call in message.get("tool_calls") or ()]
    found = [{"name": call.name, "arguments": call.arguments} for call in parsed.tool_calls]
    _require(
        [(call["name"], call["arguments"]) for call in wanted] == [(call["name"], call["arguments"]) for call in found],
        f"turn {turn} reads back with other tool calls",
        expected=wanted,
        found=found,
    )


def _require(holds: bool, what: str, *, expected: object, found: object) -> None:
    if not holds:
        raise ContractError(f"the law of masks is broken: {what}", expected=repr(expected), found=repr(found))
