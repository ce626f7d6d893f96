"""Run: execute a plan, stage by stage, so that nothing finished is ever lost.

    result = execute(make_plan(recipe, store), store, listener=Silent(), machine=Machine(device="cpu", workers=2))

`lock.json` is rewritten after each stage; a stage that fails leaves the finished ones in the store and raises. A
process that dies at any moment loses at most the stage at work, and that one resumes from its `ctx.work`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import gc
import os
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.artifact import Artifact, Manifest
from tunesmith.core.disk import disk_error, lock, writing
from tunesmith.core.events import EventFile, Listener, StageVoice, now, plain
from tunesmith.core.plan import Plan, PlannedStage, Status
from tunesmith.core.provenance import PeakMemory, describe_process
from tunesmith.core.runs import ALIVE_FILE, RunRecord, StageRecord, create_run, run_name, write_record
from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context, Stage
from tunesmith.core.store import Attempt, Store
from tunesmith.errors import StoreError, TunesmithError
from tunesmith.memory import release_free_memory
from tunesmith.types import JSON, LOCAL_ENGINE, EngineChoice

_IN_USE = ".in-use"
"""Shared lock of every run on the store; `gc` takes it alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Circumstance of a run: never identity."""

    device: str
    """`cpu` or `cuda`."""
    workers: int
    engine: EngineChoice = LOCAL_ENGINE
    argv: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One stage with everything it is fed: what `make` turns into an artifact."""

    table: str
    stage: Stage
    spec: Spec
    settings: Mapping[str, JSON]
    """What the manifest shows of the spec."""
    fingerprint: str
    inputs: Mapping[str, Artifact | None]
    folder: Path
    """Where the user's files are versioned, for the git commit in the manifest."""


def execute(plan: Plan, store: Store, *, listener: Listener, machine: Machine) -> RunRecord:
    """Run a plan and return its record. Raises what a stage raises, after recording it."""
    recipe = plan.recipe
    record = RunRecord(
        run=run_name(recipe.name, datetime.datetime.now()),
        recipe=recipe.name,
        recipe_path=str(recipe.path.resolve()),
        started=now(),
        overrides=recipe.overrides,
        stages={planned.name: _record_of(planned) for planned in plan.stages},
    )
    with in_use(store):
        record = create_run(store, record, recipe_text=recipe.text)
        with lock(store.runs / record.run / ALIVE_FILE, on_wait=lambda holder: None):
            execution = _Execution(plan, record, store=store, listener=listener, machine=machine)
            for index, planned in enumerate(plan.stages, start=1):
                execution.step(planned, index=index)
            return execution.finish()


class _Execution:
    """One run as it goes on: the artifacts so far, and the record that is rewritten after each stage."""

    def __init__(self, plan: Plan, record: RunRecord, *, store: Store, listener: Listener, machine: Machine) -> None:
        self._plan = plan
        self._record = record
        self._store = store
        self._listener = listener
        self._machine = machine
        self._made: dict[str, Artifact] = {}

    def step(self, planned: PlannedStage, *, index: int) -> None:
        """Make or find one stage's artifact and record it. Raises what the stage raises."""
        name = planned.name
        if planned.status is Status.CACHED:
            assert planned.artifact is not None
            self._made[name] = planned.artifact
            self._listener.stage_finished(name, status="cached", seconds=0.0, summary=planned.artifact.summary)
            return
        self._listener.stage_started(name, index=index, count=len(self._plan.stages), reason=planned.reason)
        self._write(name, status="running")
        started = time.monotonic()
        try:
            artifact, fresh = make(self._job(planned), self._store, listener=self._listener, machine=self._machine)
        except BaseException as error:
            seconds = time.monotonic() - started
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(StoreError):  # the disk may be full: the stage's own error is the one to raise
                self._write(name, status=status, seconds=seconds, error=str(error) or type(error).__name__)
            self._listener.stage_finished(name, status=status, seconds=seconds, summary={})
            raise
        self._made[name] = artifact
        seconds = time.monotonic() - started
        status = "done" if fresh else "cached"
        self._listener.stage_finished(name, status=status, seconds=seconds, summary=artifact.summary)
        self._write(name, status=status, seconds=seconds)

    def finish(self) -> RunRecord:
        """Record the end and return the record."""
        self._record = dataclasses.replace(self._record, finished=now())
        write_record(self._store, self._record)
        return self._record

    def _job(self, planned: PlannedStage) -> Job:
        return Job(
            table=planned.name,
            stage=planned.table.stage,
            spec=planned.table.spec,
            settings=planned.settings,
            fingerprint=planned.fingerprint,
            inputs={
                role: None if source is None else self._input(planned, role, source=source)
                for role, source in planned.table.inputs.items()
            },
            folder=Path(self._record.recipe_path).parent,
        )

    def _input(self, planned: PlannedStage, role: str, *, source: str) -> Artifact:
        if source in self._made:
            return self._made[source]
        fingerprint = planned.inputs[role]
        assert fingerprint is not None
        artifact = self._store.find(planned.table.stage.roles[role]["kind"], fingerprint)
        if artifact is None:
            raise StoreError(
                f"the artifact of {source} is gone", where=str(self._store.root), hint="run the recipe again"
            )
        return artifact

    def _write(self, name: str, *, status: str, seconds: float | None = None, error: str | None = None) -> None:
        rounded = None if seconds is None else round(seconds, 3)
        stage = dataclasses.replace(self._record.stages[name], status=status, seconds=rounded, error=error)
        self._record = dataclasses.replace(self._record, stages={**self._record.stages, name: stage})
        write_record(self._store, self._record)


def make(job: Job, store: Store, *, listener: Listener, machine: Machine) -> tuple[Artifact, bool]:
    """Run one stage into the store and return its artifact, and whether it was made here and not by another process.

    Raises what the stage raises, with the path of the event file added as a note.
    """

    def wait(holder: str) -> None:
        listener.stage_waits(job.table, holder=holder)

    with store.attempt(job.stage.produces, job.fingerprint, on_wait=wait) as attempt:
        if isinstance(attempt, Artifact):
            return attempt, False
        with writing(store.root):
            events = EventFile(attempt.events)
        with contextlib.closing(events):
            manifest = _call(job, attempt, events=events, listener=listener, machine=machine)
        return store.finish(attempt, manifest), True


def _call(job: Job, attempt: Attempt, *, events: EventFile, listener: Listener, machine: Machine) -> Manifest:
    """Call the stage's function and return its manifest, outputs not yet counted."""
    voice = StageVoice(job.table, events=events, listener=listener)
    context = Context(
        out=attempt.data,
        work=attempt.work,
        log=voice.log,
        progress=voice.progress,
        workers=machine.workers,
        device=machine.device,
        engine=machine.engine,
    )
    started = time.monotonic()
    gc.collect()  # What the stage before left behind is not this one's.
    release_free_memory()
    memory = PeakMemory()
    try:
        events.write("stage_started", {"stage": job.stage.name, "version": job.stage.version, "pid": os.getpid()})
        inputs = job.stage.inputs_type(**job.inputs)
        summary = plain(job.stage.function(inputs, job.spec, context))
        seconds = time.monotonic() - started
        events.write("stage_finished", {"seconds": round(seconds, 3)})
    except BaseException as error:
        _note_failure(error, events)
        worded = None if isinstance(error, StoreError) else disk_error(error, attempt.root.parent.parent.parent)
        if worded is not None:
            raise worded from error
        raise
    assert isinstance(summary, dict), f"stage {job.stage.name} returned {type(summary).__name__}, not a mapping"
    return Manifest(
        stage=job.stage.name,
        version=job.stage.version,
        kind=job.stage.produces,
        fingerprint=job.fingerprint,
        digest="",
        spec=job.settings,
        inputs={role: artifact.fingerprint for role, artifact in job.inputs.items() if artifact is not None},
        outputs=(),
        summary=summary,
        provenance={
            **describe_process(job.folder),
            "argv": list(machine.argv),
            "device": machine.device,
            "workers": machine.workers,
            "engine": str(machine.engine),
            "finished": now(),
            "seconds": round(seconds, 3),
            **memory.figures(),
        },
    )


def _note_failure(error: BaseException, events: EventFile) -> None:
    """Write the failure to the event file, and the file's path to the error."""
    fields: dict[str, JSON] = {"error": type(error).__name__, "text": str(error)}
    if not isinstance(error, TunesmithError):
        fields["traceback"] = traceback.format_exception(error)
    with contextlib.suppress(OSError):  # on a full disk the error itself still reaches the user
        events.write("stage_failed", fields)
    error.add_note(f"events of this stage: {events.path}")


def _record_of(planned: PlannedStage) -> StageRecord:
    return StageRecord(
        stage=planned.table.stage.name,
        version=planned.table.stage.version,
        kind=planned.table.stage.produces,
        status="cached" if planned.status is Status.CACHED else "waiting",
        fingerprint=planned.fingerprint,
        inputs={
            role: {"table": source, "fingerprint": planned.inputs[role]}
            for role, source in planned.table.inputs.items()
            if source is not None
        },
        spec=planned.settings,
        seconds=0.0 if planned.status is Status.CACHED else None,
    )


@contextlib.contextmanager
def in_use(store: Store) -> Iterator[None]:
    """Hold the store's shared lock, so that `gc` deletes nothing meanwhile."""
    with _store_lock(store, fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def alone(store: Store) -> Iterator[None]:
    """Hold the store's lock alone. Raises `StoreError` while a run is at work."""
    with _store_lock(store, fcntl.LOCK_EX | fcntl.LOCK_NB):
        yield


@contextlib.contextmanager
def _store_lock(store: Store, operation: int) -> Iterator[None]:
    with writing(store.root):
        store.root.mkdir(parents=True, exist_ok=True)
        handle = (store.root / _IN_USE).open("a")
    with handle:
        try:
            fcntl.flock(handle, operation)
        except BlockingIOError as error:
            raise StoreError(
                "a run is at work on this store", where=str(store.root), hint="wait until it ends, then try again"
            ) from error
        yield
