"""Files of a contract: their names, reading them, and the refusal of a part that was changed by hand.

What lives here: names, reading, comparing. What does not: what the parts mean (`contract`), writing them (`build`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tunesmith.chat.parts import CONTRACT_FORMAT
from tunesmith.errors import ContractError
from tunesmith.types import JSON, canonical_json

CONTRACT_FILE = "contract.json"
TOKENIZER_DIR = "tokenizer"
GOLDEN_FILE = "golden.jsonl"
CRITERIA_FILE = "criteria.json"
GENERATION_FILE = "generation_config.json"


def generation_config(decoding: Mapping[str, JSON], stop: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return `generation_config.json` as it follows from a contract. It names no pad token: padding is the batch's."""
    sampled = decoding["temperature"] > 0
    out: dict[str, JSON] = {
        "do_sample": sampled,
        "eos_token_id": list(stop["ids"]),
        "max_new_tokens": decoding["max_new_tokens"],
    }
    if sampled:
        out["temperature"] = decoding["temperature"]
        out["top_p"] = decoding["top_p"]
    return out


def read_document(path: Path) -> dict[str, JSON]:
    """Return `contract.json` of a folder. Raises `ContractError` where it is missing, broken or of another format."""
    try:
        document: dict[str, JSON] = json.loads(read_text(path / CONTRACT_FILE))
        known = document["format"] == CONTRACT_FORMAT and {"parts", "hashes", "sha256", "criteria_sha256"} <= set(
            document
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ContractError("the contract cannot be read", where=str(path / CONTRACT_FILE), found=str(error)) from error
    if not known:
        raise ContractError(
            "the contract has another format",
            where=str(path / CONTRACT_FILE),
            expected=f"format {CONTRACT_FORMAT}",
            found=str(document.get("format")),
            hint="build it again with this version",
        )
    return document


def read_text(path: Path) -> str:
    """Return a file's text, byte for byte. Raises `ContractError`."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError(
            f"the contract's file {path.name!r} cannot be read", where=str(path), found=str(error)
        ) from error


def require_same(expected: JSON, found: JSON, *, part: str, where: Path) -> None:
    """Raise `ContractError` naming the part where what was recorded and what is there differ."""
    if expected != found:
        raise ContractError(
            f"the contract's part {part!r} was changed by hand",
            where=str(where),
            expected=canonical_json(expected)[:120],
            found=canonical_json(found)[:120],
            hint="restore the file, or change the recipe and build the contract again",
        )
