"""gc: find and delete what no run and no ref needs.

    garbage = find_garbage(store)      # what would go, and how many bytes
    delete(store, garbage)

Kept are the artifacts that any run's `lock.json` or any ref (its history included) names, and all that those were made
from. An attempt that a living process works on is never touched; deleting holds the store alone, so no run begins
meanwhile. To let go of a run, delete its folder under `runs/`.
"""

from __future__ import annotations

import enum
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.artifact import Artifact
from tunesmith.core.disk import is_locked, writing
from tunesmith.core.refs import ref_history, ref_names
from tunesmith.core.run import alone
from tunesmith.core.runs import records
from tunesmith.core.store import Store


class Why(enum.StrEnum):
    """Why something may go."""

    UNREACHABLE = "no run or ref needs it"
    PARTIAL = "left by a run that stopped; a rerun would resume from it"
    DAMAGED = "has no manifest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """One folder that may go."""

    path: Path
    what: str
    why: Why
    num_bytes: int


def find_garbage(store: Store) -> tuple[Garbage, ...]:
    """Return what may go. Deletes nothing."""
    needed = _needed(store)
    found = []
    for root in _roots(store):
        kind, fingerprint = root.parent.name, root.name
        if not (root / "manifest.json").exists():
            found.append(_garbage(root, f"{kind} {fingerprint[:12]}", Why.DAMAGED))
        elif fingerprint not in needed:
            found.append(_garbage(root, f"{kind} {fingerprint[:12]}", Why.UNREACHABLE))
    if store.partials.is_dir():
        for path in sorted(store.partials.iterdir()):
            fingerprint = path.name.split(".")[0]
            if path.is_dir() and not is_locked(store.partials / f"{fingerprint}.lock"):
                found.append(_garbage(path, f"attempt {fingerprint[:12]}", Why.PARTIAL))
    return tuple(found)


def delete(store: Store, garbage: Iterable[Garbage]) -> int:
    """Delete folders that `find_garbage` named and that are still garbage; return the bytes freed.

    Raises `StoreError` while a run is at work on the store.
    """
    freed = 0
    with alone(store), writing(store.root):
        still = {item.path: item for item in find_garbage(store)}
        for item in garbage:
            if item.path in still:
                _remove(store, item.path)
                freed += still[item.path].num_bytes
    return freed


def _remove(store: Store, path: Path) -> None:
    """Delete a folder so that a kill halfway leaves an attempt to collect later, never an artifact with holes."""
    if path.parent != store.partials:
        store.partials.mkdir(parents=True, exist_ok=True)
        trash = store.partials / f"{path.name}.trash"
        if trash.exists():
            shutil.rmtree(trash)
        path = path.rename(trash)
    shutil.rmtree(path)


def _needed(store: Store) -> set[str]:
    roots = {stage.fingerprint for record in records(store) for stage in record.stages.values()}
    for name in ref_names(store):
        for entry in ref_history(store, name):
            roots.add(entry.fingerprint)
            if entry.report is not None:
                roots.add(entry.report)
    made = {artifact.fingerprint: artifact for artifact in store.all()}
    needed: set[str] = set()
    stack = list(roots)
    while stack:
        fingerprint = stack.pop()
        if fingerprint in needed:
            continue
        needed.add(fingerprint)
        if fingerprint in made:
            stack += _sources(made[fingerprint])
    return needed


def _sources(artifact: Artifact) -> Iterator[str]:
    for value in artifact.manifest.inputs.values():
        if isinstance(value, str):
            yield value
        else:
            yield from value


def _roots(store: Store) -> Iterator[Path]:
    if not store.artifacts.is_dir():
        return
    for kind in sorted(store.artifacts.iterdir()):
        if kind.is_dir() and not kind.name.startswith("."):
            yield from (root for root in sorted(kind.iterdir()) if root.is_dir())


def _garbage(path: Path, what: str, why: Why) -> Garbage:
    num_bytes = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
    return Garbage(path=path, what=what, why=why, num_bytes=num_bytes)
