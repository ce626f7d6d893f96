"""`tunesmith preview`: what conversations become under a template, token by token, and which tokens train."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tunesmith.errors import DataError, RecipeError
from tunesmith.types import JSON

if TYPE_CHECKING:
    from tunesmith.chat.preview import Piece, Previewed, Previewer
    from tunesmith.chat.refusal import Refused
    from tunesmith.chat.turns import Reasoning, TrainOn

_Choice = TypeVar("_Choice", bound=enum.StrEnum)

_COLOURS = {"system": "magenta", "developer": "magenta", "user": "blue", "assistant": "white", "tool": "yellow"}
_TRAINED, _LESS, _MORE = "black on green", "black on cyan", "bold black on bright_green"
"""Trained tokens: of weight 1, of less, of more."""


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("preview")
    def preview(
        messages: Annotated[Path, typer.Option(metavar="FILE.jsonl", help='One {"messages": [...]} a line, or -.')],
        tokenizer: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder with tokenizer.json.")] = None,
        template: Annotated[Path | None, typer.Option(metavar="FILE", help="Else the folder's own.")] = None,
        variables: Annotated[str, typer.Option("--vars", metavar="JSON", help="Variables of the template.")] = "{}",
        train_on: Annotated[str, typer.Option(metavar="all|last|flagged", help="Turns that train.")] = "all",
        reasoning: Annotated[str, typer.Option(metavar="train|mask|drop", help="What becomes of reasoning.")] = "train",
        as_json: Annotated[bool, typer.Option("--json", help="One JSON line per conversation.")] = False,
        html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page.")] = None,
        limit: Annotated[int, typer.Option(min=1, help="Conversations to show, without --json.")] = 10,
    ) -> None:
        """Show tokens by role and by what trains, in the terminal, as a page, or as JSON lines for programs."""
        from itertools import islice

        from tunesmith.chat.preview import Previewer, preview_lines, to_html
        from tunesmith.chat.turns import Reasoning, TrainOn

        previewer = Previewer(tokenizer_dir=tokenizer, template=template, variables=_object(variables))
        turns, thinking = _choice(TrainOn, train_on, "--train-on"), _choice(Reasoning, reasoning, "--reasoning")
        lines = _lines(messages)
        if as_json:
            for found in preview_lines(previewer, lines, train_on=turns, reasoning=thinking):
                typer.echo(json.dumps(found, ensure_ascii=False))
            return
        items = [
            _try(previewer, line, turns, thinking) for line in islice((line for line in lines if line.strip()), limit)
        ]
        if html is not None:
            html.write_text(to_html(items, title=f"Preview of {messages.name}"), "utf-8")
            typer.echo(f"{len(items)} conversations in {html}")
            return
        for number, item in enumerate(items, start=1):
            _show(number, item)


def _try(previewer: Previewer, line: str, train_on: TrainOn, reasoning: Reasoning) -> Previewed | Refused:
    from tunesmith.chat.preview import preview
    from tunesmith.chat.refusal import Refused

    try:
        return preview(previewer, line, train_on=train_on, reasoning=reasoning)
    except Refused as refusal:
        return refusal


def _show(number: int, item: Previewed | Refused) -> None:
    from rich.console import Console
    from rich.text import Text

    from tunesmith.chat.preview import summary
    from tunesmith.chat.refusal import Refused

    console = Console(highlight=False)
    if isinstance(item, Refused):
        console.print(f"[bold]{number}[/]  [red]refused: {item.kind.value}[/]")
        console.print(Text(str(item)))
        return
    for sequence, pieces in zip(item.sequences, item.pieces, strict=True):
        console.print(f"[bold]{number}[/]  [dim]{summary(sequence)}[/]")
        text = Text()
        for piece in pieces:
            text.append(piece.text, style=_style(piece))
        console.print(text)
        if weights := sorted({piece.weight for piece in pieces if piece.weight > 0} - {1.0}):
            console.print(f"[dim]weights other than 1: {', '.join(f'{weight:g}' for weight in weights)}[/]")


def _style(piece: Piece) -> str:
    if piece.weight <= 0:
        return _COLOURS.get(piece.role, "dim")
    return _TRAINED if piece.weight == 1 else _LESS if piece.weight < 1 else _MORE


def _object(text: str) -> dict[str, JSON]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError("--vars is not JSON", found=str(error), expected='{"bos_token": "<s>"}') from error
    if not isinstance(value, dict):
        raise RecipeError("--vars is not an object", found=type(value).__name__)
    return value


def _choice(kind: type[_Choice], value: str, option: str) -> _Choice:
    try:
        return kind(value)
    except ValueError as error:
        names = ", ".join(item.value for item in kind)
        raise RecipeError(f"{option} is none of its values", expected=names, found=value) from error


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, what is not UTF-8 as lone surrogates: the preview refuses them line by line."""
    if str(path) == "-":
        for raw in sys.stdin.buffer:
            yield raw.decode("utf-8", "surrogateescape")
        return
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as handle:
            yield from handle
    except OSError as error:
        raise DataError(f"cannot read {path.name}", where=str(path), found=error.strerror or str(error)) from error
