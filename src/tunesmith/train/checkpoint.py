"""Checkpoints that hold everything: weights, optimizer, random states, counters, and what they belong to.

    checkpoint-00000120/
      weights.safetensors     trainable parameters, and the best ones so far
      optimizer.safetensors   one tensor for each (parameter, slot)
      shards/                 both of these, where weights are sharded over processes (`train.shards`)
      state.json              step, best loss, random states, identity of the run, its processes: written last

What lives here: writing, finding and reading them. What does not: when to write (`train.loop`).
A checkpoint is written aside, synced and renamed: one that exists under its final name is complete. No pickles.
Every process of a world calls these functions; the first one writes what all share.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import DeviceMesh

from tunesmith.errors import StoreError, TrainingError
from tunesmith.train import shards
from tunesmith.train.optimizer_state import restore_, state_of
from tunesmith.train.scaling import LossScale
from tunesmith.train.world import World, own_part
from tunesmith.types import JSON

FOLDER = re.compile(r"checkpoint-(\d{8})")
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
BEST_PREFIX = "best."
OPTIMIZER_PREFIX = "optimizer."
ALONE = World()
UNSCALED = LossScale()

CHECKPOINTS_KEPT = 2
Tensors = dict[str, torch.Tensor]
OtherWorld = Literal["refuse", "reshard"]
"""What to do with a checkpoint that another number of processes wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Where a run stands, as plain JSON."""

    step: int = 0
    """Optimizer steps done; the data position follows from it, because the order is a function of the seed."""
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best: Mapping[str, float] = field(default_factory=dict)
    """What was measured at the best step: the validation loss and other figures, by name."""
    first: Mapping[str, float] = field(default_factory=dict)
    """The same before any step."""
    evals_since_best: int = 0
    """Measurements of the deciding figure since then."""
    recent_losses: tuple[float, ...] = ()
    """Training losses that the divergence watch looks at."""
    early_losses: tuple[float, ...] = ()
    last_evaluated: int = -1
    """Step after which validation last ran."""
    loss_scale: LossScale = UNSCALED
    """What the loss of the next step is multiplied by."""
    skipped_steps: int = 0
    """Steps that changed nothing, because their float16 gradients overflowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a checkpoint belongs to; a run with another identity refuses it."""

    data: str
    """Digest of the examples."""
    settings: str
    """Digest of everything that decides the arithmetic: hyper-parameters, dtype, pass."""


class CheckpointWriter:
    """Writes checkpoints in a thread of its own while training goes on, one at a time. Use it as a context manager.

    An error of the thread is raised by the next `start` or `wait`; leaving the context waits for what is being written.
    Every process of a world makes one.
    """

    def __init__(self, world: World = ALONE) -> None:
        self.mesh = shards.mesh_for_writing() if world.layout == "sharded" else None
        """Where copies of slices live until they are written."""
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tunesmith-checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._threads.shutdown(wait=True)
        if error is None:
            self.wait()

    def start(self, write: Callable[[], None]) -> None:
        """Wait for the checkpoint before, then begin to write this one."""
        self.wait()
        self._pending = self._threads.submit(write)

    def wait(self) -> None:
        """Wait until nothing is being written. Raises what the thread raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def save_checkpoint(
    folder: Path,
    *,
    parameters: Mapping[str, torch.nn.Parameter],
    best: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    identity: Identity,
    world: World = ALONE,
    keep: int = CHECKPOINTS_KEPT,
    writer: CheckpointWriter | None = None,
) -> Path:
    """Write a checkpoint and remove all but the `keep` newest. Raises `StoreError` when the disk refuses.

    `best` holds this process's part of each parameter. With a `writer` everything is copied before this returns, and
    written after.
    """
    final = folder / f"checkpoint-{counters.step:08d}"
    partial = folder / f".partial-{counters.step:08d}"
    slots, plain = state_of(optimizer, parameters)
    random = world.gathered([base64.b64encode(part.numpy().tobytes()).decode() for part in _random_states()])
    state: dict[str, JSON] = {
        "counters": asdict(counters),
        "identity": asdict(identity),
        "world": {"layout": world.layout, "size": world.size},
        "optimizer": plain,
        "optimizer_tensors": sorted(slots),
        "random": random,
    }
    sharded = world.layout == "sharded"
    mesh = None if writer is None else writer.mesh
    slices = _slices(parameters, best, slots, mesh) if sharded else {}
    files = _copies(parameters, best, slots) if not sharded and world.leads else {}

    def write() -> None:
        try:
            if world.leads:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            if sharded:
                shards.write_shards(partial, slices, mesh)
            for name, tensors in files.items():
                save_file(tensors, partial / name)
            if world.leads:
                (partial / STATE).write_text(json.dumps(state) + "\n", "utf-8")
                _commit(partial, final, keep=keep)
        except OSError as error:
            raise StoreError(
                "cannot write a checkpoint",
                where=str(final),
                found=error.strerror or str(error),
                hint="free disk space",
            ) from error

    if writer is not None:
        writer.start(write)
    else:
        write()
        world.wait()
    return final


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor in main memory, where training will not change it."""
    return own_part(tensor.detach()).to("cpu", copy=True).contiguous()


def _copies(
    parameters: Mapping[str, torch.nn.Parameter],
    best: Mapping[str, torch.Tensor],
    slots: Mapping[str, torch.Tensor],
) -> dict[str, Tensors]:
    """Return the files of a checkpoint that is not sharded, as copies."""
    weights = {name: _copy(parameter) for name, parameter in parameters.items()}
    weights |= {BEST_PREFIX + name: tensor for name, tensor in best.items()}  # Replaced, never changed.
    return {WEIGHTS: weights, OPTIMIZER: {key: _copy(value) for key, value in slots.items()}}


def _slices(
    parameters: Mapping[str, torch.nn.Parameter],
    best: Mapping[str, torch.Tensor],
    slots: Mapping[str, torch.Tensor],
    mesh: DeviceMesh | None,
) -> Tensors:
    """Return everything of a sharded checkpoint by name, as copies on `mesh`, or as it is where there is none."""
    tensors = {name: parameter.detach() for name, parameter in parameters.items()}
    tensors |= {OPTIMIZER_PREFIX + key: value.detach() for key, value in slots.items()}
    if mesh is not None:
        tensors = {name: shards.sliced_as(tensor, _copy(tensor), mesh) for name, tensor in tensors.items()}
    return tensors | {BEST_PREFIX + name: shards.sliced_as(parameters[name], own, mesh) for name, own in best.items()}


def _commit(partial: Path, final: Path, *, keep: int) -> None:
    """Make a checkpoint that is written complete: sync, rename, drop the oldest."""
    for path in partial.rglob("*"):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    _sync(final.parent)
    for old in _complete(final.parent)[:-keep]:
        shutil.rmtree(old)


def _random_states() -> list[torch.Tensor]:
    """Return the random states of the CPU and of this process's GPU: asking for all GPUs would take memory on each."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("checkpoint-*") if FOLDER.fullmatch(path.name))


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a folder, or `None`."""
    found = _complete(folder) if folder.is_dir() else []
    return found[-1] if found else None


def load_checkpoint(
    path: Path,
    *,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: Identity,
    world: World = ALONE,
    other_world: OtherWorld = "refuse",
) -> tuple[Counters, dict[str, torch.Tensor]]:
    """Restore parameters, optimizer and random state in place; return the counters and the best weights so far.

    Raises `TrainingError` for a checkpoint that holds weights only, that belongs to other data or settings, or that
    another number of processes wrote, unless `other_world` says to divide it anew.
    """
    if not (path / STATE).is_file():
        raise _incomplete(path, STATE)
    state = json.loads((path / STATE).read_text("utf-8"))
    held = Identity(**state["identity"])
    if held != identity:
        other = "data" if held.data != identity.data else "settings"
        raise TrainingError(
            f"the checkpoint was made with other {other}",
            where=str(path),
            hint="remove the folder to start anew",
        )
    _check_world(path, World(**state["world"]), world, other_world)
    read = _read_sharded if world.layout == "sharded" else _read_whole
    weights, slots = read(path, parameters, state["optimizer_tensors"])
    best = {
        name.removeprefix(BEST_PREFIX): own_part(tensor).cpu()
        for name, tensor in weights.items()
        if name.startswith(BEST_PREFIX)
    }
    with torch.no_grad():
        for name, parameter in parameters.items():
            own_part(parameter).copy_(own_part(weights[name]))
    restore_(optimizer, parameters, slots, state["optimizer"])
    if world.rank < len(state["random"]):  # A process that joined keeps the state it began with.
        _restore_random(state["random"][world.rank])
    fields = dict(state["counters"])
    for name in ("recent_losses", "early_losses"):
        fields[name] = tuple(fields[name])
    fields["loss_scale"] = LossScale(**fields["loss_scale"])
    return Counters(**fields), best


def _check_world(path: Path, held: World, world: World, other_world: OtherWorld) -> None:
    """Raise `TrainingError` for a checkpoint whose processes were others than ours, unless it may be divided anew."""
    if held.layout == world.layout and held.size == world.size:
        return
    if (held.layout == "sharded") != (world.layout == "sharded"):
        raise TrainingError(
            "the checkpoint holds weights of another kind of run",
            where=str(path),
            expected=f"weights {world.layout}",
            found=f"weights {held.layout}",
            hint="set train.parallel as it was, or remove the folder to start anew",
        )
    if other_world == "refuse":
        raise TrainingError(
            "the checkpoint was written by another number of processes",
            where=str(path),
            expected=f"{world.size} ({world.layout})",
            found=f"{held.size} ({held.layout})",
            hint="set train.parallel.processes as it was, or train.parallel.other_world to reshard",
        )


def _incomplete(path: Path, missing: str) -> TrainingError:
    return TrainingError(
        "this checkpoint cannot continue a run: it does not hold everything",
        where=str(path),
        expected=f"weights, optimizer and {STATE}",
        found=f"no {missing}",
        hint="remove the folder to start anew",
    )


def _read_whole(
    path: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer_tensors: Sequence[str]
) -> tuple[Tensors, Tensors]:
    """Return weights, best ones included, and optimizer slots."""
    for name in (WEIGHTS, OPTIMIZER):
        if not (path / name).is_file():
            raise _incomplete(path, name)
    return load_file(path / WEIGHTS), load_file(path / OPTIMIZER)


def _read_sharded(
    path: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer_tensors: Sequence[str]
) -> tuple[Tensors, Tensors]:
    """Return weights, best ones included, and optimizer slots, each as sliced as its parameter."""
    shapes = shards.shapes_in(path) if (path / shards.FOLDER).is_dir() else {}
    wanted = {name: parameter.detach() for name, parameter in parameters.items()}
    if any(name.startswith(BEST_PREFIX) for name in shapes):
        wanted |= {BEST_PREFIX + name: parameter.detach() for name, parameter in parameters.items()}
    for key in optimizer_tensors:
        parameter = parameters[key.rpartition("/")[0]].detach()
        shape, dtype = shapes.get(OPTIMIZER_PREFIX + key, (None, None))
        if shape is None:
            raise _incomplete(path, OPTIMIZER_PREFIX + key)
        wanted[OPTIMIZER_PREFIX + key] = (
            parameter.to(dtype) if shape == parameter.shape else torch.empty(shape, dtype=dtype)
        )
    for name, tensor in wanted.items():
        if name not in shapes or shapes[name][0] != tensor.shape:
            raise _incomplete(path, name if name not in shapes else f"whole {name}: a file of shards is missing")
    read = shards.read_shards(path, wanted)
    slots = {key: read.pop(OPTIMIZER_PREFIX + key) for key in optimizer_tensors}
    return read, slots


def _restore_random(texts: Sequence[str]) -> None:
    cpu, *cuda = [torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8) for text in texts]
    torch.set_rng_state(cpu)
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda[0])
