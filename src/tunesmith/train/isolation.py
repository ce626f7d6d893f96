"""Do documents of one batch see each other? The gradient tells: it is exactly zero between documents that do not.

    proof = with_sharing_pair(table, examples)           # and two documents under one beginning, of their tokens
    leak(loss_pass, model, proof, range(len(proof)))     # 0.0, whatever the number format

What lives here: the pair, what flows from one of its documents into the other's loss, and positions that depend on
length. What does not: comparing
losses and gradients with the reference (`train.passes`). That comparison rounds: in bfloat16 it holds gradients to 10%,
and a short convolution, which carries two tokens of a document into the next, changes them by 1% (measured: LFM2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunesmith.train.batches import MIN_SHARED_TOKENS, flatten
from tunesmith.train.examples import ExampleTable, table_of
from tunesmith.types import Example

if TYPE_CHECKING:
    from tunesmith.train.passes import LossPass

ROPE_BY_LENGTH = ("dynamic", "longrope")
PREFIX_TOKENS, TAIL_TOKENS = 2 * MIN_SHARED_TOKENS, MIN_SHARED_TOKENS


def why_not_together(model: torch.nn.Module, table: ExampleTable) -> str | None:
    """Return why rows of a table must be computed one by one, or `None`.

    Rotary frequencies that depend on how long a text is are one choice for a whole pass in transformers: a short row
    beside one beyond the original context would get the long one's, and be served with its own.
    """
    config: Any = model.config
    given = getattr(config, "rope_parameters", None) or {}
    longest = max(table.length(index) for index in range(len(table)))
    for rope in (given, *(part for part in given.values() if isinstance(part, dict))):
        kind = rope.get("rope_type")
        limit = rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
        if kind in ROPE_BY_LENGTH and limit is not None and longest > limit:
            return f"its rotary positions ({kind}) change beyond {limit:,} tokens, and a row has {longest:,}"
    return None


def with_sharing_pair(table: ExampleTable, indices: Sequence[int]) -> ExampleTable:
    """Return these examples of a table and, as the last two, a pair of documents that begin alike.

    Whether a few examples begin alike is chance; whether a step's examples do is not, so that sharing must be proven.
    """
    examples = [_example(table, index) for index in indices]
    tokens = np.resize(np.concatenate([table.example(index)[0] for index in indices]), PREFIX_TOKENS + TAIL_TOKENS)
    prefix, tail = tokens[:PREFIX_TOKENS].tolist(), tokens[PREFIX_TOKENS:].tolist()
    other = [*tail[1:], tail[0]]  # The same tail where it is one token again and again: then nothing can be told apart.
    weights = (0.0, *[1.0] * (PREFIX_TOKENS + TAIL_TOKENS - 1))
    pair = [
        Example(row_id=f"pair {name}", ids=(*prefix, *own), weights=weights)
        for name, own in (("first", tail), ("second", other))
    ]
    return table_of([*examples, *pair])


def _example(table: ExampleTable, index: int) -> Example:
    ids, weights = table.example(index)
    return Example(row_id=table.row_ids[index], ids=tuple(ids.tolist()), weights=tuple(weights.tolist()))


def leak(
    loss_pass: LossPass, model: torch.nn.Module, table: ExampleTable, indices: Sequence[int], *, sharded: bool = False
) -> float:
    """Return the largest gradient of the last document's loss by the embeddings of the others' own tokens.

    `model` is the transformers model. What the documents share is theirs both and does not count. Sharded weights make
    their gradients in a whole backward only, and every process calls this.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = flatten(table, indices, share_prefixes=loss_pass.shares_prefixes, device=parameters[0].device)
    last = batch.segments[-1]
    asked = (batch.rows >= last.start) & (batch.rows < last.stop)
    batch = replace(batch, weights=batch.weights * asked)
    embedded: list[torch.Tensor] = []

    def watch(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()

    was_training = model.training
    model.eval()
    handle = model.get_input_embeddings().register_forward_hook(watch)  # type: ignore[operator]
    try:
        loss = loss_pass.loss(batch, denominator=float(batch.weights.sum()))
    finally:
        handle.remove()
        model.train(was_training)
    if sharded:
        loss.backward()  # type: ignore[no-untyped-call]
        grad = embedded[0].grad
        for parameter in parameters:
            parameter.grad = None
    else:
        (grad,) = torch.autograd.grad(loss, embedded[:1])
    assert grad is not None
    grad = grad.view(batch.num_rows, -1)
    others = torch.ones(batch.num_rows, dtype=torch.bool, device=grad.device)
    others[last.start : last.stop] = False
    others[last.prefix_start : last.prefix_stop] = False
    return float(grad[others].abs().max()) if bool(others.any()) else 0.0
