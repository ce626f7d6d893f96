"""Let this machine take part in trainings that another one begins.

What lives here: how many, and how long to wait. What does not: the part itself (`stages.training_machines`).
"""

from __future__ import annotations

from tunesmith.errors import TrainingError
from tunesmith.types import Log, ignore


def join(address: str, *, trainings: int = 1, wait_minutes: float | None = None, log: Log = ignore) -> int:
    """Take part in the next `trainings` that begin at `HOST:PORT`, one after the other; return their number.

    Raises `TrainingError` where none begins within `wait_minutes` (`None` waits for ever), where this machine runs
    other code or does not see the store, and where a training ends before its last step.
    """
    from tunesmith.stages.training_machines import take_part

    seen: set[str] = set()
    patience = None if wait_minutes is None else wait_minutes * 60
    for done in range(trainings):
        if not take_part(address, seen=seen, patience=patience, log=log):
            raise TrainingError(
                "no training began",
                where=address,
                expected=f"one within {wait_minutes:g} minutes, after {done} of {trainings}",
                hint="start `tunesmith run RECIPE` on the machine with this address",
            )
    return trainings
