"""`attention.c` over tensors: attention of all documents of a flat batch in bfloat16, on processors that multiply it.

What lives here: when it can run, and its two calls. What does not: layouts, and the same in torch (`model.attention`).
"""

from __future__ import annotations

import ctypes

import torch

from tunesmith.model.kernels import attention_library

SIZE_MULTIPLE = 32
"""Head sizes that fill the vectors."""


def _serving(qkv: torch.Tensor) -> ctypes.CDLL | None:
    if qkv.dtype != torch.bfloat16 or qkv.device.type != "cpu" or qkv.shape[-1] % SIZE_MULTIPLE:
        return None
    return attention_library()


def can_compute(qkv: torch.Tensor, *, softcap: float | None) -> bool:
    """Whether packed rows of this dtype, device and head size go through the compiled attention."""
    return softcap is None and _serving(qkv) is not None


def _numbers(*values: int) -> list[ctypes.c_long]:
    return [ctypes.c_long(value) for value in values]


def _at(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def forward_(
    qkv: torch.Tensor, documents: torch.Tensor, num_heads: int, *, scale: float, window: int | None, out: torch.Tensor
) -> torch.Tensor:
    """Write attention into `out` [T, H, D], whose rows may lie in a wider buffer; return log-sum-exps [H, T].

    `qkv` is [T, H + 2K, D], contiguous; `documents` [N, 4] int64: start and stop of own rows, then of the prefix.
    """
    library = _serving(qkv)
    assert library is not None
    assert qkv.is_contiguous()
    num_rows, total, size = qkv.shape
    log_sums = torch.empty(num_heads, num_rows, dtype=torch.float32)
    failed = library.attention_forward(
        *_numbers(num_rows), _at(documents), *_numbers(len(documents), num_heads, (total - num_heads) // 2, size),
        ctypes.c_float(scale), *_numbers(window or 0), _at(qkv), _at(out), *_numbers(out.stride(0)), _at(log_sums),
    )  # fmt: skip
    if failed:
        raise MemoryError("attention found no memory for its scores")
    return log_sums


def backward_(
    grad_out: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    log_sums: torch.Tensor,
    documents: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    grad: torch.Tensor,
) -> None:
    """Write the gradient of `qkv` into `grad` [T, H + 2K, D], whose rows may lie in a wider buffer."""
    library = _serving(qkv)
    assert library is not None
    assert grad_out.is_contiguous()
    num_rows, total, size = qkv.shape
    num_heads = out.shape[1]
    failed = library.attention_backward(
        *_numbers(num_rows), _at(documents), *_numbers(len(documents), num_heads, (total - num_heads) // 2, size),
        ctypes.c_float(scale), *_numbers(window or 0), _at(qkv), _at(out), *_numbers(out.stride(0)), _at(grad_out),
        _at(log_sums), _at(grad), *_numbers(grad.stride(0)),
    )  # fmt: skip
    if failed:
        raise MemoryError("attention found no memory for its gradients")
