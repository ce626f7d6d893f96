"""Survey: what became of the rows that an opt-out names, over any set of artifacts.

    read (ingest, curate) -> split -> encoded -> trained on -> carried by a bundle, an evaluation, traces
                     \\-> dropped, with its reason

What lives here: following rows by id through files, and weights by the manifests' inputs. What does not: refs, marks
and refusals (`api.opt_out`), what one file holds (`data.takedown`).
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.core.artifact import Artifact
from tunesmith.data.policy import OptOut
from tunesmith.data.takedown import HeldRow, NamedRow, held_rows, holds_rejects, is_ledger, named_rows
from tunesmith.data.write import content_hash
from tunesmith.types import JSON, Conversation

WEIGHTS = ("adapter", "checkpoint", "model")
"""Kinds that hold weights which learn from rows."""
USED_KINDS = ("splits", "examples")
"""Kinds whose rows have passed curation."""
_ID = re.compile(r"\b[0-9a-f]{16}\b")
_TEXT_SUFFIXES = (".json", ".jsonl", ".md", ".txt", ".html")
_SIDE = re.compile(r"^(train|val|test)\b")


class Use(enum.StrEnum):
    """What an artifact has to do with the rows, the weightiest first."""

    TRAINED = "its weights were trained on them"
    CARRIES = "it carries weights that were trained on them"
    TEXT = "its files hold them"
    CHOSEN = "its weights were chosen by their loss"
    MEASURED = "it was made with such weights"
    REJECTED = "its files hold them among dropped rows"
    NAMED = "its files name them"


class Fate(enum.StrEnum):
    """How far a row came, the farthest first."""

    TRAINED = "trained on"
    CHOSEN = "used to choose weights, never trained on"
    USED = "in a data version, never trained on"
    DROPPED = "dropped before training"
    READ = "read, and used by nothing yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """An artifact that has to do with the rows."""

    artifact: Artifact
    use: Use
    row_ids: frozenset[str]
    files: tuple[str, ...]
    """The files that hold the rows, or name them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowedRow:
    """One row, and how far it came."""

    row: NamedRow
    fate: Fate
    reasons: tuple[str, ...]
    """`stage: reason` of each drop."""
    twins: tuple[str, ...]
    """Ids of rows that it was dropped for as a duplicate: the same words may have stayed under another name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The answer."""

    rows: tuple[FollowedRow, ...]
    touched: tuple[Touched, ...]


@dataclass(slots=True)
class _Held:
    """What one artifact's own files hold."""

    by_file: dict[str, list[HeldRow]] = field(default_factory=dict)
    rejected: dict[str, list[HeldRow]] = field(default_factory=dict)
    naming: dict[str, frozenset[str]] = field(default_factory=dict)
    """Files that say their ids; pages and samples among these may quote them."""

    def ids(self, *, sides: Sequence[str] = ("train", "val", "test", "")) -> frozenset[str]:
        """Rows in use in the files of some sides; a file that is called after no side is of the side ``."""
        return frozenset(row.row_id for name, rows in self.by_file.items() if _side(name) in sides for row in rows)


def _side(file: str) -> str:
    found = _SIDE.match(Path(file).name)
    return found.group(1) if found else ""


def survey(artifacts: Iterable[Artifact], opt_out: OptOut) -> Survey:
    """Follow the rows that an opt-out names through artifacts. Inputs that are not among them are not followed."""
    known = {artifact.fingerprint: artifact for artifact in artifacts}
    named: dict[str, NamedRow] = {}
    prompts: dict[str, str] = {}
    for artifact in known.values():
        for path in _files(artifact, ".parquet"):
            for row in named_rows(path, opt_out):
                named.setdefault(row.row_id, row)
                for digest in (row.content, row.prompt):
                    if digest is not None:
                        prompts[digest] = row.row_id
    if not named:
        return Survey(rows=(), touched=())
    ids = frozenset(named)
    held = {fingerprint: _held(artifact, ids, prompts) for fingerprint, artifact in known.items()}
    touched = list(_touched(known, held))
    return Survey(rows=tuple(_follow(named, known, held, touched)), touched=tuple(touched))


def _files(artifact: Artifact, *suffixes: str) -> Iterator[Path]:
    for file in artifact.manifest.outputs:
        if file.path.endswith(suffixes):
            yield artifact.path / file.path


def _held(artifact: Artifact, ids: frozenset[str], prompts: Mapping[str, str]) -> _Held:
    out = _Held()
    for path in _files(artifact, ".parquet"):
        name = path.relative_to(artifact.path).as_posix()
        rows = [] if is_ledger(path) else held_rows(path, ids)
        if rows:
            (out.rejected if holds_rejects(path) else out.by_file)[name] = rows
    for path in _files(artifact, *_TEXT_SUFFIXES):
        name = path.relative_to(artifact.path).as_posix()
        text = path.read_text(encoding="utf-8", errors="replace")
        if name == "golden.jsonl":
            out.by_file[name] = [HeldRow(row_id=row_id) for row_id in sorted(_golden_rows(text, prompts))]
        elif found := ids & set(_ID.findall(text)):
            out.naming[name] = found
    return out


def _golden_rows(text: str, prompts: Mapping[str, str]) -> frozenset[str]:
    """Return the rows whose prompts stand among a bundle's golden vectors, word for word."""
    found = set()
    for line in text.splitlines():
        value = json.loads(line)
        digest = content_hash(Conversation.from_json(value.get("conversation", value)))
        if digest in prompts:
            found.add(prompts[digest])
    return frozenset(found)


def _touched(known: Mapping[str, Artifact], held: Mapping[str, _Held]) -> Iterator[Touched]:
    learnt: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
    for fingerprint in _in_order(known):
        artifact = known[fingerprint]
        own = held[fingerprint]
        inputs = [name for name in _inputs(artifact) if name in known]
        trained = frozenset[str]().union(*(learnt[name][0] for name in inputs))
        chosen = frozenset[str]().union(*(learnt[name][1] for name in inputs))
        text = own.ids()
        rejected = frozenset(row.row_id for rows in own.rejected.values() for row in rows)
        naming = frozenset[str]().union(*own.naming.values())
        if artifact.kind in WEIGHTS:
            for name in inputs:
                trained |= held[name].ids(sides=("train", ""))
                chosen |= held[name].ids(sides=("val",))
        learnt[fingerprint] = trained, chosen - trained
        rows = trained | chosen | text | rejected | naming
        if not rows:
            continue
        use = _use(artifact, trained=trained, chosen=chosen, text=text, rejected=rejected)
        files = [name for part in (own.by_file, own.rejected, own.naming) for name, found in part.items() if found]
        yield Touched(artifact=artifact, use=use, row_ids=rows, files=tuple(sorted(files)))


def _use(
    artifact: Artifact,
    *,
    trained: frozenset[str],
    chosen: frozenset[str],
    text: frozenset[str],
    rejected: frozenset[str],
) -> Use:
    if trained and artifact.kind in WEIGHTS:
        return Use.TRAINED
    if trained and artifact.kind == "bundle":
        return Use.CARRIES
    if text:
        return Use.TEXT
    if chosen and (artifact.kind in WEIGHTS or artifact.kind == "bundle"):
        return Use.CHOSEN
    if trained or chosen:
        return Use.MEASURED
    return Use.REJECTED if rejected else Use.NAMED


def _inputs(artifact: Artifact) -> list[str]:
    out: list[str] = []
    for value in artifact.manifest.inputs.values():
        out += [value] if isinstance(value, str) else [item for item in value or () if isinstance(item, str)]
    return out


def _in_order(known: Mapping[str, Artifact]) -> list[str]:
    """Return fingerprints so that inputs stand before what was made from them."""
    order: list[str] = []
    done: set[str] = set()
    stack = [(fingerprint, False) for fingerprint in sorted(known, reverse=True)]
    while stack:
        fingerprint, ready = stack.pop()
        if ready:
            order.append(fingerprint)
        elif fingerprint not in done:
            done.add(fingerprint)
            stack.append((fingerprint, True))
            stack += [(name, False) for name in _inputs(known[fingerprint]) if name in known and name not in done]
    return order


def ancestors(artifact: Artifact, known: Mapping[str, Artifact]) -> list[Artifact]:
    """Return an artifact and all of `known` that it was made from."""
    found = {artifact.fingerprint: artifact}
    stack = [artifact]
    while stack:
        for name in _inputs(stack.pop()):
            if name in known and name not in found:
                found[name] = known[name]
                stack.append(known[name])
    return list(found.values())


def _follow(
    named: Mapping[str, NamedRow],
    known: Mapping[str, Artifact],
    held: Mapping[str, _Held],
    touched: Sequence[Touched],
) -> Iterator[FollowedRow]:
    trained: set[str] = set()
    chosen: set[str] = set()
    for part in touched:
        if part.artifact.kind in WEIGHTS:
            inputs = [held[name] for name in _inputs(part.artifact) if name in held]
            for own in inputs:
                trained |= own.ids(sides=("train", ""))
                chosen |= own.ids(sides=("val",))
    used = {row for name, own in held.items() if known[name].kind in USED_KINDS for row in own.ids()}
    drops: dict[str, dict[str, str | None]] = {}
    for name, own in held.items():
        for rows in own.rejected.values():
            for dropped in rows:
                reason = f"{known[name].manifest.stage}: {dropped.reason}"
                drops.setdefault(dropped.row_id, {})[reason] = dropped.matched_id
    for row_id, row in named.items():
        fate = (
            Fate.TRAINED
            if row_id in trained
            else Fate.CHOSEN
            if row_id in chosen
            else Fate.USED
            if row_id in used
            else Fate.DROPPED
            if row_id in drops
            else Fate.READ
        )
        mine = drops.get(row_id, {})
        twins = sorted({twin for twin in mine.values() if twin is not None and twin not in named})
        yield FollowedRow(row=row, fate=fate, reasons=tuple(sorted(mine)), twins=tuple(twins))


def survey_json(found: Survey) -> dict[str, JSON]:
    """Return what a survey found, for programs."""
    return {
        "rows": [
            {
                "row_id": item.row.row_id,
                "place": f"{item.row.path}:{item.row.line}",
                "source": item.row.source,
                "named_by": item.row.why,
                "fate": item.fate.value,
                "dropped": list(item.reasons),
                "twins": list(item.twins),
            }
            for item in found.rows
        ],
        "artifacts": [
            {
                "kind": part.artifact.kind,
                "fingerprint": part.artifact.fingerprint,
                "use": part.use.value,
                "rows": len(part.row_ids),
                "files": list(part.files),
            }
            for part in found.touched
        ],
    }
