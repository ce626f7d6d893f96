"""Which number format is fast here.

What lives here: the choice that `dtype: auto` makes, and why. What does not: loading (`model.load`).
"""

from __future__ import annotations

from pathlib import Path

from tunesmith.model.load import DtypeName

_BF16_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names in /proc/cpuinfo: x86 with AVX512-BF16 or AMX, and 64-bit ARM with BF16."""


def fast_dtype(device: str, *, cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[DtypeName, str]:
    """Return the number format that inference is fastest in on `device`, and the reason in words.

    bfloat16 needs hardware for it: without, every multiplication is emulated and float32 is faster.
    """
    if device.startswith("cuda"):
        import torch

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
