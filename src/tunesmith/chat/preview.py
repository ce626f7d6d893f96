"""Preview: what a conversation becomes, token by token, for people and for other programs.

What lives here: reading a file of conversations line by line, one JSON object per line out, and coloured pieces of the
text for a terminal or a page. What does not: printing (`cli.preview`).

    for line in preview_lines(renderer, ['{"messages": [...]}'], train_on=TrainOn.ALL): ...
    {"text": "...", "ids": [...], "weights": [...], "spans": [[170, 191]], "examples": 1}
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.chat.foreign_marks import own_marks
from tunesmith.chat.mask import Trained, train
from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.chat.render import SURROGATE, Renderer
from tunesmith.chat.roles import TEMPLATE, role_at, role_ranges
from tunesmith.chat.template import ChatTemplate, RawMessage, find_templates, read_template
from tunesmith.chat.tokenizer import Tokenizer
from tunesmith.chat.turns import Reasoning, TrainOn
from tunesmith.errors import ContractError, RecipeError
from tunesmith.types import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of text of one role and one weight."""

    text: str
    role: str
    weight: float
    token: int | None = None
    """The token's id, where there is a tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Previewed:
    """One conversation, previewed."""

    sequences: tuple[Trained, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    """For each sequence, its text in order."""


class Previewer:
    """Previews conversations under one tokenizer and template, choosing `tool_use` templates as transformers does."""

    def __init__(
        self, *, tokenizer_dir: Path | None, template: Path | None, variables: Mapping[str, JSON] | None = None
    ) -> None:
        """Load what is named. Raises `RecipeError` where neither is, `ContractError` where there is no template."""
        if tokenizer_dir is None and template is None:
            raise RecipeError(
                "nothing to preview with",
                expected="a folder with a tokenizer, a template file, or both",
                hint="give --tokenizer DIR, or --template FILE with --vars '{\"eos_token\": ...}'",
            )
        self._tokenizer = None if tokenizer_dir is None else Tokenizer.load(tokenizer_dir)
        special = {} if self._tokenizer is None else self._tokenizer.special
        self._variables = {**special, **(variables or {})}
        self._broken: Refused | None = None
        self._templates: dict[str, ChatTemplate] = {}
        try:
            if template is not None:
                self._templates = {"default": read_template(template)}
            else:
                assert tokenizer_dir is not None
                found = find_templates(tokenizer_dir)
                self._templates = {name: ChatTemplate(text, name=f"template {name}") for name, text in found.items()}
        except Refused as refusal:
            self._broken = refusal
        if "default" not in self._templates and self._broken is None:
            raise ContractError(
                "the folder has no chat template",
                where=str(tokenizer_dir),
                expected="chat_template.jinja",
                found=", ".join(sorted(self._templates)) or "none",
                hint="give one with --template FILE",
            )

    def renderer(self, *, has_tools: bool) -> Renderer:
        """Return the renderer for a conversation. Raises `Refused` where the template is not valid Jinja."""
        if self._broken is not None:
            raise self._broken
        name = "tool_use" if has_tools and "tool_use" in self._templates else "default"
        return Renderer(self._templates[name], self._variables, self._tokenizer)


def preview_lines(
    previewer: Previewer, lines: Iterable[str], *, train_on: TrainOn, reasoning: Reasoning = Reasoning.TRAIN
) -> Iterator[dict[str, JSON]]:
    """Yield one JSON object per line that is not blank: what trains, or `{"error": {"kind", "message"}}`."""
    for line in lines:
        if not line.strip():
            continue
        try:
            messages, tools = read_line(line)
            renderer = previewer.renderer(has_tools=bool(tools))
            yield to_json(train(renderer, messages, tools, train_on=train_on, reasoning=reasoning))
        except Refused as refusal:
            yield {"error": {"kind": refusal.kind.value, "message": str(refusal)}}
        except ContractError as error:
            yield {"error": {"kind": "contract", "message": str(error)}}


def read_line(line: str) -> tuple[list[RawMessage], list[Mapping[str, JSON]]]:
    """Return messages and tools of one JSON line. Raises `Refused` where it is not a conversation."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise Refused(RefusalKind.BAD_INPUT, "the line is not JSON", found=str(error)) from error
    except RecursionError as error:
        raise Refused(RefusalKind.BAD_INPUT, "the line is nested too deep to be read") from error
    if SURROGATE.search(line) or SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise Refused(
            RefusalKind.BAD_INPUT,
            "the line is not UTF-8, or holds half a character (a lone surrogate), which no tokenizer takes",
            hint="decode the source as UTF-8, or remove the broken character",
        )
    messages = value.get("messages") if isinstance(value, Mapping) else None
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise Refused(
            RefusalKind.BAD_INPUT,
            "the line is not a conversation",
            expected='{"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}',
            found=", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__,
        )
    tools = value.get("tools") or []
    if isinstance(tools, str):
        tools = _json_list(tools)
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise Refused(RefusalKind.BAD_INPUT, "tools must be a list of objects", found=type(tools).__name__)
    return [own_marks(message) for message in messages], tools


def to_json(sequences: Sequence[Trained]) -> dict[str, JSON]:
    """Return the object of one conversation.

    Where it takes several sequences, the top level is the last, which holds the whole conversation, and `sequences`
    lists them all.
    """
    out = {**_sequence_json(sequences[-1]), "examples": len(sequences)}
    if len(sequences) > 1:
        out["sequences"] = [_sequence_json(sequence) for sequence in sequences]
    return out


def _sequence_json(sequence: Trained) -> dict[str, JSON]:
    out: dict[str, JSON] = {"text": sequence.text, "spans": [list(span) for span in sequence.spans]}
    if sequence.ids:
        out["ids"] = list(sequence.ids)
        out["weights"] = list(sequence.weights)
    if sequence.appended_stop is not None:
        out["appended_stop"] = sequence.appended_stop
    return out


def _json_list(text: str) -> JSON:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Refused(RefusalKind.BAD_INPUT, "tools are not JSON", found=text[:80]) from error


def pieces_of(
    renderer: Renderer, messages: Sequence[RawMessage], tools: Sequence[Mapping[str, JSON]], sequence: Trained
) -> tuple[Piece, ...]:
    """Return a sequence's text in pieces: one per token where there is a tokenizer, else one per run."""
    last = max(sequence.turns) + 1 if sequence.turns else len(messages)
    ranges = role_ranges(renderer, messages, tools)
    if not renderer.full(messages, tools).text.startswith(sequence.text):
        ranges = role_ranges(renderer, messages[:last], tools)
    if renderer.tokenizer is None:
        return _runs(sequence, [(item.start, item.end, item.role) for item in ranges])
    out = []
    shown = 0
    for token, weight, (start, end) in zip(sequence.ids, sequence.weights, sequence.offsets, strict=True):
        text = sequence.text[max(start, shown) : end] if start < len(sequence.text) else sequence.appended_stop or ""
        shown = max(shown, end)
        role = "assistant" if weight > 0 else role_at(ranges, start)
        out.append(Piece(text=text, role=role, weight=weight, token=token))
    return tuple(out)


def _runs(sequence: Trained, ranges: Sequence[tuple[int, int, str]]) -> tuple[Piece, ...]:
    edges = [*sequence.spans, *((start, end) for start, end, _ in ranges)]
    length = len(sequence.text)
    cuts = sorted({0, length, *(position for edge in edges for position in edge if position <= length)})
    out = []
    for start, end in itertools.pairwise(cuts):
        role = next((name for low, high, name in ranges if low <= start < high), TEMPLATE)
        trained = any(low <= start and end <= high for low, high in sequence.spans)
        out.append(Piece(text=sequence.text[start:end], role=role, weight=1.0 if trained else 0.0))
    return tuple(out)


def preview(previewer: Previewer, line: str, *, train_on: TrainOn, reasoning: Reasoning = Reasoning.TRAIN) -> Previewed:
    """Return one conversation in pieces. Raises `Refused`."""
    messages, tools = read_line(line)
    renderer = previewer.renderer(has_tools=bool(tools))
    sequences = tuple(train(renderer, messages, tools, train_on=train_on, reasoning=reasoning))
    return Previewed(
        sequences=sequences, pieces=tuple(pieces_of(renderer, messages, tools, item) for item in sequences)
    )


_STYLE = """
body{font:15px/1.7 ui-monospace,monospace;margin:2rem auto;max-width:70rem;padding:0 1rem;background:#fff;color:#222}
h2{font:600 16px system-ui;margin:2rem 0 .3rem}p.note{font:14px system-ui;color:#666;margin:.2rem 0 .6rem}
.box{border:1px solid #ddd;border-radius:6px;padding:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}
.t{border-radius:3px;padding:1px 0}.system{background:#ece7f6}.user{background:#e4eef9}.tool{background:#f6ecdc}
.assistant{background:#eee}.template{background:#f5f5f5}.trained{--green:#bfe8c4}
.trained{background:color-mix(in srgb,var(--green) calc(var(--w,1)*100%),transparent);border-bottom:2px solid #2b8a3e}
.error{color:#a61e1e}.key span{margin-right:1rem;padding:2px 6px;border-radius:3px}
@media(prefers-color-scheme:dark){body{background:#16181c;color:#ddd}.box{border-color:#333}.system{background:#3a3150}
.user{background:#22344a}.tool{background:#46371d}.assistant{background:#2c2c2c}.template{background:#222}
.trained{--green:#1f5130;border-color:#51cf66}p.note{color:#999}}
"""
_KEY = ("system", "user", "tool", "assistant", "template", "trained")


def to_html(items: Sequence[Previewed | Refused], *, title: str) -> str:
    """Return a page that shows every conversation, tokens coloured by role and underlined where they train."""
    key = "".join(f'<span class="t {name}">{name}</span>' for name in _KEY)
    body = "".join(_item_html(number, item) for number, item in enumerate(items, start=1))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f'<h1 style="font:600 20px system-ui">{html.escape(title)}</h1><p class="key">{key}</p>{body}</html>\n'
    )


def _item_html(number: int, item: Previewed | Refused) -> str:
    if isinstance(item, Refused):
        note = f'<p class="note">refused: {item.kind.value}</p>'
        return f'<h2>Conversation {number}</h2>{note}<pre class="error">{html.escape(str(item))}</pre>'
    out = []
    for index, (sequence, pieces) in enumerate(zip(item.sequences, item.pieces, strict=True), start=1):
        part = f", sequence {index} of {len(item.sequences)}" if len(item.sequences) > 1 else ""
        shown = "".join(_piece_html(piece) for piece in pieces)
        out.append(
            f'<h2>Conversation {number}{part}</h2><p class="note">{summary(sequence)}</p><div class="box">{shown}</div>'
        )
    return "".join(out)


def _piece_html(piece: Piece) -> str:
    role = piece.role if piece.role in _KEY else "tool"
    name = "trained" if piece.weight > 0 else role
    parts = [piece.role]
    if piece.token is not None:
        parts.append(f"id {piece.token}")
    parts.append(f"weight {piece.weight:g}")
    text = html.escape(piece.text).replace("\n", "⏎\n")
    # Less weight, less green: the colour of a trained token is mixed with the page in proportion
    shade = f' style="--w:{min(piece.weight, 1):.2f}"' if 0 < piece.weight < 1 else ""
    return f'<span class="t {name}" title="{html.escape(", ".join(parts))}"{shade}>{text}</span>'


def summary(sequence: Trained) -> str:
    """Return one sentence about a sequence."""
    if not sequence.ids:
        chars = sum(end - start for start, end in sequence.spans)
        return f"{len(sequence.text)} characters, {chars} train"
    trained = sum(1 for weight in sequence.weights if weight > 0)
    share = trained / len(sequence.ids)
    return f"{len(sequence.ids)} tokens, {trained} train ({share:.0%}), turns {', '.join(map(str, sequence.turns))}"
