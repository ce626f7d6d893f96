"""`tunesmith diff`: what changed between two runs, two recipes, two contracts or two data versions."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.options import JsonOption, StoreOption

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.api.data_difference import DataDifference, RowDifference

_SHOWN_ROWS = 15


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("diff")
    def diff(
        before: Annotated[str, typer.Argument(metavar="A", help="A run, a recipe file, a contract or a data version.")],
        after: Annotated[str, typer.Argument(metavar="B", help="Another of the same sort.")],
        as_json: JsonOption = False,
        store: StoreOption = None,
    ) -> None:
        """Show what differs between A and B: settings and figures, or rows with their reasons.

        A data version is the folder or the fingerprint of an artifact of curated rows or of splits.
        """
        from rich.markup import escape
        from rich.table import Table

        import tunesmith.api as api
        from tunesmith.api.data_difference import DataDifference
        from tunesmith.cli.console import make_console
        from tunesmith.cli.text import figure

        found = api.diff(before, after, store=store)
        if as_json:
            value = found.to_json() if isinstance(found, DataDifference) else dataclasses.asdict(found)
            typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
            return
        console = make_console()
        if isinstance(found, DataDifference):
            _print_data(console, found)
            return
        console.print(f"A: {escape(found.before)}\nB: {escape(found.after)}", highlight=False)
        if not found.stages and not found.contract:
            console.print("no difference")
            return
        table = Table(box=None, pad_edge=False)
        for column in ("stage", "", "what", "A", "B"):
            table.add_column(column)
        for part in found.contract:
            table.add_row("contract", "part", escape(part.key), escape(figure(part.before)), escape(figure(part.after)))
        for stage in found.stages:
            if stage.presence:
                table.add_row(escape(stage.table), "", stage.presence, "", "")
            for label, changes in (("setting", stage.settings), ("figure", stage.figures)):
                for change in changes:
                    sides = (escape(figure(change.before)), escape(figure(change.after)))
                    table.add_row(escape(stage.table), label, escape(change.key), *sides)
        console.print(table)


def _print_data(console: Console, found: DataDifference) -> None:
    from collections import Counter

    from rich.markup import escape
    from rich.table import Table

    console.print(f"A: {found.before}, {found.rows_before:,} rows\nB: {found.after}, {found.rows_after:,} rows")
    if found.moved:
        console.print(f"{found.moved:,} rows stand at another place and say the same", highlight=False)
    if not (found.added or found.removed or found.changed):
        console.print("no row was added, removed or changed")
        return
    sources = Table(box=None, pad_edge=False)
    for column in ("source", "A", "B"):
        sources.add_column(column)
    for name, (a, b) in found.sources.items():
        sources.add_row(escape(name), f"{a:,}", f"{b:,}")
    console.print(sources)
    parts: tuple[tuple[str, tuple[RowDifference, ...]], ...] = (
        ("added", found.added),
        ("removed", found.removed),
        ("changed", found.changed),
    )
    for title, rows in parts:
        if not rows:
            continue
        reasons = Counter(":".join(row.reason.split(":")[:2]) for row in rows)
        console.print(f"\n[bold]{len(rows):,} {title}[/]", highlight=False)
        for reason, count in reasons.most_common(8):
            console.print(f"  {count:>6,}  {escape(reason)}", highlight=False)
        for row in rows[:_SHOWN_ROWS]:
            console.print(f"  {row.row_id}  {escape(row.place)}  {escape(row.reason)}", highlight=False)
        if len(rows) > _SHOWN_ROWS:
            console.print(f"  … {len(rows) - _SHOWN_ROWS:,} more: --json lists all", highlight=False)
