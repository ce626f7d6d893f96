"""Checks that users write in Python: a function over a row that says what is wrong with it.

What lives here: loading such a function from a file, and calling it. What does not: what follows for the row
(`data.filters`).

    # house_rules.py
    def check(row):                                  # {"messages": [...], "tools": [...]?}
        if "competitor" in row["messages"][-1]["content"]:
            return "names a competitor"              # None, or nothing, where the row is fine

The code runs in this process with all its rights, as the recipe's author wants it: it is no sandbox. Its file enters
the fingerprint of the stage by content; what the file imports does not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import DataError, RecipeError
from tunesmith.types import JSON, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One function of the user's, under the name that rejects and flags show."""

    name: str
    function: Callable[[dict[str, JSON]], JSON]

    def complaint(self, row: Row) -> str | None:
        """Return what the function says of a row. Raises `DataError` where it fails or says no text."""
        place = f"{row.provenance.path}:{row.provenance.line}"
        try:
            said = self.function(row.conversation.to_json())
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise DataError(
                f"the check {self.name} failed", where=place, expected="a text or None", found=found
            ) from error
        if said is not None and not isinstance(said, str):
            raise DataError(
                f"the check {self.name} returned no text", where=place, expected="a text or None", found=repr(said)[:80]
            )
        return said


def load_check(path: Path, function: str) -> Check:
    """Load a function from a Python file. Raises `RecipeError` where the file or the function cannot be loaded."""
    name = f"{path.stem}.{function}"
    spec = importlib.util.spec_from_file_location(f"tunesmith_check_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path.name} is no Python file", where=str(path), expected="a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise RecipeError(f"{path.name} cannot be loaded", where=str(path), found=found) from error
    loaded = vars(module).get(function)
    if not callable(loaded):
        known = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_")) or "none"
        raise RecipeError(
            f"{path.name} has no function {function}", where=str(path), expected=f"def {function}(row)", found=known
        )
    return Check(name=name, function=loaded)
