"""Refs: names such as `production` that point at an artifact, and the history of where they pointed.

    .tunesmith/refs/production         {"name", "kind", "fingerprint", "who", "when", "report", "note"}
    .tunesmith/refs/production.jsonl   one such line per move, oldest first

    move(store, "staging", bundle, who="ada", report=evaluation.fingerprint)
    previous(store, "production")      -> the entry that a rollback goes back to

A ref is replaced in one step: a reader, such as a server that starts, sees the old target or the new one. Whether a
bundle may be promoted is not decided here (`evals.gates`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass

from tunesmith.core.artifact import Artifact
from tunesmith.core.disk import lock, write_atomically, writing
from tunesmith.core.events import now
from tunesmith.core.store import Store
from tunesmith.errors import StoreError

_NAME = re.compile(r"^[a-z][a-z0-9_-]{0,39}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class RefEntry:
    """One move of a ref."""

    name: str
    kind: str
    fingerprint: str
    who: str
    when: str
    """ISO 8601, UTC."""
    report: str | None
    """Fingerprint of the artifact on which the move was decided."""
    note: str = ""


def read_ref(store: Store, name: str) -> RefEntry | None:
    """Return where a ref points, or None where it was never set. Raises `StoreError` where it cannot be read."""
    path = store.refs / name
    try:
        return RefEntry(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"cannot read the ref {name!r}", where=str(path), found=str(error)) from error


def ref_artifact(store: Store, name: str) -> Artifact:
    """Return the artifact that a ref points at. Raises `StoreError` where the ref or its artifact is missing."""
    entry = read_ref(store, name)
    if entry is None:
        known = ref_names(store)
        raise StoreError(
            f"there is no ref {name!r}",
            where=str(store.refs),
            expected=f"one of {', '.join(known)}" if known else "a promoted bundle",
            hint="tunesmith promote RUN",
        )
    artifact = store.find(entry.kind, entry.fingerprint)
    if artifact is None:
        raise StoreError(
            f"the artifact of the ref {name!r} is gone",
            where=str(store.place(entry.kind, entry.fingerprint)),
            hint="promote another, or run its recipe again",
        )
    return artifact


def move_ref(
    store: Store, name: str, artifact: Artifact, *, who: str, report: str | None = None, note: str = ""
) -> RefEntry:
    """Point a ref at an artifact and add the move to its history. Raises `StoreError`."""
    if not _NAME.match(name):
        raise StoreError("not a name for a ref", expected="small letters, digits, - and _", found=repr(name))
    entry = RefEntry(
        name=name,
        kind=artifact.kind,
        fingerprint=artifact.fingerprint,
        who=who,
        when=now(),
        report=report,
        note=note,
    )
    with writing(store.root):
        store.refs.mkdir(parents=True, exist_ok=True)
    with lock(store.refs / f".{name}.lock", on_wait=lambda holder: None), writing(store.root):
        known = ref_history(store, name)
        write_atomically(store.refs / name, _line(entry))
        lines = [_line(past) for past in (*known, entry)]
        # The whole history is replaced: a move that died between the two files is in `known` and so is written now.
        write_atomically(store.refs / f"{name}.jsonl", "".join(line + "\n" for line in lines))
    return entry


def ref_history(store: Store, name: str) -> tuple[RefEntry, ...]:
    """Return the moves of a ref, oldest first; the last one is where it points."""
    path = store.refs / f"{name}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        entries = [RefEntry(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"cannot read the history of {name!r}", where=str(path), found=str(error)) from error
    current = read_ref(store, name)
    if current is not None and (not entries or entries[-1] != current):
        entries.append(current)
    return tuple(entries)


def previous(store: Store, name: str) -> RefEntry | None:
    """Return the newest entry whose artifact is another than the current one, or None."""
    history = ref_history(store, name)
    for entry in reversed(history[:-1]):
        if entry.fingerprint != history[-1].fingerprint:
            return entry
    return None


def ref_names(store: Store) -> list[str]:
    """Return the names of all refs."""
    if not store.refs.is_dir():
        return []
    return sorted(path.name for path in store.refs.iterdir() if _NAME.match(path.name) and path.is_file())


def user_name() -> str:
    """Return who is at the keyboard, for the history of a ref."""
    return os.environ.get("USER") or os.environ.get("LOGNAME") or f"uid {os.getuid()}"


def _line(entry: RefEntry) -> str:
    return json.dumps(dataclasses.asdict(entry), ensure_ascii=False)
