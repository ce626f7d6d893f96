"""Spec: the frozen settings of one stage, and what of them is identity.

    class TrainSpec(Spec):
        learning_rate: float = Field(2e-4, gt=0)
        \"\"\"Peak learning rate, per optimizer step.\"\"\"

Fields that name files are `ContentPath`: they enter identity by the sha256 of what they hold, never by where they lie.
Discriminators of a union (`kind: Literal["lora"]`) have no default: a defaulted tag would be left out of the identity
and two adapters would share one fingerprint.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict

from tunesmith.errors import RecipeError
from tunesmith.types import JSON

_CHUNK_BYTES = 1 << 20


class ByContent:
    """Marks a path field whose identity is the content of the file or folder it names."""


ContentPath = Annotated[str, ByContent()]


class Spec(BaseModel):
    """Settings of one stage: frozen, every key known, every field documented by the string under it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    def identity(self) -> dict[str, JSON]:
        """Return the non-default fields as plain JSON, paths replaced by the sha256 of their content.

        Raises `RecipeError` where a named file does not exist.
        """
        out: dict[str, JSON] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if not field.is_required() and value == field.get_default(call_default_factory=True):
                continue
            by_content = any(isinstance(mark, ByContent) for mark in field.metadata)
            out[name] = _plain(value, by_content=by_content or _mentions_content(field.annotation))
        return out


def _mentions_content(annotation: Any) -> bool:
    """Whether `ContentPath` occurs inside a container or optional annotation such as `list[ContentPath]`."""
    metadata = getattr(annotation, "__metadata__", ())
    if any(isinstance(mark, ByContent) for mark in metadata):
        return True
    args = getattr(annotation, "__args__", ())
    return any(_mentions_content(arg) for arg in args if not isinstance(arg, types.EllipsisType))


def _plain(value: Any, *, by_content: bool) -> JSON:
    if isinstance(value, Spec):
        return value.identity()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, by_content=by_content) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, by_content=by_content) for item in value]
    if isinstance(value, (str, Path)) and by_content:
        return {"sha256": content_sha256(Path(value))}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def content_sha256(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's sorted (relative name, sha256) pairs.

    Raises `RecipeError` where the path does not exist or cannot be read.
    """
    try:
        if path.is_dir():
            tree = hashlib.sha256()
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                tree.update(f"{file.relative_to(path).as_posix()}\0{content_sha256(file)}\n".encode())
            return tree.hexdigest()
        digest = hashlib.sha256()
        with path.open("rb") as handle:
            while chunk := handle.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()
    except OSError as error:
        raise RecipeError(
            f"cannot read {path}",
            where=str(path),
            found=error.strerror or str(error),
            hint="check the path; relative paths are read from the folder of the recipe",
        ) from error
