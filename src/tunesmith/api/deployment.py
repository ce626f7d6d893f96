"""Deployment: which bundle a name means, serving it, promoting it and rolling back.

What lives here: from names to artifacts, and the rule that a bundle whose gates failed is not promoted. What does not:
the server (`serve`), the moves of a ref (`core.refs`), which bundles a takedown refuses (`api.opt_out`).

    find_deployable("production")             # a ref, a run, a fingerprint or a folder
    promote("2025-01-31-1200-quickstart", to="production")
    rollback("production")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.api.opt_out import refuse_taken_down
from tunesmith.core.artifact import Artifact
from tunesmith.core.refs import RefEntry, move_ref, previous, read_ref, ref_artifact, ref_names, user_name
from tunesmith.core.runs import artifact_of, find_run, run_names
from tunesmith.core.store import Store
from tunesmith.errors import GateError, StoreError
from tunesmith.types import Log, Message, ignore

if TYPE_CHECKING:
    from tunesmith.serve.app import Settings
    from tunesmith.serve.process import Listening

PathLike = str | Path
KIND = "bundle"
MARK = "bundle.json"
"""The file by which a folder is known to be a bundle."""
REFS = ("production", "staging")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployable:
    """A bundle and the base model that it belongs to."""

    bundle: Path
    base: Path | None
    """Hugging Face folder; `None` where the store does not have it."""
    name: str
    """What was found: `ref production`, `run 2025-...`, `artifact 1a2b...` or `folder ...`."""
    artifact: Artifact | None


def find_deployable(target: PathLike | None = None, *, store: PathLike | None = None) -> Deployable:
    """Return the bundle that a name means: a folder, a ref, a run, a recipe's name, or a fingerprint's beginning.

    Without a name it is `production` where that was promoted, else the newest run's bundle. Raises `StoreError`.
    """
    place = _store(store)
    folder = None if target is None else _bundle_folder(Path(target))
    if folder is not None:
        return Deployable(bundle=folder, base=_base_of(place, folder), name=f"folder {target}", artifact=None)
    if target is None and read_ref(place, REFS[0]) is not None:
        target = REFS[0]
    artifact, name = _find(place, None if target is None else str(target))
    return Deployable(bundle=artifact.path, base=_base_of(place, artifact.path), name=name, artifact=artifact)


def _find(store: Store, target: str | None) -> tuple[Artifact, str]:
    """Return the bundle of a name; without one, the newest run's."""
    if target in ref_names(store):
        return ref_artifact(store, str(target)), f"ref {target}"
    if target is not None and len(target) >= 6:
        fitting = [artifact for artifact in store.all(KIND) if artifact.fingerprint.startswith(target)]
        if len(fitting) == 1:
            return fitting[0], f"artifact {fitting[0].fingerprint[:12]}"
    if target is not None and not run_names(store):
        raise StoreError(
            f"nothing here is called {target!r}",
            where=str(store.root),
            expected="a bundle's folder, a ref, a run or a fingerprint",
            hint="tunesmith run RECIPE makes a bundle; --store DIR names another store",
        )
    run = find_run(store, target)
    records = [record for record in run.stages.values() if record.kind == KIND]
    artifact = artifact_of(store, records[0]) if records else None
    if artifact is None:
        raise StoreError(
            f"the run {run.run} has no finished bundle",
            where=str(store.runs / run.run),
            found=f"bundle: {records[0].status}" if records else "no stage that makes a bundle",
            hint=f"tunesmith run {run.recipe_path}",
        )
    return artifact, f"run {run.run}"


def promote(
    target: PathLike | None = None, *, to: str = "production", note: str = "", store: PathLike | None = None
) -> RefEntry:
    """Point a ref at a bundle of the store: without a name, the newest run's.

    Raises `GateError` naming each gate that does not hold, or the takedown that names rows of the bundle.
    """
    place = _store(store)
    if target is not None and _bundle_folder(Path(target)) is not None:
        raise StoreError(
            "a folder cannot be promoted: only what the store made has a history",
            found=str(target),
            hint="give a run, a recipe's name, a fingerprint or another ref",
        )
    artifact, name = _find(place, None if target is None else str(target))
    refuse_taken_down(place, artifact.path, artifact, name=name, verb="promoted")
    gates = json.loads((artifact.path / "gates.json").read_text(encoding="utf-8"))
    if not gates["promotable"]:
        failed = [gate for gate in gates["verdicts"] if gate["verdict"] != "pass"]
        reasons = "; ".join(f"{gate['criterion']} ({gate['verdict']}: {gate['explanation']})" for gate in failed)
        raise GateError(
            f"the bundle of {name} may not be promoted",
            where=str(artifact.path / "gates.json"),
            expected="every acceptance criterion to pass",
            found=reasons or gates["reason"],
            hint="improve the model, or change contract.criteria in the recipe and run it again",
        )
    return move_ref(place, to, artifact, who=user_name(), report=artifact.manifest.inputs.get("evaluation"), note=note)


def rollback(ref: str = "production", *, note: str = "", store: PathLike | None = None) -> RefEntry:
    """Point a ref at the bundle that it pointed at before.

    Raises `StoreError` where there was none, `GateError` where a takedown names rows of it.
    """
    place = _store(store)
    current = read_ref(place, ref)
    if current is None:
        known = ", ".join(ref_names(place)) or "none yet"
        raise StoreError(
            f"there is no ref {ref!r}", where=str(place.refs), expected=known, hint="tunesmith promote RUN"
        )
    before = previous(place, ref)
    artifact = None if before is None else place.find(before.kind, before.fingerprint)
    if artifact is None or before is None:
        raise StoreError(
            f"{ref} has nothing to go back to",
            where=str(place.refs),
            found="only one bundle was promoted" if before is None else f"{before.fingerprint[:12]} is gone",
            hint="promote another bundle",
        )
    refuse_taken_down(place, artifact.path, artifact, name=f"{before.fingerprint[:12]}, before it,", verb="promoted")
    words = note or f"rolled back from {current.fingerprint[:12]}"
    return move_ref(place, ref, artifact, who=user_name(), report=before.report, note=words)


def serve(
    target: PathLike | None = None,
    *,
    base: PathLike | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    traces: str | None = None,
    settings: Settings | None = None,
    dtype: Literal["bundle", "float32", "bfloat16", "float16"] = "bundle",
    device: str = "auto",
    on_ready: Callable[[Listening], None],
    log: Log = ignore,
    store: PathLike | None = None,
) -> None:
    """Serve a bundle until SIGINT or SIGTERM.

    `traces` is a SQLAlchemy URL or a file; by default `traces.sqlite` in the store's folder. Raises `ServeError`,
    `ContractError` or `StoreError` where anything that must hold does not, `GateError` for a bundle with rows that
    were taken down.
    """
    from tunesmith.api.machine import this_machine
    from tunesmith.serve.app import Settings
    from tunesmith.serve.limits import Limits
    from tunesmith.serve.process import run_server

    found = find_deployable(target, store=store)
    refuse_taken_down(_store(store), found.bundle, found.artifact, name=found.name, verb="served")
    base_dir = Path(base) if base is not None else found.base
    if base_dir is None:
        raise StoreError(
            "the store does not have the base model of this bundle",
            where=str(found.bundle / "base.json"),
            found=str(json.loads((found.bundle / "base.json").read_text(encoding="utf-8"))["id"]),
            hint="give --base FOLDER, or run the recipe's fetch again",
        )
    run_server(
        found.bundle,
        base_dir,
        host=host,
        port=port,
        traces_url=traces_url(traces, store=store),
        settings=settings or Settings(limits=Limits()),
        redact=redact_messages,
        dtype=dtype,
        device=this_machine(device).device,
        on_ready=on_ready,
        log=log,
    )


def traces_url(traces: str | None, *, store: PathLike | None = None) -> str:
    """Return the SQLAlchemy URL of a trace database: a URL as it is, a file as SQLite, by default one in the store."""
    if traces is not None and "://" in traces:
        return traces
    path = Path(traces) if traces is not None else _store(store).root / "traces.sqlite"
    if traces is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path.absolute()}"


def redact_messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Replace personal data and secrets in the messages of one conversation, by the patterns that curate uses."""
    from tunesmith.data.redact import redact_row
    from tunesmith.types import Conversation, Provenance, Row

    row = Row(
        id="", conversation=Conversation(messages=tuple(messages)), provenance=Provenance(source="", path="", line=0)
    )
    return redact_row(row).row.conversation.messages


def _store(store: PathLike | None) -> Store:
    from tunesmith.api import open_store

    return open_store(store)


def _bundle_folder(path: Path) -> Path | None:
    for folder in (path, path / "data"):
        if (folder / MARK).is_file():
            return folder
    return None


def _base_of(store: Store, bundle: Path) -> Path | None:
    try:
        stated: dict[str, Any] = json.loads((bundle / "base.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # `serve.bundle.load_bundle` says what is wrong with the file
    artifact = store.find("base", str(stated.get("fingerprint")))
    return None if artifact is None else artifact.path / "model"
