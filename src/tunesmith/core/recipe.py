"""Recipe: named tables of settings and how they are wired, read from one YAML file.

    name: quickstart
    engine: local             # where the parts of the work run; never part of a fingerprint (`engine`)
    ingest:
      sources: [tickets.jsonl]
    curate:                   # `rows` is a role of the stage curate: it names the table that feeds it
      rows: ingest
    train:
      learning_rate: 1e-4     # any other key is a setting of the stage
    second_try:
      stage: train            # a table may have a name of its own

A table is a stage; a key that is a role of the stage names another table; every other key is a setting. `seeds: [1, 2]`
and `each: TABLE` write a table out several times (`repeats`). That is the whole syntax. Overrides
(`train.learning_rate=1e-4`) are applied to the read values before they are checked. Every error names file, line, the
type expected, the value found and the nearest valid keys.

What does not live here: the YAML dialect (`marked`), overrides (`overrides`), checking one table's values (`settings`),
the order of work and what is cached (`plan`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.engine import read_engine
from tunesmith.core.marked import read_marked
from tunesmith.core.overrides import apply_override
from tunesmith.core.repeats import repeat_tables
from tunesmith.core.settings import deepest, dotted, shown, validated
from tunesmith.core.spec import Loc, Spec
from tunesmith.core.stage import Stage
from tunesmith.errors import RecipeError, nearest
from tunesmith.types import JSON, EngineChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table of a recipe: a stage, its settings and what feeds it."""

    name: str
    stage: Stage
    spec: Spec
    inputs: Mapping[str, str | None]
    """Role -> table; None for an optional role that nothing feeds."""
    marks: Mapping[Loc, str]
    """Where each key of this table was written: `recipe.yaml:12` or `--set train.rank=8`."""
    spellings: Mapping[str, str]
    """Absolute content path -> how the user wrote it."""

    def where(self, loc: Loc = ()) -> str:
        """Return the place of the deepest written key that holds `loc`."""
        return deepest(self.marks, loc)[1]

    def settings(self) -> dict[str, JSON]:
        """Return all settings as plain JSON, paths in the user's spelling."""
        return self.spec.settings(lambda path: self.spellings.get(path, path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A checked recipe: every table is a known stage, every key is a setting, every wire fits."""

    name: str
    path: Path
    text: str
    """Verbatim, as the run keeps it."""
    overrides: tuple[str, ...]
    tables: Mapping[str, Table]
    """In the order of the file."""
    engine: EngineChoice | None = None
    """Where the parts of its work run, if it says so: circumstance, never identity."""


def load_recipe(path: Path, stages: Mapping[str, Stage], *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe file. `overrides` are texts such as `train.learning_rate=1e-4`.

    Content paths become absolute: those of the file count from its folder, those of an override from the current
    folder. Raises `RecipeError`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError("the recipe is not UTF-8 text", where=str(path), found=f"byte {error.start}") from error
    except OSError as error:
        raise RecipeError("cannot read the recipe", where=str(path), found=error.strerror or str(error)) from error
    return parse_recipe(text, stages, path=path, overrides=overrides)


def parse_recipe(text: str, stages: Mapping[str, Stage], *, path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Check the text of a recipe as `load_recipe` does; `path` names it in errors and anchors relative paths."""
    marked = read_marked(text, name=str(path))
    marks: dict[Loc, str] = dict(marked.marks)
    if not isinstance(marked.values, dict) or not marked.values:
        raise RecipeError(
            "the recipe holds no tables",
            where=str(path),
            expected="`name:` and one table per stage",
            found=shown(marked.values),
            hint="`tunesmith init DIR` writes one for your data",
        )
    values: dict[str, JSON] = copy.deepcopy(marked.values)
    from_override: set[Loc] = set()
    for override in overrides:
        loc = apply_override(override, values, stages=stages, marks=marks)
        from_override.add(loc)
    name = values.pop("name", path.stem)
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise RecipeError(
            "the recipe's name is not a name", where=marks[("name",)], expected="text without /", found=shown(name)
        )
    engine = read_engine(values.pop("engine"), marks) if "engine" in values else None
    folder = path.resolve().parent
    values, places = repeat_tables(values, stages, marks)
    for copied, at in [(name, key) for key, names in places.items() for name in names]:
        marks |= {(copied, *loc[1:]): mark for loc, mark in list(marks.items()) if loc[:1] == (at,)}
        from_override |= {(copied, *loc[1:]) for loc in from_override if loc[:1] == (at,)}
    raw = {key: _stage_of(key, table, stages, marks) for key, table in values.items()}
    tables = {}
    for key, (stage, settings, wires) in raw.items():
        inner = {loc[1:]: mark for loc, mark in marks.items() if loc[:1] == (key,)}
        here = {loc[1:] for loc in from_override if loc[:1] == (key,)}
        inputs = _wire(key, stage, wires, {name: entry[0] for name, entry in raw.items()}, inner)
        spec = validated(key, stage, settings=settings, marks=inner)
        spec, spellings = _anchored(spec, inner, here, folder)
        tables[key] = Table(name=key, stage=stage, spec=spec, inputs=inputs, marks=inner, spellings=spellings)
    return Recipe(name=name, path=path, text=text, overrides=tuple(overrides), tables=tables, engine=engine)


# ---------------------------------------------------------------------------------------------- tables and wires


def _stage_of(
    key: str, table: JSON, stages: Mapping[str, Stage], marks: Mapping[Loc, str]
) -> tuple[Stage, dict[str, JSON], dict[str, JSON]]:
    """Split a table into its stage, its settings and its wires."""
    where = marks[(key,)]
    table = {} if table is None else table
    if not isinstance(table, dict):
        near = nearest(key, [*stages, "name", "engine"])
        raise RecipeError(
            f"{key} is not a table",
            where=where,
            expected="a mapping of settings",
            found=shown(table),
            hint=f"nearest tables: {', '.join(near)}",
        )
    name = table.get("stage", key)
    if name not in stages:
        raise RecipeError(
            f"no stage is called {name!r}" if "stage" in table else f"unknown table {key!r}: no stage has that name",
            where=marks.get((key, "stage"), where),
            expected="a stage's name, or a table with `stage:`",
            found=shown(name),
            hint=f"nearest: {', '.join(nearest(str(name), stages))}",
        )
    stage = stages[name]
    roles = stage.roles
    wires = {inner: value for inner, value in table.items() if inner in roles}
    settings = {inner: value for inner, value in table.items() if inner not in roles and inner != "stage"}
    return stage, settings, wires


def _wire(
    key: str, stage: Stage, wires: Mapping[str, JSON], known: Mapping[str, Stage], marks: Mapping[Loc, str]
) -> dict[str, str | None]:
    """Return role -> table, checked: the table exists and makes the kind that the role takes."""
    inputs: dict[str, str | None] = {}
    for name, declared in stage.roles.items():
        target = wires.get(name, declared["table"])
        where = deepest(marks, (name,))[1]
        if name in wires and target is None and declared["optional"]:
            inputs[name] = None
            continue
        if name not in wires and target not in known:
            _refuse_unfed(key, name, declared, known, where)
            inputs[name] = None
            continue
        if not isinstance(target, str) or target not in known:
            raise RecipeError(
                f"{key}.{name} names no table of this recipe",
                where=where,
                expected=f"the name of a table that makes {declared['kind']}",
                found=shown(target),
                hint=f"nearest: {', '.join(nearest(str(target), known))}",
            )
        made = known[target].produces
        if made != declared["kind"]:
            fitting = [table for table, other in known.items() if other.produces == declared["kind"]]
            raise RecipeError(
                f"{key}.{name} is fed by {target}, which makes another kind",
                where=where,
                expected=declared["kind"],
                found=made,
                hint=f"tables that fit: {', '.join(fitting)}" if fitting else "no table of this recipe fits",
            )
        inputs[name] = target
    return inputs


def _refuse_unfed(key: str, name: str, declared: Mapping[str, JSON], known: Mapping[str, Stage], where: str) -> None:
    """Raise where a role that nothing feeds is required, or where its stage stands here under another name."""
    renamed = [table for table, other in known.items() if other.name == declared["table"]]
    if renamed:
        raise RecipeError(
            f"nothing feeds {key}.{name}, though {renamed[0]} makes what it takes",
            where=where,
            expected=f"`{name}:` with one of {', '.join(renamed)}",
            hint=f"write `{name}: {renamed[0]}`"
            + (f", or `{name}: null` to go without" if declared["optional"] else ""),
        )
    if not declared["optional"]:
        raise RecipeError(
            f"{key} needs {name}, and the recipe has no table {declared['table']!r}",
            where=where,
            expected=f"a table that makes {declared['kind']}",
            found=f"tables {', '.join(known)}",
            hint=f"add a table `{declared['table']}:`, or wire another: `{key}: {{{name}: TABLE}}`",
        )


# ---------------------------------------------------------------------------------------------------------- paths


def _anchored(
    spec: Spec, marks: Mapping[Loc, str], from_override: set[Loc], folder: Path
) -> tuple[Spec, dict[str, str]]:
    """Make content paths absolute, and remember how the user wrote them."""
    spellings: dict[str, str] = {}

    def absolute(loc: Loc, written: str) -> str:
        overridden = any(loc[:end] in from_override for end in range(1, len(loc) + 1))
        base = Path.cwd() if overridden else folder
        path = str((base / Path(written).expanduser()).resolve())
        spellings[path] = written
        return path

    return spec.with_paths(absolute), spellings


def check_content_exists(table: Table) -> None:
    """Raise `RecipeError` with line and key where a content path of the table names nothing."""

    def check(loc: Loc, path: str) -> str:
        if path in table.spellings and not Path(path).exists():
            folder = Path(path).parent
            siblings = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
            near = f"; near it: {', '.join(nearest(Path(path).name, siblings))}" if siblings else ""
            raise RecipeError(
                f"{dotted(table.name, loc)} names a file that does not exist",
                where=table.where(loc),
                expected="a file or folder, and no pattern" if set("*?[") & set(path) else "a file or folder",
                found=f"{table.spellings[path]} ({path}){near}",
                hint="paths in a recipe count from its folder, paths in --set from the current one",
            )
        return path

    table.spec.with_paths(check)
