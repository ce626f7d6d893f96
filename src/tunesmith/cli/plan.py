"""`tunesmith plan`: what a run would do, why, and what it would take."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.options import EngineOption, OnlyOption, RecipeArgument, SetOption, StoreOption, UntilOption


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("plan")
    def plan(
        recipe: RecipeArgument,
        overrides: SetOption = None,
        until: UntilOption = None,
        only: OnlyOption = None,
        store: StoreOption = None,
        engine: EngineOption = None,
        device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu or cuda.")] = "auto",
    ) -> None:
        """Show what a run would do: cached or to run, why, time and memory. Refuses what would fail."""
        from rich.markup import escape
        from rich.table import Table

        import tunesmith.api as api
        from tunesmith.cli.console import make_console
        from tunesmith.cli.text import duration, size

        made = api.plan(
            recipe, overrides=overrides or (), until=until, only=only, store=store, device=device, engine=engine
        )
        console = make_console()
        table = Table(title=f"plan of {made.recipe.name}", title_justify="left", box=None, pad_edge=False)
        for column in ("stage", "", "why", "time", "memory", "estimated from"):
            table.add_column(column, no_wrap=column not in ("why", "estimated from"), overflow="fold")
        known = 0.0
        for planned in made.stages:
            estimate = planned.estimate
            status = "[dim]cached[/]" if planned.artifact is not None else "[cyan]run[/]"
            if estimate is None:
                table.add_row(escape(planned.name), status, f"[dim]{escape(planned.reason)}[/]", "", "", "")
                continue
            known += estimate.seconds or 0.0
            table.add_row(
                escape(planned.name),
                status,
                escape(planned.reason),
                duration(estimate.seconds),
                size(estimate.memory_bytes),
                escape(estimate.basis),
            )
        console.print(table)
        for planned in made.stages:
            for warning in planned.warnings:
                console.print(f"[yellow]warning[/] {escape(planned.name)}: {escape(warning)}", highlight=False)
        for planned in made.stages:
            for note in planned.estimate.notes if planned.estimate is not None else ():
                console.print(f"[dim]note[/] {escape(planned.name)}: {escape(note)}", highlight=False)
        unknown = sum(1 for p in made.to_run if p.estimate is None or p.estimate.seconds is None)
        if not made.to_run:
            console.print("nothing to run: every stage is cached")
        else:
            rest = f", and {unknown} with no estimate yet" if unknown else ""
            console.print(f"{len(made.to_run)} of {len(made.stages)} stages to run, about {duration(known)}{rest}")
