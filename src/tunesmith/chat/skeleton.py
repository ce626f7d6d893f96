"""Skeletons: rendering and masking by roles instead of by row, for templates that only write contents down.

What lives here: programs, one per sequence of roles, that turn contents into ids and weights without running the
template. What does not: the proof that this is the same (`insertion`), the general way (`mask`).

    roles            user            assistant
    skeleton text    <|im_start|>user\\nQ0<|im_end|>\\n<|im_start|>assistant\\nQ1<|im_end|>\\n
    program          [1] "user\\n"+Q0 [2 198 1] "assistant\\n"+Q1 trained from behind "assistant\\n" [2 trained] [198]

Control tokens cut a text into segments that the tokenizer encodes on their own, so the ids of a text are those of its
segments in a row. The prompt of a turn ends inside a segment; that its ids are a prefix of the segment's is checked for
every row. Whatever is not plain takes the general way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunesmith.chat.insertion import find_insertion
from tunesmith.chat.mask import Trained, train
from tunesmith.chat.refusal import Refused
from tunesmith.chat.render import SURROGATE, Renderer, require_tokenizer
from tunesmith.chat.tokenizer import Tokenizer
from tunesmith.chat.turns import Reasoning, TrainOn, Turn, group_turns, plan_turns
from tunesmith.chat.words import Words
from tunesmith.types import JSON, Message

Shape = tuple[tuple[str, bool, bool | None], ...]
"""(role, has reasoning, train flag) of each message."""

_PLAIN_ROLES = frozenset(("system", "developer", "user", "assistant"))
_SLOT = re.compile(r"Qskel\"(\d+)\"leks")
MAX_SEGMENTS = 200_000
"""Encoded segments that are remembered."""


@dataclass(frozen=True, slots=True)
class _Fixed:
    """Ids that are the same for every row of a shape."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True, slots=True)
class _Segment:
    """A segment with contents in it: texts and slot numbers in turn."""

    parts: tuple[str | int, ...]
    head: tuple[str | int, ...] | None
    """The part that belongs to a prompt, where a prompt ends inside the segment; what follows it trains."""
    trained: bool
    """Whether the whole segment trains, where no prompt ends in it."""


@dataclass(frozen=True, slots=True)
class Program:
    """How the rows of one shape become sequences."""

    sequences: tuple[tuple[_Fixed | _Segment, ...], ...]


@dataclass(slots=True)
class Skeletons:
    """Programs by shape, for one renderer and loss policy. Remembers programs and encoded segments."""

    renderer: Renderer
    train_on: TrainOn
    reasoning: Reasoning
    _programs: dict[Shape, Program | None] = field(default_factory=dict)
    _segments: dict[str, list[int]] = field(default_factory=dict)
    _words: Words | None = None
    _sought: re.Pattern[str] | None = None
    _strips: bool = True
    _usable: bool | None = None

    def encode(self, rows: Sequence[Sequence[Message]]) -> list[list[tuple[list[int], list[float]]] | None]:
        """Return (ids, weights) per sequence of each row, or `None` for a row that must take the general way."""
        plans = [self._plan(row) for row in rows]
        self._encode_segments({text for plan in plans if plan is not None for text in plan.texts})
        return [None if plan is None else plan.run(self._segments) for plan in plans]

    def _plan(self, row: Sequence[Message]) -> _Plan | None:
        if not row or not self.usable:
            return None
        contents: list[str] = []
        shape: list[tuple[str, bool, bool | None]] = []
        for message in row:
            content, thought = message.content, message.reasoning
            if not content or message.role not in _PLAIN_ROLES or not self._is_plain(message, content, thought):
                return None
            contents += (content, thought or "")
            shape.append((message.role, thought is not None, message.train))
        key = tuple(shape)
        if key not in self._programs:
            self._programs[key] = self._compile(key)
        program = self._programs[key]
        return None if program is None else _Plan.of(program, contents, self.renderer.guard.pattern)

    def _is_plain(self, message: Message, content: str, thought: str | None) -> bool:
        flagged = message.tool_calls or message.spans or message.weight is not None
        if flagged or message.name is not None or message.tool_call_id is not None:
            return False
        sought = self._sought
        for text in (content,) if thought is None else (content, thought):
            if not text or (self._strips and (text[0].isspace() or text[-1].isspace())):
                return False
            if sought is not None and sought.search(text):
                return False
            if not text.isascii() and SURROGATE.search(text):
                return False
        return thought is None or self.reasoning is Reasoning.TRAIN

    @property
    def usable(self) -> bool:
        """Whether template and tokenizer allow programs at all."""
        if self._usable is None:
            insertion = find_insertion(self.renderer.template)
            tokenizer = self.renderer.tokenizer
            self._usable = insertion is not None and tokenizer is not None and isolates_segments(tokenizer)
            if insertion is not None:
                self._strips = insertion.strips or self.reasoning is not Reasoning.TRAIN
                strings = [*insertion.sought, *(["</think>"] if self.reasoning is not Reasoning.TRAIN else [])]
                self._sought = re.compile("|".join(map(re.escape, sorted(strings)))) if strings else None
        return self._usable

    def _encode_segments(self, texts: set[str]) -> None:
        missing = [text for text in texts if text not in self._segments]
        if not missing:
            return
        if len(self._segments) + len(missing) > MAX_SEGMENTS:
            self._segments = {text: self._segments[text] for text in texts if text in self._segments}
        if self._words is None:
            self._words = Words(require_tokenizer(self.renderer))
        self._segments.update(zip(missing, self._words.encode(missing), strict=True))

    def _compile(self, shape: Shape) -> Program | None:
        """Make the program of a shape from a conversation of sentinels, or `None` where it has none."""
        messages = [_sentinel(index, *item) for index, item in enumerate(shape)]
        try:
            turns, whole = plan_turns(self.renderer, messages, train_on=self.train_on, reasoning=self.reasoning)
            expected = train(self.renderer, messages, train_on=self.train_on, reasoning=self.reasoning)
        except Refused:
            return None
        sequences = []
        groups = group_turns(turns)
        for group in groups:
            last = group[-1]
            if last.appended_stop is not None:
                return None
            text = whole.plain if group is groups[-1] and whole.startswith(last.text) else last.text.plain
            ops = self._ops(text, group)
            if ops is None:
                return None
            sequences.append(ops)
        program = Program(tuple(sequences))
        return program if self._reproduces(program, messages, expected) else None

    def _reproduces(
        self, program: Program, messages: Sequence[Mapping[str, JSON]], expected: Sequence[Trained]
    ) -> bool:
        """Whether the program gives what the general way gives for the sentinels themselves."""
        contents = [str(message.get(key) or "") for message in messages for key in ("content", "reasoning_content")]
        plan = _Plan.of(program, contents, self.renderer.guard.pattern)
        if plan is None:
            return False
        self._encode_segments(set(plan.texts))
        made = plan.run(self._segments)
        wanted = [(list(item.ids), list(item.weights)) for item in expected]
        return made is not None and made == wanted

    def _ops(self, text: str, group: Sequence[Turn]) -> tuple[_Fixed | _Segment, ...] | None:
        """Cut a skeleton's text at control tokens and mark what trains."""
        tokenizer = require_tokenizer(self.renderer)
        ops: list[_Fixed | _Segment] = []
        ranges = [(len(turn.prompt.plain), len(turn.text.plain)) for turn in group]
        position = 0
        for match in [*self.renderer.guard.pattern.finditer(text), None]:
            end = len(text) if match is None else match.start()
            if end > position and not self._add_segment(ops, text, position, end, ranges):
                return None
            if match is not None:
                token = tokenizer.id_of(match.group())
                if token is None:
                    return None
                weight = 1.0 if any(low <= end and match.end() <= high for low, high in ranges) else 0.0
                ops.append(_Fixed([token], [weight]))
                position = match.end()
        if not all(
            any(match.end() == high for match in self.renderer.guard.pattern.finditer(text)) for _, high in ranges
        ):
            return None
        return tuple(_merged(ops))

    def _add_segment(
        self,
        ops: list[_Fixed | _Segment],
        text: str,
        start: int,
        end: int,
        ranges: Sequence[tuple[int, int]],
    ) -> bool:
        """Add the segment between two control tokens; false where what trains in it has no simple form."""
        tokenizer = require_tokenizer(self.renderer)
        inside = [low for low, high in ranges if start < low < end]
        parts = _parts(text[start:end])
        if parts is None or len(inside) > 1:
            return False
        trained = any(low <= start and end <= high for low, high in ranges)
        head = _parts(text[start : inside[0]]) if inside else None
        if inside and head is None:
            return False
        if any(isinstance(part, int) for part in parts):
            ops.append(_Segment(parts, head, trained))
            return True
        ids = tokenizer.encode(text[start:end]).ids
        skip = len(ids)
        if head is not None:
            front = tokenizer.encode(text[start : inside[0]]).ids
            if ids[: len(front)] != front:
                return False
            skip = len(front)
        weights = [1.0] * len(ids) if trained else [0.0] * skip + [1.0] * (len(ids) - skip)
        ops.append(_Fixed(ids, weights))
        return True


@dataclass(frozen=True, slots=True)
class _Plan:
    """A program with one row's texts put in."""

    program: Program
    texts: list[str]
    """Texts to encode: of each segment, and of each segment's head behind it."""

    @classmethod
    def of(cls, program: Program, contents: Sequence[str], control: re.Pattern[str]) -> _Plan | None:
        """Put contents in, or return `None` where a segment holds a control string."""
        texts: list[str] = []
        for sequence in program.sequences:
            for op in sequence:
                if isinstance(op, _Segment):
                    text = "".join([contents[part] if isinstance(part, int) else part for part in op.parts])
                    if control.search(text):
                        return None
                    texts.append(text)
                    if op.head is not None:
                        texts.append("".join([contents[p] if isinstance(p, int) else p for p in op.head]))
        return cls(program, texts)

    def run(self, segments: Mapping[str, list[int]]) -> list[tuple[list[int], list[float]]] | None:
        """Return (ids, weights) per sequence, or `None` where a prompt's ids are no prefix of its segment's."""
        out: list[tuple[list[int], list[float]]] = []
        texts = iter(self.texts)
        for sequence in self.program.sequences:
            ids: list[int] = []
            weights: list[float] = []
            for op in sequence:
                if isinstance(op, _Fixed):
                    ids += op.ids
                    weights += op.weights
                    continue
                found = segments[next(texts)]
                ids += found
                if op.head is None:
                    weights += [1.0 if op.trained else 0.0] * len(found)
                    continue
                front = segments[next(texts)]
                if found[: len(front)] != front:
                    return None
                weights += [0.0] * len(front) + [1.0] * (len(found) - len(front))
            out.append((ids, weights))
        return out


def isolates_segments(tokenizer: Tokenizer) -> bool:
    """Whether the ids of a text are those of the pieces between its added tokens, each encoded by itself.

    True unless an added token takes whitespace beside it, or only the start of a text gets a space.
    """
    if any(token.get(flag) for token in tokenizer.spec["added_tokens"] for flag in ("lstrip", "rstrip", "single_word")):
        return False
    steps = [tokenizer.spec.get("pre_tokenizer") or {}]
    while steps:
        step = steps.pop()
        if step.get("prepend_scheme") == "first":
            return False
        steps += step.get("pretokenizers") or []
    return not tokenizer.spec["model"].get("dropout")


def _sentinel(index: int, role: str, thinks: bool, flag: bool | None) -> dict[str, JSON]:
    """A message of sentinels. Their quotation marks show where a template writes content as JSON."""
    message: dict[str, JSON] = {"role": role, "content": f'Qskel"{2 * index}"leks'}
    if thinks:
        message["reasoning_content"] = f'Qskel"{2 * index + 1}"leks'
    if flag is not None:
        message["train"] = flag
    return message


def _parts(text: str) -> tuple[str | int, ...] | None:
    """Split a skeleton's text at its slots; `None` where a slot is cut or was changed by the template."""
    out: list[str | int] = []
    for index, piece in enumerate(_SLOT.split(text)):
        if index % 2:
            out.append(int(piece))
        elif piece:
            if "Qskel" in piece or "leks" in piece:
                return None
            out.append(piece)
    return tuple(out)


def _merged(ops: Sequence[_Fixed | _Segment]) -> list[_Fixed | _Segment]:
    out: list[_Fixed | _Segment] = []
    for op in ops:
        last = out[-1] if out else None
        if isinstance(op, _Fixed) and isinstance(last, _Fixed):
            out[-1] = _Fixed(last.ids + op.ids, last.weights + op.weights)
        else:
            out.append(op)
    return out
