"""Recipe: named tables of settings and how they are wired, read from one YAML file.

    name: quickstart
    ingest:
      sources: [tickets.jsonl]
    curate:                   # `rows` is a role of the stage curate: it names the table that feeds it
      rows: ingest
    train:
      learning_rate: 1e-4     # any other key is a setting of the stage
    second_try:
      stage: train            # a table may have a name of its own

A table is a stage; a key that is a role of the stage names another table; every other key is a setting. That is the
whole syntax. Overrides (`train.learning_rate=1e-4`) are applied to the read values before they are checked. Every
error names file, line, the type expected, the value found and the nearest valid keys.

What does not live here: the order of work and what is cached (`plan`), the YAML dialect (`marked`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.core.fields import describe, field_at, specs_at, tags
from tunesmith.core.marked import read_marked, read_value
from tunesmith.core.spec import Loc, Spec
from tunesmith.core.stage import Stage
from tunesmith.errors import RecipeError, nearest
from tunesmith.types import JSON

_SHOWN_CHARS = 80


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
        return _deepest(self.marks, loc)[1]

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
            found=_shown(marked.values),
            hint="`tunesmith init DIR` writes one for your data",
        )
    values: dict[str, JSON] = copy.deepcopy(marked.values)
    from_override: set[Loc] = set()
    for override in overrides:
        loc = _apply(override, values, stages, marks)
        from_override.add(loc)
    name = values.pop("name", path.stem)
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise RecipeError(
            "the recipe's name is not a name", where=marks[("name",)], expected="text without /", found=_shown(name)
        )
    folder = path.resolve().parent
    raw = {key: _stage_of(key, table, stages, marks) for key, table in values.items()}
    tables = {}
    for key, (stage, settings, wires) in raw.items():
        inner = {loc[1:]: mark for loc, mark in marks.items() if loc[:1] == (key,)}
        here = {loc[1:] for loc in from_override if loc[:1] == (key,)}
        inputs = _wire(key, stage, wires, {name: entry[0] for name, entry in raw.items()}, inner)
        spec = _validated(key, stage, settings, inner)
        spec, spellings = _anchored(spec, inner, here, folder)
        tables[key] = Table(name=key, stage=stage, spec=spec, inputs=inputs, marks=inner, spellings=spellings)
    return Recipe(name=name, path=path, text=text, overrides=tuple(overrides), tables=tables)


# ---------------------------------------------------------------------------------------------- tables and wires


def _stage_of(
    key: str, table: JSON, stages: Mapping[str, Stage], marks: Mapping[Loc, str]
) -> tuple[Stage, dict[str, JSON], dict[str, JSON]]:
    """Split a table into its stage, its settings and its wires."""
    where = marks[(key,)]
    table = {} if table is None else table
    if not isinstance(table, dict):
        near = nearest(key, [*stages, "name"])
        raise RecipeError(
            f"{key} is not a table",
            where=where,
            expected="a mapping of settings",
            found=_shown(table),
            hint=f"nearest tables: {', '.join(near)}",
        )
    name = table.get("stage", key)
    if name not in stages:
        raise RecipeError(
            f"no stage is called {name!r}" if "stage" in table else f"unknown table {key!r}: no stage has that name",
            where=marks.get((key, "stage"), where),
            expected="a stage's name, or a table with `stage:`",
            found=_shown(name),
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
        where = _deepest(marks, (name,))[1]
        if name in wires and target is None and declared["optional"]:
            inputs[name] = None
            continue
        if name not in wires and target not in known:
            if declared["optional"]:
                inputs[name] = None
                continue
            raise RecipeError(
                f"{key} needs {name}, and the recipe has no table {target!r}",
                where=where,
                expected=f"a table that makes {declared['kind']}",
                found=f"tables {', '.join(known)}",
                hint=f"add a table `{target}:`, or wire another: `{key}: {{{name}: TABLE}}`",
            )
        if not isinstance(target, str) or target not in known:
            raise RecipeError(
                f"{key}.{name} names no table of this recipe",
                where=where,
                expected=f"the name of a table that makes {declared['kind']}",
                found=_shown(target),
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


# ------------------------------------------------------------------------------------------------------ overrides


def _apply(override: str, values: dict[str, JSON], stages: Mapping[str, Stage], marks: dict[Loc, str]) -> Loc:
    """Write one override into `values` and its place into `marks`; return where it went."""
    where = f"--set {override}"
    dotted, equals, text = override.partition("=")
    parts = dotted.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(
            "an override is not KEY=VALUE", where=where, expected="for example --set train.learning_rate=1e-4"
        )
    if parts == ["name"]:
        values["name"] = read_value(text, where=where)
        marks[("name",)] = where
        return ("name",)
    table = parts[0]
    if table not in values or table == "name":
        known = [key for key in values if key != "name"]
        raise RecipeError(
            f"the recipe has no table {table!r}",
            where=where,
            expected=f"one of {', '.join(known)}",
            found=table,
            hint=f"nearest: {', '.join(nearest(table, known))}",
        )
    if len(parts) == 1:
        raise RecipeError("an override names a table, not a key", where=where, expected=f"--set {table}.KEY=VALUE")
    if values[table] is None:
        values[table] = {}
    stage_name = values[table].get("stage", table) if isinstance(values[table], dict) else table
    spec_type = stages[stage_name].spec_type if stage_name in stages else None
    at: JSON = values[table]
    loc: Loc = (table,)
    for part in parts[1:-1]:
        at, loc = _descend(at, part, loc, spec_type, where)
        marks.setdefault(loc, where)
    value = read_value(text, where=where)
    if isinstance(at, list):
        index = _list_index(at, parts[-1], where)
        at[index] = value
        loc = (*loc, index)
    elif isinstance(at, dict):
        at[parts[-1]] = value
        loc = (*loc, parts[-1])
    else:
        raise RecipeError(
            f"{'.'.join(map(str, loc))} holds no keys", where=where, expected="a mapping or list", found=_shown(at)
        )
    for old in [known for known in marks if known[: len(loc)] == loc]:
        del marks[old]
    marks[loc] = where
    return loc


def _descend(at: JSON, part: str, loc: Loc, spec_type: type[Spec] | None, where: str) -> tuple[JSON, Loc]:
    """Step into `part`, making it where the recipe left it out: then it starts as the default does."""
    if isinstance(at, list):
        index = _list_index(at, part, where)
        return at[index], (*loc, index)
    if not isinstance(at, dict):
        raise RecipeError(
            f"{'.'.join(map(str, loc))} holds no keys", where=where, expected="a mapping", found=_shown(at)
        )
    if at.get(part) is None:
        field = field_at(spec_type, (*loc[1:], part)) if spec_type else None
        default = None if field is None or field.is_required() else field.get_default(call_default_factory=True)
        at[part] = default.model_dump(mode="json", exclude_unset=True) if isinstance(default, Spec) else {}
    return at[part], (*loc, part)


def _list_index(items: list[JSON], part: str, where: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise RecipeError("no such item of a list", where=where, expected=f"0 to {len(items) - 1}", found=part)
    return int(part)


# ------------------------------------------------------------------------------------------------------- settings


def _validated(key: str, stage: Stage, settings: dict[str, JSON], marks: Mapping[Loc, str]) -> Spec:
    try:
        spec = stage.spec_type.model_validate(settings)
    except ValidationError as error:
        raise _worded(key, stage, error, settings, marks) from error
    _refuse_coercion(settings, spec, (), lambda loc, found: _wrong_type(key, stage, loc, found, marks))
    return spec


def _refuse_coercion(given: JSON, made: Any, loc: Loc, error: Callable[[Loc, JSON], RecipeError]) -> None:
    """Raise where a text or a boolean was taken for a number, or a text for a boolean."""
    if isinstance(given, (str, bool)):
        if type(made) in (int, float, bool) and type(made) is not type(given):
            raise error(loc, given)
    elif isinstance(given, dict):
        for name, value in given.items():
            if isinstance(made, Spec) and name in type(made).model_fields:
                _refuse_coercion(value, getattr(made, name), (*loc, name), error)
            elif isinstance(made, Mapping) and name in made:
                _refuse_coercion(value, made[name], (*loc, name), error)
    elif isinstance(given, list) and isinstance(made, (list, tuple)) and len(given) == len(made):
        for index, value in enumerate(given):
            _refuse_coercion(value, made[index], (*loc, index), error)


def _wrong_type(key: str, stage: Stage, loc: Loc, found: JSON, marks: Mapping[Loc, str]) -> RecipeError:
    field = field_at(stage.spec_type, loc)
    return RecipeError(
        f"{_dotted(key, loc)} has the wrong type",
        where=_deepest(marks, loc)[1],
        expected=describe(field.annotation, field.metadata) if field else None,
        found=f"{_shown(found)} ({_type_word(found)})",
        hint="drop the quotes" if isinstance(found, str) else None,
    )


def _worded(key: str, stage: Stage, error: ValidationError, settings: JSON, marks: Mapping[Loc, str]) -> RecipeError:
    """Turn pydantic's first error into ours; the others are counted."""
    problems = error.errors(include_url=False)
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    kind, raw_loc = first["type"], tuple(first["loc"])
    loc = _real_loc(raw_loc, settings)
    field = field_at(stage.spec_type, raw_loc)
    expected = describe(field.annotation, field.metadata) if field else None
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    where = _deepest(marks, loc)[1]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, RecipeError):
        return RecipeError(
            inner.what, where=inner.where or where, expected=inner.expected, found=inner.found, hint=inner.hint
        )
    if kind == "extra_forbidden":
        return _unknown_key(key, stage, raw_loc, loc, where)
    if kind == "missing":
        name = str(raw_loc[-1])
        hint = f"add `{name}:` here; `tunesmith explain {_dotted(key, (*loc, name))}` tells what it is"
        return RecipeError(f"{_dotted(key, (*loc, name))} is missing{more}", where=where, expected=expected, hint=hint)
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        words = sorted(word for spec in specs_at(stage.spec_type, raw_loc) for word in tags(spec))
        tag = str(first.get("ctx", {}).get("discriminator", "'kind'")).strip("'")
        return RecipeError(
            f"{_dotted(key, loc)} does not say its {tag}{more}",
            where=where,
            expected=f"`{tag}:` as one of {', '.join(words)}",
            found=_shown(first["input"]),
        )
    if kind in ("value_error", "assertion_error"):
        return RecipeError(
            f"{_dotted(key, loc)}: {first['msg'].removeprefix('Value error, ').removeprefix('Assertion failed, ')}",
            where=where,
            expected=expected,
            found=_shown(first["input"]) if loc else None,
        )
    return RecipeError(
        f"{_dotted(key, loc)}: {first['msg'][0].lower()}{first['msg'][1:]}{more}",
        where=where,
        expected=expected,
        found=f"{_shown(first['input'])} ({_type_word(first['input'])})",
        hint="quote it to make it text" if kind == "string_type" and isinstance(first["input"], (int, float)) else None,
    )


def _unknown_key(key: str, stage: Stage, raw_loc: Loc, loc: Loc, where: str) -> RecipeError:
    name = str(raw_loc[-1])
    known = [field for spec in specs_at(stage.spec_type, raw_loc[:-1]) for field in spec.model_fields]
    if len(raw_loc) == 1:
        known += [*stage.roles, "stage"]
    near = nearest(name, known)
    return RecipeError(
        f"unknown key {_dotted(key, loc)}",
        where=where,
        expected=f"one of {', '.join(known)}" if len(known) <= 12 else f"one of the {len(known)} keys of {stage.name}",
        found=name,
        hint=f"nearest: {', '.join(near)}" if near else f"{stage.name} takes no settings",
    )


def _real_loc(raw: Loc, settings: JSON) -> Loc:
    """Drop from pydantic's loc the parts that are union tags or type names, and stop where the values stop."""
    loc: list[str | int] = []
    at = settings
    for part in raw:
        inside = part in at if isinstance(at, dict) else isinstance(at, list) and part in range(len(at))
        if inside:
            at = at[part]
            loc.append(part)
    return tuple(loc)


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
            raise RecipeError(
                f"{_dotted(table.name, loc)} names a file that does not exist",
                where=table.where(loc),
                expected="a file or folder",
                found=f"{table.spellings[path]} ({path})",
                hint="paths in a recipe count from its folder, paths in --set from the current one",
            )
        return path

    table.spec.with_paths(check)


def _deepest(marks: Mapping[Loc, str], loc: Loc) -> tuple[Loc, str]:
    for end in range(len(loc), -1, -1):
        if loc[:end] in marks:
            return loc[:end], marks[loc[:end]]
    raise AssertionError(f"no mark holds {loc}")


def _dotted(key: str, loc: Loc) -> str:
    out = key
    for part in loc:
        out += f"[{part}]" if isinstance(part, int) else f".{part}"
    return out


def _shown(value: JSON) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def _type_word(value: Any) -> str:
    if value is None:
        return "null"
    words = {bool: "true or false", int: "whole number", float: "number", str: "text", list: "list", dict: "mapping"}
    return words.get(type(value), type(value).__name__)
