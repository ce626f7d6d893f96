"""Fields: what a recipe key takes, read off the Spec that declares it.

    describe(Annotated[float, Gt(0)])   -> "number > 0"
    key_docs(TrainSpec)                 -> KeyDoc(key="learning_rate", takes="number > 0", default=0.0002, doc="...")...

What lives here: types in words, the keys known at a place, the documentation of every key. `recipe` words its errors
with it, `explain` answers with it, and the architecture tests walk it.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo

from tunesmith.core.spec import ByContent, Loc, Spec
from tunesmith.types import JSON

_WORDS: dict[Any, str] = {
    int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null", Path: "path",
    Any: "any value", object: "any value",
}  # fmt: skip
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}
_LENGTHS = {"min_length": "at least {} long", "max_length": "at most {} long", "pattern": "matching {!r}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDoc:
    """One key of a stage's table."""

    key: str
    """Dotted, such as `adapter.rank`; items of a list or mapping are written `sources[].path`."""
    loc: Loc
    takes: str
    required: bool
    default: JSON
    doc: str
    owner: type[Spec]
    """The Spec class that declares the key."""
    field: FieldInfo


def describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return in words what an annotation takes, bounds included."""
    origin = typing.get_origin(annotation)
    args = typing.get_args(annotation)
    if origin is Annotated:
        return describe(args[0], [*args[1:], *metadata])
    if any(isinstance(mark, ByContent) for mark in metadata):
        return "path of a file or folder"
    if origin is Literal:
        words = "one of " + ", ".join(str(arg) for arg in args) if len(args) > 1 else f"the word {args[0]}"
    elif origin in (typing.Union, types.UnionType):
        words = " or ".join(dict.fromkeys(describe(arg) for arg in args))
    elif origin in (list, tuple, set, frozenset, Sequence):
        inner = next((arg for arg in args if arg is not Ellipsis), Any)
        words = f"list of ({describe(inner)})" if " " in describe(inner) else f"list of {describe(inner)}"
    elif origin in (dict, Mapping):
        words = f"mapping of text to {describe(args[1])}"
    elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        words = "one of " + ", ".join(str(member.value) for member in annotation)
    elif isinstance(annotation, type) and issubclass(annotation, Spec):
        words = f"mapping with the keys {', '.join(annotation.model_fields)}"
    else:
        words = _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
    limits = " and ".join(_limits(metadata))
    return f"{words} {limits}" if limits else words


def _limits(metadata: Sequence[Any]) -> Iterator[str]:
    for mark in metadata:
        for name, sign in _BOUNDS.items():
            if (bound := getattr(mark, name, None)) is not None:
                yield f"{sign} {bound:g}" if isinstance(bound, float) else f"{sign} {bound}"
        for name, words in _LENGTHS.items():
            if (limit := getattr(mark, name, None)) is not None:
                yield words.format(limit)


def nested_specs(annotation: Any) -> Iterator[type[Spec]]:
    """Yield the Spec classes that a value of this annotation may hold directly or in a container."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
        return
    for arg in typing.get_args(annotation):
        yield from nested_specs(arg)


def is_container(annotation: Any) -> bool:
    """Whether values of this annotation are lists, or mappings with free keys."""
    origin = typing.get_origin(annotation)
    if origin in (list, tuple, set, frozenset, dict, Sequence, Mapping):
        return True
    if origin in (typing.Union, types.UnionType, Annotated):
        return any(is_container(arg) for arg in typing.get_args(annotation))
    return False


def key_docs(spec_type: type[Spec], *, prefix: str = "", loc: Loc = ()) -> list[KeyDoc]:
    """Return every key of a Spec, nested ones after their parent."""
    out: list[KeyDoc] = []
    for name, field in spec_type.model_fields.items():
        key = f"{prefix}{name}"
        out.append(
            KeyDoc(
                key=key,
                loc=(*loc, name),
                takes=describe(field.annotation, field.metadata),
                required=field.is_required(),
                default=_default_json(field),
                doc=(field.description or "").strip(),
                owner=spec_type,
                field=field,
            )
        )
        seen: set[str] = set()
        for inner in nested_specs(field.annotation):
            dots = f"{key}[]." if is_container(field.annotation) else f"{key}."
            for doc in key_docs(inner, prefix=dots, loc=(*loc, name)):
                if doc.key not in seen or doc.owner is not inner:
                    out.append(doc)
                seen.add(doc.key)
    return out


def _default_json(field: FieldInfo) -> JSON:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    return _json(value)


def _json(value: Any) -> JSON:
    if isinstance(value, Spec):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_json(item) for item in value]
    return value


def specs_at(spec_type: type[Spec], loc: Sequence[str | int]) -> list[type[Spec]]:
    """Return the Spec classes that may stand at `loc`, as pydantic writes it: union tags narrow the choice."""
    current: list[type[Spec]] = [spec_type]
    for part in loc:
        if isinstance(part, int):
            continue
        holders = [spec for spec in current if part in spec.model_fields]
        if holders:
            current = [inner for spec in holders for inner in nested_specs(spec.model_fields[part].annotation)]
            continue
        tagged = [spec for spec in current if part in tags(spec)]
        current = tagged or current
    return current


def tags(spec_type: type[Spec]) -> set[str]:
    """Return the values of the Spec's one-word Literal fields: the tags by which a union knows it."""
    words: set[str] = set()
    for field in spec_type.model_fields.values():
        if typing.get_origin(field.annotation) is Literal:
            words.update(str(arg) for arg in typing.get_args(field.annotation))
    return words


def field_at(spec_type: type[Spec], loc: Sequence[str | int]) -> FieldInfo | None:
    """Return the field that stands at `loc`, or None where `loc` names no declared field."""
    for end in range(len(loc), 0, -1):
        name = loc[end - 1]
        if isinstance(name, int):
            continue
        for spec in specs_at(spec_type, loc[: end - 1]):
            if name in spec.model_fields:
                return spec.model_fields[name]
    return None
