"""Events: what a stage says while it works, as JSON lines in its artifact and as calls to whoever watches.

    log("train_step", {"step": 3, "loss": 1.2})
        -> {"time": "2025-01-31T12:00:00.123Z", "event": "train_step", "step": 3, "loss": 1.2}

What lives here: the event file, the rate limit on progress, the `Listener` interface. What does not: drawing. The
kernel prints nothing; the command line passes a listener that draws, a test passes `Silent`.
"""

from __future__ import annotations

import datetime
import enum
import json
import math
import numbers
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Protocol

from tunesmith.types import JSON

_PROGRESS_SECONDS = 1.0
"""Progress enters the event file at most this often."""


class Listener(Protocol):
    """Is told what happens in a run, as it happens."""

    def stage_started(self, table: str, *, index: int, count: int, reason: str) -> None:
        """A stage begins; `index` of `count`, from 1."""
        ...

    def stage_waits(self, table: str, *, holder: str) -> None:
        """Another process works on the same artifact; this one waits for it."""
        ...

    def stage_progress(
        self, table: str, *, done: float, total: float | None, note: str, fields: Mapping[str, JSON]
    ) -> None:
        """A stage is `done` of `total`."""
        ...

    def stage_event(self, table: str, *, name: str, fields: Mapping[str, JSON]) -> None:
        """A stage logged an event."""
        ...

    def stage_finished(self, table: str, *, status: str, seconds: float, summary: Mapping[str, JSON]) -> None:
        """A stage is `done`, `cached`, `failed` or `interrupted`."""
        ...


class Silent:
    """A listener that shows nothing."""

    def stage_started(self, table: str, *, index: int, count: int, reason: str) -> None:
        """Show nothing."""

    def stage_waits(self, table: str, *, holder: str) -> None:
        """Show nothing."""

    def stage_progress(
        self, table: str, *, done: float, total: float | None, note: str, fields: Mapping[str, JSON]
    ) -> None:
        """Show nothing."""

    def stage_event(self, table: str, *, name: str, fields: Mapping[str, JSON]) -> None:
        """Show nothing."""

    def stage_finished(self, table: str, *, status: str, seconds: float, summary: Mapping[str, JSON]) -> None:
        """Show nothing."""


def plain(value: Any) -> JSON:
    """Return `value` as JSON holds it: numbers of any library become Python's, `nan` and `inf` become words.

    Raises `TypeError` for what has no plain form, such as a tensor of many numbers.
    """
    if value is None or isinstance(value, (str, bool)):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):  # a scalar of numpy or torch
        return plain(value.item())
    raise TypeError(f"{type(value).__name__} has no plain JSON form: log numbers, text, lists and mappings")


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the millisecond."""
    stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return stamp.replace("+00:00", "Z")


class EventFile:
    """Appends JSON lines to a file, each complete when `write` returns. Safe to share between threads."""

    def __init__(self, path: Path) -> None:
        """Open for appending. A last line torn by a crash is cut off."""
        self.path = path
        _cut_torn_line(path)
        self._handle = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def write(self, name: str, fields: Mapping[str, JSON]) -> None:
        """Append one event."""
        line = json.dumps({"time": now(), "event": name, **plain(fields)}, ensure_ascii=False, allow_nan=False)
        with self._lock:
            self._handle.write(line + "\n")
            self._handle.flush()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as handle:
        content = handle.read()
        keep = content.rfind(b"\n") + 1
        if keep != len(content):
            handle.truncate(keep)
            handle.flush()
            os.fsync(handle.fileno())


def read_events(path: Path) -> Iterator[dict[str, JSON]]:
    """Yield the events of a file, oldest first; a torn last line is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as handle:
        for line in handle:
            if line.endswith("\n"):
                yield json.loads(line)


class StageVoice:
    """The `log` and `progress` of one stage's context: to its event file and to the listener."""

    def __init__(self, table: str, *, events: EventFile, listener: Listener) -> None:
        self._table = table
        self._events = events
        self._listener = listener
        self._last_written = 0.0

    def log(self, name: str, fields: Mapping[str, JSON]) -> None:
        """Write an event and tell the listener."""
        self._events.write(name, fields)
        self._listener.stage_event(self._table, name=name, fields=fields)

    def progress(self, done: float, total: float | None, note: str = "", **fields: JSON) -> None:
        """Tell the listener at once, and the event file at most once a second and at the end."""
        self._listener.stage_progress(self._table, done=done, total=total, note=note, fields=fields)
        moment = time.monotonic()
        if moment - self._last_written >= _PROGRESS_SECONDS or (total is not None and done >= total):
            self._last_written = moment
            self._events.write("progress", {"done": done, "total": total, "note": note, **fields})
