"""Explanation: everything that is known of a row, a stage's artifact or a recipe key.

A row is looked for in every Parquet file of a run's artifacts, by its id or by the place it came from (`source:line` or
`file.jsonl:line`), so that what ingest refused, what curate did, where split put it and what encode made of it are one
answer. Which columns a file has decides what is said of it; no stage is known by name here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.artifact import Artifact
from tunesmith.core.engine import ENGINE_DOCS
from tunesmith.core.fields import KeyDoc, key_docs
from tunesmith.core.plan import PlannedStage
from tunesmith.core.repeats import REPEAT_DOCS
from tunesmith.core.runs import RunRecord, artifact_of
from tunesmith.core.stage import Stage
from tunesmith.core.store import Store
from tunesmith.errors import PlanError, nearest
from tunesmith.types import JSON

MAX_EXAMPLES = 5
_ID_COLUMNS = ("row_id", "id")
_MATCH_COLUMN = "matched_id"
_PLACE = re.compile(r"^(?P<source>.+):(?P<line>\d+)$")
_ID = re.compile(r"^[0-9a-f]{8,64}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing known: where it is written, and the fields that say it."""

    where: str
    """`curate: lineage.parquet`, or the part of a manifest."""
    fields: Mapping[str, JSON]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The answer to one question."""

    title: str
    facts: tuple[Fact, ...]


# ----------------------------------------------------------------------------------------------------------- rows


def looks_like_row(what: str) -> bool:
    """Whether `what` is written like a row id or a place of a source."""
    return bool(_ID.match(what) or _PLACE.match(what))


def explain_row(store: Store, record: RunRecord, *, what: str) -> Explanation:
    """Tell all that the artifacts of a run hold about a row. Raises `PlanError` where they hold nothing."""
    tables = list(_tables(store, record))
    ids = {what} if _ID.match(what) else _ids_at(tables, what)
    said: dict[str, dict[str, JSON]] = {}
    facts = [fact for name, path in tables for fact in _facts_in(name, path, what, ids, said)]
    if not facts:
        raise PlanError(
            f"no artifact of the run knows {what!r}",
            where=record.run,
            expected="a row id, or SOURCE:LINE as a source of the recipe or its file is called",
            found=f"{len(tables)} tables looked through",
            hint="rejects.parquet and rows.parquet of ingest list all ids",
        )
    return Explanation(title=f"row {what} in run {record.run}", facts=(*_in_short(facts, ids), *facts))


def _in_short(facts: list[Fact], ids: set[str]) -> Iterator[Fact]:
    """Yield for each row the farthest that it came: the table that dropped it, or the last one that holds it."""
    for row in sorted(ids):
        own = [fact for fact in facts if any(fact.fields.get(column) == row for column in _ID_COLUMNS)]
        drops = [fact for fact in own if fact.fields.get("stage") and "rejects" in fact.where]
        if drops:
            table, said = drops[-1].where.split(":")[0], _said(own, "reason")
            yield Fact(where="in short", fields={"row": row, "fate": f"dropped by {table}: {said}"})
        elif own:
            yield Fact(where="in short", fields={"row": row, "fate": f"kept; last seen in {own[-1].where}"})


def _said(facts: list[Fact], field: str) -> JSON:
    return next((fact.fields[field] for fact in reversed(facts) if field in fact.fields), "no reason is known")


def _tables(store: Store, record: RunRecord) -> Iterator[tuple[str, Path]]:
    for name, stage in record.stages.items():
        artifact = artifact_of(store, stage) if stage.status in ("done", "cached") else None
        if artifact is not None:
            for file in artifact.manifest.outputs:
                if file.path.endswith(".parquet"):
                    yield f"{name}: {file.path}", artifact.path / file.path


def _ids_at(tables: list[tuple[str, Path]], place: str) -> set[str]:
    """Return the ids of the rows that came from a line of a source."""
    ids: set[str] = set()
    for _, path in tables:
        for record in _matching(path, place, set()):
            ids.update(str(record[column]) for column in _ID_COLUMNS if record.get(column))
    return ids


def _facts_in(name: str, path: Path, what: str, ids: set[str], said: dict[str, dict[str, JSON]]) -> Iterator[Fact]:
    """Yield what a file says of the rows. What was `said` of a row before is said again only where it changed."""
    for record in _matching(path, what, ids):
        fields = {key: _shortened(value) for key, value in record.items() if value is not None}
        row = str(next((fields[column] for column in _ID_COLUMNS if column in fields), what))
        known = said.setdefault(row, {})
        fresh = {key: value for key, value in fields.items() if key in _ID_COLUMNS or known.get(key) != value}
        known.update(fields)
        yield Fact(where=name, fields=fresh)


def _matching(path: Path, what: str, ids: set[str]) -> list[dict[str, Any]]:
    """Return the records of a Parquet file that are about the ids, or about the place that `what` names."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    names = set(pq.read_schema(path).names)
    wanted: Any = None
    wanted_ids = sorted(ids)
    for column in (*_ID_COLUMNS, _MATCH_COLUMN):
        if column in names and wanted_ids:
            test = pc.field(column).isin(wanted_ids)
            wanted = test if wanted is None else wanted | test
    place = _PLACE.match(what)
    if place and "line" in names:
        for column in ("source", "path"):
            if column in names:
                test = (pc.field(column) == place["source"]) & (pc.field("line") == int(place["line"]))
                wanted = test if wanted is None else wanted | test
    if wanted is None:
        return []
    records: list[dict[str, Any]] = pq.read_table(path, filters=wanted).to_pylist()
    return records


def _shortened(value: Any) -> JSON:
    if isinstance(value, list):
        return [_shortened(item) for item in value] if len(value) <= 8 else f"{len(value)} values"
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items() if item is not None}
    if isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


# ---------------------------------------------------------------------------------------------------------- stages


def explain_stage(artifact: Artifact | None, planned: PlannedStage | None, *, table: str) -> Explanation:
    """Tell what made a stage's artifact, and whether and why it would run now."""
    facts = []
    if artifact is not None:
        manifest = artifact.manifest
        facts.append(
            Fact(
                where="made by",
                fields={
                    "stage": f"{manifest.stage} version {manifest.version}",
                    "fingerprint": manifest.fingerprint,
                    "digest": manifest.digest,
                    "artifact": str(artifact.root),
                    **{f"input {role}": value for role, value in manifest.inputs.items()},
                },
            )
        )
        facts.append(Fact(where="settings", fields=manifest.spec))
        facts.append(
            Fact(where="outputs", fields={file.path: f"{file.num_bytes:,} bytes" for file in manifest.outputs})
        )
        facts.append(Fact(where="figures", fields=manifest.summary))
        facts.append(Fact(where="circumstance", fields=manifest.provenance))
    if planned is not None:
        facts.append(Fact(where="now", fields={"would be": planned.status.value, "because": planned.reason}))
    return Explanation(title=f"stage {table}", facts=tuple(facts))


# ------------------------------------------------------------------------------------------------------------ keys


def explain_key(key: str, stages: Mapping[str, Stage], *, tables: Mapping[str, str]) -> Explanation:
    """Tell what a recipe key such as `train.learning_rate` is. `tables` maps names of a recipe's tables to stages.

    Raises `PlanError` with the nearest keys where there is none.
    """
    if key in ENGINE_DOCS:
        said = {name: doc for name, doc in ENGINE_DOCS.items() if name == key or name.startswith(f"{key}.")}
        return Explanation(title=key, facts=tuple(Fact(where=name, fields={"what": doc}) for name, doc in said.items()))
    table, _, rest = key.partition(".")
    stage = stages.get(tables.get(table, table))
    if stage is None:
        raise PlanError(
            f"nothing here is called {key!r}",
            expected="a row id, SOURCE:LINE, a stage, or a recipe key such as train.learning_rate",
            hint=f"nearest stages: {', '.join(nearest(table, stages))}",
        )
    docs = key_docs(stage.spec_type)
    if not rest:
        first = (stage.function.__doc__ or "").strip().splitlines()
        return Explanation(
            title=f"stage {table}",
            facts=(
                Fact(where="what", fields={"does": first[0] if first else "", "makes": stage.produces}),
                Fact(
                    where="inputs",
                    fields={role: f"{d['kind']}, by default of {d['table']}" for role, d in stage.roles.items()},
                ),
                *(_key_fact(table, doc) for doc in docs),
            ),
        )
    if rest in stage.roles:
        declared = stage.roles[rest]
        fields = {
            "takes": f"the name of a table that makes {declared['kind']}",
            "default": declared["table"],
            "required": not declared["optional"],
        }
        return Explanation(title=key, facts=(Fact(where=key, fields=fields),))
    repeats = {
        name: REPEAT_DOCS[name] for name in REPEAT_DOCS if name == "each" or "seed" in stage.spec_type.model_fields
    }
    if rest in repeats:
        return Explanation(title=key, facts=(Fact(where=key, fields={"what": repeats[rest]}),))
    wanted = re.sub(r"(\[\d*\]|\.\d+)(?=\.|$)", "", rest)
    found = [doc for doc in docs if doc.key.replace("[]", "") == wanted]
    if not found:
        known = [*(doc.key for doc in docs), *repeats]
        raise PlanError(
            f"{stage.name} has no key {rest!r}",
            expected=f"one of its {len(known)} keys",
            hint=f"nearest: {', '.join(f'{table}.{name}' for name in nearest(rest, known))}",
        )
    return Explanation(title=key, facts=tuple(_key_fact(table, doc) for doc in found))


def _key_fact(table: str, doc: KeyDoc) -> Fact:
    fields: dict[str, JSON] = {"what": doc.doc, "takes": doc.takes}
    if doc.required:
        fields["required"] = True
    else:
        fields["default"] = "nothing" if doc.default is None else doc.default
    return Fact(where=f"{table}.{doc.key}", fields=fields)


def explain_threshold(artifact: Artifact | None, threshold: float, *, table: str) -> Explanation:
    """Tell what another threshold of near-duplicates would drop of a curation, without comparing rows again."""
    path = artifact.path / "near_pairs.parquet" if artifact is not None else None
    if artifact is None or path is None or not path.exists():
        raise PlanError(
            f"{table} keeps no compared pairs",
            expected="a finished curation",
            hint="--near-threshold is for a stage curate that has run",
        )
    from tunesmith.data.compare import FLOOR
    from tunesmith.data.whatif import at_threshold

    used = float((artifact.manifest.spec or {}).get("near_duplicates", 0.6))
    then, now = at_threshold(path, threshold), at_threshold(path, used) if used >= FLOOR else None
    fields: dict[str, JSON] = {"dropped": then.dropped, "flagged": then.flagged, "rows dropped": len(then.dropped_ids)}
    facts = [Fact(where=f"at {threshold:g}", fields=fields)]
    if now is not None:
        back, more = sorted(now.dropped_ids - then.dropped_ids), sorted(then.dropped_ids - now.dropped_ids)
        changes: dict[str, JSON] = {
            "rows dropped now": len(now.dropped_ids),
            "rows that would come back": len(back),
            "rows that would go": len(more),
            "the first to come back": back[:MAX_EXAMPLES],
            "the first to go": more[:MAX_EXAMPLES],
        }
        facts.append(Fact(where=f"against {used:g}, at which the run curated", fields=changes))
    return Explanation(title=f"near-duplicates of {table} at another threshold", facts=tuple(facts))
