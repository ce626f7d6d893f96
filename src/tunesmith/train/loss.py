"""Cross-entropy over supervised positions only, in chunks, with the gradient made in the forward.

What lives here: the loss as a sum over weighted predictions divided by a denominator that the caller names. What does
not: which positions are supervised (the contract), the denominator of a step (`train.loop`).

    loss = sum_i weights_i * -log softmax(hidden_i @ head.T)[labels_i]  /  denominator

Logits of a whole batch are never held: 1,000 predictions over 49,152 tokens are 200 MB in float32.
"""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.model.kernels import cross_entropy_
from tunesmith.model.products import linear, product

CHUNK_ROWS = 128
"""Predictions at a time. Measured on AMD Zen 4 and 5: fastest where a chunk of logits stays in the last-level cache."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """`apply(hidden [S, E], head [V, E], labels [S], coefficients [S])` -> sum of coefficient x negative log-prob."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, coefficients: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss, with the gradients of hidden states and head made while the logits are there."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        needs_hidden, needs_head = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device) if needs_head else None
        for begin in range(0, len(labels), CHUNK_ROWS):
            part = slice(begin, begin + CHUNK_ROWS)
            logits = linear(hidden[part], head)
            total += torch.dot(cross_entropy_(logits, labels[part], coefficients[part]), coefficients[part])
            if not (needs_hidden or needs_head):
                continue
            if grad_hidden is not None:
                grad_hidden[part] = product(logits, head)
            if grad_head is not None:
                grad_head += product(logits.t(), hidden[part])
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.head_dtype = head.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that the forward made."""
        grad_hidden, grad_head = ctx.saved_tensors
        (scale,) = grad_outputs
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_head is None else (grad_head * scale).to(ctx.head_dtype),
            None,
            None,
        )


def chunked_cross_entropy(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, *, denominator: float
) -> torch.Tensor:
    """Return `sum(weights * negative log-likelihood) / denominator` as a float32 scalar.

    `hidden` is [S, E], `head` [V, E] in the same dtype, `labels` and `weights` [S]. Softmax is computed in float32.
    The denominator is the sum of loss weights of the whole optimizer step, over all its passes and processes.
    """
    result = _ChunkedCrossEntropy.apply(hidden, head, labels, weights / denominator)  # type: ignore[no-untyped-call]
    assert isinstance(result, torch.Tensor)
    return result


def logits_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, *, denominator: float
) -> torch.Tensor:
    """Return the same loss from logits [S, V], for heads that do more than one matrix product (soft caps, scales)."""
    losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return torch.dot(losses, weights) / denominator
