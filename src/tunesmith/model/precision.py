"""Which number format is faster on this machine: measured for training, read off the processor for answering.

What lives here: a probe of matrix products in a model's own shapes, for a run of minutes that can afford it; and the
processor's own word, for a stage whose result must not depend on how busy the machine was. What does not: mixed
precision; weights and activations have one dtype, adapters and the loss are float32.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith.model.load import DtypeName

PROBE_ROWS = 512
PROBE_SECONDS = 0.15
MIN_ADVANTAGE = 1.1
"""bfloat16 must be this much faster, or float32 is taken: it is exact to 1e-7 and never surprises."""

_BF16_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names in /proc/cpuinfo: x86 with AVX512-BF16 or AMX, and 64-bit ARM with BF16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Measured rates of `[512, hidden] x [hidden, feed-forward]`, in GFLOP/s."""

    float32: float
    bfloat16: float

    @property
    def faster(self) -> DtypeName:
        """The dtype to train in."""
        return "bfloat16" if self.bfloat16 >= MIN_ADVANTAGE * self.float32 else "float32"

    def __str__(self) -> str:
        return f"bfloat16 {self.bfloat16:,.0f} GFLOP/s, float32 {self.float32:,.0f} GFLOP/s"


def measure_speeds(*, hidden_size: int, intermediate_size: int, device: str) -> Speeds:
    """Time both dtypes in turns on `device` and return the best rate of each."""
    best = {torch.float32: 0.0, torch.bfloat16: 0.0}
    for _ in range(3):
        for dtype in best:
            best[dtype] = max(best[dtype], _rate(hidden_size, intermediate_size, dtype=dtype, device=device))
    return Speeds(float32=best[torch.float32], bfloat16=best[torch.bfloat16])


def _rate(hidden_size: int, intermediate_size: int, *, dtype: torch.dtype, device: str) -> float:
    x = torch.zeros(PROBE_ROWS, hidden_size, dtype=dtype, device=device)
    weight = torch.zeros(intermediate_size, hidden_size, dtype=dtype, device=device)
    torch.nn.functional.linear(x, weight)
    _wait(device)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < PROBE_SECONDS / 3:
        torch.nn.functional.linear(x, weight)
        _wait(device)
        count += 1
    seconds = time.perf_counter() - begin
    return 2 * PROBE_ROWS * hidden_size * intermediate_size * count / seconds / 1e9


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def fast_dtype(device: str, *, cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[DtypeName, str]:
    """Return the number format that inference is fastest in on `device`, and the reason in words.

    bfloat16 needs hardware for it: without, every multiplication is emulated and float32 is faster.
    """
    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "the GPU has bfloat16 units"
        return "float16", "the GPU has no bfloat16 units"
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "float32", "the processor's features cannot be read, so float32 is taken"
    flags = {word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()}
    found = sorted(flags & _BF16_CPU_FLAGS)
    if found:
        return "bfloat16", f"the processor has {found[0]}"
    return "float32", "the processor has no bfloat16 instructions"
