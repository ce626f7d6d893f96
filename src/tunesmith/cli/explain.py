"""`tunesmith explain`: everything known of a row, a stage or a recipe key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.options import StoreOption


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("explain")
    def explain(
        what: Annotated[
            str, typer.Argument(metavar="WHAT", help="A row id, SOURCE:LINE, a stage, or a key as train.learning_rate.")
        ],
        run: Annotated[str | None, typer.Option(metavar="RUN", help="The newest run by default.")] = None,
        recipe: Annotated[
            Path | None, typer.Option(metavar="RECIPE", help="Recipe to compare with; the run's own by default.")
        ] = None,
        near_threshold: Annotated[
            float | None,
            typer.Option(metavar="SCORE", help="For a curation: what this threshold of near-duplicates would drop."),
        ] = None,
        store: StoreOption = None,
    ) -> None:
        """Explain a row (why it is or is not in the data), a stage (what made it) or a recipe key (what it does)."""
        from rich.markup import escape
        from rich.table import Table

        import tunesmith.api as api
        from tunesmith.cli.console import make_console
        from tunesmith.cli.text import figure, leaves

        found = api.explain(what, run=run, recipe=recipe, store=store, near_threshold=near_threshold)
        console = make_console()
        console.print(f"[bold]{escape(found.title)}[/]", highlight=False)
        for fact in found.facts:
            console.print(f"\n[cyan]{escape(fact.where)}[/]", highlight=False)
            table = Table(box=None, pad_edge=False, show_header=False)
            table.add_column(no_wrap=True, style="dim")
            table.add_column(overflow="fold")
            for key, value in leaves(fact.fields):
                table.add_row(f"  {escape(key)}", escape(value if isinstance(value, str) else figure(value)))
            console.print(table)
