"""Every error that tunesmith raises on purpose.

    TunesmithError                      what, where, expected, found, what to do
    ├── RecipeError      (ValueError)   a recipe key, type or wiring is wrong
    ├── DataError        (ValueError)   an input row or file is wrong
    ├── ContractError    (ValueError)   template, mask, schema or golden vectors disagree
    ├── PlanError        (ValueError)   the run is known to fail before it starts
    ├── StoreError       (OSError)      the store cannot be read, written or locked
    ├── TrainingError    (RuntimeError) training went wrong: NaN, zero gradients, divergence
    ├── ServeError       (RuntimeError) the server cannot start or refuses a request
    ├── EngineError      (RuntimeError) worker processes cannot be started, reached, trusted or kept alive
    ├── GateError        (RuntimeError) acceptance criteria do not hold
    └── MissingExtra     (ImportError)  an optional part is not installed

A user's error prints in at most five lines without a traceback and exits with status 2. Anything that is not a
`TunesmithError` is our bug: it prints its traceback and exits with status 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TunesmithError(Exception):
    """An error that a user can act on.

    `where` names the place (file, line, key or row), `expected` and `found` the two sides, `hint` the next step.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where:    {self.where}")
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.found:
            lines.append(f"  found:    {self.found}")
        if self.hint:
            lines.append(f"  do:       {self.hint}")
        return "\n".join(lines)


class RecipeError(TunesmithError, ValueError):
    """A recipe has an unknown key, a wrong type or a broken wire."""


class DataError(TunesmithError, ValueError):
    """An input file or row cannot be read as what it claims to be."""


class ContractError(TunesmithError, ValueError):
    """Template, mask, schema, stop ids or golden vectors do not agree."""


class PlanError(TunesmithError, ValueError):
    """The run would fail, and that is known before it starts."""


class StoreError(TunesmithError, OSError):
    """The store cannot be read, written or locked."""


class TrainingError(TunesmithError, RuntimeError):
    """Training went wrong in a way that makes its result worthless."""


class ServeError(TunesmithError, RuntimeError):
    """The server cannot start, or refuses a request."""


class EngineError(TunesmithError, RuntimeError):
    """The engine that runs parts of the work cannot be started, reached, trusted or kept alive."""


class GateError(TunesmithError, RuntimeError):
    """An acceptance criterion does not hold, or cannot be resolved with these items."""


class MissingExtra(TunesmithError, ImportError):
    """An optional dependency is needed here and not installed."""

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed",
            hint=f"pip install 'tunesmith[{extra}]'",
        )


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """Return up to `most` known names closest in spelling to `name`, best first; all short lists count as close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.5)
    return close or names[:most]
