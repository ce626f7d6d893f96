"""`tunesmith run`: run what a recipe needs and the store does not have."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.options import EngineOption, OnlyOption, RecipeArgument, SetOption, StoreOption, UntilOption

if TYPE_CHECKING:
    from tunesmith.api.view import RunView

FAILED, NOT_RESOLVABLE = 3, 4
"""Exit statuses of `--gate`."""


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("run")
    def run(
        recipe: RecipeArgument,
        overrides: SetOption = None,
        until: UntilOption = None,
        only: OnlyOption = None,
        store: StoreOption = None,
        engine: EngineOption = None,
        device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu or cuda.")] = "auto",
        workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; all cores by default.")] = None,
        gate: Annotated[
            bool,
            typer.Option(
                "--gate", help="Exit with 3 where an acceptance criterion fails, 4 where one is not resolvable."
            ),
        ] = False,
        track: Annotated[
            list[str] | None,
            typer.Option(
                metavar="TRACKER", help="Follow training in tensorboard, mlflow, wandb or trackio. May be repeated."
            ),
        ] = None,
    ) -> None:
        """Run a recipe: only what changed, resumed where it stopped."""

        import tunesmith.api as api
        from tunesmith.cli.console import make_console
        from tunesmith.cli.progress import TerminalListener
        from tunesmith.cli.show import print_run

        console = make_console()
        with TerminalListener(console) as listener:
            view = api.run(
                recipe,
                overrides=overrides or (),
                until=until,
                only=only,
                store=store,
                device=device,
                workers=workers,
                engine=engine,
                argv=["tunesmith", *sys.argv[1:]],
                trackers=track or (),
                listener=listener,
            )
        print_run(console, view)
        if gate:
            verdicts = gate_verdicts(view)
            for criterion, verdict in verdicts.items():
                console.print(f"{verdict.replace('_', ' ')}: {criterion}", highlight=False)
            raise typer.Exit(gate_status(verdicts.values()))


def gate_verdicts(view: RunView) -> dict[str, str]:
    """Return criterion -> verdict of every bundle of a run. Raises `GateError` where nothing was judged."""
    from tunesmith.errors import GateError

    found: dict[str, str] = {}
    for stage in view.stages.values():
        found |= stage.summary.get("gates", {})
    if not found:
        raise GateError(
            "no acceptance criterion was judged in this run",
            where=view.run,
            hint="state contract.criteria, add a `bundle:` table, and let the run reach it",
        )
    return found


def gate_status(verdicts: Iterable[str]) -> int:
    """Return the exit status that verdicts come to: the worst one decides."""
    kinds = set(verdicts)
    return FAILED if "fail" in kinds else NOT_RESOLVABLE if "not_resolvable" in kinds else 0
