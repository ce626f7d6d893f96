"""Marks: statements about finished artifacts that came later, such as "the rows of one person must go".

    .tunesmith/marks/2025-01-31T120000.000Z-1a2b3c4d.json      one mark a file, written whole, never changed

    add_mark(store, what="takedown", who="ada", note="ticket 81", body={...})
    in_force(store, "takedown")            -> marks that no later mark lifts, oldest first

Artifacts stay as they were made: a mark stands beside them, and who uses an artifact asks for its marks. A mark is
taken back by another one (`lift`), so the folder tells the whole story. What does not live here: what a mark means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from tunesmith.core.disk import sync_folder, write_atomically, writing
from tunesmith.core.events import now
from tunesmith.core.store import Store
from tunesmith.errors import StoreError, nearest
from tunesmith.types import JSON, canonical_json, sha256_hex

LIFT = "lift"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One statement."""

    id: str
    """Time and hash of what is said: sorts by time, and is a file's name."""
    what: str
    who: str
    when: str
    """ISO 8601, UTC."""
    note: str
    body: Mapping[str, JSON]


def add_mark(store: Store, *, what: str, who: str, note: str, body: Mapping[str, JSON]) -> Mark:
    """Write a mark; it is there whole or not at all. Raises `StoreError`."""
    when = now()
    said = {"what": what, "who": who, "when": when, "note": note, "body": dict(body)}
    mark = Mark(
        id=f"{when.replace(':', '')}-{sha256_hex(canonical_json(said))[:8]}",
        what=what,
        who=who,
        when=when,
        note=note,
        body=body,
    )
    folder = store.root / "marks"
    with writing(store.root):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{mark.id}.json", json.dumps(asdict(mark), indent=1, ensure_ascii=False))
        sync_folder(folder)
    return mark


def all_marks(store: Store) -> list[Mark]:
    """Return every mark, oldest first. Raises `StoreError` for one that cannot be read."""
    found = []
    for path in sorted((store.root / "marks").glob("*.json")):
        if path.name.startswith("."):
            continue
        try:
            found.append(Mark(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise StoreError("cannot read a mark", where=str(path), found=str(error)) from error
    return found


def in_force(store: Store, what: str) -> list[Mark]:
    """Return the marks of a sort that no later mark lifts, oldest first."""
    marks = all_marks(store)
    lifted = {mark.body["mark"] for mark in marks if mark.what == LIFT}
    return [mark for mark in marks if mark.what == what and mark.id not in lifted]


def lift_mark(store: Store, mark_id: str, *, what: str, who: str, note: str) -> Mark:
    """Take a mark back, by its id or the beginning of it. Raises `StoreError` where none in force is called that."""
    known = [mark.id for mark in in_force(store, what)]
    fitting = [known_id for known_id in known if known_id.startswith(mark_id) or known_id.endswith(mark_id)]
    if len(fitting) != 1:
        raise StoreError(
            f"no {what} in force is called {mark_id!r}" if not fitting else f"{len(fitting)} are called {mark_id!r}",
            where=str(store.root / "marks"),
            expected="the id of one, or its beginning or end",
            found=", ".join(nearest(mark_id, known)) or "none is in force",
        )
    return add_mark(store, what=LIFT, who=who, note=note, body={"mark": fitting[0]})
