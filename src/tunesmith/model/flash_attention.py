"""FlashAttention over a flat batch, on GPUs: all documents in one kernel call, none of which sees another.

    queries   | prefix | own A | own B |          rows as they lie in the batch
    keys      | prefix | prefix, own A | prefix, own B |    a shared prefix is read once for each of its documents

What lives here: the calls of torch's kernels for rows of variable length, and the proof that they compute what
`model.torch_attention` computes. What does not: lengths (`model.layout`), and which way runs (`model.attention`).

The kernels are those that `torch.nn.attention.varlen` calls (FlashAttention 2: float16 and bfloat16, head sizes up to
256). They align the last query of a document with its last key, so a query behind a prefix sees all of it. Because that
alignment, the window's bounds and the layout of log-sum-exps are not promised to a caller of the operators themselves,
each combination of numbers is proven on the machine before it is used.

Shapes: T rows, H query heads, K key heads, D head size, N documents, S keys counted once for each document.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from tunesmith.model import torch_attention
from tunesmith.model.layout import DocumentLayout, Heads, Lengths, Segment

DTYPES = (torch.float16, torch.bfloat16)
SIZE_MULTIPLE, MAX_SIZE = 8, 256
"""Head sizes that the kernels take."""
PROOF_TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest norm of the difference to float32, relative: rounding of the inputs' dtype alone gives a third of it."""
PROOF_SEGMENTS = (
    Segment(start=0, stop=7),
    Segment(start=7, stop=20, prefix_start=0, prefix_stop=7),
    Segment(start=20, stop=21, prefix_start=0, prefix_stop=7),
    Segment(start=21, stop=101),
)
"""A prefix, two documents behind it (one of a single row), and one that stands alone."""
PROOF_WINDOW = 5
SHOWN_CHARS = 160
"""Of what a kernel says that fails: torch lists every backend that it has."""


def kernel_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: Lengths, *, scale: float, window: int | None
) -> list[torch.Tensor]:
    """Return attention [T, H, D] of queries [T, H, D] to keys and values [S, K, D], and what the backward needs."""
    out, log_sums, random_state, _, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, lengths.query_ends, lengths.key_ends, lengths.longest_queries, lengths.longest_keys,
        0.0, window is None, False, scale=scale, **_bounds(window),
    )  # fmt: skip
    return [out, log_sums, random_state]


def kernel_backward(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    kept: Sequence[torch.Tensor],
    lengths: Lengths,
    *,
    scale: float,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of queries, keys and values."""
    log_sums, random_state = kept
    unused = torch.empty(0, device=q.device)
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = torch.ops.aten._flash_attention_backward(
        grad_out, q, k, v, out, log_sums, lengths.query_ends, lengths.key_ends, lengths.longest_queries,
        lengths.longest_keys, 0.0, window is None, random_state, unused, scale=scale, **_bounds(window),
    )  # fmt: skip
    return grads


def _bounds(window: int | None) -> dict[str, int]:
    """Return how many keys a query sees to its left and right: transformers' window counts the query's own position."""
    return {"window_size_left": -1 if window is None else window - 1, "window_size_right": 0}


def forward_(
    qkv: torch.Tensor,
    layout: DocumentLayout,
    heads: Heads,
    *,
    scale: float,
    window: int | None,
    out: torch.Tensor,
) -> list[torch.Tensor]:
    """Write attention over packed rows [T, H + 2K, D] into `out` [T, H, D]; return what `backward_` needs."""
    lengths = layout.lengths
    mixed, *kept = kernel_forward(*_split(qkv, heads, lengths), lengths, scale=scale, window=window)
    out.copy_(mixed)
    return kept


def backward_(
    grad_out: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    kept: Sequence[torch.Tensor],
    layout: DocumentLayout,
    heads: Heads,
    *,
    scale: float,
    window: int | None,
    grad: torch.Tensor,
) -> None:
    """Write the gradient of packed rows into `grad` [T, H + 2K, D]; what documents send to a prefix sums in float32."""
    lengths = layout.lengths
    queries, keys, values = _split(qkv, heads, lengths)
    grads = kernel_backward(
        grad_out.contiguous(), queries, keys, values, out.contiguous(), kept, lengths, scale=scale, window=window
    )
    grad[:, : heads.num_queries] = grads[0]
    first_value = heads.num_queries + heads.num_keys
    for target, part in ((grad[:, heads.num_queries : first_value], grads[1]), (grad[:, first_value:], grads[2])):
        if lengths.own_keys is None:
            target.copy_(part)
            continue
        target.copy_(part.index_select(0, lengths.own_keys))
        for rows, places in lengths.prefixes:
            target[rows] = target[rows].float().add_(part[places].sum(0, dtype=torch.float32)).to(target.dtype)


def _split(qkv: torch.Tensor, heads: Heads, lengths: Lengths) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    first_value = heads.num_queries + heads.num_keys
    keys, values = qkv[:, heads.num_queries : first_value], qkv[:, first_value:]
    if lengths.key_rows is not None:
        keys, values = keys.index_select(0, lengths.key_rows), values.index_select(0, lengths.key_rows)
    return qkv[:, : heads.num_queries], keys, values


def can_compute(qkv: torch.Tensor, heads: Heads, *, window: int | None, softcap: float | None) -> bool:
    """Whether packed rows [T, H + 2K, D] go through the kernels: they can, and the machine has proven that they do."""
    if qkv.device.type != "cuda" or qkv.dtype not in DTYPES or softcap is not None:
        return False
    if qkv.shape[-1] % SIZE_MULTIPLE or qkv.shape[-1] > MAX_SIZE:
        return False
    return _proven(qkv.device, qkv.dtype, heads, qkv.shape[-1], windowed=window is not None)


_refusals: list[str] = []


def refusals() -> tuple[str, ...]:
    """Return why FlashAttention was not used where it could have been, as far as asked in this process."""
    return tuple(_refusals)


@functools.cache
def _proven(device: torch.device, dtype: torch.dtype, heads: Heads, size: int, *, windowed: bool) -> bool:
    reason = why_not(device, dtype, heads, size, windowed=windowed)
    if reason is not None:
        _refusals.append(reason)
    return reason is None


def why_not(device: torch.device, dtype: torch.dtype, heads: Heads, size: int, *, windowed: bool) -> str | None:
    """Return why the kernels are not used for such numbers, or `None` where outputs and gradients equal torch's.

    A few documents are computed here, in the kernels' dtype, and by `model.torch_attention` in float32.
    """
    window, scale = PROOF_WINDOW if windowed else None, size**-0.5
    generator = torch.Generator().manual_seed(0)
    layout = DocumentLayout(PROOF_SEGMENTS, device)
    qkv = torch.randn(layout.num_rows, heads.total, size, generator=generator).to(device, dtype)
    grad_out = torch.randn(layout.num_rows, heads.num_queries, size, generator=generator).to(device, dtype)
    out, grad = torch.empty_like(grad_out), torch.empty_like(qkv)
    try:
        kept = forward_(qkv, layout, heads, scale=scale, window=window, out=out)
        backward_(grad_out, qkv, out, kept, layout, heads, scale=scale, window=window, grad=grad)
    except (RuntimeError, NotImplementedError) as error:
        return f"FlashAttention failed: {str(error).splitlines()[0][:SHOWN_CHARS]}"
    exact_out, exact_kept = torch_attention.forward(
        qkv.float(), layout, heads, scale=scale, window=window, softcap=None
    )
    exact_grad = torch_attention.backward(
        grad_out.float(), qkv.float(), exact_kept, layout, heads, scale=scale, window=window, softcap=None
    )
    for name, found, exact in (("outputs", out, exact_out), ("gradients", grad, exact_grad)):
        difference = float((found.float() - exact).norm() / exact.norm())
        if not difference <= PROOF_TOLERANCE[dtype]:
            return f"FlashAttention's {name} are off by {difference:.1e} of their size"
    return None
