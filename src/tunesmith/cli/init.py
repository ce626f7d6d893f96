"""`tunesmith init`: a first recipe for the user's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("init")
    def init(
        folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the recipe goes.")],
        data: Annotated[
            list[Path] | None,
            typer.Option(
                "--data", metavar="FILE", help="Data file or folder; those in DIR by default. May be repeated."
            ),
        ] = None,
        base: Annotated[
            str | None, typer.Option(metavar="MODEL", help="Hugging Face folder, hub id or package:NAME.")
        ] = None,
        license: Annotated[
            str | None, typer.Option(metavar="SPDX", help="Licence of the data, such as Apache-2.0.")
        ] = None,
        encoding: Annotated[
            str, typer.Option(metavar="NAME", help="Text encoding of the data, such as latin-1.")
        ] = "utf-8",
    ) -> None:
        """Look at your data and write a recipe for it, with the reason for each choice."""
        from rich.markup import escape
        from rich.table import Table

        import tunesmith.api as api
        from tunesmith.cli.console import make_console
        from tunesmith.cli.text import figure

        made = api.init(folder, data=data or (), base=base, license=license, encoding=encoding)
        console = make_console()
        table = Table(title="data", title_justify="left", box=None, pad_edge=False)
        for column in ("file", "rows", "shape", "median", "95%", "unreadable"):
            table.add_column(column, justify="left" if column in ("file", "shape") else "right")
        for file in made.look.files:
            report = file.report
            bad = sum(report.problems.values())
            lengths = (f"{report.median_chars:,} chars", f"{report.p95_chars:,} chars")
            table.add_row(escape(file.path.name), figure(report.rows), escape(report.shape), *lengths, figure(bad))
        console.print(table)
        table = Table(title="\nchosen", title_justify="left", box=None, pad_edge=False)
        for column in ("key", "value", "why"):
            table.add_column(column)
        for choice in made.choices:
            table.add_row(escape(choice.key), escape(figure(choice.value)), escape(choice.why))
        console.print(table)
        for warning in made.warnings:
            console.print(f"[yellow]warning[/] {escape(warning)}", highlight=False)
        console.print(f"\nwrote {made.recipe}; next: tunesmith plan {made.recipe}", highlight=False, soft_wrap=True)
