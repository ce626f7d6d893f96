"""Checks that users write in Python: a function over a row that says what is wrong with it.

What lives here: calling such a function. What does not: loading it (`user_code`), what follows for the row
(`data.filters`).

    # house_rules.py
    def check(row):                                  # {"messages": [...], "tools": [...]?}
        if "competitor" in row["messages"][-1]["content"]:
            return "names a competitor"              # None, or nothing, where the row is fine

Its file enters the fingerprint of the stage by content; what the file imports does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import DataError, RecipeError
from tunesmith.types import JSON, Row
from tunesmith.user_code import load_function


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
    loaded = load_function(path, function, parameters="row", error=RecipeError)
    return Check(name=f"{path.stem}.{function}", function=loaded)
