"""Prompts on their way to answers: what a row has said, its random stream, and how its next token is chosen.

What lives here: rows, sampling, constraints, and what rows have in common. What does not: computing logits, which the
engines do (`model.decoder`, `model.padded`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tunesmith.types import Completion, FinishReason, canonical_json, sha256_hex


class Constraint(Protocol):
    """What may come next in one answer, for constrained decoding. One object serves one answer."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return which tokens of the vocabulary may come next."""
        ...

    def consume(self, token: int) -> None:
        """Take the token that came."""
        ...


@dataclass(slots=True, kw_only=True)
class Row:
    """One prompt on its way to an answer."""

    index: int
    prompt: tuple[int, ...]
    started: float = 0.0
    new_ids: list[int] = field(default_factory=list)
    random: torch.Generator | None = None
    constraint: Constraint | None = None
    stopped: bool = False

    def accept(self, token: int, *, stop_ids: frozenset[int], max_new_tokens: int) -> bool:
        """Take the next token; whether the row goes on."""
        if token in stop_ids:
            self.stopped = True
            return False
        if self.constraint is not None:
            self.constraint.consume(token)
        self.new_ids.append(token)
        return len(self.new_ids) < max_new_tokens

    def completion(self) -> Completion:
        """Return the answer as it stands."""
        return Completion(
            ids=tuple(self.new_ids),
            finish_reason=FinishReason.STOP if self.stopped else FinishReason.LENGTH,
            prompt_tokens=len(self.prompt),
            seconds=time.perf_counter() - self.started,
        )


def stream_seeds(prompts: Sequence[Sequence[int]], seed: int) -> list[int]:
    """Return one seed for each prompt; equal prompts are told apart by how often they occurred before."""
    occurrences: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for prompt in prompts:
        key = tuple(prompt)
        seeds.append(int(sha256_hex(canonical_json([seed, occurrences[key], list(key)]))[:15], 16))
        occurrences[key] += 1
    return seeds


def shared_prefix_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many leading tokens all prompts share, leaving at least one token of each."""
    shortest, longest = min(prompts), max(prompts)  # in lexicographic order: what these two share, all share
    length = 0
    for a, b in zip(shortest, longest, strict=False):
        if a != b:
            break
        length += 1
    return min(length, min(len(prompt) for prompt in prompts) - 1)


def next_tokens(logits: torch.Tensor, rows: Sequence[Row], *, temperature: float, top_p: float) -> list[int]:
    """Choose one token for each row, among those that its constraint allows."""
    if any(row.constraint is not None for row in rows):
        allowed = torch.ones(logits.shape, dtype=torch.bool)
        for place, row in enumerate(rows):
            if row.constraint is not None:
                allowed[place] = torch.from_numpy(row.constraint.allowed())
        logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
    return choose(logits, [row.random for row in rows], temperature=temperature, top_p=top_p)


def choose(
    logits: torch.Tensor, streams: Sequence[torch.Generator | None], *, temperature: float, top_p: float
) -> list[int]:
    """Choose one token for each row of `logits` (rows, vocabulary).

    Greedy where `temperature` is 0. Otherwise the smallest set of most likely tokens whose probability reaches
    `top_p` is kept, and one number from the row's own stream picks among them (inverse of the cumulative sum).
    """
    if temperature == 0:
        # max is several times as fast as argmax on bfloat16 on CPUs, and gives the same index where there is no tie
        return [int(index) for index in logits.max(dim=-1).indices.tolist()]
    probabilities = torch.softmax(logits.float().cpu() / temperature, dim=-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    cumulative = ordered.cumsum(dim=-1)
    kept = (cumulative - ordered) < top_p
    cumulative = torch.where(kept, cumulative, torch.zeros_like(cumulative))
    total = cumulative.max(dim=-1).values
    chosen = []
    for row, stream in enumerate(streams):
        assert stream is not None, "sampling needs a random stream for each row"
        draw = torch.rand((), generator=stream) * total[row]
        place = int(torch.searchsorted(cumulative[row, : int(kept[row].sum())], draw, right=True))
        chosen.append(int(order[row, min(place, int(kept[row].sum()) - 1)]))
    return chosen
