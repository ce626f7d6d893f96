"""Checkpoints that hold everything: weights, optimizer, random states, counters, and what they belong to.

    checkpoint-00000120/
      weights.safetensors     trainable parameters, and the best ones so far
      optimizer.safetensors   one tensor for each (parameter, slot)
      state.json              step, best loss, random states, identity of the run: written last

What lives here: writing, finding and reading them. What does not: when to write (`train.loop`).
A checkpoint is written aside, synced and renamed: one that exists under its final name is complete. No pickles.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import StoreError, TrainingError
from tunesmith.types import JSON

FOLDER = re.compile(r"checkpoint-(\d{8})")
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
BEST_PREFIX = "best."


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Where a run stands, as plain JSON."""

    step: int = 0
    """Optimizer steps done; the data position follows from it, because the order is a function of the seed."""
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_loss: float | None = None
    """Lowest validation loss after at least one step."""
    first_loss: float | None = None
    """Validation loss before any step."""
    evals_since_best: int = 0
    recent_losses: tuple[float, ...] = ()
    """Training losses that the divergence watch looks at."""
    early_losses: tuple[float, ...] = ()
    last_evaluated: int = -1
    """Step after which validation last ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a checkpoint belongs to; a run with another identity refuses it."""

    data: str
    """Digest of the examples."""
    settings: str
    """Digest of everything that decides the arithmetic: hyper-parameters, dtype, pass, number of threads."""


def save_checkpoint(
    folder: Path,
    *,
    parameters: Mapping[str, torch.nn.Parameter],
    best: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    identity: Identity,
    keep: int = 2,
) -> Path:
    """Write a checkpoint and remove all but the `keep` newest. Raises `StoreError` when the disk refuses."""
    final = folder / f"checkpoint-{counters.step:08d}"
    partial = folder / f".partial-{counters.step:08d}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in parameters.items()}
        weights |= {BEST_PREFIX + name: tensor for name, tensor in best.items()}
        save_file(weights, partial / WEIGHTS)
        slots, plain = _optimizer_state(optimizer, parameters)
        save_file(slots, partial / OPTIMIZER)
        state: dict[str, JSON] = {
            "counters": asdict(counters),
            "identity": asdict(identity),
            "optimizer": plain,
            "random": [base64.b64encode(part.numpy().tobytes()).decode() for part in _random_states()],
        }
        (partial / STATE).write_text(json.dumps(state) + "\n", "utf-8")
        for file in partial.iterdir():
            _sync(file)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _sync(folder)
        for old in _complete(folder)[:-keep]:
            shutil.rmtree(old)
    except OSError as error:
        raise StoreError(
            "cannot write a checkpoint", where=str(final), found=error.strerror or str(error), hint="free disk space"
        ) from error
    return final


def _random_states() -> list[torch.Tensor]:
    """Return the random states of the CPU and of each GPU."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


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
) -> tuple[Counters, dict[str, torch.Tensor]]:
    """Restore parameters, optimizer and random state in place; return the counters and the best weights so far.

    Raises `TrainingError` for a checkpoint that holds weights only, or that belongs to other data or settings.
    """
    for name in (STATE, OPTIMIZER, WEIGHTS):
        if not (path / name).is_file():
            raise TrainingError(
                "this checkpoint cannot continue a run: it does not hold everything",
                where=str(path),
                expected=f"{WEIGHTS}, {OPTIMIZER}, {STATE}",
                found=f"no {name}",
                hint="remove the folder to start anew",
            )
    state = json.loads((path / STATE).read_text("utf-8"))
    held = Identity(**state["identity"])
    if held != identity:
        other = "data" if held.data != identity.data else "settings"
        raise TrainingError(
            f"the checkpoint was made with other {other}",
            where=str(path),
            hint="remove the folder to start anew",
        )
    weights = load_file(path / WEIGHTS)
    best = {name.removeprefix(BEST_PREFIX): tensor for name, tensor in weights.items() if name.startswith(BEST_PREFIX)}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    _restore_optimizer(optimizer, parameters, load_file(path / OPTIMIZER), state["optimizer"])
    cpu, *cuda = [torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8) for text in state["random"]]
    torch.set_rng_state(cpu)
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)
    fields = dict(state["counters"])
    for name in ("recent_losses", "early_losses"):
        fields[name] = tuple(fields[name])
    return Counters(**fields), best


def _optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> tuple[dict[str, torch.Tensor], dict[str, JSON]]:
    """Return optimizer slots as `{parameter name}/{slot}` tensors, and slots that are plain numbers as JSON."""
    order = _names_in_order(optimizer, parameters)
    slots: dict[str, torch.Tensor] = {}
    plain: dict[str, JSON] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for slot, value in state.items():
            key = f"{order[index]}/{slot}"
            if isinstance(value, torch.Tensor):
                slots[key] = value.detach().cpu().contiguous().clone()
            else:
                plain[key] = value
    return slots, plain


def _restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    slots: Mapping[str, torch.Tensor],
    plain: Mapping[str, JSON],
) -> None:
    order = _names_in_order(optimizer, parameters)
    whole = optimizer.state_dict()
    by_name: dict[str, dict[str, JSON]] = {}
    for key, value in (*slots.items(), *plain.items()):
        name, _, slot = key.rpartition("/")
        by_name.setdefault(name, {})[slot] = value
    whole["state"] = {index: by_name[name] for index, name in enumerate(order) if name in by_name}
    optimizer.load_state_dict(whole)


def _names_in_order(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]) -> list[str]:
    """Return parameter names in the order in which the optimizer numbers them: group after group."""
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
