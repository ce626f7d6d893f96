"""`tunesmith monitor` and `tunesmith harvest`: look at live traces, and take from them what may be learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tunesmith.cli.options import JsonOption, StoreOption

TracesOption = Annotated[
    str | None,
    typer.Option("--traces", metavar="URL", help="Trace database: a file or a SQLAlchemy URL; by default the store's."),
]
RunArgument = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="Run whose evaluation and splits count; the newest by default.")
]
SinceOption = Annotated[str | None, typer.Option(metavar="AGE", help="Only traces younger than this, such as 7d.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command("monitor")
    def monitor(
        run: RunArgument = None,
        traces: TracesOption = None,
        since: SinceOption = None,
        html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the page here.")] = None,
        as_json: JsonOption = False,
        store: StoreOption = None,
    ) -> None:
        """Show quality, safety, latency, drift and alerts of a live trace database."""
        from tunesmith.api.traffic import monitor as watch
        from tunesmith.api.traffic import read_age

        report = watch(traces, run=run, since=0.0 if since is None else read_age(since), store=store)
        if html is not None:
            from tunesmith.monitor.view import monitor_page

            html.write_text(monitor_page(report), encoding="utf-8")
        if as_json:
            typer.echo(json.dumps(report, ensure_ascii=False))
        else:
            _print(report)

    @app.command("harvest")
    def harvest(
        out: Annotated[Path, typer.Option(metavar="FILE", help="Rows with corrections, as .jsonl or .parquet.")],
        run: RunArgument = None,
        traces: TracesOption = None,
        since: SinceOption = None,
        license: Annotated[str | None, typer.Option(help="Licence under which this traffic may be trained on.")] = None,
        store: StoreOption = None,
    ) -> None:
        """Turn failures and corrections of live traces into rows for the next data version."""
        from tunesmith.api.traffic import harvest as take
        from tunesmith.api.traffic import read_age

        done = take(traces, out, run=run, since=0.0 if since is None else read_age(since), license=license, store=store)
        account = done.account
        typer.echo(f"{account['candidates']} of {account['traces']} traces are worth learning from:")
        typer.echo(f"  {account['rows']} with a correction   {done.files[0]}")
        typer.echo(f"  {account['to_label']} to label            {done.files[1]}")
        typer.echo(f"  {account['excluded']} excluded            {done.files[2]}")
        for reason, count in account["reasons"].items():
            typer.echo(f"    {count} {reason.replace('_', ' ')}")
        if account["rows"]:
            typer.echo("next: name the first file as a further source of ingest, and run the recipe")


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    counts = report["totals"]
    console.print(f"{counts['requests']:,} requests, {counts['answers']:,} answers, {counts['ratings']:,} rated")
    figures = Table("figure", "value", "95% interval", "n")
    for name, figure in report["kpis"].items():
        if figure["value"] is not None:
            ends = " to ".join("open" if figure[end] is None else f"{figure[end]:.4g}" for end in ("low", "high"))
            figures.add_row(name, f"{figure['value']:.4g}", ends, str(figure["n"]))
    console.print(figures)
    alerts = Table("alert", "status", "why")
    colours = {"ok": "green", "watch": "yellow", "firing": "red", "unknown": "dim"}
    for alert in report["alerts"]:
        colour = colours[alert["status"]]
        alerts.add_row(alert["name"], f"[{colour}]{alert['status']}[/{colour}]", alert["explanation"])
    console.print(alerts)
