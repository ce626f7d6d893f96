"""`tunesmith diff`: what changed between two runs, two recipes or two contracts."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.options import StoreOption


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("diff")
    def diff(
        before: Annotated[str, typer.Argument(metavar="A", help="A run, a recipe file or a contract.")],
        after: Annotated[str, typer.Argument(metavar="B", help="Another of the same sort.")],
        store: StoreOption = None,
    ) -> None:
        """Show what differs between A and B: settings first, then the figures they came to."""
        from rich.markup import escape
        from rich.table import Table

        import tunesmith.api as api
        from tunesmith.cli.console import make_console
        from tunesmith.cli.text import figure

        found = api.diff(before, after, store=store)
        console = make_console()
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
