"""An export: one model, ready for other engines, with the contract that it was trained under.

    merged    config.json  model.safetensors  tokenizer.json  chat_template.jinja  generation_config.json  ...
    gguf      NAME-Q8_0.gguf
    both      contract/  export.json  checksums.json

What lives here: the files beside the weights, writing and checking them, no model loaded. What does not: the weights
(`model.export`, `model.gguf_export`). The files that other engines read for tokenizer, template and generation are the
contract's own, byte for byte; an export in which one of them was changed is refused by name.
"""

from __future__ import annotations

import enum
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.chat.contract import Contract, load_contract
from tunesmith.errors import ServeError
from tunesmith.serve.bundle import CHECKSUMS_FILE, check_files, file_sha256, read_object, write_checksums
from tunesmith.types import JSON

EXPORT_FORMAT = 1
EXPORT_FILE = "export.json"
CONTRACT_DIR = "contract"


class ExportKind(enum.StrEnum):
    """What an export is for."""

    MERGED = "merged"
    """A plain Hugging Face folder: transformers, vLLM, SGLang, and llama.cpp's own converter."""
    GGUF = "gguf"
    """One file for llama.cpp."""


_REQUIRED = (f"{CONTRACT_DIR}/contract.json", f"{CONTRACT_DIR}/tokenizer/tokenizer.json", EXPORT_FILE, CHECKSUMS_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """An export whose files were checked."""

    root: Path
    kind: ExportKind
    name: str
    contract: Contract
    manifest: Mapping[str, Any]
    """`export.json`: what was exported, in which number format, and how far it is from base and adapter."""

    @property
    def weights(self) -> Path:
        """The folder or file that an engine loads."""
        return self.root if self.kind is ExportKind.MERGED else self.root / str(self.manifest["file"])


def write_beside_weights(root: Path, contract_dir: Path, *, kind: ExportKind) -> None:
    """Copy the contract, and for a folder the files that other engines read, beside the weights."""
    shutil.copytree(contract_dir, root / CONTRACT_DIR)
    if kind is ExportKind.MERGED:
        for file in sorted((contract_dir / "tokenizer").iterdir()):
            shutil.copyfile(file, root / file.name)


def write_manifest(root: Path, manifest: Mapping[str, JSON]) -> Export:
    """Write `export.json` and the checksums, the last step of an export, and return it read back."""
    text = json.dumps({"format": EXPORT_FORMAT, **manifest}, indent=1, ensure_ascii=False)
    (root / EXPORT_FILE).write_text(text + "\n", encoding="utf-8")
    write_checksums(root)
    return load_export(root)


def load_export(root: Path) -> Export:
    """Read and check an export, golden vectors included.

    Raises `ServeError` for a file that is missing, added or changed, `ContractError` where the contract's parts do not
    agree with each other; both name the part.
    """
    check_files(root, what="export", required=_REQUIRED, remedy="tunesmith export BUNDLE --to KIND OUT")
    manifest = read_object(root / EXPORT_FILE)
    if manifest.get("format") != EXPORT_FORMAT:
        raise ServeError(
            "the export was made by another version of tunesmith",
            where=str(root),
            expected=f"format {EXPORT_FORMAT}",
            found=f"format {manifest.get('format')!r}",
        )
    contract = load_contract(root / CONTRACT_DIR)
    kind = ExportKind(manifest["kind"])
    if manifest["contract_sha256"] != contract.sha256:
        raise ServeError(
            "the contract is not the one that this export was made with",
            where=str(root / CONTRACT_DIR),
            expected=f"sha256 {manifest['contract_sha256']}",
            found=f"sha256 {contract.sha256}",
        )
    if kind is ExportKind.MERGED:
        for file in sorted((root / CONTRACT_DIR / "tokenizer").iterdir()):
            beside = root / file.name
            if not beside.is_file() or file_sha256(beside) != file_sha256(file):
                raise ServeError(
                    f"{file.name} beside the weights is not the contract's",
                    where=str(beside),
                    expected=f"the bytes of {CONTRACT_DIR}/tokenizer/{file.name}",
                    found="other bytes" if beside.is_file() else "no such file",
                    hint="export the bundle again",
                )
    return Export(root=root, kind=kind, name=str(manifest["name"]), contract=contract, manifest=manifest)
