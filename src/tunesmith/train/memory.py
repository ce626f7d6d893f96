"""How much memory this process has needed so far."""

from __future__ import annotations

import resource

import torch


def peak_bytes(device: str | torch.device) -> int:
    """Return the most that was in use so far: by tensors on a GPU, else by the whole process, torch included."""
    if torch.device(device).type != "cpu":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
