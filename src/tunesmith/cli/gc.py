"""`tunesmith gc`: list, and with --yes delete, what no run and no ref needs."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.options import StoreOption


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("gc")
    def gc(
        yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only list.")] = False,
        store: StoreOption = None,
    ) -> None:
        """List what no run and no ref needs, and how many bytes it holds; --yes deletes it."""
        import tunesmith.api as api
        from tunesmith.cli.text import size

        found = api.gc(store=store)
        for item in found:
            typer.echo(f"{size(item.num_bytes):>9}  {item.what}: {item.why.value}")
        total = sum(item.num_bytes for item in found)
        if not found:
            typer.echo("nothing to delete: a run or a ref needs everything here")
        elif yes:
            typer.echo(f"{size(api.collect(found, store=store))} freed")
        else:
            typer.echo(f"{size(total)} in {len(found)} folders; `tunesmith gc --yes` deletes them")
