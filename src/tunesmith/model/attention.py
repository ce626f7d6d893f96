"""Causal attention over a flat batch: documents laid end to end, none of which sees another.

    rows      0 1 2 3 | 4 5 6 | 7 8 9 10
    segment   prefix  | doc A | doc B           A and B attend to the prefix and, causally, to themselves

What lives here: one autograd Function for all documents, and its registration as a transformers attention
implementation, so that any model that uses the attention interface computes flat batches; and who computes them:

    bfloat16 on a processor that multiplies it      `attention.c` (`model.compiled_attention`)
    float16 and bfloat16 on a GPU, if proven there  FlashAttention (`model.flash_attention`)
    everything else                                 `model.torch_attention`

What does not: how documents lie (`model.layout`), the projections around attention (`model.fused`, or the model's own).

Shapes: T rows of the flat batch, H query heads, K key heads, D head size. Queries, keys and values come packed,
[T, H + 2K, D], as one product makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface

from tunesmith.errors import TrainingError
from tunesmith.model import compiled_attention, flash_attention, torch_attention
from tunesmith.model.layout import DocumentLayout, Heads

IMPLEMENTATION = "tunesmith_documents"
"""Name in transformers' attention registry."""


def attention_forward_(
    qkv: torch.Tensor,
    layout: DocumentLayout,
    heads: Heads,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    out: torch.Tensor,
) -> list[torch.Tensor]:
    """Write attention over packed rows [T, H + 2K, D], contiguous, into `out` [T, H, D]; return what backward needs.

    The rows of `out` may lie in a wider buffer. Kept are log-sum-exps, or in torch the probabilities of short segments.
    """
    if compiled_attention.can_compute(qkv, softcap=softcap):
        documents = layout.documents
        return [compiled_attention.forward_(qkv, documents, heads.num_queries, scale=scale, window=window, out=out)]
    if flash_attention.can_compute(qkv, heads, window=window, softcap=softcap):
        return flash_attention.forward_(qkv, layout, heads, scale=scale, window=window, out=out)
    mixed, kept = torch_attention.forward(qkv, layout, heads, scale=scale, window=window, softcap=softcap)
    out.copy_(mixed)
    return kept


def attention_backward_(
    grad_out: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    kept: Sequence[torch.Tensor],
    layout: DocumentLayout,
    heads: Heads,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    grad: torch.Tensor,
) -> None:
    """Write the gradient of packed rows into `grad` [T, H + 2K, D], whose rows may lie in a wider buffer.

    What documents send to shared rows is summed in float32. `out` and `kept` are those of `attention_forward_`.
    """
    if compiled_attention.can_compute(qkv, softcap=softcap):
        (log_sums,) = kept
        compiled_attention.backward_(
            grad_out.contiguous(), qkv, out, log_sums, layout.documents, scale=scale, window=window, grad=grad
        )
        return
    if flash_attention.can_compute(qkv, heads, window=window, softcap=softcap):
        flash_attention.backward_(grad_out, qkv, out, kept, layout, heads, scale=scale, window=window, grad=grad)
        return
    grad.copy_(
        torch_attention.backward(grad_out, qkv, kept, layout, heads, scale=scale, window=window, softcap=softcap)
    )


class DocumentAttention(torch.autograd.Function):
    """Attention of all documents of a flat batch at once: `apply(qkv, layout, heads, scale, window, softcap)`.

    One function for all: slicing documents out under autograd fills a tensor of zeros as large as the batch for each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv: torch.Tensor,
        layout: DocumentLayout,
        heads: Heads,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Return [T, H, D]."""
        out = qkv.new_empty(len(qkv), heads.num_queries, qkv.shape[-1])
        kept = attention_forward_(qkv, layout, heads, scale=scale, window=window, softcap=softcap, out=out)
        ctx.save_for_backward(qkv, out, *kept)
        ctx.layout, ctx.heads, ctx.scale, ctx.window, ctx.softcap = layout, heads, scale, window, softcap
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the packed rows."""
        qkv, out, *kept = ctx.saved_tensors
        grad = torch.empty_like(qkv)
        attention_backward_(
            grad_outputs[0],
            qkv,
            out,
            kept,
            ctx.layout,
            ctx.heads,
            scale=ctx.scale,
            window=ctx.window,
            softcap=ctx.softcap,
            grad=grad,
        )
        return grad, None, None, None, None, None


def document_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: DocumentLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Return [T, H, D] for q [T, H, D] and k, v [T, K, D]: causal attention inside each document, differentiable once.

    `window` is the number of positions that a query sees, itself included (transformers' `sliding_window`).
    """
    heads = Heads(num_queries=q.shape[1], num_keys=k.shape[1])
    qkv = torch.cat((q, k, v), dim=1)
    result = DocumentAttention.apply(qkv, layout, heads, scale, window, softcap)  # type: ignore[no-untyped-call]
    assert isinstance(result, torch.Tensor)
    return result


IGNORABLE = frozenset(
    {"is_causal", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "return_dict"}
    | {"cache_position", "logits_to_keep", "past_key_values", "position_embeddings"}
)
"""Arguments that models hand to every attention function and that change nothing over a flat training batch."""


def _interface(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    document_layout: DocumentLayout | None = None,
    **unknown: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention for transformers: query [1, H, T, D] in, [1, T, H, D] out.

    Raises `TrainingError` for anything that this function would otherwise ignore silently: a mask, dropout, sinks.
    """
    if value.shape[-1] != key.shape[-1]:
        raise TrainingError(f"{type(module).__name__} has values of another head size than its keys")
    strange = sorted(name for name, given in unknown.items() if given is not None and name not in IGNORABLE)
    if document_layout is None or attention_mask is not None or dropout or strange or query.shape[0] != 1:
        raise TrainingError(
            f"{type(module).__name__} asks for attention that flat batches do not compute",
            found=f"mask={attention_mask is not None}, dropout={dropout}, layout={document_layout is not None}, "
            f"others={strange}",
        )
    out = document_attention(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        document_layout,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out.unsqueeze(0), None


# A name in transformers' own registry, not a patch. No mask function under this name: then no mask is made at all.
AttentionInterface.register(IMPLEMENTATION, _interface)
