"""`tunesmith takedown`: what an opt-out touches, marked so that it is neither promoted nor served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.options import JsonOption, StoreOption

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.api.opt_out import Takedown
    from tunesmith.core.marks import Mark

_SHOWN_ROWS = 20


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("takedown")
    def takedown(
        source: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A source. May be repeated.")] = None,
        subject: Annotated[list[str] | None, typer.Option(metavar="ID", help="A person. May be repeated.")] = None,
        content: Annotated[
            list[str] | None, typer.Option(metavar="SHA256", help="A content hash, as lineage shows it.")
        ] = None,
        file: Annotated[
            Path | None, typer.Option(metavar="FILE", help="YAML or JSON: sources, subjects, content_hashes.")
        ] = None,
        note: Annotated[str, typer.Option(help="Why, for the record.")] = "",
        dry_run: Annotated[bool, typer.Option("--dry-run", help="List; mark nothing.")] = False,
        show: Annotated[str | None, typer.Option(metavar="ID", help="Show a takedown that was made.")] = None,
        lift: Annotated[str | None, typer.Option(metavar="ID", help="Take a takedown back; needs --note.")] = None,
        as_json: JsonOption = False,
        store: StoreOption = None,
    ) -> None:
        """List rows, data versions, weights and bundles that an opt-out touches, and mark them.

        Without an option: the takedowns in force.
        """
        import tunesmith.api as api

        if lift is not None:
            mark = api.lift_takedown(lift, note=note, store=store)
            typer.echo(json.dumps(_mark_json(mark), indent=1) if as_json else f"lifted: {mark.body['mark']}")
            return
        if not (source or subject or content or file):
            _list(api.takedowns(store=store), show, as_json=as_json)
            return
        done = api.takedown(
            sources=source or (),
            subjects=subject or (),
            content_hashes=content or (),
            file=file,
            note=note,
            dry_run=dry_run,
            store=store,
        )
        if as_json:
            typer.echo(json.dumps(done.to_json(), indent=1, ensure_ascii=False))
            return
        from tunesmith.cli.console import make_console

        _print(make_console(), done)


def _list(marks: list[Mark], only: str | None, *, as_json: bool) -> None:
    shown = [mark for mark in marks if only is None or mark.id.startswith(only) or mark.id.endswith(only)]
    if as_json:
        typer.echo(json.dumps([_mark_json(mark) for mark in shown], indent=1, ensure_ascii=False))
        return
    for mark in shown:
        typer.echo(f"{mark.id}  by {mark.who}{f': {mark.note}' if mark.note else ''}")
        for line in _opt_out_lines(mark.body["opt_out"]):
            typer.echo(f"  {line}")
        typer.echo(f"  rows {len(mark.body['rows'])}, artifacts marked {len(mark.body['artifacts'])}")
    if not shown:
        typer.echo("no takedown is in force" if only is None else f"no takedown in force is called {only}")


def _mark_json(mark: Mark) -> dict[str, object]:
    return {"id": mark.id, "who": mark.who, "when": mark.when, "note": mark.note, **mark.body}


def _opt_out_lines(opt_out: dict[str, list[str]]) -> list[str]:
    return ["curate:", "  opt_out:", *(f"    {key}: {json.dumps(values)}" for key, values in opt_out.items())]


def _print(console: Console, done: Takedown) -> None:
    from rich.markup import escape

    if done.found.rows:
        _print_rows(console, done)
        _print_artifacts(console, done)
    else:
        console.print("no row of this store is named by it", highlight=False)
        if done.opt_out.sources and done.known_sources:
            console.print(f"the store's sources: {escape(', '.join(done.known_sources))}", highlight=False)
    for entry in done.refs:
        words = "points at" if entry.now else "pointed at"
        console.print(f"ref {entry.ref} {words} bundle {entry.fingerprint[:12]}: {entry.use.value}", highlight=False)
    for left in done.unfinished:
        words = f"unfinished {left.kind} {left.fingerprint[:12]} of run {left.run}: its checkpoints may hold them"
        console.print(f"{words} ({left.folder})", highlight=False)
    _print_next(console, done)


def _print_rows(console: Console, done: Takedown) -> None:
    from collections import Counter

    from rich.markup import escape
    from rich.table import Table

    rows = done.found.rows
    fates = Counter(item.fate for item in rows)
    for fate in type(rows[0].fate):
        if fates[fate]:
            console.print(f"{fates[fate]:>7,} rows {fate.value}", highlight=False)
    shown = Table(box=None, pad_edge=False)
    for column in ("row", "place", "fate", "because"):
        shown.add_column(column, overflow="fold")
    for item in rows[:_SHOWN_ROWS]:
        because = "; ".join(item.reasons)
        if item.twins:
            because += f"; look at its twin {', '.join(item.twins)}: the same words may have stayed"
        shown.add_row(item.row.row_id, escape(f"{item.row.source}:{item.row.line}"), item.fate.value, escape(because))
    console.print(shown)
    if len(rows) > _SHOWN_ROWS:
        console.print(f"… {len(rows) - _SHOWN_ROWS:,} more: --json lists all", highlight=False)


def _print_artifacts(console: Console, done: Takedown) -> None:
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for column in ("artifact", "rows", "use", "files that hold or name them", "run"):
        shown.add_column(column, overflow="fold")
    for part in done.found.touched:
        name = f"{part.artifact.kind} {part.artifact.fingerprint[:12]}"
        run = (done.runs.get(part.artifact.fingerprint) or ("none",))[0]
        shown.add_row(name, str(len(part.row_ids)), part.use.value, escape(", ".join(part.files)), escape(run))
    console.print(shown)


def _print_next(console: Console, done: Takedown) -> None:
    from rich.markup import escape

    from tunesmith.api.opt_out import refused

    if done.mark is None:
        console.print("dry run: nothing was marked", highlight=False)
        return
    barred = refused(done.found.touched)
    console.print(f"takedown {done.mark.id} is in force", highlight=False)
    if barred:
        console.print(f"bundles that promote and serve refuse from now on: {len(barred)}", highlight=False)
    if any(entry.now for entry in done.refs):
        console.print("a server that runs keeps its bundle: stop it", highlight=False)
    console.print("next: take the rows out of the data, run the recipe again, and promote the new bundle:")
    for line in _opt_out_lines(done.to_json()["opt_out"]):
        console.print(f"  {escape(line)}", highlight=False)
    if done.found.rows:
        console.print("the files above, and what they came from, still hold the rows: delete what must not be kept")
