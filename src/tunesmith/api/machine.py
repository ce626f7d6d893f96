"""Machine: what a run may use here, found out without importing torch."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from pathlib import Path

from tunesmith.core.engine import parse_engine
from tunesmith.core.recipe import Recipe
from tunesmith.core.run import Machine
from tunesmith.errors import PlanError
from tunesmith.types import LOCAL_ENGINE, EngineChoice

DEVICES = ("auto", "cpu", "cuda")
LAUNCHED = "TORCHELASTIC_RUN_ID"
"""What `torchrun` tells each process."""
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def this_machine(
    device: str = "auto",
    *,
    workers: int | None = None,
    engine: EngineChoice = LOCAL_ENGINE,
    argv: tuple[str, ...] = (),
) -> Machine:
    """Return the device and worker count to run with. `auto` is `cuda` where torch and the driver both have it.

    Raises `PlanError` for an unknown device, for `cuda` where there is none, and under `torchrun`.
    """
    if LAUNCHED in os.environ:
        raise PlanError(
            "this command starts its processes itself, and torchrun started it several times",
            where=f"{LAUNCHED} in the environment",
            expected="one `tunesmith run`, with train.parallel in the recipe",
            hint="for several machines: train.parallel.machines, and `tunesmith join` on each of the others",
        )
    if device not in DEVICES:
        raise PlanError("unknown device", expected=f"one of {', '.join(DEVICES)}", found=device)
    missing = None if device == "cpu" else _why_no_cuda()
    if device == "cuda" and missing is not None:
        raise PlanError("there is no CUDA device", found=missing, hint="--device cpu, or --device auto")
    resolved = "cpu" if device == "cpu" or missing is not None else "cuda"
    return Machine(device=resolved, workers=workers or num_cores(), engine=engine, argv=argv)


def chosen_engine(recipe: Recipe, given: str | None = None) -> EngineChoice:
    """Return the engine that was `given` (`ray`, `ray://HOST:PORT`), else the recipe's, checked.

    Raises `RecipeError` and `PlanError` for what is none, `MissingExtra` where a package lacks, and `EngineError` for a
    cluster that must not or cannot be used.
    """
    from tunesmith.data.engines import check_engine

    choice = parse_engine(given, where=f"--engine {given}") if given is not None else recipe.engine or LOCAL_ENGINE
    check_engine(choice)
    return choice


def num_cores() -> int:
    """Return the cores that this process may use: its affinity, and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if _CPU_MAX.exists():
        quota, period = _CPU_MAX.read_text(encoding="ascii").split()[:2]
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return max(1, cores)


def _why_no_cuda() -> str | None:
    """Return why CUDA cannot be used, or None where it can: torch's build first, then the driver's device count."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "torch is not installed"
    version = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    if re.search(r"^cuda\b[^=]*=\s*None", version, re.MULTILINE):
        return "torch was installed without CUDA"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver shows no device"
    return None
