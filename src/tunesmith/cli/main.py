"""The `tunesmith` command: picks up the verbs and turns errors into exit statuses.

    0 success · 1 a bug (traceback, path of the events) · 2 the user's error (five lines at most) · 130 interrupted
    with `run --gate`: 3 an acceptance criterion fails · 4 one is not resolvable with these items

A verb is a module `cli/<verb>.py` with `register(app)`; its name stands in `VERBS`. Verbs import `tunesmith.api` inside
their function, so that `tunesmith --help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from tunesmith import __version__
from tunesmith.errors import TunesmithError

VERBS = (
    "init",
    "import_config",
    "plan",
    "run",
    "join",
    "show",
    "diff",
    "explain",
    "preview",
    "serve",
    "promote",
    "export",
    "compare",
    "rate",
    "judge",
    "monitor",
    "review",
    "takedown",
    "gc",
)
"""Modules of this package, in the order of the help. A module may register more than one verb."""

OK, BUG, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


class Verbs(TyperGroup):
    """The verbs as one command, whose errors end in our exit statuses. Usage errors stay typer's own, with status 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run one verb."""
        try:
            return super().invoke(ctx)
        except TunesmithError as error:
            typer.echo(error_text(error), err=True)
            raise typer.Exit(USER_ERROR) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted: finished stages are kept, run again to continue", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:
            # The reader closed our output (`tunesmith show | head`); Python must not complain about it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OK) from error


def make_app() -> typer.Typer:
    """Return the command with all verbs."""
    app = typer.Typer(
        cls=Verbs,
        help="Supervised fine-tuning, from data to deployment and back, with nothing silently wrong.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def tunesmith(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
        if version:
            typer.echo(f"tunesmith {__version__}")
            raise typer.Exit(OK)

    for verb in VERBS:
        importlib.import_module(f"tunesmith.cli.{verb}").register(app)
    return app


def main() -> None:
    """Run the command and exit. An error that is not ours to word is a bug: it shows its traceback and notes."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        make_app()(prog_name="tunesmith")
    except Exception as error:  # noqa: BLE001 - the outermost frame: nothing is swallowed, all of it is printed
        traceback.print_exception(error)
        typer.echo("this is a bug in tunesmith, or in a part of it; please report it with the text above", err=True)
        sys.exit(BUG)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does, so that what a stage started (a server, workers) is stopped with it."""
    raise KeyboardInterrupt


def error_text(error: TunesmithError) -> str:
    """Return a user's error in at most five lines."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if len(lines) > 5:
        lines = [" ".join(lines[:-4]), *lines[-4:]]
    return "error: " + "\n".join(lines)
