"""`tunesmith promote` and `tunesmith rollback`: move a ref to a bundle, and back."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.options import StoreOption


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command("promote")
    def promote(
        target: Annotated[
            str | None, typer.Argument(metavar="[RUN|REF]", help="A run, a ref or a fingerprint; the newest run.")
        ] = None,
        to: Annotated[str, typer.Option(metavar="REF", help="Name to move, such as staging.")] = "production",
        note: Annotated[str, typer.Option(help="Why, for the history.")] = "",
        store: StoreOption = None,
    ) -> None:
        """Promote a bundle whose acceptance criteria hold; refuse any other."""
        from tunesmith.api.deployment import promote as run

        entry = run(target, to=to, note=note, store=store)
        typer.echo(f"{entry.name} is {entry.fingerprint[:12]}, by {entry.who}")
        typer.echo(f"next: tunesmith serve {entry.name}")

    @app.command("rollback")
    def rollback(
        ref: Annotated[str, typer.Option(metavar="REF", help="Name to move back.")] = "production",
        note: Annotated[str, typer.Option(help="Why, for the history.")] = "",
        store: StoreOption = None,
    ) -> None:
        """Point a ref at the bundle that it pointed at before."""
        from tunesmith.api.deployment import rollback as run

        entry = run(ref, note=note, store=store)
        typer.echo(f"{entry.name} is {entry.fingerprint[:12]} again")
        typer.echo("a running server keeps its bundle: restart it")
