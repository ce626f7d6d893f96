"""Length budgets: what happens to a training sequence that is longer than the budget.

What lives here: cutting ids with weights under an explicit policy. What does not: dropping oldest turns, which needs a
new rendering (`contract`).

The default drops the row and counts it. A cut at the end takes the answer's stop with it and teaches abrupt endings; it
is there for those who ask for it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from tunesmith.chat.refusal import RefusalKind, Refused


class Overlong(enum.StrEnum):
    """What happens to a row that is longer than `max_tokens`."""

    DROP = "drop"
    """The row is left out, with its length as the reason."""
    ERROR = "error"
    """The stage stops and names the rows."""
    DROP_OLDEST_TURNS = "drop_oldest_turns"
    """The oldest user and assistant turns go until the rest fits; what remains is a prompt that a server could see."""
    CUT_END = "cut_end"
    """The end is cut; a row whose every target is cut is dropped."""
    CUT_BOTH = "cut_both"
    """Prompt and answer are cut in proportion, as LLaMA-Factory does."""


def share_budget(prompt_tokens: int, target_tokens: int, budget: int) -> tuple[int, int]:
    """Return how many tokens of prompt and of target fit a budget.

    The shorter side is kept whole while it takes less than half of the budget; else both shrink in proportion.
    Source: LLaMA-Factory `data/processor/processor_utils.py`, `infer_seqlen`.
    """
    if target_tokens * 2 < budget:
        target_share = budget
    elif prompt_tokens * 2 < budget:
        target_share = budget - prompt_tokens
    else:
        target_share = budget * target_tokens // (prompt_tokens + target_tokens)
    target = min(target_share, target_tokens)
    return min(max(budget - target, 0), prompt_tokens), target


def cut(
    ids: Sequence[int], weights: Sequence[float], *, budget: int, overlong: Overlong
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return ids and weights within `budget`.

    Raises `Refused` where the policy does not cut, or where nothing is left to train.
    """
    if len(ids) <= budget:
        return tuple(ids), tuple(weights)
    if overlong is Overlong.CUT_END:
        kept_ids, kept_weights = tuple(ids[:budget]), tuple(weights[:budget])
    elif overlong is Overlong.CUT_BOTH:
        split = next((index for index, weight in enumerate(weights) if weight > 0), len(ids))
        prompt, target = share_budget(split, len(ids) - split, budget)
        kept_ids = (*ids[:prompt], *ids[split : split + target])
        kept_weights = (*weights[:prompt], *weights[split : split + target])
    else:
        raise Refused(
            RefusalKind.OVERLONG,
            "the row is longer than the budget",
            expected=f"at most {budget} tokens",
            found=f"{len(ids)} tokens",
            hint="raise max_tokens, shorten the row, or set overlong to a policy that cuts",
        )
    if not any(weight > 0 for weight in kept_weights):
        raise Refused(
            RefusalKind.OVERLONG,
            "cutting the row to the budget leaves nothing to train",
            expected=f"a target within the first {budget} tokens",
            found=f"{len(ids)} tokens",
        )
    return kept_ids, kept_weights
