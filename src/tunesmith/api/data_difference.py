"""Data difference: which rows two data versions have or lack, which changed, and why.

What lives here: comparing two artifacts of rows (what curate made) or of splits. What does not: settings and figures of
runs (`api.difference`).

A row is the same row where its id is the same (same place, same content as it came in). One whose content stands at
another place *moved*; one that kept its prompt, or its place and its answer, and whose text, licence, labels or side
differ, *changed*.
The reason is looked for in the lineage and the rejects of the version that treats the row otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.artifact import Artifact
from tunesmith.core.store import Store
from tunesmith.data.lineage import read_lineage
from tunesmith.data.write import content_hash, iter_rows, read_rejects
from tunesmith.types import JSON, Row

KINDS = ("rows", "splits")
SIDES = ("train", "val", "test")
_FEWEST_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDifference:
    """One row that the versions do not have in common."""

    row_id: str
    source: str
    place: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDifference:
    """What differs between the data versions A and B."""

    before: str
    after: str
    rows_before: int
    rows_after: int
    added: tuple[RowDifference, ...]
    removed: tuple[RowDifference, ...]
    changed: tuple[RowDifference, ...]
    moved: int
    """Rows whose content is the same and stands at another place, or came from another source."""
    sources: Mapping[str, tuple[int, int]]
    """Source -> rows in A, rows in B."""

    def to_json(self) -> dict[str, JSON]:
        """Return all of it, for programs."""

        def rows(found: tuple[RowDifference, ...]) -> list[JSON]:
            return [
                {"row_id": row.row_id, "source": row.source, "place": row.place, "reason": row.reason} for row in found
            ]

        return {
            "before": self.before,
            "after": self.after,
            "rows_before": self.rows_before,
            "rows_after": self.rows_after,
            "added": rows(self.added),
            "removed": rows(self.removed),
            "changed": rows(self.changed),
            "moved": self.moved,
            "sources": {name: {"before": a, "after": b} for name, (a, b) in self.sources.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    row: Row
    content: str
    side: str | None

    @property
    def prompt(self) -> str:
        return content_hash(self.row.conversation.prompt)

    @property
    def place(self) -> str:
        return f"{self.row.provenance.path}:{self.row.provenance.line}"


class _Version:
    """One side: its rows, and why others are not among them."""

    def __init__(self, artifact: Artifact, store: Store) -> None:
        self.name = f"{artifact.kind} {artifact.fingerprint[:12]}"
        self.entries = {entry.row.id: entry for entry in _entries(artifact)}
        self.by_content: dict[str, str] = {}
        for row_id, entry in self.entries.items():
            self.by_content.setdefault(entry.content, row_id)
        self.by_prompt = {entry.prompt: row_id for row_id, entry in reversed(self.entries.items())}
        self.by_place = {(e.row.provenance.source, e.place): row_id for row_id, e in self.entries.items()}
        self.drops: dict[str, str] = {}
        self.changes: dict[str, list[str]] = {}
        for part in _upstream(artifact, store):
            self._read_account(part.path)

    def _read_account(self, folder: Path) -> None:
        if (folder / "rejects.parquet").is_file():
            for reject in read_rejects(folder / "rejects.parquet"):
                words = f"{reject.reason}: {reject.detail}"
                self.drops.setdefault(reject.row_id, words)
                if reject.row is not None:
                    self.drops.setdefault(content_hash(reject.row.conversation), words)
        if (folder / "lineage.parquet").is_file():
            for action in read_lineage(folder / "lineage.parquet"):
                if action.action == "drop":
                    self.drops.setdefault(action.before_hash, f"{action.reason}: {action.detail}")
                elif action.action == "change":
                    self.changes.setdefault(action.row_id, []).append(f"{action.reason}: {action.detail}")


def _entries(artifact: Artifact) -> Iterator[_Entry]:
    names = [(None, "rows.parquet")] if artifact.kind == "rows" else [(side, f"{side}.parquet") for side in SIDES]
    for side, name in names:
        for row in iter_rows(artifact.path / name):
            yield _Entry(row=row, content=content_hash(row.conversation), side=side)


def _upstream(artifact: Artifact, store: Store) -> list[Artifact]:
    """Return the artifacts of rows that one was made from, itself included where it is one."""
    found = [artifact] if artifact.kind == "rows" else []
    for fingerprint in artifact.manifest.inputs.values():
        source = store.find("rows", fingerprint) if isinstance(fingerprint, str) else None
        if source is not None:
            found += _upstream(source, store)
    return found


def find_version(store: Store, name: str) -> Artifact | None:
    """Return the data version that `name` means: an artifact's folder, or the beginning of one's fingerprint."""
    folder = Path(name)
    root = folder.parent if folder.name == "data" else folder
    fingerprint = root.name if (root / "manifest.json").is_file() else name
    if len(fingerprint) < _FEWEST_DIGITS:
        return None
    found = [made for kind in KINDS for made in store.all(kind) if made.fingerprint.startswith(fingerprint)]
    return found[0] if len(found) == 1 else None


def data_difference(before: Artifact, after: Artifact, store: Store) -> DataDifference:
    """Compare two data versions of one kind."""
    a, b = _Version(before, store), _Version(after, store)
    pairs, moved = _pairs(a, b)
    paired = set(pairs.values())
    added = [entry for row_id, entry in b.entries.items() if row_id not in paired]
    removed = [entry for row_id, entry in a.entries.items() if row_id not in pairs]
    changed = []
    for one, other in pairs.items():
        what = _changes(a.entries[one], b.entries[other])
        if what:
            reasons = [*what, *(words for words in b.changes.get(other, []) if words not in a.changes.get(one, []))]
            reasons += [
                f"no longer {words}" for words in a.changes.get(one, []) if words not in b.changes.get(other, [])
            ]
            changed.append(_row(b.entries[other], "; ".join(reasons)))
    came, went = (Counter(e.row.provenance.source for e in side.entries.values()) for side in (a, b))
    return DataDifference(
        before=a.name,
        after=b.name,
        rows_before=len(a.entries),
        rows_after=len(b.entries),
        added=tuple(_row(entry, _absence(entry, a, "new: A never read it", "A dropped it")) for entry in added),
        removed=tuple(_row(entry, _absence(entry, b, "gone: B never read it", "B dropped it")) for entry in removed),
        changed=tuple(changed),
        moved=moved,
        sources={name: (came[name], went[name]) for name in sorted({*came, *went})},
    )


def _pairs(a: _Version, b: _Version) -> tuple[dict[str, str], int]:
    """Return id in A -> id in B of the rows that are the same, and how many of them moved."""
    pairs = {row_id: row_id for row_id in a.entries if row_id in b.entries}
    taken = set(pairs.values())
    moved = 0
    for by in ("content", "prompt", "place"):
        for row_id, entry in a.entries.items():
            if row_id in pairs:
                continue
            if by == "content":
                other = b.by_content.get(entry.content)
            elif by == "prompt":
                other = b.by_prompt.get(entry.prompt)
            else:
                other = b.by_place.get((entry.row.provenance.source, entry.place))
                # An edited line: a row that merely stands where another stood has nothing in common with it.
                if other is not None and not _alike(entry, b.entries[other]):
                    other = None
            if other is not None and other not in taken:
                pairs[row_id] = other
                taken.add(other)
                moved += by == "content"
    return pairs, moved


def _alike(one: _Entry, other: _Entry) -> bool:
    mine, theirs = one.row.conversation, other.row.conversation
    return mine.prompt.messages == theirs.prompt.messages or mine.answer == theirs.answer


def _changes(one: _Entry, other: _Entry) -> list[str]:
    a, b = one.row, other.row
    parts = {
        "text": (one.content, other.content),
        "side": (one.side or a.split, other.side or b.split),
        "licence": (a.provenance.license, b.provenance.license),
        "kind": (a.provenance.kind.value, b.provenance.kind.value),
        "subject": (a.provenance.subject, b.provenance.subject),
        "group": (a.group, b.group),
        "labels": (dict(a.labels), dict(b.labels)),
        "worse answer": (a.rejected, b.rejected),
        "desirable": (a.desirable, b.desirable),
    }
    quiet = ("text", "subject", "worse answer")
    return [
        f"{name} differs" if name in quiet else f"{name}: {_word(left)} is now {_word(right)}"
        for name, (left, right) in parts.items()
        if left != right
    ]


def _word(value: JSON) -> str:
    return "nothing" if value is None else str(value)


def _absence(entry: _Entry, other: _Version, unknown: str, dropped: str) -> str:
    """Return why a version lacks a row."""
    found = other.drops.get(entry.row.id) or other.drops.get(entry.content)
    return unknown if found is None else f"{dropped}: {found}"


def _row(entry: _Entry, reason: str) -> RowDifference:
    return RowDifference(row_id=entry.row.id, source=entry.row.provenance.source, place=entry.place, reason=reason)
