"""The part of another machine in a training: what `tunesmith join ADDRESS` does.

What lives here: from an address to the processes of a training that began elsewhere, and what must be the same on both
machines. What does not: beginning one (`stages.training_parallel`), watching processes (`train.follow`).
"""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cluster import code_version
from tunesmith.errors import TrainingError
from tunesmith.types import Log

if TYPE_CHECKING:
    from tunesmith.train.meeting import Meeting


def command_of(request: Path) -> list[str]:
    """Return the command of one process of the training that a request describes."""
    return [sys.executable, "-m", "tunesmith.stages.training_rank", str(request)]


def code_of_training() -> tuple[str, ...]:
    """Return what a training computes with: this package's source as a hash, and the versions of libraries."""
    libraries = (f"{name} {version(name).partition('+')[0]}" for name in ("torch", "transformers", "peft"))
    return (*code_version(), *libraries)


def take_part(address: str, *, seen: set[str], patience: float | None, log: Log) -> bool:
    """Take part in the next training that begins at an address; return whether one did within `patience` seconds.

    `seen` holds the trainings that this machine took part in, and takes this one.
    Raises `TrainingError` where this machine runs other code or does not see the store, and where the run fails.
    """
    from tunesmith.train.follow import follow

    meeting = _next_meeting(address, seen=seen, patience=float("inf") if patience is None else patience)
    if meeting is None:
        return False
    invitation = meeting.invitation
    seen.add(invitation.run)
    here, there = code_of_training(), invitation.code
    if here != there:
        raise TrainingError(
            "this machine runs other code than the one that began the run",
            where=address,
            expected=", ".join(there),
            found=", ".join(here),
            hint="install the same tunesmith, with its constraints, on every machine",
        )
    request = Path(invitation.request)
    if not request.is_file():
        raise TrainingError(
            "this machine does not see the run's store",
            where=str(request),
            expected="one store for all machines, on storage that each has under the same path",
            found="no such file",
        )
    log("run_joined", {"machines": invitation.machines, "processes": invitation.processes, "request": str(request)})
    follow(command_of(request), meeting=meeting, folder=request.parent, log=log)
    return True


def _next_meeting(address: str, *, seen: set[str], patience: float) -> Meeting | None:
    """Return the meeting of a training that is not in `seen`: one that ended is there a moment longer."""
    from tunesmith.train.meeting import POLL_SECONDS, found

    deadline = time.monotonic() + patience
    while (meeting := found(address, patience=deadline - time.monotonic())) is not None:
        if meeting.invitation.run not in seen:
            return meeting
        del meeting  # With its connection.
        time.sleep(POLL_SECONDS)
    return None
