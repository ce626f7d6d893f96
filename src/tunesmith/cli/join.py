"""`tunesmith join`: let this machine take part in trainings that another one begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from tunesmith.types import JSON


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("join")
    def join(
        address: Annotated[
            str, typer.Argument(metavar="HOST:PORT", help="train.parallel.machines.address of the recipe.")
        ],
        trainings: Annotated[
            int, typer.Option(min=1, metavar="N", help="Take part in this many, one after the other, such as seeds.")
        ] = 1,
        wait: Annotated[
            float | None, typer.Option(min=0, metavar="MINUTES", help="Give up where none begins; by default never.")
        ] = None,
    ) -> None:
        """Take part in the training of a recipe that `tunesmith run` works on at another machine.

        Its store must lie on storage that this machine sees under the same path.
        """
        from tunesmith.api.joining import join as take_part

        typer.echo(f"waiting for a training at {address}")
        count = take_part(address, trainings=trainings, wait_minutes=wait, log=_say)
        typer.echo(f"took part in {count} {'training' if count == 1 else 'trainings'} to the end")


def _say(name: str, fields: Mapping[str, JSON]) -> None:
    """Print what happens on this machine, a line each."""
    match name:
        case "run_joined":
            text = f"joined a training of {fields['machines']} machines with {fields['processes']} processes each"
        case "processes_started":
            text = f"started ranks {', '.join(map(str, fields['ranks']))}"
        case "processes_lost":
            text = f"{fields['reason']}: waiting to start again"
        case _:
            return
    typer.echo(text)
