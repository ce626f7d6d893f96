"""Guardrails: deterministic checks of what comes in and what goes out, and the policy for an answer that fails.

    policy:
      on_fail: retry          flag: answer as it is, say so | retry: generate again, then refuse | refuse: no answer
      retries: 1
      input: [injection]      flagged, never blocked: a heuristic must not decide who is served
      output: [schema, canary, empty]
      canaries: ["ZX-canary-81"]

What lives here: the policy as the contract states it, and the checks. What does not: the JSON schema check itself
(the contract's), redaction of traces (a function that the server is handed), who enforces (`serve.answer`).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunesmith.errors import ContractError
from tunesmith.types import JSON


class OnFail(enum.StrEnum):
    """What happens to an answer that fails an output check."""

    FLAG = "flag"
    RETRY = "retry"
    REFUSE = "refuse"


class Policy(BaseModel):
    """The guardrail policy of a contract."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_fail: OnFail = OnFail.FLAG
    retries: int = Field(1, ge=1, le=5)
    """Further generations under `retry`; the last failure is refused."""
    input: tuple[Literal["injection"], ...] = ("injection",)
    output: tuple[Literal["schema", "canary", "empty"], ...] = ("schema", "canary", "empty")
    canaries: tuple[str, ...] = ()
    """Texts that must never be answered, such as planted secrets. A hit is always refused, whatever `on_fail` says."""


def read_policy(value: Mapping[str, JSON]) -> Policy:
    """Read a contract's guardrails. Raises `ContractError` for a key or value that means nothing here."""
    try:
        return Policy.model_validate(dict(value))
    except ValidationError as error:
        first = error.errors()[0]
        raise ContractError(
            "the contract's guardrail policy cannot be enforced by this server",
            where="guardrails." + ".".join(str(part) for part in first["loc"]),
            found=f"{first['msg']}: {first['input']!r}",
            expected="keys: " + ", ".join(Policy.model_fields),
        ) from error


INJECTION_PATTERNS: Mapping[str, re.Pattern[str]] = {
    "override": re.compile(
        r"\b(ignore|disregard|forget|override|bypass)\b.{0,40}\b(previous|prior|above|earlier|all|your|the)\b.{0,30}"
        r"\b(instructions?|prompts?|rules?|guidelines?|directions?|messages?)\b",
        re.IGNORECASE | re.DOTALL,
    ),
    "reveal": re.compile(
        r"\b(reveal|print|repeat|show|output|leak|tell me|what (is|are))\b.{0,40}"
        r"\b(system prompt|hidden prompt|initial instructions|your instructions|your rules)\b",
        re.IGNORECASE | re.DOTALL,
    ),
    "persona": re.compile(
        r"\byou are (now|no longer)\b|\bact as (an? )?(unrestricted|unfiltered|jailbroken|DAN)\b|\bdeveloper mode\b",
        re.IGNORECASE,
    ),
    "control_token": re.compile(r"<\|[a-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|<(start|end)_of_turn>|</?s>", re.IGNORECASE),
    "fake_turn": re.compile(r"^\s*(#{2,}\s*)?(system|assistant)\s*(message)?\s*:", re.IGNORECASE | re.MULTILINE),
    "encoded": re.compile(
        r"\b(base64|rot13|hex)\b.{0,30}\b(decode|encoded|follow|execute)\b", re.IGNORECASE | re.DOTALL
    ),
}
"""Families of prompt injection as in garak's `promptinject`, `dan` and `encoding` probes; patterns are our own.
They find the plain wordings alone: a flag is a hint for the monitor, its absence proves nothing."""


def injection_flags(text: str) -> tuple[str, ...]:
    """Return the names of the injection families whose wording occurs in a text."""
    return tuple(name for name, pattern in INJECTION_PATTERNS.items() if pattern.search(text))
