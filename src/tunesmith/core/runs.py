"""Runs: the record of each execution, under names for people.

    .tunesmith/runs/2025-01-31-1200-quickstart/{recipe.yaml, lock.json}

`recipe.yaml` is the recipe word for word; `lock.json` holds the resolved settings, fingerprints and fate of every
stage, and is rewritten whole after each one. A run whose process died is told from one at work by a file lock.
What does not live here: executing (`run`), deciding what to execute (`plan`).
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.core.artifact import Artifact
from tunesmith.core.disk import is_locked, write_atomically, writing
from tunesmith.core.store import Store
from tunesmith.errors import StoreError, nearest
from tunesmith.types import JSON

_LOCK_FILE = "lock.json"
ALIVE_FILE = ".alive.lock"
"""Locked by the process that works on the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One stage of a run, as `lock.json` keeps it."""

    stage: str
    version: int
    kind: str
    status: str
    """`waiting`, `running`, `done`, `cached`, `failed` or `interrupted`."""
    fingerprint: str
    inputs: Mapping[str, JSON]
    """Role -> {table, fingerprint}."""
    spec: Mapping[str, JSON]
    """All settings, content paths as {path, sha256}."""
    seconds: float | None = None
    """What this run spent on the stage."""
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run: `lock.json`."""

    run: str
    recipe: str
    recipe_path: str
    started: str
    overrides: tuple[str, ...]
    stages: Mapping[str, StageRecord] = field(default_factory=dict)
    finished: str | None = None


def create_run(store: Store, record: RunRecord, *, recipe_text: str) -> RunRecord:
    """Make the run's folder under a free name that begins with `record.run`, and return the record under that name."""
    with writing(store.root):
        store.runs.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            name = record.run if number == 1 else f"{record.run}-{number}"
            try:
                (store.runs / name).mkdir()
                break
            except FileExistsError:
                number += 1
        record = dataclasses.replace(record, run=name)
        write_atomically(store.runs / name / "recipe.yaml", recipe_text)
    write_record(store, record)
    return record


def run_name(recipe: str, moment: datetime.datetime) -> str:
    """Return a folder name such as `2025-01-31-1200-quickstart`."""
    return f"{moment:%Y-%m-%d-%H%M}-{re.sub(r'[^A-Za-z0-9._-]+', '-', recipe)}"


def write_record(store: Store, record: RunRecord) -> None:
    """Write `lock.json` whole. Raises `StoreError`."""
    value = dataclasses.asdict(record)
    with writing(store.root):
        write_atomically(
            store.runs / record.run / _LOCK_FILE, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        )


def read_record(store: Store, run: str) -> RunRecord:
    """Read a run. A stage at work in a dead process is `interrupted`. Raises `StoreError` where it cannot be read."""
    path = store.runs / run / _LOCK_FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        stages = {name: StageRecord(**stage) for name, stage in value.pop("stages").items()}
        record = RunRecord(**{**value, "overrides": tuple(value["overrides"]), "stages": stages})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError("cannot read the record of a run", where=str(path), found=str(error)) from error
    running = [name for name, stage in stages.items() if stage.status == "running"]
    if running and not is_locked(store.runs / run / ALIVE_FILE):
        dead = {name: dataclasses.replace(stages[name], status="interrupted") for name in running}
        record = dataclasses.replace(record, stages={**stages, **dead})
    return record


def run_names(store: Store) -> list[str]:
    """Return all runs, newest first: by the time that their folder was made, then by name."""
    if not store.runs.is_dir():
        return []
    names = [folder.name for folder in store.runs.iterdir() if (folder / _LOCK_FILE).is_file()]
    return sorted(names, key=lambda name: (_started_ns(store.runs / name), name), reverse=True)


def _started_ns(folder: Path) -> int:
    return (folder / "recipe.yaml").stat().st_mtime_ns


def records(store: Store, *, recipe: str | None = None) -> Iterator[RunRecord]:
    """Yield runs, newest first, of one recipe name or of all."""
    for name in run_names(store):
        record = read_record(store, name)
        if recipe is None or record.recipe == recipe:
            yield record


def newest_stages(history: Iterable[RunRecord], tables: Iterable[str]) -> dict[str, tuple[str, StageRecord]]:
    """Return for each table the newest run that got as far as it, and its record there.

    `history` is newest first and read no further than needed. A table that every run stopped before is shown as the
    newest run has it, `waiting`; one that no run has is left out.
    """
    open_tables = set(tables)
    found: dict[str, tuple[str, StageRecord]] = {}
    for record in history:
        for table in sorted(open_tables & record.stages.keys()):
            stage = record.stages[table]
            if stage.status != "waiting":
                found[table] = (record.run, stage)
                open_tables.discard(table)
            else:
                found.setdefault(table, (record.run, stage))
        if not open_tables:
            break
    return found


def find_run(store: Store, name: str | None) -> RunRecord:
    """Return the run called `name`, the newest run of the recipe `name`, or the newest run for None.

    The beginning of a run's name is enough where it fits one run only. Raises `StoreError`.
    """
    names = run_names(store)
    if not names:
        raise StoreError(
            "there are no runs yet",
            where=str(store.runs),
            hint="tunesmith run RECIPE, or name another store with --store DIR",
        )
    if name is None:
        return read_record(store, names[0])
    if name in names:
        return read_record(store, name)
    of_recipe = next(records(store, recipe=name), None)
    if of_recipe is not None:
        return of_recipe
    fitting = [run for run in names if run.startswith(name)]
    if len(fitting) == 1:
        return read_record(store, fitting[0])
    raise StoreError(
        f"no run is called {name!r}" if not fitting else f"{len(fitting)} runs begin with {name!r}",
        where=str(store.runs),
        expected="a run, the beginning of its name, or a recipe's name",
        hint=f"nearest: {', '.join(fitting[:3] or nearest(name, names))}",
    )


def artifact_of(store: Store, stage: StageRecord) -> Artifact | None:
    """Return the artifact of a finished stage of a run, or None."""
    return store.find(stage.kind, stage.fingerprint)
