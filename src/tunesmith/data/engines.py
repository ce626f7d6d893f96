"""Engines: where pure functions over parts of the data run.

What lives here: the protocol, this process as an engine, and the workers of a Ray cluster as one. What does not: the
functions (`data.near`, `data.redact`, `data.filters`, `data.decontam`), the cluster itself (`tunesmith.cluster`).

    with open_engine(choice, num_workers=2) as engine:
        for findings in engine.map(find_in_part, parts_of(rows)):   # in the order of the parts
            ...

A function is a plain function of this package, or a `functools.partial` of one, and depends on its part alone. So the
results are the same on any engine, with any number of workers and after any of them has died. Text goes out with the
parts; what comes back is findings and numbers, and what is sorted or shuffled is numbers only.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from tunesmith.cluster import check_cluster, cluster
from tunesmith.errors import EngineError, PlanError, nearest
from tunesmith.types import EngineChoice

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")

KINDS = ("local", "ray")
ROWS_PER_PART = 2_048
"""Some tenths of a second of work, and a MB or two on its way to a worker."""
PARTS_PER_WORKER = 2
"""Parts that are on their way or waiting for each worker, so that none is idle and memory is bounded."""
MAX_DEATHS = 3
"""So many workers may die over one part before the run ends."""


class Engine(Protocol):
    """Runs one function over parts, and yields the results in the order of the parts."""

    def map(self, function: Callable[[_Part], _Result], parts: Iterable[_Part]) -> Iterator[_Result]:
        """Yield the results in the order of the parts; parts are taken as they are needed."""
        ...


class LocalEngine:
    """This process."""

    def map(self, function: Callable[[_Part], _Result], parts: Iterable[_Part]) -> Iterator[_Result]:
        """Run the function over one part after the other."""
        return map(function, parts)


LOCAL = LocalEngine()


class RayEngine:
    """The workers of the cluster that this process has joined."""

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers

    def map(self, function: Callable[[_Part], _Result], parts: Iterable[_Part]) -> Iterator[_Result]:
        """Run the function over a few parts at a time. Raises what it raises, and `EngineError` where workers die."""
        import ray

        shipped = ray.put(function)
        run = ray.remote(num_cpus=1, max_retries=MAX_DEATHS)(_run)
        at_work: deque[Any] = deque()
        for part in parts:
            at_work.append(run.remote(shipped, part))
            if len(at_work) >= PARTS_PER_WORKER * self._num_workers:
                yield _result(at_work.popleft())
        while at_work:
            yield _result(at_work.popleft())


def _run(function: Callable[[Any], Any], part: Any) -> Any:
    """Run in a worker. A worker's Daft keeps to its own process: where the work goes was decided here."""
    os.environ["DAFT_RUNNER"] = "native"
    return function(part)


def _result(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise EngineError(
            "the workers of the cluster died over a part of the data",
            expected=f"at most {MAX_DEATHS} deaths of workers over one part",
            found=" ".join(str(error).split())[:300],
            hint="look at memory first: fewer num_workers, or more memory for each; then run again",
        ) from error


def check_engine(choice: EngineChoice) -> None:
    """Refuse an engine that is unknown or cannot work, before work starts. Raises `PlanError`, `EngineError`."""
    if choice.kind not in KINDS:
        raise PlanError(
            f"no engine is called {choice.kind!r}",
            where=choice.where,
            expected=f"one of {', '.join(KINDS)}",
            found=choice.kind,
            hint=f"nearest: {', '.join(nearest(choice.kind, KINDS))}",
        )
    if choice.kind == "ray":
        check_cluster(choice)
    elif choice.address is not None or choice.num_workers is not None:
        raise PlanError(
            "engine: local is this process: it has no address and no workers of its own",
            where=choice.where,
            found=str(choice) if choice.address else f"num_workers: {choice.num_workers}",
            hint="engine: ray has both",
        )


@contextlib.contextmanager
def open_engine(choice: EngineChoice, *, num_workers: int) -> Iterator[Engine]:
    """Yield the engine that was chosen; `num_workers` is for one that starts here and says none itself."""
    check_engine(choice)
    if choice.kind == "local":
        yield LOCAL
        return
    with cluster(choice, num_workers=num_workers) as count:
        yield RayEngine(count)


def parts_of(items: Sequence[_Part], size: int | None = None) -> Iterator[Sequence[_Part]]:
    """Yield the items in parts of `size`, else of `ROWS_PER_PART`, in order."""
    size = ROWS_PER_PART if size is None else size
    return (items[start : start + size] for start in range(0, len(items), size))
