"""Attention over the documents of a flat batch in torch's own operations: any device, dtype, window and soft cap.

What lives here: short segments in buckets, long ones block by block, forward and backward. What does not: the layout
(`model.layout`), faster ways for some processors, and the choice among them (`model.attention`).

Shapes: T rows of the flat batch, H query heads, K key heads, G = H / K, D head size, N segments of a bucket,
L own rows of a segment (padded inside a bucket), P rows of its prefix. Queries, keys and values come packed,
[T, H + 2K, D].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tunesmith.model.layout import DocumentLayout, Heads, Segment, blocked_keys

QUERY_BLOCK = 512
"""Query rows at a time of a long segment: bounds its scores to 512 x length for each head."""


def _scores(
    queries: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor, *, scale: float, softcap: float | None
) -> torch.Tensor:
    """Return masked scores [B, rows, keys] of queries [B, rows, D] and keys [B, keys, D]."""
    if softcap is None:
        return torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=scale)
    scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(scale / softcap).tanh_().mul_(softcap)
    return scores.add_(bias)


def _grad_scores(
    probabilities: torch.Tensor, grad_probabilities: torch.Tensor, scores: torch.Tensor | None, *, softcap: float | None
) -> torch.Tensor:
    """Return the gradient of the scaled products, through softmax and cap. `scores` are needed under a cap only."""
    grad = torch._softmax_backward_data(grad_probabilities, probabilities, -1, probabilities.dtype)
    if softcap is not None:
        assert scores is not None
        # d cap(s) / d s = 1 - (cap(s) / softcap)^2; where a score is blocked, its probability has made `grad` zero.
        grad.mul_(1 - (scores.masked_fill(scores.isinf(), 0.0) / softcap) ** 2)
    return grad


def _scaled_bmm(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """Return `scale * left @ right`, the scale applied before rounding."""
    return torch.baddbmm(left.new_zeros(1), left, right, beta=0, alpha=scale)


def forward(
    qkv: torch.Tensor, layout: DocumentLayout, heads: Heads, *, scale: float, window: int | None, softcap: float | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return [T, H, D], and the probabilities of short segments, the log-sum-exps of long ones."""
    num_rows, _, size = qkv.shape
    flat = qkv.view(-1, size)
    out = qkv.new_empty(num_rows + 1, heads.num_queries, size)
    kept = []
    buckets, long = layout.plan(heads, window, qkv.dtype)
    for bucket in buckets:
        queries = flat.index_select(0, bucket.queries).view(bucket.batch, -1, size)
        keys = flat.index_select(0, bucket.keys).view(bucket.batch, -1, size)
        values = flat.index_select(0, bucket.keys + heads.num_keys).view(bucket.batch, -1, size)
        scores = _scores(queries, keys, bucket.bias, scale=scale, softcap=softcap)
        probabilities = torch.softmax(scores, -1)
        out.view(-1, size).index_copy_(0, bucket.outputs, torch.bmm(probabilities, values).view(-1, size))
        kept.append(probabilities)
        if softcap is not None:
            kept.append(scores)
    for segment in long:
        for block in _blocks(qkv, segment, heads, window):
            scores = _scores(block.queries, block.keys, block.bias, scale=scale, softcap=softcap).float()
            log_sum = torch.logsumexp(scores, dim=-1, keepdim=True)
            probabilities = scores.sub_(log_sum).exp_().to(qkv.dtype)
            out[block.rows] = _ungrouped(torch.bmm(probabilities, block.values), heads)
            kept.append(log_sum)
    return out[:num_rows], kept


def backward(
    grad_out: torch.Tensor,
    qkv: torch.Tensor,
    kept: Sequence[torch.Tensor],
    layout: DocumentLayout,
    heads: Heads,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Return the gradient [T, H + 2K, D] of packed rows; what documents send to shared rows is summed in float32."""
    num_rows, _, size = qkv.shape
    flat, flat_grad_out = qkv.view(-1, size), grad_out.reshape(-1, size)
    grad = qkv.new_zeros(num_rows + 1, heads.total, size)
    flat_grad = grad.view(-1, size)
    waiting = iter(kept)
    shared: list[tuple[slice, torch.Tensor, torch.Tensor]] = []
    buckets, long = layout.plan(heads, window, qkv.dtype)
    for bucket in buckets:
        probabilities = next(waiting)
        scores = next(waiting) if softcap is not None else None
        queries = flat.index_select(0, bucket.queries).view(bucket.batch, -1, size)
        keys = flat.index_select(0, bucket.keys).view(bucket.batch, -1, size)
        values = flat.index_select(0, bucket.keys + heads.num_keys).view(bucket.batch, -1, size)
        # Padding reads some real row: its gradient must not count.
        read = bucket.outputs.clamp_max(num_rows * heads.num_queries - 1)
        grad_block = flat_grad_out.index_select(0, read).index_fill_(0, bucket.padding, 0.0)
        grad_block = grad_block.view(bucket.batch, -1, size)
        grad_values = torch.bmm(probabilities.transpose(1, 2), grad_block)
        grad_scores = _grad_scores(
            probabilities, torch.bmm(grad_block, values.transpose(1, 2)), scores, softcap=softcap
        )
        grad_queries = _scaled_bmm(grad_scores, keys, scale)
        grad_keys = _scaled_bmm(grad_scores.transpose(1, 2), queries, scale)
        # `outputs` counts rows of H heads, packed rows have `total`.
        packed = bucket.outputs // heads.num_queries * heads.total + bucket.outputs % heads.num_queries
        flat_grad.index_copy_(0, packed, grad_queries.view(-1, size))
        own = slice(bucket.num_prefix, None)
        flat_grad.index_copy_(0, bucket.own_keys, grad_keys[:, own].reshape(-1, size))
        flat_grad.index_copy_(0, bucket.own_keys + heads.num_keys, grad_values[:, own].reshape(-1, size))
        if bucket.num_prefix:
            sums = [
                torch.unflatten(part[:, : bucket.num_prefix], 0, (-1, heads.num_keys)).sum(0, dtype=torch.float32)
                for part in (grad_keys, grad_values)
            ]
            shared.append((bucket.prefix, sums[0].transpose(0, 1), sums[1].transpose(0, 1)))
    for segment in long:
        shared.extend(
            _long_backward(grad_out, qkv, grad, waiting, segment, heads, scale=scale, window=window, softcap=softcap)
        )
    first_key, first_value = heads.num_queries, heads.num_queries + heads.num_keys
    for rows, grad_keys, grad_values in shared:
        for first, part in ((first_key, grad_keys), (first_value, grad_values)):
            target = grad[rows, first : first + heads.num_keys]
            target.copy_(target.float().add_(part))
    return grad[:num_rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Some query rows of a long segment with all keys that they may see."""

    rows: slice
    visible: int
    """Keys seen: the prefix and own rows up to the block's end."""
    queries: torch.Tensor
    """[K, G x rows, D]."""
    keys: torch.Tensor
    """[K, visible, D]."""
    values: torch.Tensor
    bias: torch.Tensor


def _grouped(rows: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Turn [L, H, D] into [K, G x L, D]."""
    length, _, size = rows.shape
    split = torch.unflatten(rows, 1, (heads.num_keys, heads.group)).permute(1, 2, 0, 3)
    return split.reshape(heads.num_keys, heads.group * length, size)


def _ungrouped(batch: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Turn [K, G x L, D] back into [L, H, D]."""
    size = batch.shape[-1]
    return batch.view(heads.num_keys, heads.group, -1, size).permute(2, 0, 1, 3).reshape(-1, heads.num_queries, size)


def _blocks(qkv: torch.Tensor, segment: Segment, heads: Heads, window: int | None) -> list[_Block]:
    first_value = heads.num_queries + heads.num_keys
    document = torch.cat((qkv[segment.prefix_start : segment.prefix_stop], qkv[segment.start : segment.stop]))
    keys, values = document[:, heads.num_queries : first_value], document[:, first_value:]
    blocks = []
    for begin in range(0, segment.length, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, segment.length)
        rows = slice(segment.start + begin, segment.start + end)
        visible = segment.prefix_length + end
        blocked = blocked_keys(end - begin, segment.prefix_length + begin, visible, window, device=qkv.device)
        bias = torch.zeros(blocked.shape, dtype=qkv.dtype, device=qkv.device).masked_fill_(blocked, float("-inf"))
        blocks.append(
            _Block(
                rows=rows,
                visible=visible,
                queries=_grouped(qkv[rows, : heads.num_queries], heads),
                keys=keys[:visible].transpose(0, 1),
                values=values[:visible].transpose(0, 1),
                bias=bias.repeat(heads.group, 1),
            )
        )
    return blocks


def _long_backward(
    grad_out: torch.Tensor,
    qkv: torch.Tensor,
    grad: torch.Tensor,
    waiting: Iterator[torch.Tensor],
    segment: Segment,
    heads: Heads,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> list[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Write the gradient of a long segment's queries into `grad`; return (rows, keys, values) to add: prefix, own."""
    size, device = qkv.shape[-1], qkv.device
    total = segment.prefix_length + segment.length
    grad_keys, grad_values = (
        torch.zeros(heads.num_keys, total, size, dtype=torch.float32, device=device) for _ in range(2)
    )
    for block in _blocks(qkv, segment, heads, window):
        scores = _scores(block.queries, block.keys, block.bias, scale=scale, softcap=softcap)
        probabilities = (scores.float() - next(waiting)).exp_().to(qkv.dtype)
        grad_block = _grouped(grad_out[block.rows], heads)
        grad_values[:, : block.visible] += torch.bmm(probabilities.transpose(1, 2), grad_block)
        grad_scores = _grad_scores(
            probabilities, torch.bmm(grad_block, block.values.transpose(1, 2)), scores, softcap=softcap
        )
        grad[block.rows, : heads.num_queries] = _ungrouped(_scaled_bmm(grad_scores, block.keys, scale), heads)
        grad_keys[:, : block.visible] += _scaled_bmm(grad_scores.transpose(1, 2), block.queries, scale)
    keys, values = grad_keys.transpose(0, 1), grad_values.transpose(0, 1)
    prefix = segment.prefix_length
    out = [(slice(segment.start, segment.stop), keys[prefix:], values[prefix:])]
    if prefix:
        out.append((slice(segment.prefix_start, segment.prefix_stop), keys[:prefix], values[:prefix]))
    return out
