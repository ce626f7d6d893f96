"""Engine: the recipe's entry that says where the parts of its work run.

    engine: ray                                   # the same as {kind: ray}
    engine: ray://127.0.0.1:6379                  # a cluster that runs already
    engine: {kind: ray, num_workers: 8}

It is circumstance, like the device: it never enters a fingerprint, as no result depends on it. What lives here: its
three spellings become an `EngineChoice`. What does not: which kinds there are, and whether one works (`api.machine`).
"""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.core.settings import deepest, shown
from tunesmith.core.spec import Loc
from tunesmith.errors import RecipeError, nearest
from tunesmith.types import JSON, EngineChoice

ENGINE_DOCS: dict[str, str] = {
    "engine": "Where the data work and the processes of train.parallel run. Circumstance: results are the same.",
    "engine.kind": "local: this process. ray: worker processes of a Ray cluster (tunesmith[ray]).",
    "engine.address": "HOST:PORT of a cluster that runs already; without one a cluster of this machine is started.",
    "engine.num_workers": "Parts at work at a time; --workers where nothing is said, on a running cluster its CPUs.",
}
"""Key -> what it means, for `tunesmith explain`."""
_KEYS = ("kind", "address", "num_workers")


def read_engine(value: JSON, marks: Mapping[Loc, str]) -> EngineChoice:
    """Return what the recipe's `engine` says. `marks` tells where `("engine", ...)` stands. Raises `RecipeError`."""
    where = deepest(marks, ("engine",))[1]
    if isinstance(value, str):
        return parse_engine(value, where=where)
    if not isinstance(value, dict):
        raise _wrong("engine names no engine", where, "a name, NAME://HOST:PORT, or a mapping with `kind:`", value)
    unknown = next((key for key in value if key not in _KEYS), None)
    if unknown is not None:
        raise RecipeError(
            f"unknown key engine.{unknown}",
            where=deepest(marks, ("engine", unknown))[1],
            expected=f"one of {', '.join(_KEYS)}",
            found=str(unknown),
            hint=f"nearest: {', '.join(nearest(str(unknown), _KEYS))}",
        )
    kind, address, num_workers = (value.get(key) for key in _KEYS)
    if not isinstance(kind, str):
        raise _wrong("engine does not say its kind", where, "`kind:` with the name of an engine", kind)
    if not isinstance(address, str | None):
        raise _wrong("engine.address is no text", deepest(marks, ("engine", "address"))[1], '"HOST:PORT"', address)
    if num_workers is not None and (type(num_workers) is not int or num_workers < 1):
        mark = deepest(marks, ("engine", "num_workers"))[1]
        raise _wrong("engine.num_workers is no number of workers", mark, "whole number, at least 1", num_workers)
    return EngineChoice(kind=kind, address=address, num_workers=num_workers, where=where)


def parse_engine(text: str, *, where: str) -> EngineChoice:
    """Return what `NAME` or `NAME://HOST:PORT` says."""
    kind, slashes, address = text.partition("://")
    if not kind or (slashes and not address):
        raise _wrong("engine names no engine", where, "NAME or NAME://HOST:PORT", text)
    return EngineChoice(kind=kind, address=address or None, where=where)


def _wrong(what: str, where: str, expected: str, found: JSON) -> RecipeError:
    return RecipeError(what, where=where, expected=expected, found=shown(found))
