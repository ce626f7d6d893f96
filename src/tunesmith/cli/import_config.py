"""`tunesmith import`: a recipe out of another trainer's config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("import")
    def import_config(
        config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML config of LLaMA-Factory, axolotl or TRL.")],
        out: Annotated[
            Path | None,
            typer.Option("--out", "-o", metavar="RECIPE", help="Where the recipe goes; shown if not given."),
        ] = None,
    ) -> None:
        """Write the recipe that means the same, and list every key that has no counterpart."""
        from rich.markup import escape
        from rich.table import Table

        import tunesmith.api as api
        from tunesmith.cli.console import make_console
        from tunesmith.cli.text import figure

        made = api.import_config(config, out)
        console = make_console()
        if out is None:
            typer.echo(made.text)
        table = Table(title=f"a config of {made.tool}", title_justify="left", box=None, pad_edge=False)
        for column in ("key", "value", "becomes", "why"):
            table.add_column(column)
        for fate in made.moved:
            why = "; ".join(filter(None, ["its default" if fate.by_default else "", fate.why]))
            table.add_row(escape(fate.key), escape(figure(fate.value)), escape(fate.to or ""), escape(why))
        for fate in made.always:
            if fate.why != "asks for nothing":
                table.add_row(escape(fate.key), escape(figure(fate.value)), "[dim]always[/]", escape(fate.why))
        for fate in made.lost:
            table.add_row(escape(fate.key), escape(figure(fate.value)), "[yellow]lost[/]", escape(fate.why))
        for fate in made.unknown:
            table.add_row(escape(fate.key), escape(figure(fate.value)), "[red]unknown[/]", "check it by hand")
        console.print(table)
        left = len(made.lost) + len(made.unknown)
        if out is not None:
            console.print(
                f"\nwrote {out}; {left} keys without counterpart; next: tunesmith plan {out}", highlight=False
            )
