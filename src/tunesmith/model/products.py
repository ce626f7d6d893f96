"""Large matrix products, through the library that is fastest for them on this processor.

    y = linear(x, weight, bias)      # x weight' + bias
    c = product(a, b)                # a b

What lives here: the choice. torch sends float32 products to MKL, which on AMD processors does not use AVX-512: 100
GFLOP/s a core were measured on Zen 5, and 212 to 240 through oneDNN. Both sum in float32 in another order, nothing else
differs. The processor decides, not a measurement, so that a run that resumes computes the same.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

MIN_COLUMNS = 64
"""Narrower products (those of adapters alone) gain nothing."""


@functools.cache
def _prefers_onednn(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether float32 products go to oneDNN: an AMD processor, and a build of torch with both libraries."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):  # type: ignore[no-untyped-call]
        return False
    try:
        return "AuthenticAMD" in cpuinfo.read_text("utf-8", errors="replace")
    except OSError:
        return False


def _through_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and len(weight) >= MIN_COLUMNS and _prefers_onednn()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `x weight' + bias` for x [T, in] and weight [out, in]; not recorded by autograd."""
    if not _through_onednn(x, weight):
        return torch.nn.functional.linear(x, weight, bias)
    # Columns of a wider matrix take oneDNN's reference loops, a thousand times slower than the copy.
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.t().contiguous().t()
    out = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    assert isinstance(out, torch.Tensor)
    return out


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return `a b` for a [T, out] and b [out, in]; not recorded by autograd."""
    return linear(a, b.t()) if _through_onednn(a, b.t()) else torch.mm(a, b)
