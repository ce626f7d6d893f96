"""Plan: what a recipe will run, in which order, and why.

    make_plan(recipe, store) -> Plan
        ingest   cached
        train    run      learning_rate 0.0002 -> 0.0001 since run 2025-01-31-1200-quickstart

Everything that can be known before work starts is checked here: cycles, missing files, and what each stage's own
`check` refuses. Fingerprints depend on settings and inputs only, so the whole plan is known before anything runs.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.core.artifact import Artifact
from tunesmith.core.recipe import Recipe, Table, check_content_exists
from tunesmith.core.runs import StageRecord, newest_stages, records
from tunesmith.core.stage import Estimate
from tunesmith.core.store import Store, fingerprint_of
from tunesmith.errors import PlanError, RecipeError, nearest
from tunesmith.types import JSON

_SHOWN_CHANGES = 3


class Status(enum.StrEnum):
    """What a run will do with a stage."""

    CACHED = "cached"
    RUN = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """One stage of a plan."""

    table: Table
    fingerprint: str
    inputs: Mapping[str, str | None]
    """Role -> fingerprint of the input, or None."""
    identity: Mapping[str, JSON]
    settings: Mapping[str, JSON]
    """All settings, content paths as {path, sha256}."""
    status: Status
    reason: str
    artifact: Artifact | None
    """The finished artifact where it is cached."""
    warnings: tuple[str, ...] = ()
    estimate: Estimate | None = None

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.table.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The stages of a recipe in the order they run."""

    recipe: Recipe
    stages: tuple[PlannedStage, ...]

    @property
    def to_run(self) -> tuple[PlannedStage, ...]:
        """The stages that are not cached."""
        return tuple(planned for planned in self.stages if planned.status is Status.RUN)


def make_plan(recipe: Recipe, store: Store, *, until: str | None = None, only: str | None = None) -> Plan:
    """Decide what runs. `until` keeps one table and all that it needs; `only` keeps one table.

    Raises `RecipeError` for cycles and missing files, `PlanError` for what a stage's check refuses or for an `only`
    whose inputs are not made yet.
    """
    order = _ordered(recipe)
    wanted = _wanted(recipe, until=until, only=only)
    planned: dict[str, PlannedStage] = {}
    needed = _with_inputs(recipe, wanted)
    history = newest_stages(records(store, recipe=recipe.name), needed)
    for name in order:
        if name in needed:
            planned[name] = _planned(recipe.tables[name], planned, history, store)
    store.hashes.save()
    if only is not None:
        _refuse_missing_inputs(planned, only)
    kept = tuple(_checked(planned[name], planned) for name in order if name in wanted)
    return Plan(recipe=recipe, stages=kept)


def with_estimates(plan: Plan, store: Store, *, device: str) -> Plan:
    """Return the plan with an estimate for every stage that will run: its own, or what it took last time.

    `device` is the one that the run would have: `cpu` or `cuda`.
    """
    made = {planned.name: planned.artifact for planned in plan.stages}
    stages = []
    for planned in plan.stages:
        if planned.status is Status.RUN:
            inputs = {role: made.get(table) if table else None for role, table in planned.table.inputs.items()}
            planned = replace(planned, estimate=_estimate(planned, inputs, store, device))
        stages.append(planned)
    return replace(plan, stages=tuple(stages))


# ---------------------------------------------------------------------------------------------------------- order


def _ordered(recipe: Recipe) -> list[str]:
    """Return the tables so that each stands after what feeds it, otherwise in the order of the file."""
    order: list[str] = []
    trail: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in trail:
            circle = [*trail[trail.index(name) :], name]
            raise RecipeError(
                "the tables feed each other in a circle",
                where=recipe.tables[name].where(),
                expected="every table fed by earlier ones",
                found=" <- ".join(circle),
                hint="wire one of them to another table",
            )
        trail.append(name)
        for source in recipe.tables[name].inputs.values():
            if source is not None:
                visit(source)
        trail.pop()
        order.append(name)

    for name in recipe.tables:
        visit(name)
    return order


def _wanted(recipe: Recipe, *, until: str | None, only: str | None) -> set[str]:
    if until is not None and only is not None:
        raise PlanError("--until and --only exclude each other", hint="give one of them")
    for option, name in (("--until", until), ("--only", only)):
        if name is not None and name not in recipe.tables:
            raise PlanError(
                f"the recipe has no table {name!r}",
                where=f"{option} {name}",
                expected=f"one of {', '.join(recipe.tables)}",
                hint=f"nearest: {', '.join(nearest(name, recipe.tables))}",
            )
    if only is not None:
        return {only}
    return _with_inputs(recipe, set(recipe.tables) if until is None else {until})


def _with_inputs(recipe: Recipe, names: set[str]) -> set[str]:
    found: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack += [source for source in recipe.tables[name].inputs.values() if source is not None]
    return found


# ------------------------------------------------------------------------------------------------ one stage's fate


def _planned(
    table: Table, earlier: Mapping[str, PlannedStage], history: Mapping[str, tuple[str, StageRecord]], store: Store
) -> PlannedStage:
    check_content_exists(table)
    identity = table.spec.identity(store.hashes.sha256_of)
    settings = _settings(table, store)
    inputs = {role: earlier[source].fingerprint if source else None for role, source in table.inputs.items()}
    fingerprint = fingerprint_of(table.stage, identity, inputs=inputs)
    artifact = store.find(table.stage.produces, fingerprint)
    last = history.get(table.name)
    now = StageRecord(
        stage=table.stage.name,
        version=table.stage.version,
        kind=table.stage.produces,
        status="waiting",
        fingerprint=fingerprint,
        inputs={role: {"table": table.inputs[role], "fingerprint": inputs[role]} for role in inputs},
        spec=settings,
    )
    if artifact is not None:
        reason = "nothing changed" if last and last[1].fingerprint == fingerprint else "made before with these settings"
    else:
        reason = why_run(now, last)
    return PlannedStage(
        table=table,
        fingerprint=fingerprint,
        inputs=inputs,
        identity=identity,
        settings=settings,
        status=Status.RUN if artifact is None else Status.CACHED,
        reason=reason,
        artifact=artifact,
    )


def _settings(table: Table, store: Store) -> dict[str, JSON]:
    def content(path: str) -> JSON:
        if path not in table.spellings:  # the Spec says that this is a name, such as a packaged model's
            return path
        return {"path": table.spellings[path], "sha256": store.hashes.sha256_of(Path(path))}

    return table.spec.settings(content)


def why_run(now: StageRecord, last: tuple[str, StageRecord] | None) -> str:
    """Say in one line why a stage must run, given the newest run of the recipe that had it."""
    if last is None:
        return "never run"
    run, before = last
    changes = []
    if before.stage != now.stage:
        changes.append(f"stage {before.stage} -> {now.stage}")
    elif before.version != now.version:
        changes.append(f"stage version {before.version} -> {now.version}")
    changes += [change.text() for change in changed_settings(before.spec, now.spec)]
    for role in sorted(set(before.inputs) | set(now.inputs)):
        old, new = before.inputs.get(role, {}), now.inputs.get(role, {})
        if old.get("fingerprint") != new.get("fingerprint"):
            source = new.get("table") or old.get("table")
            changes.append(f"input {source} changed" if source == role else f"input {role} ({source}) changed")
    if changes:
        shown = ", ".join(changes[:_SHOWN_CHANGES])
        rest = f" and {len(changes) - _SHOWN_CHANGES} more" if len(changes) > _SHOWN_CHANGES else ""
        return f"{shown}{rest} since run {run}"
    if before.status in ("failed", "interrupted", "running"):
        word = "failed" if before.status == "failed" else "was interrupted"
        return f"{word} in run {run}"
    return f"not reached in run {run}" if before.status == "waiting" else f"its artifact of run {run} was removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One setting or figure that differs."""

    key: str
    before: JSON
    after: JSON

    def text(self) -> str:
        """Return `key before -> after`."""
        if _is_content(self.before) and _is_content(self.after):
            return f"{self.key} ({self.after['path']}): content changed"
        return f"{self.key} {_short(self.before)} -> {_short(self.after)}"


def changed_settings(before: Mapping[str, JSON], after: Mapping[str, JSON]) -> Iterator[Change]:
    """Yield what differs between two mappings, leaf by leaf. Content paths differ by what they hold, not by name."""
    yield from _changes("", before, after)


def _changes(key: str, before: JSON, after: JSON) -> Iterator[Change]:
    if _is_content(before) and _is_content(after):
        same = before["sha256"] == after["sha256"] and Path(before["path"]).name == Path(after["path"]).name
        if not same:
            yield Change(key=key, before=before, after=after)
    elif isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in [*before, *(name for name in after if name not in before)]:
            yield from _changes(f"{key}.{name}" if key else str(name), before.get(name), after.get(name))
    elif isinstance(before, Sequence) and isinstance(after, Sequence) and not isinstance(before, str):
        if len(before) == len(after) and not isinstance(after, str):
            for index, (old, new) in enumerate(zip(before, after, strict=True)):
                yield from _changes(f"{key}[{index}]", old, new)
        elif before != after:
            yield Change(key=key, before=before, after=after)
    elif before != after:
        yield Change(key=key, before=before, after=after)


def _is_content(value: JSON) -> bool:
    return isinstance(value, Mapping) and set(value) == {"path", "sha256"}


def _short(value: JSON) -> str:
    if _is_content(value):
        return str(value["path"])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{len(value)} items]" if len(str(value)) > 40 else str(value)
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _refuse_missing_inputs(planned: Mapping[str, PlannedStage], only: str) -> None:
    for role, source in planned[only].table.inputs.items():
        if source is not None and planned[source].artifact is None:
            raise PlanError(
                f"--only {only} needs {source}, which is not made yet",
                where=planned[only].table.where(),
                expected=f"a finished artifact for its input {role}",
                found=planned[source].reason,
                hint=f"tunesmith run RECIPE --until {only}",
            )


def _checked(planned: PlannedStage, all_planned: Mapping[str, PlannedStage]) -> PlannedStage:
    check = planned.table.stage.check
    if planned.status is Status.CACHED or check is None:
        return planned
    inputs = {role: all_planned[source].artifact for role, source in planned.table.inputs.items() if source}
    return replace(planned, warnings=tuple(check(planned.table.spec, inputs)))


# ------------------------------------------------------------------------------------------------------- estimates


def _estimate(planned: PlannedStage, inputs: Mapping[str, Artifact | None], store: Store, device: str) -> Estimate:
    stage = planned.table.stage
    own = stage.estimate(planned.table.spec, inputs, device) if stage.estimate else None
    if own is not None and own.seconds is not None:
        return own
    last = _last_time(planned, store)
    if last is None:
        return own or Estimate(seconds=None, memory_bytes=None, basis="never run here")
    if own is None:
        return last
    memory = own.memory_bytes if own.memory_bytes is not None else last.memory_bytes
    return Estimate(seconds=last.seconds, memory_bytes=memory, basis=f"{last.basis}; {own.basis}")


def _last_time(planned: PlannedStage, store: Store) -> Estimate | None:
    """Return what the newest artifact of the same stage took."""
    stage = planned.table.stage
    newest: Artifact | None = None
    newest_ns = 0
    for artifact in store.all(stage.produces):
        if artifact.manifest.stage == stage.name:
            made_ns = (artifact.root / "manifest.json").stat().st_mtime_ns
            if made_ns > newest_ns:
                newest, newest_ns = artifact, made_ns
    if newest is None:
        return None
    provenance = newest.manifest.provenance
    return Estimate(seconds=provenance["seconds"], memory_bytes=provenance.get("peak_rss_bytes"), basis="last time")
