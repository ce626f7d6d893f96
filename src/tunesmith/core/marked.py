"""Marked: YAML text read into plain values, with the line that each value stands on.

What lives here: the YAML dialect of recipes. It is the core schema of YAML 1.2, so `1e-4` is a number, `no` and
`2024-01-01` are text, `010` is ten, and only `true` and `false` are booleans. Duplicate keys are refused. What does
not: what the values mean (`recipe`).

    read_marked("a: {b: 1e-4}", name="r.yaml").values    -> {"a": {"b": 0.0001}}
    ...marks[("a", "b")]                                 -> "r.yaml:1"
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from tunesmith.core.spec import Loc
from tunesmith.errors import RecipeError
from tunesmith.types import JSON

_DEEPEST = 40
_DIGITS = r"[0-9](?:_?[0-9])*"
_INT = re.compile(rf"^[-+]?{_DIGITS}$")
_BASED_INT = re.compile(r"^0(?:x[0-9a-fA-F]+|o[0-7]+|b[01]+)$")
_FLOAT = re.compile(rf"^[-+]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?$")
_NOT_FINITE = re.compile(r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")
_WORDS: dict[str, JSON] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """Plain values and where each stands."""

    values: JSON
    marks: Mapping[Loc, str]
    """`("train", "learning_rate") -> "recipe.yaml:12"`; the empty loc is the whole text."""


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the implicit types of YAML 1.1 taken out: scalars are resolved by `_scalar`."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape


def read_marked(text: str, *, name: str) -> Marked:
    """Read YAML text. `name` is how errors and marks call the file. Raises `RecipeError`."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise RecipeError(
            "the recipe is not YAML",
            where=f"{name}:{mark.line + 1}" if mark else name,
            found=str(getattr(error, "problem", None) or error).splitlines()[0],
            hint="check indentation, colons and quotes on this line",
        ) from error
    finally:
        loader.dispose()
    marks: dict[Loc, str] = {(): f"{name}:1"}
    if node is None:
        return Marked(values=None, marks=marks)
    return Marked(values=_value(node, (), name, marks), marks=marks)


def read_value(text: str, *, where: str) -> JSON:
    """Read one value of an override such as `1e-4` or `[{path: a.jsonl}]`. Raises `RecipeError`."""
    return read_marked(text, name=where).values


def _value(node: yaml.Node, loc: Loc, name: str, marks: dict[Loc, str]) -> JSON:
    marks.setdefault(loc, f"{name}:{node.start_mark.line + 1}")
    if len(loc) > _DEEPEST:
        raise RecipeError("the recipe is nested too deep", where=marks[loc], expected=f"at most {_DEEPEST} levels")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, loc, name, marks)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*loc, index), name, marks) for index, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node, loc, name)


def _mapping(node: yaml.MappingNode, loc: Loc, name: str, marks: dict[Loc, str]) -> dict[str, JSON]:
    out: dict[str, JSON] = {}
    merged: dict[str, JSON] = {}
    for key_node, value_node in node.value:
        line = f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError("a key must be plain text", where=line, expected="key: value", found="a list or mapping")
        key = str(key_node.value)
        if key == "<<":
            parts = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for part in parts:
                value = _value(part, loc, name, marks)
                if not isinstance(value, dict):
                    raise RecipeError("`<<` merges mappings only", where=line, expected="a mapping", found=repr(value))
                merged = {**value, **merged}
            continue
        if key in out:
            raise RecipeError(
                f"the key {key!r} stands twice",
                where=line,
                expected="every key once",
                found=f"first at {marks[(*loc, key)]}",
                hint="remove one of the two",
            )
        marks[(*loc, key)] = line
        out[key] = _value(value_node, (*loc, key), name, marks)
    return {**{key: value for key, value in merged.items() if key not in out}, **out}


def _scalar(node: yaml.ScalarNode, loc: Loc, name: str) -> JSON:
    text = str(node.value)
    where = f"{name}:{node.start_mark.line + 1}"
    if node.tag not in ("tag:yaml.org,2002:str", "!", "?", None):
        raise RecipeError("YAML tags are not part of a recipe", where=where, found=str(node.tag), hint="drop the tag")
    if node.style in ("'", '"', "|", ">"):
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.match(text):
        raise RecipeError("a setting must be a finite number", where=where, found=text)
    if _INT.match(text):
        return int(text)
    if _BASED_INT.match(text):
        return int(text, 0)
    if _FLOAT.match(text):
        number = float(text)
        if math.isinf(number):
            raise RecipeError("a setting must be a finite number", where=where, found=text)
        return number
    return text
