"""View: a run as people and programs look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.runs import RunRecord, StageRecord, artifact_of, find_run
from tunesmith.core.store import Store
from tunesmith.errors import StoreError, nearest
from tunesmith.types import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """One stage of a run."""

    stage: str
    status: str
    """`done`, `cached`, `running`, `waiting`, `failed` or `interrupted`."""
    fingerprint: str
    artifact: Path | None
    """Folder with `manifest.json` and `data/`, or None where there is none."""
    seconds: float | None
    """What it took to make the artifact, in whichever run that was; else what this run spent on it."""
    summary: Mapping[str, JSON]
    error: str | None

    def to_json(self) -> dict[str, JSON]:
        """Return what `tunesmith show --json` prints of a stage."""
        return {
            "stage": self.stage,
            "status": self.status,
            "fingerprint": self.fingerprint,
            "artifact": None if self.artifact is None else str(self.artifact),
            "seconds": self.seconds,
            "summary": dict(self.summary),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run and what its stages came to."""

    run: str
    recipe: str
    stages: Mapping[str, StageView]
    folder: Path

    def to_json(self) -> dict[str, JSON]:
        """Return what `tunesmith show --json` prints."""
        return {
            "run": self.run,
            "recipe": self.recipe,
            "stages": {name: stage.to_json() for name, stage in self.stages.items()},
        }


def view_run(store: Store, record: RunRecord) -> RunView:
    """Read the artifacts that a run names. Raises `StoreError` where one was changed by hand."""
    return RunView(
        run=record.run,
        recipe=record.recipe,
        stages={name: _view_stage(store, stage) for name, stage in record.stages.items()},
        folder=(store.runs / record.run).resolve(),
    )


def find_view(store: Store, run: str | None, *, stage: str | None) -> RunView:
    """Return a run, or one stage of it. A lone word that names no run but a stage of the newest run means that stage.

    Raises `StoreError` where nothing is called that.
    """
    if run is not None and stage is None:
        newest = find_run(store, None)
        try:
            record = find_run(store, run)
        except StoreError:
            if run not in newest.stages:
                raise
            record, stage = newest, run
    else:
        record = find_run(store, run)
    view = view_run(store, record)
    if stage is None:
        return view
    if stage not in view.stages:
        raise StoreError(
            f"the run has no stage {stage!r}",
            where=record.run,
            expected=f"one of {', '.join(view.stages)}",
            hint=f"nearest: {', '.join(nearest(stage, view.stages))}",
        )
    return RunView(run=view.run, recipe=view.recipe, stages={stage: view.stages[stage]}, folder=view.folder)


def _view_stage(store: Store, stage: StageRecord) -> StageView:
    artifact = artifact_of(store, stage) if stage.status in ("done", "cached") else None
    seconds = stage.seconds
    if artifact is not None:
        seconds = artifact.manifest.provenance.get("seconds", seconds)
    return StageView(
        stage=stage.stage,
        status=stage.status,
        fingerprint=stage.fingerprint,
        artifact=None if artifact is None else artifact.root.resolve(),
        seconds=seconds,
        summary={} if artifact is None else artifact.summary,
        error=stage.error,
    )
