"""Loss masks: which tokens of a conversation train, and with which weight.

What lives here: training sequences whose unsupervised prefix equals the serving prompt, as text and as ids. What does
not: which turns train (`turns`), rendering (`render`), length budgets (`length`).

For each trained turn k, with messages[:k] before it:

    prompt   = render(messages[:k], generation prompt)          never trains; ids as the server sends them
    target   = render(messages[:k+1]) after the prompt, up to and with the first stop     trains
    rest     = whatever follows the stop                        never trains

Turns share one sequence where each next prompt begins, id by id, with all that came before; a template that rewrites
history (Qwen3 drops old thinking, gpt-oss ends only the last turn with its stop) gives one sequence per trained turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.chat.render import Renderer, Text, require_tokenizer
from tunesmith.chat.template import RawMessage
from tunesmith.chat.tokenizer import Encoded
from tunesmith.chat.turns import Mark, Reasoning, TrainOn, Turn, group_turns, plan_turns
from tunesmith.types import JSON

_ANCHORS = ("", "\n", "a", ".")
"""Texts to encode before a target, so that no space is put before it; the pieces are checked by decoding them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One training sequence, as text and, where there is a tokenizer, as ids with weights."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Half-open character ranges that train."""
    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    offsets: tuple[tuple[int, int], ...] = ()
    """For each id, the half-open range of characters that it stands for."""
    turns: tuple[int, ...] = ()
    """Indices of the messages that train here."""
    prompt_lengths: tuple[int, ...] = ()
    """For each of `turns`, the number of ids before its first trained id."""
    appended_stop: str | None = None
    """Stop that the rendering lacks and the sequence has: the control string that opens the next turn."""


def train(
    renderer: Renderer,
    messages: Sequence[RawMessage],
    tools: Sequence[Mapping[str, JSON]] = (),
    *,
    train_on: TrainOn = TrainOn.ALL,
    reasoning: Reasoning = Reasoning.TRAIN,
) -> list[Trained]:
    """Return the training sequences of a conversation.

    A message may carry `train` (true, false), `weight` (a factor) and `spans` (`[[start, end, weight], ...]` in
    characters of its content). Raises `Refused`, with a kind, where the law of this module cannot hold.
    """
    turns, whole = plan_turns(renderer, messages, tools, train_on=train_on, reasoning=reasoning)
    if renderer.tokenizer is None:
        return _as_texts(turns, whole)
    return _as_ids(renderer, turns, whole)


def _as_texts(turns: Sequence[Turn], whole: Text) -> list[Trained]:
    groups = group_turns(turns)
    out = []
    for group in groups:
        last = group[-1]
        text, appended = last.text.plain, last.appended_stop
        if appended:
            text = text[: -len(appended)]
        if group is groups[-1] and whole.guarded.startswith(last.text.guarded[: len(text)]):
            text = whole.plain
        out.append(
            Trained(
                text=text,
                spans=_spans([mark for turn in group for mark in turn.marks], len(text)),
                turns=tuple(turn.index for turn in group),
                appended_stop=appended,
            )
        )
    return out


def _spans(marks: Sequence[Mark], length: int) -> tuple[tuple[int, int], ...]:
    spans: list[tuple[int, int]] = []
    for start, end, weight in marks:
        end = min(end, length)
        if weight <= 0 or start >= end:
            continue
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return tuple(spans)


@dataclass(slots=True)
class _Sequence:
    """A training sequence while it grows."""

    ids: list[int]
    weights: list[float]
    offsets: list[tuple[int, int]]
    text: Text
    marks: list[Mark]
    turns: list[int]
    prompt_lengths: list[int]
    appended_stop: str | None = None


def _as_ids(renderer: Renderer, turns: Sequence[Turn], whole: Text) -> list[Trained]:
    sequences: list[_Sequence] = []
    for turn in turns:
        encoded = renderer.encode(turn.prompt)
        prompt = encoded.ids
        target = _target(renderer, turn, prompt)
        grown = sequences[-1] if sequences else None
        if grown is not None and turn.prompt.startswith(grown.text) and prompt[: len(grown.ids)] == grown.ids:
            grown.weights += [0.0] * (len(prompt) - len(grown.ids))
        else:
            grown = _Sequence([], [0.0] * len(prompt), [], turn.prompt, [], [], [])
            sequences.append(grown)
        grown.ids = prompt + target.ids
        grown.offsets = encoded.offsets + target.offsets
        grown.weights += _token_weights(target.offsets, turn.marks)
        grown.text = turn.text
        grown.marks += turn.marks
        grown.turns.append(turn.index)
        grown.prompt_lengths.append(len(prompt))
        grown.appended_stop = turn.appended_stop
    _add_rest(renderer, sequences[-1], whole)
    return [_finished(renderer, sequence) for sequence in sequences]


def _target(renderer: Renderer, turn: Turn, prompt: Sequence[int]) -> Encoded:
    """Return ids of the target and their offsets in the turn's text.

    In context where the encoding of prompt and target begins with the prompt's ids; else by itself, where the pieces
    still decode to the whole.
    """
    whole = renderer.encode(turn.text)
    count = len(prompt)
    if whole.ids[:count] == list(prompt):
        return Encoded(whole.ids[count:], whole.offsets[count:])
    tokenizer = require_tokenizer(renderer)
    start = len(turn.prompt.plain)
    piece = turn.text.cut(start, len(turn.text.plain))
    expected = tokenizer.decode(whole.ids, skip_special=False)
    for anchor in _ANCHORS:
        alone = renderer.encode(Text(anchor, anchor) + piece)
        skip = len(renderer.encode(Text(anchor, anchor)).ids) if anchor else 0
        if skip and alone.offsets[skip - 1][1] != len(anchor):
            continue
        ids = alone.ids[skip:]
        if tokenizer.decode([*prompt, *ids], skip_special=False) == expected:
            moved = [(low - len(anchor) + start, high - len(anchor) + start) for low, high in alone.offsets[skip:]]
            return Encoded(ids, moved)
    raise Refused(
        RefusalKind.BOUNDARY,
        "the tokenizer joins the end of the prompt with the start of the answer",
        where=f"message {turn.index + 1}",
        found=repr(turn.text.plain[max(0, start - 10) : start + 10]),
        hint="strip whitespace from the start of the answer",
    )


def _token_weights(offsets: Sequence[tuple[int, int]], marks: Sequence[Mark]) -> list[float]:
    """Return a weight per token: the smallest of the characters it covers, so that nothing masked ever trains."""
    if len(marks) == 1 and offsets:
        start, end, weight = marks[0]
        if offsets[0][0] >= start and offsets[-1][1] <= end:
            return [weight] * len(offsets)
    out: list[float] = []
    for low, high in offsets:
        touched = [weight for start, end, weight in marks if start < max(high, low + 1) and low < end]
        covered = (
            sum(min(end, high) - max(start, low) for start, end, _ in marks if start < high and low < end) >= high - low
        )
        out.append(min(touched) if touched and covered else 0.0)
    return out


def _add_rest(renderer: Renderer, sequence: _Sequence, whole: Text) -> None:
    """Add what the whole rendering has behind the last trained turn, so that ids equal transformers' rendering."""
    if sequence.appended_stop or not whole.startswith(sequence.text):
        return
    encoded = renderer.encode(whole)
    count = len(sequence.ids)
    ids, offsets = encoded.ids[count:], encoded.offsets[count:]
    if encoded.ids[:count] != sequence.ids:
        stop = next(stop for stop in renderer.traits.stops if sequence.text.guarded.endswith(stop))
        start = len(sequence.text.plain)
        encoded = renderer.encode(Text(stop, stop) + whole.cut(start, len(whole.plain)))
        if encoded.ids[:1] != sequence.ids[-1:]:
            return
        moved = start - len(stop)
        ids, offsets = encoded.ids[1:], [(low + moved, high + moved) for low, high in encoded.offsets[1:]]
    sequence.weights += [0.0] * len(ids)
    sequence.ids = sequence.ids + ids
    sequence.offsets = sequence.offsets + offsets
    sequence.text = whole


def _finished(renderer: Renderer, sequence: _Sequence) -> Trained:
    renderer.check_bos(sequence.ids)
    length = len(sequence.text.plain) - len(sequence.appended_stop or "")
    assert len(sequence.ids) == len(sequence.weights)
    return Trained(
        text=sequence.text.plain[:length],
        spans=_spans(sequence.marks, length),
        ids=tuple(sequence.ids),
        weights=tuple(sequence.weights),
        offsets=tuple(sequence.offsets),
        turns=tuple(sequence.turns),
        prompt_lengths=tuple(sequence.prompt_lengths),
        appended_stop=sequence.appended_stop,
    )
