"""Difference: what changed between two runs, or two recipes: settings first, then the figures they came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.core.plan import Change, changed_settings
from tunesmith.core.recipe import Recipe
from tunesmith.core.runs import RunRecord, artifact_of
from tunesmith.core.store import Store
from tunesmith.types import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two: a run or a recipe, reduced to what can be compared."""

    name: str
    stages: Mapping[str, SideStage]


@dataclass(frozen=True, slots=True, kw_only=True)
class SideStage:
    """One stage of a side."""

    stage: str
    version: int
    settings: Mapping[str, JSON]
    wires: Mapping[str, JSON]
    """Role -> table."""
    fingerprint: str | None
    """None for a recipe that was not run."""
    summary: Mapping[str, JSON]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDifference:
    """What differs in one stage."""

    table: str
    presence: str | None
    """`only in A` or `only in B`, else None."""
    settings: tuple[Change, ...]
    figures: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What differs between A and B, stage by stage; stages that are equal are left out."""

    before: str
    after: str
    stages: tuple[StageDifference, ...]
    contract: tuple[Change, ...] = ()
    """Parts of the contract, where both sides are contracts: `key` is `severity: part`."""


def side_of_run(store: Store, record: RunRecord) -> Side:
    """Reduce a run."""
    stages = {}
    for name, stage in record.stages.items():
        artifact = artifact_of(store, stage) if stage.status in ("done", "cached") else None
        stages[name] = SideStage(
            stage=stage.stage,
            version=stage.version,
            settings=stage.spec,
            wires={role: wire["table"] for role, wire in stage.inputs.items()},
            fingerprint=stage.fingerprint,
            summary={} if artifact is None else artifact.summary,
        )
    return Side(name=record.run, stages=stages)


def side_of_recipe(recipe: Recipe) -> Side:
    """Reduce a recipe that need not have run: it has settings and no figures."""
    stages = {
        name: SideStage(
            stage=table.stage.name,
            version=table.stage.version,
            settings=table.settings(),
            wires={role: source for role, source in table.inputs.items() if source is not None},
            fingerprint=None,
            summary={},
        )
        for name, table in recipe.tables.items()
    }
    return Side(name=str(recipe.path), stages=stages)


def difference(before: Side, after: Side) -> Difference:
    """Compare two sides."""
    found = []
    for table in [*before.stages, *(name for name in after.stages if name not in before.stages)]:
        stage = _stage_difference(table, before.stages.get(table), after.stages.get(table))
        if stage.presence or stage.settings or stage.figures:
            found.append(stage)
    return Difference(before=before.name, after=after.name, stages=tuple(found))


def _stage_difference(table: str, a: SideStage | None, b: SideStage | None) -> StageDifference:
    if a is None or b is None:
        return StageDifference(table=table, presence="only in B" if a is None else "only in A", settings=(), figures=())
    settings = []
    if a.stage != b.stage:
        settings.append(Change(key="stage", before=a.stage, after=b.stage))
    if a.version != b.version:
        settings.append(Change(key="stage version", before=a.version, after=b.version))
    settings += changed_settings(_plain_paths(a, b), _plain_paths(b, a))
    settings += changed_settings(a.wires, b.wires)
    figures = tuple(changed_settings(a.summary, b.summary)) if a.summary and b.summary else ()
    return StageDifference(table=table, presence=None, settings=tuple(settings), figures=figures)


def _plain_paths(side: SideStage, other: SideStage) -> Mapping[str, JSON]:
    """Show paths as their spelling where the other side is a recipe, which holds no content hashes."""
    return side.settings if other.fingerprint is not None or side.fingerprint is None else _spelled(side.settings)


def _spelled(value: JSON) -> JSON:
    if isinstance(value, Mapping):
        if set(value) == {"path", "sha256"}:
            return value["path"]
        return {key: _spelled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_spelled(item) for item in value]
    return value
