"""Settings: the values of one table become a Spec, or an error that names file, line, expected, found and nearest keys.

pydantic finds what is wrong; this file says it in the words of the recipe. It also refuses what pydantic would quietly
convert: a text or a boolean where a number belongs, a text where a boolean belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from tunesmith.core.fields import describe, field_at, specs_at, tags
from tunesmith.core.spec import Loc, Spec
from tunesmith.core.stage import Stage
from tunesmith.errors import RecipeError, nearest
from tunesmith.types import JSON

_SHOWN_CHARS = 80


def validated(key: str, stage: Stage, *, settings: dict[str, JSON], marks: Mapping[Loc, str]) -> Spec:
    """Return the Spec that a table's values make. Raises `RecipeError` for the first thing that is wrong."""
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
        f"{dotted(key, loc)} has the wrong type",
        where=deepest(marks, loc)[1],
        expected=describe(field.annotation, field.metadata) if field else None,
        found=f"{shown(found)} ({_type_word(found)})",
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
    where = deepest(marks, loc)[1]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, RecipeError):
        return RecipeError(
            inner.what, where=inner.where or where, expected=inner.expected, found=inner.found, hint=inner.hint
        )
    if kind == "extra_forbidden":
        return _unknown_key(key, stage, raw_loc, loc, where)
    if kind == "missing":
        name = str(raw_loc[-1])
        hint = f"add `{name}:` here; `tunesmith explain {dotted(key, (*loc, name))}` tells what it is"
        return RecipeError(f"{dotted(key, (*loc, name))} is missing{more}", where=where, expected=expected, hint=hint)
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        words = sorted(word for spec in specs_at(stage.spec_type, raw_loc) for word in tags(spec))
        tag = str(first.get("ctx", {}).get("discriminator", "'kind'")).strip("'")
        return RecipeError(
            f"{dotted(key, loc)} does not say its {tag}{more}",
            where=where,
            expected=f"`{tag}:` as one of {', '.join(words)}",
            found=shown(first["input"]),
        )
    if kind in ("value_error", "assertion_error"):
        return RecipeError(
            f"{dotted(key, loc)}: {first['msg'].removeprefix('Value error, ').removeprefix('Assertion failed, ')}",
            where=where,
            expected=expected,
            found=shown(first["input"]) if loc else None,
        )
    return RecipeError(
        f"{dotted(key, loc)}: {first['msg'][0].lower()}{first['msg'][1:]}{more}",
        where=where,
        expected=expected,
        found=f"{shown(first['input'])} ({_type_word(first['input'])})",
        hint="quote it to make it text" if kind == "string_type" and isinstance(first["input"], (int, float)) else None,
    )


def _unknown_key(key: str, stage: Stage, raw_loc: Loc, loc: Loc, where: str) -> RecipeError:
    name = str(raw_loc[-1])
    known = [field for spec in specs_at(stage.spec_type, raw_loc[:-1]) for field in spec.model_fields]
    if len(raw_loc) == 1:
        known += [*stage.roles, "stage"]
    near = nearest(name, known)
    return RecipeError(
        f"unknown key {dotted(key, loc)}",
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


def deepest(marks: Mapping[Loc, str], loc: Loc) -> tuple[Loc, str]:
    """Return the deepest written key that holds `loc`, and where it was written."""
    for end in range(len(loc), -1, -1):
        if loc[:end] in marks:
            return loc[:end], marks[loc[:end]]
    raise AssertionError(f"no mark holds {loc}")


def dotted(key: str, loc: Loc) -> str:
    """Return `train.adapter.rank` or `ingest.sources[0].path`."""
    out = key
    for part in loc:
        out += f"[{part}]" if isinstance(part, int) else f".{part}"
    return out


def shown(value: JSON) -> str:
    """Return a value for the `found` line of an error, cut where it is long."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def _type_word(value: Any) -> str:
    if value is None:
        return "null"
    words = {bool: "true or false", int: "whole number", float: "number", str: "text", list: "list", dict: "mapping"}
    return words.get(type(value), type(value).__name__)
