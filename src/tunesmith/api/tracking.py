"""Experiment trackers: a run's training figures go to TensorBoard, MLflow, Weights & Biases or trackio as they come.

    with TrackingListener(listener, ["tensorboard"], run="desk", settings=settings, folder=folder) as followed:
        execute(plan, store, listener=followed, machine=machine)

What lives here: from the events that stages log to accelerate's trackers, which know each service. What does not: the
figures. A tracker watches and decides nothing: it is a way of running, never a part of the recipe or of an artifact's
identity, and one that fails is dropped, said, and the run goes on.

Where it lands: under `folder`, unless the tracker's own environment says otherwise (`MLFLOW_TRACKING_URI`,
`WANDB_MODE`, `TRACKIO_DIR`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tunesmith.core.events import Listener
from tunesmith.errors import PlanError, nearest
from tunesmith.types import JSON

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")
"""Each is the name of its package, of accelerate's tracker, and of the extra that installs it."""
_SIDES = {"train_step": "train", "train_eval": "eval"}
"""Event -> what its figures are called by."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise `PlanError` for a tracker that is not known, or whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise PlanError(
                f"there is no tracker {name!r}",
                where=f"--track {name}",
                expected=f"one of {', '.join(TRACKERS)}",
                hint=f"nearest: {', '.join(nearest(name, TRACKERS))}",
            )
        if find_spec(name) is None:
            raise PlanError(
                f"the tracker {name} needs the package {name}, which is not installed",
                where=f"--track {name}",
                hint=f"pip install 'tunesmith[{name}]'",
            )


class TrackingListener:
    """Passes everything on to another listener, and what is measured in training to trackers too."""

    def __init__(
        self,
        inner: Listener,
        names: Sequence[str],
        *,
        run: str,
        settings: Mapping[str, Mapping[str, JSON]],
        folder: Path,
    ) -> None:
        """`settings` are those of each table, `run` names the project. Raises `PlanError` as `check_trackers` does."""
        check_trackers(names)
        self._inner, self._names, self._run, self._settings, self._folder = inner, tuple(names), run, settings, folder
        self._open: dict[str, GeneralTracker] = {}

    def __enter__(self) -> TrackingListener:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close("")

    def stage_started(self, table: str, *, index: int, count: int, reason: str) -> None:
        """Pass it on."""
        self._inner.stage_started(table, index=index, count=count, reason=reason)

    def stage_waits(self, table: str, *, holder: str) -> None:
        """Pass it on."""
        self._inner.stage_waits(table, holder=holder)

    def stage_progress(
        self, table: str, *, done: float, total: float | None, note: str, fields: Mapping[str, JSON]
    ) -> None:
        """Pass it on."""
        self._inner.stage_progress(table, done=done, total=total, note=note, fields=fields)

    def stage_event(self, table: str, *, name: str, fields: Mapping[str, JSON]) -> None:
        """Pass it on; open the trackers when a training begins, and give them what each step and validation says."""
        self._inner.stage_event(table, name=name, fields=fields)
        if name == "train_begins":
            self._begin(table, fields)
        elif name in _SIDES:
            figures = {f"{_SIDES[name]}/{key}": value for key, value in fields.items() if _is_figure(key, value)}
            for tracker in list(self._open):
                self._attempt(table, tracker, lambda it: it.log(figures, step=int(fields["step"])))

    def stage_finished(self, table: str, *, status: str, seconds: float, summary: Mapping[str, JSON]) -> None:
        """Close the trackers of a training that ended, however it did, and pass it on."""
        self._close(table)
        self._inner.stage_finished(table, status=status, seconds=seconds, summary=summary)

    def _begin(self, table: str, arithmetic: Mapping[str, JSON]) -> None:
        self._close(table)
        settings = {**_flat(self._settings.get(table, {})), **_flat(arithmetic, "run.")}
        for name in self._names:
            folder = self._folder / name
            folder.mkdir(parents=True, exist_ok=True)
            self._open[name] = _tracker(name, run=self._run, table=table, folder=folder)
            self._attempt(table, name, lambda it: it.start())
            self._attempt(table, name, lambda it: it.store_init_configuration(settings))

    def _close(self, table: str) -> None:
        for name in list(self._open):
            self._attempt(table, name, lambda it: it.finish())
        self._open.clear()

    def _attempt(self, table: str, name: str, call: Callable[[Any], object]) -> None:
        """Do something with a tracker; one that fails is dropped, because a run is worth more than its curves."""
        tracker = self._open.get(name)
        if tracker is None:
            return
        try:
            call(tracker)
        except Exception as error:  # noqa: BLE001 - a service's own errors have no common class; it is said, and dropped
            del self._open[name]
            text = f"the tracker {name} failed and is left out from here on: {type(error).__name__}: {error}"
            self._inner.stage_event(table, name="say", fields={"text": text})


def _tracker(name: str, *, run: str, table: str, folder: Path) -> GeneralTracker:
    """Return accelerate's tracker for one training, not started yet."""
    from accelerate import PartialState
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

    PartialState(cpu=True)  # Some trackers log through accelerate's logger, which refuses to work before this.
    match name:
        case "tensorboard":
            return TensorBoardTracker(f"{run}-{table}", logging_dir=folder)
        case "mlflow":
            os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
            return MLflowTracker(experiment_name=run, run_name=table)
        case "wandb":
            return WandBTracker(run, name=table, dir=str(folder))
        case _:
            os.environ.setdefault("TRACKIO_DIR", str(folder))
            return TrackioTracker(run, name=table)


def _is_figure(key: str, value: JSON) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and key != "step" and math.isfinite(value)


def _flat(values: Mapping[str, JSON], prefix: str = "") -> dict[str, JSON]:
    """Return settings as one level of `dotted.key` -> number, text or truth, which is what trackers take."""
    out: dict[str, JSON] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, (int, float, str)) else str(value)
    return out
