"""Functions that users write in Python files and name in a recipe.

    check = load_function(Path("house_rules.py"), "check", parameters="row", error=RecipeError)

What lives here: loading one. What does not: what it is called with, and what follows (`data.checks`, `train.optim`).
The code runs in this process with all its rights, as the recipe's author wants it: it is no sandbox.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError


def load_function(path: Path, name: str, *, parameters: str, error: type[TunesmithError]) -> Callable[..., Any]:
    """Return a function of a Python file. Raises `error` where the file or the function cannot be loaded.

    `parameters` are what the function takes, in words for the error.
    """
    spec = importlib.util.spec_from_file_location(f"tunesmith_{name}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise error(f"{path.name} is no Python file", where=str(path), expected="a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as failure:
        found = f"{type(failure).__name__}: {failure}"
        raise error(f"{path.name} cannot be loaded", where=str(path), found=found) from failure
    loaded = vars(module).get(name)
    if not callable(loaded):
        known = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_")) or "none"
        raise error(
            f"{path.name} has no function {name}", where=str(path), expected=f"def {name}({parameters})", found=known
        )
    function: Callable[..., Any] = loaded
    return function
