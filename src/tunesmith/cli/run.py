"""`tunesmith run`: run what a recipe needs and the store does not have."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tunesmith.cli.options import EngineOption, OnlyOption, RecipeArgument, SetOption, StoreOption, UntilOption


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
