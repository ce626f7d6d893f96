"""Score given texts by the model's own probability.

What lives here: log-likelihood of continuations, for multiple choice, perplexity, canary exposure. What does not:
generation (`model.generate`), what the figures mean (`evals`).

    scores = log_likelihood(model, [((1, 7, 9), (4, 2)), ((1, 7, 9), (5,))])
    scores[0].total                       # log p(4, 2 | 1, 7, 9), in nats

Pairs with the same prefix share its computation, so four choices of one question cost one question and four endings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tunesmith.errors import DataError
from tunesmith.model.generate import context_length

LIKELIHOOD_BATCH_TOKENS = 4096
"""Default bound on rows x longest continuation of one batch (logits are rows x tokens x vocabulary)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """How likely a continuation is after its prefix."""

    total: float
    """Sum of the log-probabilities of its tokens, in nats."""
    num_tokens: int
    greedy: bool
    """Whether each of its tokens is the most likely one."""

    @property
    def per_token(self) -> float:
        """Mean log-probability of a token, in nats."""
        return self.total / self.num_tokens


def log_likelihood(
    model: torch.nn.Module,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_tokens: int = LIKELIHOOD_BATCH_TOKENS,
) -> list[Likelihood]:
    """Return the likelihood of each (prefix, continuation), in order.

    Raises `DataError` for an empty prefix or continuation (no token predicts the first one), and for pairs longer than
    the context of the model.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    context = context_length(model)
    for index, (prefix, continuation) in enumerate(pairs):
        if not prefix or not continuation:
            raise DataError(
                "a likelihood needs a prefix and a continuation of at least one token", where=f"pair {index}"
            )
        if context is not None and len(prefix) + len(continuation) > context:
            raise DataError(
                "a pair does not fit the model's context",
                where=f"pair {index}",
                expected=f"at most {context} tokens",
                found=str(len(prefix) + len(continuation)),
            )
        groups[tuple(prefix)].append(index)
    out: dict[int, Likelihood] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for prefix, members in groups.items():
                members.sort(key=lambda index: len(pairs[index][1]))
                start = 0
                while start < len(members):
                    stop = start + 1
                    while stop < len(members) and (stop + 1 - start) * len(pairs[members[stop]][1]) <= batch_tokens:
                        stop += 1
                    chunk = members[start:stop]
                    scored = _score_endings(model, prefix, [tuple(pairs[index][1]) for index in chunk])
                    out.update(zip(chunk, scored, strict=True))
                    start = stop
    finally:
        model.train(was_training)
    return [out[index] for index in range(len(pairs))]


def _score_endings(model: torch.nn.Module, prefix: tuple[int, ...], endings: list[tuple[int, ...]]) -> list[Likelihood]:
    """Score endings that follow one prefix: the prefix once, then all endings right-padded in one batch."""
    from transformers import DynamicCache

    device = next(model.parameters()).device
    cache = DynamicCache(config=model.config)
    head, last = prefix[:-1], prefix[-1]
    if head:
        model(input_ids=torch.tensor([head], device=device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(endings))
    width = max(len(ending) for ending in endings)
    # Row: the last prefix token, then the ending without its last token; position t predicts ending[t].
    ids = torch.tensor([[last, *ending[:-1]] + [0] * (width - len(ending)) for ending in endings], device=device)
    mask = torch.tensor(
        [[1] * (len(head) + len(ending)) + [0] * (width - len(ending)) for ending in endings], device=device
    )
    positions = torch.arange(len(head), len(head) + width, device=device).expand(len(endings), -1)
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).logits
    out = []
    for row, ending in enumerate(endings):
        log_probabilities = torch.log_softmax(logits[row, : len(ending)].float(), dim=-1)
        targets = torch.tensor(ending, device=device)
        picked = log_probabilities.gather(1, targets[:, None])[:, 0]
        greedy = bool((log_probabilities.max(dim=-1).values == picked).all())
        out.append(Likelihood(total=float(picked.double().sum()), num_tokens=len(ending), greedy=greedy))
    return out
