"""Cross-entropy over supervised positions only, in chunks, with the gradient made in the forward.

What lives here: the loss as a sum over weighted predictions divided by a denominator that the caller names. What does
not: which positions are supervised (the contract), the denominator of a step (`train.loop`).

    loss = sum_i weights_i * -log softmax(hidden_i @ head.T)[labels_i]  /  denominator

Logits of a whole batch are never held: 1,000 predictions over 49,152 tokens are 200 MB in float32.

In bfloat16 a logit of 20 is rounded to a multiple of 0.125, which puts up to 6% of noise on its probability. A softmax
does not change when all logits of a row move together, so on the CPU each row's are moved by its label's logit before
they are rounded: one more column of the product, [hidden, -logit] [head, 1]'. Those that matter are then small, and
precise.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from tunesmith.model.kernels import cross_entropy_
from tunesmith.model.products import linear, product

CHUNK_ROWS = 128
"""Predictions at a time on a CPU. Measured on AMD Zen 4 and 5: fastest where a chunk of logits stays in the last-level
cache."""

GPU_CHUNK_LOGITS = 2**25
"""Logits at a time on a GPU, by arithmetic: each chunk reads the whole head once, which on an H100 takes as long as its
product with about 300 rows. 256 rows of a vocabulary of 128k are 67 MB in bfloat16, and 134 for their softmax."""

EXTRA_COLUMNS = 16
"""One is needed; with so many, rows of the wider head begin at whole vectors."""


def _chunk_rows(head: torch.Tensor) -> int:
    return CHUNK_ROWS if head.device.type == "cpu" else max(CHUNK_ROWS, GPU_CHUNK_LOGITS // head.shape[0])


class _Head:
    """The output embedding [V, E] in the form in which its product with hidden states is most precise."""

    _last: tuple[weakref.ref[torch.Tensor], int, torch.Tensor] | None = None
    """The head that was widened last, its version then, and what it became, which goes with it."""

    def __init__(self, head: torch.Tensor) -> None:
        self.plain = head
        self.wide: torch.Tensor | None = None
        if head.device.type == "cpu" and head.dtype == torch.bfloat16:
            self.wide = self._widened(head)

    @classmethod
    def _widened(cls, head: torch.Tensor) -> torch.Tensor:
        if cls._last is not None and cls._last[0]() is head and cls._last[1] == head._version:
            return cls._last[2]
        cls._last = None  # Before the new one is made: two need not lie in memory.
        wide = head.new_zeros(head.shape[0], head.shape[1] + EXTRA_COLUMNS)
        wide[:, : head.shape[1]] = head
        wide[:, head.shape[1]] = 1
        cls._last = (weakref.ref(head, cls._forget), head._version, wide)
        return wide

    @classmethod
    def _forget(cls, gone: weakref.ref[torch.Tensor]) -> None:
        if cls._last is not None and cls._last[0] is gone:
            cls._last = None

    def logits(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return logits [T, V] of hidden states [T, E], up to a constant for each row."""
        if self.wide is None:
            return linear(hidden, self.plain)
        size = hidden.shape[1]
        own = (hidden.float() * self.plain.index_select(0, labels).float()).sum(-1)
        wide = hidden.new_zeros(len(hidden), size + EXTRA_COLUMNS)
        wide[:, :size] = hidden
        wide[:, size] = -own
        return linear(wide, self.wide)


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
        precise, size = _Head(head), _chunk_rows(head)
        for begin in range(0, len(labels), size):
            part = slice(begin, begin + size)
            logits = precise.logits(hidden[part], labels[part])
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
