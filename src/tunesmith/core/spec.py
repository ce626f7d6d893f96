"""Spec: the frozen settings of one stage, and what of them is identity.

    class TrainSpec(Spec):
        learning_rate: float = Field(2e-4, gt=0)
        \"\"\"Peak learning rate, per optimizer step.\"\"\"

Fields that name files are `ContentPath`: they enter identity by the sha256 of what they hold and their base name,
never by where they lie. The recipe loader makes them absolute; a stage that shows a path shows `Path(x).name`.
Discriminators of a union (`kind: Literal["lora"]`) have no default: a defaulted tag would be left out of the identity
and two adapters would share one fingerprint.
"""

from __future__ import annotations

import enum
import hashlib
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict

from tunesmith.errors import RecipeError
from tunesmith.types import JSON

Loc = tuple[str | int, ...]
"""Where a value stands inside a table: `("sources", 0, "path")`."""

Hasher = Callable[[Path], str]
"""Content sha256 of a file or folder; the store's remembers big files."""


class ByContent:
    """Marks a path field whose identity is the content of the file or folder it names."""


ContentPath = Annotated[str, ByContent()]


class Circumstance:
    """Marks a field that says how a stage computes and not what: it never enters identity, as the machine does not."""


class Spec(BaseModel):
    """Settings of one stage: frozen, every key known, every field documented by the string under it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    def identity(self, sha256_of: Hasher | None = None) -> dict[str, JSON]:
        """Return the non-default fields as plain JSON, paths replaced by base name and sha256 of their content.

        Fields marked as circumstance are left out.

        Raises `RecipeError` where a named file does not exist.
        """
        return _settings(self, _content_of(sha256_of or content_sha256), only_changed=True)

    def settings(self, path_json: Callable[[str], JSON] | None = None) -> dict[str, JSON]:
        """Return all fields, defaults included, as plain JSON, content paths shown as `path_json` gives them."""
        return _settings(self, path_json or str, only_changed=False)

    def with_paths(self, rename: Callable[[Loc, str], str]) -> Self:
        """Return a copy whose content paths, at any depth, are what `rename(loc, path)` gives."""
        renamed: Self = _renamed(self, (), rename)
        return renamed


def _content_of(sha256_of: Hasher) -> Callable[[str], JSON]:
    def describe(path: str) -> JSON:
        return {"name": Path(path).name, "sha256": sha256_of(Path(path))}

    return describe


def _settings(spec: Spec, path_json: Callable[[str], JSON], *, only_changed: bool) -> dict[str, JSON]:
    out: dict[str, JSON] = {}
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        default = not field.is_required() and value == field.get_default(call_default_factory=True)
        if only_changed and (default or is_circumstance(field)):
            continue
        out[name] = _plain(value, path_json, only_changed=only_changed, by_content=_is_content(field))
    return out


def _plain(value: Any, path_json: Callable[[str], JSON], *, only_changed: bool, by_content: bool) -> JSON:
    if isinstance(value, Spec):
        return _settings(value, path_json, only_changed=only_changed)
    if isinstance(value, Mapping):
        return {
            str(key): _plain(item, path_json, only_changed=only_changed, by_content=by_content)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, path_json, only_changed=only_changed, by_content=by_content) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item, path_json, only_changed=only_changed, by_content=by_content) for item in value)
    if isinstance(value, (str, Path)) and by_content:
        return path_json(str(value))
    if isinstance(value, enum.Enum):
        return value.value
    assert value is None or isinstance(value, (str, int, float, bool)), f"a Spec holds {type(value).__name__}"
    return value


def _renamed(value: Any, loc: Loc, rename: Callable[[Loc, str], str], *, by_content: bool = False) -> Any:
    if isinstance(value, Spec):
        changed = {}
        for name, field in type(value).model_fields.items():
            before = getattr(value, name)
            after = _renamed(before, (*loc, name), rename, by_content=_is_content(field))
            if after is not before:
                changed[name] = after
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, Mapping):
        items = {key: _renamed(item, (*loc, str(key)), rename, by_content=by_content) for key, item in value.items()}
        return items if any(items[key] is not value[key] for key in items) else value
    if isinstance(value, (list, tuple)):
        renamed = [_renamed(item, (*loc, index), rename, by_content=by_content) for index, item in enumerate(value)]
        return type(value)(renamed) if any(a is not b for a, b in zip(renamed, value, strict=True)) else value
    if isinstance(value, str) and by_content:
        return rename(loc, value)
    return value


def is_circumstance(field: Any) -> bool:
    """Return whether a field says how a stage computes and not what."""
    return any(isinstance(mark, Circumstance) for mark in field.metadata)


def _is_content(field: Any) -> bool:
    return any(isinstance(mark, ByContent) for mark in field.metadata) or _mentions_content(field.annotation)


def _mentions_content(annotation: Any) -> bool:
    """Whether `ContentPath` occurs inside a container or optional annotation such as `list[ContentPath]`."""
    metadata = getattr(annotation, "__metadata__", ())
    if any(isinstance(mark, ByContent) for mark in metadata):
        return True
    args = getattr(annotation, "__args__", ())
    return any(_mentions_content(arg) for arg in args if not isinstance(arg, types.EllipsisType))


def content_sha256(path: Path, sha256_of_file: Hasher | None = None) -> str:
    """Return the sha256 of a file, or of a folder's sorted (relative name, sha256) pairs.

    `sha256_of_file` hashes one file, for callers that remember what they hashed. Raises `RecipeError` where the path
    does not exist or cannot be read.
    """
    of_file = sha256_of_file or file_sha256
    try:
        if path.is_dir():
            tree = hashlib.sha256()
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                tree.update(f"{file.relative_to(path).as_posix()}\0{of_file(file)}\n".encode())
            return tree.hexdigest()
        return of_file(path)
    except OSError as error:
        raise RecipeError(
            f"cannot read {path}",
            where=str(path),
            found=error.strerror or str(error),
            hint="check the path; relative paths are read from the folder of the recipe",
        ) from error


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes. Raises `OSError`."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
