"""Parts of a contract: the settings that make it up, as frozen values and as canonical JSON.

What lives here: system rule, decoding, loss policy, hashing. What does not: files (`contract`, `build`).

Each part has its own sha256 over its canonical JSON; the contract's is the sha256 over the parts' names and hashes.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from tunesmith.chat.length import Overlong
from tunesmith.chat.turns import Reasoning, TrainOn
from tunesmith.types import JSON, canonical_json, sha256_hex

CONTRACT_FORMAT = 1
"""Version of the file format. A reader refuses others."""

PART_NAMES = (
    "system",
    "template",
    "tokenizer",
    "tools",
    "input",
    "output",
    "stop",
    "decoding",
    "guardrails",
    "loss",
    "golden",
)


class SystemRule(enum.StrEnum):
    """Where the system prompt comes from."""

    TEXT = "text"
    """The contract's own text, on every conversation."""
    NONE = "none"
    """There is none, on purpose; a conversation that brings one is refused."""
    FROM_ROWS = "from_rows"
    """The contract says nothing: each conversation brings its own or none, and a template may inject its default."""


class NoTarget(enum.StrEnum):
    """What happens to a row in which nothing trains."""

    ERROR = "error"
    DROP = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """The system prompt rule."""

    rule: SystemRule
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How answers are generated, in evaluation and at the server."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPolicy:
    """What trains."""

    train_on: TrainOn = TrainOn.ALL
    reasoning: Reasoning = Reasoning.TRAIN
    overlong: Overlong = Overlong.DROP
    max_tokens: int | None = None
    """Longest training sequence, in tokens; `None` is no limit."""
    no_target: NoTarget = NoTarget.ERROR


def part_hashes(parts: Mapping[str, JSON]) -> dict[str, str]:
    """Return the sha256 of each part's canonical JSON."""
    return {name: sha256_hex(canonical_json(parts[name])) for name in PART_NAMES}


def contract_hash(hashes: Mapping[str, str]) -> str:
    """Return the one sha256 over all parts."""
    return sha256_hex(canonical_json({"format": CONTRACT_FORMAT, "parts": dict(hashes)}))


def decoding_json(decoding: Decoding) -> dict[str, JSON]:
    """Return the part as plain JSON."""
    return asdict(decoding)


def tools_text(tools: Sequence[Mapping[str, JSON]]) -> str:
    """Return the declarations as JSON text with their keys in the order they came: templates print them in it."""
    return json.dumps([dict(tool) for tool in tools], ensure_ascii=False, allow_nan=False)


def loss_json(loss: LossPolicy) -> dict[str, JSON]:
    """Return the part as plain JSON."""
    return {key: value.value if isinstance(value, enum.Enum) else value for key, value in asdict(loss).items()}


def read_loss(value: Mapping[str, JSON]) -> LossPolicy:
    """Read what `loss_json` writes."""
    return LossPolicy(
        train_on=TrainOn(value["train_on"]),
        reasoning=Reasoning(value["reasoning"]),
        overlong=Overlong(value["overlong"]),
        max_tokens=value["max_tokens"],
        no_target=NoTarget(value["no_target"]),
    )
