"""Overrides: `train.learning_rate=1e-4` written into a recipe's values before they are checked.

The value is YAML: numbers, text, lists and mappings. A key path may step into lists (`ingest.sources.0.path=x.jsonl`)
and below keys that the recipe leaves out; there it starts from the default's own keys, so that
`train.adapter.rank=8` keeps the default kind of adapter.
"""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.core.fields import field_at
from tunesmith.core.marked import read_value
from tunesmith.core.settings import shown
from tunesmith.core.spec import Loc, Spec
from tunesmith.core.stage import Stage
from tunesmith.errors import RecipeError, nearest
from tunesmith.types import JSON


def apply_override(
    override: str, values: dict[str, JSON], *, stages: Mapping[str, Stage], marks: dict[Loc, str]
) -> Loc:
    """Write one override into `values` and its place into `marks`; return where it went."""
    where = f"--set {override}"
    dotted, equals, text = override.partition("=")
    parts = dotted.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(
            "an override is not KEY=VALUE", where=where, expected="for example --set train.learning_rate=1e-4"
        )
    if parts in (["name"], ["engine"]):
        values[parts[0]] = read_value(text, where=where)
        marks[(parts[0],)] = where
        return (parts[0],)
    table = parts[0]
    if table not in values or table == "name":
        known = [key for key in values if key not in ("name", "engine")]
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
            f"{'.'.join(map(str, loc))} holds no keys", where=where, expected="a mapping or list", found=shown(at)
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
            f"{'.'.join(map(str, loc))} holds no keys", where=where, expected="a mapping", found=shown(at)
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
