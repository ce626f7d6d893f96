"""Engines: where pure functions over parts of the data run.

What lives here: the protocol, and this process as an engine. What does not: the functions (`data.near`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

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


LOCAL = LocalEngine()
