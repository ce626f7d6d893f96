"""Repeats: one table of a recipe that stands for several, one for each seed.

    train: {seeds: [1, 2, 3], rank: 8}     ->  train_1, train_2, train_3, each with its `seed`
    evaluate: {each: train}                ->  evaluate_1 fed by train_1, evaluate_2 by train_2, evaluate_3 by train_3
    bundle: {}                             ->  fed by train_1 and evaluate_1, the first of each

What lives here: rewriting the values that were read, before any of them is checked. What does not: tables and wires
(`core.recipe`). The copies are tables like any other: `--until train_2`, `show train_2`, wires that name them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from tunesmith.core.settings import shown
from tunesmith.core.spec import Loc
from tunesmith.core.stage import Stage
from tunesmith.errors import RecipeError
from tunesmith.types import JSON

Places = Mapping[str, tuple[str, ...]]
"""Table -> the tables that it stands for."""

_FEWEST = 2

REPEAT_DOCS = {
    "seeds": "Stands for one such stage for each seed of the list: `train: {seeds: [1, 2, 3]}` is train_1, train_2, "
    "train_3.",
    "each": "Stands for one such stage for each copy of the repeated table it names: `evaluate: {each: train}`.",
}
"""Keys that a table may have beside those of its stage."""


def repeat_tables(
    values: Mapping[str, JSON], stages: Mapping[str, Stage], marks: Mapping[Loc, str]
) -> tuple[dict[str, JSON], Places]:
    """Return the tables with repeated ones written out, and what each repeated one stands for.

    Raises `RecipeError` for seeds that are none, a stage that has no seed, an `each` that names no repeated table or
    nothing that feeds it, and a name that is taken.
    """
    out: dict[str, JSON] = {}
    places: dict[str, tuple[str, ...]] = {}
    for key, table in values.items():
        stage = _stage_of(key, table, stages)
        if stage is None or not table or not {"seeds", "each"} & set(table):
            out[key] = table
        elif "each" in table:
            places[key] = _repeat_each(key, dict(table), stage, places, out, marks)
        else:
            places[key] = _repeat_seeds(key, dict(table), stage, out, marks)
    for key, names in places.items():
        for name in names:
            if name in values:
                raise RecipeError(f"{key} is repeated as {name}, and another table has that name", where=marks[(name,)])
    for key, table in out.items():
        stage = _stage_of(key, table, stages)
        if stage is not None:
            out[key] = _fed_by_first(table, stage, places)
    return out, places


def _stage_of(key: str, table: JSON, stages: Mapping[str, Stage]) -> Stage | None:
    return (
        stages.get(table.get("stage", key)) if isinstance(table, dict) else stages.get(key) if table is None else None
    )


def _repeat_seeds(
    key: str, table: dict[str, Any], stage: Stage, out: dict[str, JSON], marks: Mapping[Loc, str]
) -> tuple[str, ...]:
    where = marks[(key, "seeds")]
    seeds = table.pop("seeds")
    if "seed" not in stage.spec_type.model_fields:
        raise RecipeError(f"{key} has no seed to repeat it for", where=where, expected=f"keys of {stage.name}")
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or len(set(seeds)) != len(seeds) or len(seeds) < _FEWEST or "seed" in table:
        raise RecipeError(
            f"{key}.seeds does not say which seeds",
            where=where,
            expected="a list of two or more different whole numbers, and no `seed` beside it",
            found=shown(seeds),
        )
    names = tuple(f"{key}_{number}" for number in range(1, len(seeds) + 1))
    for name, seed in zip(names, seeds, strict=True):
        out[name] = {**copy.deepcopy(table), "stage": stage.name, "seed": seed}
    return names


def _repeat_each(
    key: str, table: dict[str, Any], stage: Stage, places: Places, out: dict[str, JSON], marks: Mapping[Loc, str]
) -> tuple[str, ...]:
    where = marks[(key, "each")]
    target = table.pop("each")
    if target not in places:
        raise RecipeError(
            f"{key}.each names no table above it that is repeated",
            where=where,
            expected=f"one of {', '.join(places)}" if places else "a table with `seeds: [1, 2, 3]`",
            found=shown(target),
        )
    roles = [role for role, declared in stage.roles.items() if table.get(role, declared["table"]) == target]
    if not roles:
        raise RecipeError(
            f"{key} is not fed by {target}, so there is nothing to repeat it for",
            where=where,
            expected=f"a role of {stage.name} that names {target}",
            found=", ".join(stage.roles),
        )
    names = tuple(f"{key}_{number}" for number in range(1, len(places[target]) + 1))
    for name, feeder in zip(names, places[target], strict=True):
        out[name] = {**copy.deepcopy(table), "stage": stage.name, **dict.fromkeys(roles, feeder)}
    return names


def _fed_by_first(table: JSON, stage: Stage, places: Places) -> JSON:
    """Return the table with every wire to a repeated table, said or meant, leading to its first copy."""
    wires = {
        role: places[feeder][0]
        for role, declared in stage.roles.items()
        if (feeder := (table or {}).get(role, declared["table"])) in places
    }
    return {**(table or {}), **wires} if wires else table
