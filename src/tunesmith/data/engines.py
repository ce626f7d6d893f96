"""Engines: where pure functions over parts of the data run.

What lives here: an engine on this machine and one on a Ray cluster, which give the same results. What does not: the
functions (`data.near`).

    engine_for("local", address=None)                  this process
    engine_for("ray", address=None)                    a Ray of its own on this machine, stopped at the end
    engine_for("ray", address="10.0.0.5:6379")         a cluster; refused where anyone who reaches it may run code on it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

EngineName = Literal["local", "ray"]
_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


class Engine(Protocol):
    """Runs one function over parts, and returns the results in the order of the parts."""

    def map(self, function: Callable[[_Part], _Result], parts: Sequence[_Part]) -> list[_Result]:
        """Return the results in the order of the parts."""
        ...


class LocalEngine:
    """This process."""

    def map(self, function: Callable[[_Part], _Result], parts: Sequence[_Part]) -> list[_Result]:
        """Run the function over one part after the other."""
        return [function(part) for part in parts]


class RayEngine:
    """Tasks of a Ray that is connected already."""

    def __init__(self, ray: Any) -> None:
        """Take the module `ray`."""
        self._ray = ray

    def map(self, function: Callable[[_Part], _Result], parts: Sequence[_Part]) -> list[_Result]:
        """Run the function over each part as a task; a task that dies with its worker is run again."""
        task = self._ray.remote(function)
        results: list[_Result] = self._ray.get([task.remote(part) for part in parts])
        return results


LOCAL = LocalEngine()
