"""`tunesmith show`: a run and the figures of its stages, for people or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.options import JsonOption, StoreOption

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.api import RunView

_STYLES = {"done": "green", "cached": "dim", "failed": "red", "interrupted": "yellow", "running": "cyan"}
_SHOWN_FIGURES = 5


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("show")
    def show(
        run: Annotated[
            str | None, typer.Argument(metavar="[RUN]", help="A run or a recipe's name; the newest run by default.")
        ] = None,
        stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="One stage with all its figures.")] = None,
        as_json: JsonOption = False,
        store: StoreOption = None,
    ) -> None:
        """Show a run: what was made, how long it took, what came out."""
        import tunesmith.api as api

        view = api.show(run, stage, store=store)
        if as_json:
            typer.echo(json.dumps(view.to_json(), indent=1, ensure_ascii=False))
            return
        from tunesmith.cli.console import make_console

        console = make_console()
        if len(view.stages) == 1:
            print_stage(console, view)
        else:
            print_run(console, view)


def print_run(console: Console, view: RunView) -> None:
    """Print one line per stage with its first figures."""
    from rich.markup import escape
    from rich.table import Table

    from tunesmith.cli.text import duration, figure, is_number, leaves

    table = Table(title=f"run {view.run}", title_justify="left", box=None, pad_edge=False)
    for column in ("stage", "status", "time", "figures"):
        table.add_column(column, no_wrap=column != "figures")
    for name, stage in view.stages.items():
        numbers = [(key, value) for key, value in leaves(stage.summary) if is_number(value)]
        numbers.sort(key=lambda item: item[0].count("."))  # the stage's own figures before their breakdown
        figures = [f"{key} {figure(value)}" for key, value in numbers]
        more = f" … {len(figures) - _SHOWN_FIGURES} more" if len(figures) > _SHOWN_FIGURES else ""
        text = stage.error.splitlines()[0] if stage.error else ", ".join(figures[:_SHOWN_FIGURES]) + more
        style = _STYLES.get(stage.status, "")
        status = f"[{style}]{stage.status}[/]" if style else stage.status
        table.add_row(escape(name), status, duration(stage.seconds), escape(text))
    console.print(table)
    console.print(f"[dim]{escape(str(view.folder))}[/]", highlight=False, soft_wrap=True)


def print_stage(console: Console, view: RunView) -> None:
    """Print one stage with every figure."""
    from rich.markup import escape
    from rich.table import Table

    from tunesmith.cli.text import duration, figure, leaves

    (name, stage), *_ = view.stages.items()
    console.print(f"[bold]{escape(name)}[/] of run {escape(view.run)}: {stage.status}, {duration(stage.seconds)}")
    if stage.error:
        console.print(escape(stage.error), style="red", highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for key, value in leaves(stage.summary):
        table.add_row(escape(key), escape(figure(value)))
    console.print(table)
    if stage.artifact is not None:
        console.print(f"[dim]{escape(str(stage.artifact))}[/]", highlight=False, soft_wrap=True)
