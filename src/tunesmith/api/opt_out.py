"""Takedown: what an opt-out touches, marked, and bundles that it touches refused.

What lives here: surveys of a whole store, marks, and the question that promote and serve ask. What does not: following
rows (`api.survey`), dropping rows from the next data version (`curate.opt_out`).

    takedown(OptOut(subjects=frozenset({"C-20777"})), note="ticket 81")
    refuse_taken_down(store, bundle)          # GateError

A takedown holds for bundles that are made later, too: a bundle is asked for the rows that its own lineage trained on,
so another recipe, or another run, does not get around it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.api.survey import Survey, Touched, Use, ancestors, survey, survey_json
from tunesmith.core.artifact import Artifact
from tunesmith.core.marks import Mark, add_mark, in_force, lift_mark
from tunesmith.core.refs import ref_history, ref_names, user_name
from tunesmith.core.runs import records
from tunesmith.core.store import Store, read_manifest
from tunesmith.data.policy import OptOut
from tunesmith.errors import GateError, PlanError
from tunesmith.types import JSON

WHAT = "takedown"
REFUSED = (Use.CARRIES, Use.TEXT)
"""Bundles of these uses are neither promoted nor served."""
MARKED = (Use.TRAINED, Use.CARRIES, Use.TEXT, Use.CHOSEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefPointer:
    """A ref whose bundle is touched."""

    ref: str
    fingerprint: str
    now: bool
    """Whether it points there now, or did before."""
    use: Use


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A stage that stopped, or is at work, over artifacts that hold the rows: its checkpoints may hold them as well."""

    kind: str
    fingerprint: str
    run: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Takedown:
    """What a takedown found and did."""

    opt_out: OptOut
    found: Survey
    runs: Mapping[str, tuple[str, ...]]
    """Fingerprint -> runs that made or used it."""
    refs: tuple[RefPointer, ...]
    unfinished: tuple[Unfinished, ...]
    mark: Mark | None
    """`None` for a dry run."""
    known_sources: tuple[str, ...]
    """Where nothing was found: the sources that the store knows."""

    def to_json(self) -> dict[str, JSON]:
        """Return all of it, for programs."""
        return {
            "opt_out": _opt_out_json(self.opt_out),
            "mark": None if self.mark is None else self.mark.id,
            **survey_json(self.found),
            "runs": {fingerprint: list(names) for fingerprint, names in self.runs.items()},
            "refs": [
                {"ref": entry.ref, "fingerprint": entry.fingerprint, "now": entry.now, "use": entry.use.value}
                for entry in self.refs
            ],
            "unfinished": [
                {"kind": part.kind, "fingerprint": part.fingerprint, "run": part.run, "folder": str(part.folder)}
                for part in self.unfinished
            ],
            "refused": [part.artifact.fingerprint for part in refused(self.found.touched)],
        }


def refused(touched: Sequence[Touched]) -> list[Touched]:
    """Return the bundles that may no longer be promoted or served."""
    return [part for part in touched if part.artifact.kind == "bundle" and part.use in REFUSED]


def takedown(opt_out: OptOut, *, store: Store, note: str = "", dry_run: bool = False) -> Takedown:
    """Find what an opt-out touches in the whole store and, unless dry, mark it.

    The same takedown again adds a mark only where it finds more than before. Raises `PlanError` for an empty opt-out.
    """
    if not (opt_out.sources or opt_out.subjects or opt_out.content_hashes):
        raise PlanError(
            "a takedown must say what goes",
            expected="--source, --subject, --content or --file",
            hint="tunesmith takedown --subject C-20777 --dry-run",
        )
    artifacts = list(store.all())
    found = survey(artifacts, opt_out)
    mark = None if dry_run else _mark(store, opt_out, found, note=note)
    uses = {part.artifact.fingerprint: part.use for part in found.touched}
    return Takedown(
        opt_out=opt_out,
        found=found,
        runs=_runs(store, set(uses)),
        refs=tuple(_refs(store, uses)),
        unfinished=tuple(_unfinished(store, {name for name, use in uses.items() if use in MARKED})),
        mark=mark,
        known_sources=() if found.rows else _sources(artifacts),
    )


def lift(mark_id: str, *, store: Store, note: str) -> Mark:
    """Take a takedown back. Raises `StoreError` where none is called that, `PlanError` without a reason."""
    if not note.strip():
        raise PlanError("lifting a takedown needs a reason", expected="--note TEXT", hint="it is kept for ever")
    return lift_mark(store, mark_id, what=WHAT, who=user_name(), note=note)


def takedowns(store: Store) -> list[Mark]:
    """Return the takedowns in force, oldest first."""
    return in_force(store, WHAT)


def refuse_taken_down(store: Store, bundle: Path, artifact: Artifact | None, *, name: str, verb: str) -> None:
    """Refuse a bundle that a takedown in force touches. Raises `GateError` naming the takedown and a way forward."""
    marks = takedowns(store)
    if not marks:
        return
    if artifact is None:
        manifest = read_manifest(bundle.parent)
        artifact = None if manifest is None else Artifact(root=bundle.parent, manifest=manifest)
    adapter = _adapter_sha256(bundle)
    lineage: list[Artifact] | None = None
    for mark in marks:
        use = next((_use_named(mark, key) for key in (artifact and artifact.fingerprint, adapter) if key), None)
        if use is None and artifact is not None:
            if lineage is None:
                lineage = ancestors(artifact, {made.fingerprint: made for made in store.all()})
            fresh = survey(lineage, _opt_out(mark)).touched
            use = next((part.use.value for part in refused(fresh)), None)
        if use is not None:
            raise _refusal(store, mark, bundle, use=use, name=name, verb=verb)


def _use_named(mark: Mark, key: str) -> str | None:
    """Return why a mark refuses a bundle, by its fingerprint or by its adapter's sha256."""
    refusals: Mapping[str, str] = mark.body["refused"]
    return refusals.get(key)


def _refusal(store: Store, mark: Mark, bundle: Path, *, use: str, name: str, verb: str) -> GateError:
    instead = _untouched(store)
    hint = f"set the opt-out in curate.opt_out and run the recipe again (tunesmith takedown --show {mark.id[-8:]})"
    if instead is not None:
        hint += f"; until then `tunesmith promote {instead[:12]}` goes back to the newest untouched bundle"
    return GateError(
        f"the bundle of {name} may not be {verb}: a takedown names rows of it",
        where=str(bundle),
        expected="a bundle without rows that were taken down",
        found=f"{use}; takedown {mark.id} by {mark.who}" + (f": {mark.note}" if mark.note else ""),
        hint=hint,
    )


def _untouched(store: Store) -> str | None:
    """Return the newest bundle of production's history that no takedown marks."""
    marks = takedowns(store)
    for entry in reversed(ref_history(store, "production")):
        if store.place("bundle", entry.fingerprint).is_dir() and all(
            _use_named(mark, entry.fingerprint) is None for mark in marks
        ):
            return entry.fingerprint
    return None


def _mark(store: Store, opt_out: OptOut, found: Survey, *, note: str) -> Mark:
    refusals: dict[str, str] = {}
    for part in refused(found.touched):
        refusals[part.artifact.fingerprint] = part.use.value
        adapter = _adapter_sha256(part.artifact.path)
        if adapter is not None and part.use is Use.CARRIES:
            refusals[adapter] = part.use.value
    body: dict[str, JSON] = {
        "opt_out": _opt_out_json(opt_out),
        "rows": {item.row.row_id: item.fate.value for item in found.rows},
        "artifacts": {
            part.artifact.fingerprint: {"kind": part.artifact.kind, "use": part.use.value, "rows": len(part.row_ids)}
            for part in found.touched
            if part.use in MARKED
        },
        "refused": refusals,
    }
    for mark in takedowns(store):
        if dict(mark.body) == body:
            return mark
    return add_mark(store, what=WHAT, who=user_name(), note=note, body=body)


def _adapter_sha256(bundle: Path) -> str | None:
    try:
        meta = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # `serve.bundle.load_bundle` says what is wrong with the file
    value = meta.get("adapter_sha256")
    return value if isinstance(value, str) else None


def _opt_out_json(opt_out: OptOut) -> dict[str, JSON]:
    lists = {
        "sources": sorted(opt_out.sources),
        "subjects": sorted(opt_out.subjects),
        "content_hashes": sorted(opt_out.content_hashes),
    }
    return {key: values for key, values in lists.items() if values}


def _opt_out(mark: Mark) -> OptOut:
    lists: Mapping[str, list[str]] = mark.body["opt_out"]
    return OptOut(**{key: frozenset(values) for key, values in lists.items()})


def _runs(store: Store, fingerprints: set[str]) -> dict[str, tuple[str, ...]]:
    names: dict[str, list[str]] = {}
    for record in records(store):
        for stage in record.stages.values():
            if stage.fingerprint in fingerprints and stage.status in ("done", "cached"):
                names.setdefault(stage.fingerprint, []).append(record.run)
    return {fingerprint: tuple(found) for fingerprint, found in names.items()}


def _unfinished(store: Store, fingerprints: set[str]) -> Iterator[Unfinished]:
    """Yield the attempts whose inputs hold the rows, by the records of the runs that made them."""
    seen: set[Path] = set()
    for record in records(store):
        for stage in record.stages.values():
            folder = store.partials / f"{stage.fingerprint}.work"
            fed = {wire["fingerprint"] for wire in stage.inputs.values()}
            if folder not in seen and folder.is_dir() and fed & fingerprints:
                seen.add(folder)
                yield Unfinished(kind=stage.kind, fingerprint=stage.fingerprint, run=record.run, folder=folder)


def _refs(store: Store, uses: Mapping[str, Use]) -> list[RefPointer]:
    found = []
    for name in ref_names(store):
        history = ref_history(store, name)
        current = history[-1].fingerprint if history else None
        for fingerprint in dict.fromkeys(entry.fingerprint for entry in reversed(history)):
            if fingerprint in uses:
                found.append(
                    RefPointer(ref=name, fingerprint=fingerprint, now=fingerprint == current, use=uses[fingerprint])
                )
    return found


def _sources(artifacts: Sequence[Artifact]) -> tuple[str, ...]:
    names: set[str] = set()
    for artifact in artifacts:
        sources = artifact.summary.get("sources")
        if artifact.kind == "rows" and isinstance(sources, Mapping):
            names.update(sources)
    return tuple(sorted(names))
