"""General ability: a small bundled set of plain passages, to see what fine-tuning cost.

What lives here: the passages, and which tokens of them are scored. What does not: likelihoods (`model.likelihood`,
handed in), the non-inferiority test (`evals.gates`). The passages are the project's own writing: facts, arithmetic,
code, letters, stories. They are scored as plain text, without template or system prompt: the question is what the
weights still know, not how they follow the contract.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

CONTEXT_TOKENS = 4
"""Tokens at the start of a passage that are given and not scored: nothing predicts the first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One text, and what kind of text it is."""

    id: str
    kind: str
    text: str


def general_passages() -> tuple[Passage, ...]:
    """Return the bundled passages."""
    text = resources.files("tunesmith.evals").joinpath("general_sets/general.jsonl").read_text(encoding="utf-8")
    return tuple(Passage(**json.loads(line)) for line in text.splitlines() if line.strip())


def passage_pairs(
    passages: Sequence[Passage], encode: Callable[[str], Sequence[int]]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return (given, scored) ids of each passage; `encode` adds no special tokens."""
    out = []
    for passage in passages:
        ids = tuple(encode(passage.text))
        assert len(ids) > CONTEXT_TOKENS, passage.id
        out.append((ids[:CONTEXT_TOKENS], ids[CONTEXT_TOKENS:]))
    return out
