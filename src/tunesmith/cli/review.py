"""`tunesmith review`: look at rows that curation kept, dropped or doubts, and decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.options import JsonOption, StoreOption

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.api.review import Board
    from tunesmith.data.review_queue import QueueItem

_KEYS = "[k]eep  [d]rop  [e]dit the answer  [s]kip  [q]uit"


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("review")
    def review(
        run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="The newest run by default.")] = None,
        decisions: Annotated[Path, typer.Option(metavar="FILE", help="Decisions: a file that only grows.")] = Path(
            "decisions.jsonl"
        ),
        only: Annotated[
            list[str] | None,
            typer.Option(metavar="PART", help="borderline, flagged, dropped or kept. May be repeated."),
        ] = None,
        sample: Annotated[int, typer.Option(metavar="N", min=1, help="Rows of each part.")] = 20,
        export: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Write the queue as Label Studio tasks.")
        ] = None,
        import_: Annotated[
            Path | None, typer.Option("--import", metavar="FILE", help="Read Label Studio's JSON export.")
        ] = None,
        status: Annotated[bool, typer.Option("--status", help="Figures and conflicts; decide nothing.")] = False,
        reviewer: Annotated[str | None, typer.Option(metavar="NAME", help="Your user name by default.")] = None,
        final: Annotated[bool, typer.Option("--final", help="Settle conflicts: show those first.")] = False,
        as_json: JsonOption = False,
        store: StoreOption = None,
    ) -> None:
        """Decide about rows: keep, drop or edit. `curate.decisions: FILE` applies it in every later version."""
        import tunesmith.api as api
        from tunesmith.api.review import export_tasks, import_annotations, open_board
        from tunesmith.cli.console import make_console
        from tunesmith.data.review_queue import STRATA

        if import_ is not None:
            held, new = import_annotations(import_, decisions)
            typer.echo(f"{held} decisions in {import_}, {new} new; they are in {decisions}")
            typer.echo(f"next: set curate.decisions: {decisions} and run the recipe")
            return
        board = open_board(
            decisions, store=api.open_store(store), run=run, per_stratum=sample, strata=tuple(only or STRATA)
        )
        if export is not None:
            from tunesmith.data.labelstudio import CONFIG

            count = export_tasks(board, export)
            config = export.with_suffix(".config.xml")
            config.write_text(CONFIG, encoding="utf-8")
            typer.echo(f"{count} tasks in {export}; its labelling config is {config}")
            return
        if as_json:
            typer.echo(json.dumps(_board_json(board), indent=1, ensure_ascii=False))
            return
        console = make_console()
        _print_status(console, board)
        if not status:
            _ask(console, board, reviewer=reviewer, final=final)


def _board_json(board: Board) -> dict[str, object]:
    return {
        "version": board.version.fingerprint,
        "counts": board.counts(),
        "conflicts": {
            digest: [voice.to_json() for voice in voices] for digest, voices in board.settled.conflicts.items()
        },
        "queue": [item.to_json() for item in board.items],
    }


def _print_status(console: Console, board: Board) -> None:
    from rich.markup import escape

    counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in board.counts().items())
    console.print(f"{board.path}: {counts}", highlight=False)
    for digest, voices in board.settled.conflicts.items():
        words = "; ".join(f"{voice.reviewer}: {voice.decision} ({voice.reason or 'no reason'})" for voice in voices)
        console.print(f"conflict {digest[:12]}, nothing is applied: {escape(words)}", highlight=False)


def _ask(console: Console, board: Board, *, reviewer: str | None, final: bool) -> None:
    import click

    from tunesmith.api.review import decide

    items = [item for item in board.items if not final or item.content_hash in board.settled.conflicts]
    done = 0
    for number, item in enumerate(items, start=1):
        _show(console, item, f"{number} of {len(items)}")
        key = _key()
        if key == "q":
            break
        if key == "s":
            continue
        answer = None
        if key == "e":
            answer = click.edit(item.conversation.answer or "")
            if answer is None or not answer.strip():
                console.print("nothing was changed: skipped")
                continue
            answer = answer.rstrip("\n")
        reason = str(typer.prompt("why", default="", show_default=False))
        names = {"k": "keep", "d": "drop", "e": "edit"}
        decide(
            board.path,
            item,
            decision=names[key],  # type: ignore[arg-type]
            reason=reason,
            answer=answer,
            reviewer=reviewer,
            final=final,
        )
        done += 1
    console.print(f"{done} decisions were added to {board.path}", highlight=False)
    if done:
        console.print(f"next: set curate.decisions: {board.path} and run the recipe", highlight=False)


def _key() -> str:
    while True:
        key = str(typer.prompt(_KEYS)).strip().lower()[:1]
        if key in ("k", "d", "e", "s", "q"):
            return key


def _show(console: Console, item: QueueItem, place: str) -> None:
    from rich.columns import Columns
    from rich.markup import escape
    from rich.panel import Panel

    from tunesmith.data.review_queue import shown_text

    score = "" if item.score is None else f", score {item.score:.3f}"
    console.print(f"\n[bold]{place}[/]  {item.stratum}  [cyan]{escape(item.machine)}[/]{score}  {escape(item.place)}")
    if item.detail:
        console.print(escape(item.detail), highlight=False)
    panels = [Panel(escape(shown_text(item.conversation)), title="this row")]
    if item.twin is not None:
        panels.append(Panel(escape(shown_text(item.twin)), title="the row it is a duplicate of"))
    console.print(Columns(panels, equal=True, expand=True) if len(panels) > 1 else panels[0])
