"""Options: those that several verbs share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting, such as train.learning_rate=1e-4. May be repeated."
    ),
]
UntilOption = Annotated[str | None, typer.Option(metavar="STAGE", help="This stage and all that it needs.")]
OnlyOption = Annotated[str | None, typer.Option(metavar="STAGE", help="This stage alone; its inputs must be made.")]
EngineOption = Annotated[
    str | None,
    typer.Option(
        metavar="ENGINE", help="local, ray, or ray://HOST:PORT of a running cluster; the recipe's if not said."
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where artifacts live: .tunesmith by default.", envvar="TUNESMITH_STORE"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
