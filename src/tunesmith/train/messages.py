"""What the processes of a run say to the one that started them: lines in a file, and errors as values.

    in rank 0:        voice = Voice(folder); voice.log("train_step", {...}); voice.progress(3, 10, "loss 1.2")
    in any rank:      write_failure(folder, error, attempt=0, rank=1)
    in the launcher:  mailbox = Mailbox(folder, log=ctx.log, progress=ctx.progress); mailbox.empty()

What lives here: both ends of that. What does not: starting processes and judging their ends (`train.launch`).
A file outlives the process that wrote it, whatever ended it, and works on every machine that shares the folder.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tunesmith.errors
from tunesmith.errors import TunesmithError
from tunesmith.types import JSON, Log

MESSAGES = "messages.jsonl"
ERROR_FIELDS = ("what", "where", "expected", "found", "hint")


class Progress(Protocol):
    """Show progress, as the context of a stage does."""

    def __call__(self, done: float, total: float | None, note: str = "", **fields: JSON) -> None:
        """Say that `done` of `total` is reached."""
        ...


class Voice:
    """`log` and `progress` of the process that speaks for all."""

    def __init__(self, folder: Path) -> None:
        self._handle = (folder / MESSAGES).open("a", encoding="utf-8")

    def log(self, name: str, fields: Mapping[str, JSON]) -> None:
        """Send an event."""
        self._send({"event": name, "fields": dict(fields)})

    def progress(self, done: float, total: float | None, note: str = "", **fields: JSON) -> None:
        """Send how far the run is."""
        self._send({"done": done, "total": total, "note": note, "fields": fields})

    def _send(self, message: Mapping[str, JSON]) -> None:
        self._handle.write(json.dumps(message) + "\n")
        self._handle.flush()


class Mailbox:
    """Hands on what `Voice` sent since the last time."""

    def __init__(self, folder: Path, *, log: Log, progress: Progress) -> None:
        self.steps = 0
        """Steps that the run reported since this was last set to 0."""
        self._path = folder / MESSAGES
        self._path.touch()
        self._read = 0
        self._log = log
        self._progress = progress

    def empty(self) -> None:
        """Pass every complete line on."""
        with self._path.open("rb") as handle:
            handle.seek(self._read)
            new = handle.read()
        complete = new[: new.rfind(b"\n") + 1]
        for line in complete.splitlines():
            self._read += len(line) + 1
            message = json.loads(line)
            if "event" in message:
                self.steps += message["event"] == "train_step"
                self._log(message["event"], message["fields"])
            else:
                self._progress(message["done"], message["total"], message["note"], **message["fields"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a process ended that could still say so."""

    rank: int
    time: float
    traceback: str
    error: TunesmithError | None
    """What a user can act on; `None` for what nobody foresaw."""


def write_failure(folder: Path, error: BaseException, *, attempt: int, rank: int) -> None:
    """Leave an error for the launcher, with the nearest class of the error tree where it is in it."""
    known = None
    if isinstance(error, TunesmithError):
        known = next(base.__name__ for base in type(error).__mro__ if base.__module__ == tunesmith.errors.__name__)
    record = {
        "rank": rank,
        "time": time.time(),
        "traceback": "".join(traceback.format_exception(error)),
        "class": known,
        "fields": {name: getattr(error, name) for name in ERROR_FIELDS} if known else {},
    }
    path = _failure_file(folder, attempt=attempt, rank=rank)
    path.with_suffix(".partial").write_text(json.dumps(record), "utf-8")
    path.with_suffix(".partial").replace(path)


def left_failure(folder: Path, *, attempt: int, rank: int) -> bool:
    """Return whether a process left an error: one that was killed could not."""
    return _failure_file(folder, attempt=attempt, rank=rank).is_file()


def _failure_file(folder: Path, *, attempt: int, rank: int) -> Path:
    return folder / f"failure-{attempt}-{rank}.json"


def first_failure(folder: Path, *, attempt: int) -> Failure | None:
    """Return what the processes of one attempt failed of: what a user can act on before all else, then the earliest."""
    found = [_read_failure(path) for path in folder.glob(f"failure-{attempt}-*.json")]
    return min(found, key=lambda failure: (failure.error is None, failure.time), default=None)


def _read_failure(path: Path) -> Failure:
    record = json.loads(path.read_text("utf-8"))
    error = None
    if record["class"] is not None:
        kind: type[TunesmithError] = getattr(tunesmith.errors, record["class"])
        error = kind.__new__(kind)
        TunesmithError.__init__(error, **record["fields"])  # a class's own arguments are in its words already
    return Failure(rank=record["rank"], time=record["time"], traceback=record["traceback"], error=error)
