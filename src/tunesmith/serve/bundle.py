"""A bundle: what one deployable model is made of, and the proof that it is what it claims to be.

    adapter/  contract/  golden.jsonl  README.md  gates.json  base.json  bundle.json  checksums.json

`adapter/` is a PEFT adapter, or after full fine-tuning the whole model.

What lives here: writing and checking the files of a bundle, no model loaded. What does not: running the model
(`serve.startup` proves the engine), deciding on promotion (`gates.json` is read here, judged by the stage).
A file too many, too few or changed by hand is refused by name. The base model is never copied: `base.json` holds the
sha256 of each of its files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.chat.contract import Contract, load_contract
from tunesmith.errors import ServeError
from tunesmith.types import JSON, Conversation, canonical_json, sha256_hex

Dtype = Literal["float32", "bfloat16", "float16"]
BUNDLE_FORMAT = 1
CHECKSUMS_FILE = "checksums.json"
ADAPTER_FILES = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
WHOLE_MODEL_FILES = ("adapter/config.json",)
"""What `adapter/` must hold: a PEFT adapter, or all the weights that full fine-tuning leaves."""
REQUIRED_FILES = (
    "contract/contract.json",
    "contract/tokenizer/tokenizer.json",
    "golden.jsonl",
    "README.md",
    "gates.json",
    "base.json",
    "bundle.json",
    CHECKSUMS_FILE,
)
"""Without any one of these a bundle does not load. `checksums.json` names them all, and every other file."""

_CHUNK_BYTES = 1 << 20
_BASE_FILES = (".safetensors", "config.json")
"""Endings of the base's files that decide what it computes. The tokenizer and template in use are the contract's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A conversation, the ids that it must become, and what the model said next when the bundle was made."""

    conversation: Conversation
    ids: tuple[int, ...]
    next_tokens: tuple[int, ...] = ()
    """The most likely next tokens with the adapter, best first; empty where they were not recorded."""
    tuned_logprobs: tuple[float, ...] = ()
    base_logprobs: tuple[float, ...] = ()
    """Log-probabilities of `next_tokens` with and without the adapter."""

    def to_json(self) -> dict[str, JSON]:
        """Return one line of `golden.jsonl`."""
        out: dict[str, JSON] = {**self.conversation.to_json(), "ids": list(self.ids)}
        if self.next_tokens:
            out["next"] = {
                "tokens": list(self.next_tokens),
                "tuned_logprobs": list(self.tuned_logprobs),
                "base_logprobs": list(self.base_logprobs),
            }
        return out

    @classmethod
    def from_json(cls, value: Mapping[str, JSON]) -> Golden:
        """Read what `to_json` writes."""
        following = value.get("next") or {}
        return cls(
            conversation=Conversation.from_json(value),
            ids=tuple(value["ids"]),
            next_tokens=tuple(following.get("tokens", ())),
            tuned_logprobs=tuple(following.get("tuned_logprobs", ())),
            base_logprobs=tuple(following.get("base_logprobs", ())),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The base model that a bundle belongs to."""

    id: str
    fingerprint: str
    """Of the `base` artifact in the store that made the bundle."""
    files: Mapping[str, str]
    """File name -> sha256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle whose files were checked."""

    root: Path
    name: str
    """Model id under which the adapter answers."""
    contract: Contract
    adapter_sha256: str
    base: Base
    golden: tuple[Golden, ...]
    dtype: Dtype
    """Number format that the bundle was evaluated in; serving in another one is not what was measured."""
    promotable: bool
    gates: tuple[Mapping[str, JSON], ...]

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of answers: 8 digits of the contract's sha256, then 8 of the adapter's."""
        return f"{self.contract.sha256[:8]}-{self.adapter_sha256[:8]}"


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def file_sums(root: Path, *, leave_out: Sequence[str] = ()) -> dict[str, str]:
    """Return relative POSIX path -> sha256 of every file under a folder, sorted."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    names = {path.relative_to(root).as_posix(): path for path in files}
    return {name: file_sha256(path) for name, path in names.items() if name not in leave_out}


def folder_sha256(sums: Mapping[str, str]) -> str:
    """Return the identity of a folder: the sha256 of its sorted (name, sha256) pairs."""
    return sha256_hex(canonical_json(dict(sorted(sums.items()))))


def holds_whole_model(root: Path) -> bool:
    """Whether a bundle holds a whole model, in `adapter/`: full fine-tuning leaves no adapter."""
    return (root / WHOLE_MODEL_FILES[0]).is_file() and not (root / ADAPTER_FILES[0]).is_file()


def _required(root: Path) -> tuple[str, ...]:
    return (*(WHOLE_MODEL_FILES if holds_whole_model(root) else ADAPTER_FILES), *REQUIRED_FILES)


def base_sums(model_dir: Path) -> dict[str, str]:
    """Return the sha256 of the base's weights and configs. Raises `ServeError` where the folder holds none."""
    files = (
        sorted(path for path in model_dir.glob("*") if path.name.endswith(_BASE_FILES)) if model_dir.is_dir() else []
    )
    files = [path for path in files if path.name != "tokenizer_config.json"]
    if not any(path.suffix == ".safetensors" for path in files):
        raise ServeError("this folder holds no model", where=str(model_dir), expected="*.safetensors and config.json")
    return {path.name: file_sha256(path) for path in files}


def write_checksums(root: Path) -> dict[str, str]:
    """Write `checksums.json` over all other files of a bundle; the last step of making one."""
    sums = file_sums(root, leave_out=(CHECKSUMS_FILE,))
    (root / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    return sums


def write_golden(path: Path, golden: Iterable[Golden]) -> None:
    """Write `golden.jsonl`."""
    path.write_text("".join(canonical_json(item.to_json()) + "\n" for item in golden), encoding="utf-8")


def load_bundle(root: Path) -> Bundle:
    """Read and check a bundle.

    Raises `ServeError` for a file that is missing, added or changed, `ContractError` where the contract's parts do not
    agree with each other; both name the part.
    """
    check_files(root, what="bundle", required=_required(root), remedy="tunesmith run RECIPE --only bundle")
    meta = read_object(root / "bundle.json")
    if meta.get("format") != BUNDLE_FORMAT:
        raise ServeError(
            "the bundle was made by another version of tunesmith",
            where=str(root),
            expected=f"format {BUNDLE_FORMAT}",
            found=f"format {meta.get('format')!r}",
        )
    contract = load_contract(root / "contract")
    adapter_sha256 = folder_sha256(file_sums(root / "adapter"))
    for part, stated, found in (
        ("contract", meta["contract_sha256"], contract.sha256),
        ("adapter", meta["adapter_sha256"], adapter_sha256),
    ):
        if stated != found:
            raise ServeError(
                f"the {part} is not the one that this bundle was made of",
                where=str(root / part),
                expected=f"sha256 {stated}",
                found=f"sha256 {found}",
                hint="make the bundle again; parts of two bundles do not mix",
            )
    gates = read_object(root / "gates.json")
    base = read_object(root / "base.json")
    lines = (root / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    golden = tuple(Golden.from_json(json.loads(line)) for line in lines)
    if not golden:
        raise ServeError("the bundle has no golden vectors, so it can prove nothing", where=str(root / "golden.jsonl"))
    return Bundle(
        root=root,
        name=str(meta["name"]),
        contract=contract,
        adapter_sha256=adapter_sha256,
        base=Base(id=str(base["id"]), fingerprint=str(base["fingerprint"]), files=dict(base["files"])),
        golden=golden,
        dtype=meta["dtype"],
        promotable=bool(gates["promotable"]),
        gates=tuple(gates["verdicts"]),
    )


def check_base(bundle: Bundle, model_dir: Path) -> None:
    """Raise `ServeError` where the base's files are not those that the adapter was trained on, byte for byte."""
    found = base_sums(model_dir)
    for name in sorted(found.keys() | bundle.base.files.keys()):
        expected = bundle.base.files.get(name)
        if expected != found.get(name):
            raise ServeError(
                f"{name} of the base model is not the one that the adapter was trained on",
                where=str(model_dir / name),
                expected=f"sha256 {expected}" if expected else "no such file",
                found=f"sha256 {found[name]}" if name in found else "no such file",
                hint=f"give --base the folder of {bundle.base.id} that the run fetched",
            )


def check_files(root: Path, *, what: str, required: Sequence[str], remedy: str) -> None:
    """Raise `ServeError` that names the first file which is missing, was added or was changed by hand."""
    if not root.is_dir():
        raise ServeError(f"there is no {what} here", where=str(root), hint="tunesmith show lists the bundles of a run")
    missing = [name for name in required if not (root / name).is_file()]
    if missing:
        raise ServeError(
            f"the {what} is not complete",
            where=str(root),
            expected=", ".join(required),
            found=f"missing: {', '.join(missing)}",
            hint=f"make the {what} again: {remedy}",
        )
    stated: Mapping[str, Any] = read_object(root / CHECKSUMS_FILE)
    found = file_sums(root, leave_out=(CHECKSUMS_FILE,))
    for name in sorted(stated.keys() | found.keys()):
        if name not in found:
            state = "is missing"
        elif name not in stated:
            state = "was added by hand"
        elif stated[name] != found[name]:
            state = "was changed by hand"
        else:
            continue
        raise ServeError(
            f"{name} {state}",
            where=str(root / name),
            expected=f"sha256 {stated.get(name, 'none: no such file')}",
            found=f"sha256 {found.get(name, 'none: no such file')}",
            hint=f"change the recipe and run it again; {what}s are never edited",
        )


def read_object(path: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file of a bundle. Raises `ServeError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ServeError("a file of the bundle cannot be read", where=str(path), found=str(error)) from error
    if not isinstance(value, dict):
        raise ServeError("a file of the bundle is not a JSON object", where=str(path), found=type(value).__name__)
    return value
