"""What a training run will take, from a few of its own passes in a process of its own, the largest first.

    python -m tunesmith.stages.training_probe '{"spec": {...}, "base": DIR, "examples": DIR, "device": "cpu"}'

What lives here: the probe, run as a program so that its peak memory is that of training and of nothing else, and the
function that starts it for `tunesmith plan`. What does not: the settings (`stages.training`).
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.stage import Estimate
from tunesmith.memory import release_free_memory
from tunesmith.stages.training import TrainSpec, order_of
from tunesmith.stages.training_mix import read_mix_origins
from tunesmith.stages.training_model import Assembled, assemble
from tunesmith.stages.training_watch import general_table, metric_of
from tunesmith.types import JSON

if TYPE_CHECKING:
    from tunesmith.train.batches import FlatBatch
    from tunesmith.train.examples import ExampleTable
    from tunesmith.train.passes import LossPass

TYPICAL_PASSES = 2
MAX_COUNTED_STEPS = 100
"""Rows of more steps than these are taken to be like these."""

TIMEOUT_SECONDS = 600


def estimate_by_probe(
    spec: TrainSpec, *, base: Path, examples: Path, device: str, contract: Path | None = None
) -> Estimate:
    """Run the probe and turn what it measured into an estimate; say so where it failed."""
    request = {
        "spec": spec.model_dump(mode="json"),
        "base": str(base),
        "examples": str(examples),
        "contract": None if contract is None else str(contract),
        "device": device,
    }
    command = [sys.executable, "-m", "tunesmith.stages.training_probe", json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return Estimate(seconds=None, memory_bytes=None, basis=f"the probe took more than {TIMEOUT_SECONDS} s")
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return Estimate(seconds=None, memory_bytes=None, basis=f"the probe failed: {last[0][:120]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return Estimate(
        seconds=found["seconds"],
        memory_bytes=found["memory_bytes"],
        basis=(
            f"probe: longest of {found['passes']} passes ({found['longest_rows']:,} tokens) and {TYPICAL_PASSES} more, "
            f"{found['pass']} pass in {found['dtype']} on {device}, {found['tokens_per_second']:,.0f} tokens/s"
        ),
    )


def measure(
    spec: TrainSpec, *, base: Path, examples: Path, device: str, contract: Path | None = None
) -> dict[str, JSON]:
    """Train a few passes with a learning rate of 0 and return seconds and bytes of the whole run."""
    import torch

    from tunesmith.stages.train import choose_dtype
    from tunesmith.train.batches import flatten, micro_batches
    from tunesmith.train.examples import read_examples
    from tunesmith.train.memory import peak_bytes
    from tunesmith.train.passes import choose_pass
    from tunesmith.train.verify import read_back

    started = time.perf_counter()
    rows, val = (read_examples(examples / f"{side}.parquet") for side in ("train", "val"))
    dtype, _ = choose_dtype(spec, base / "model", device)
    made = assemble(spec, base_dir=base / "model", base_name="probe", dtype=dtype, device=device)
    choice = choose_pass(
        made.model, rows, gradient_checkpointing=spec.gradient_checkpointing, noise_alpha=spec.neftune_noise_alpha
    )
    sharing = spec.shares_prefixes and choice.loss_pass.shares_prefixes

    def passes_of(table: ExampleTable, indices: Sequence[int]) -> list[list[int]]:
        return micro_batches(table, indices, max_tokens=spec.max_tokens_per_batch, share_prefixes=sharing)

    plan = order_of(spec, rows, read_mix_origins(examples, spec.mix))
    total_steps = plan.total_steps
    counted = min(total_steps, MAX_COUNTED_STEPS)
    groups = [group for step in range(counted) for group in passes_of(rows, plan.examples_of(step))]
    batches = sorted((flatten(rows, group, share_prefixes=sharing, device=device) for group in groups), key=_size)
    held_out = [val] if spec.general_watch is None else [val, general_table(base / "model")]
    startup = time.perf_counter() - started

    made.model.train()
    _train_on(batches[-1], made, choice.loss_pass)
    _wait_for(device)
    middle = batches[len(batches) // 2 : len(batches) // 2 + TYPICAL_PASSES] or batches[-1:]
    begin = time.perf_counter()
    for batch in middle:
        _train_on(batch, made, choice.loss_pass)
    _wait_for(device)
    per_row = (time.perf_counter() - begin) / sum(map(_size, middle))

    made.model.eval()
    eval_seconds = sum(
        _eval_seconds(made, choice.loss_pass, table, passes_of, device) for table in held_out if len(table)
    )
    metric_seconds = 0.0 if spec.task_metric is None or contract is None else _metric_seconds(spec, made, contract, val)
    summary = {"pass": choice.loss_pass.name, "dtype": dtype}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        saved = _write(made, Path(scratch))
        del made, choice  # As after a run: what was trained is gone when the result is read back.
        gc.collect()
        release_free_memory()
        read_back(saved, base_dir=base / "model", dtype=dtype, device=torch.device(device), table=rows)
    verify_seconds = time.perf_counter() - begin

    train_rows = sum(map(_size, batches)) * total_steps / counted
    eval_every = max(1, round(plan.steps_per_epoch / spec.evals_per_epoch))
    evals = 1 + math.ceil(total_steps / eval_every)
    metric_every = (
        0 if spec.task_metric is None else max(1, round(spec.evals_per_epoch / spec.task_metric.evals_per_epoch))
    )
    measurements = 1 + math.ceil(total_steps / (eval_every * metric_every)) if metric_every else 0
    train_seconds = train_rows * per_row
    return {
        "seconds": startup + train_seconds + evals * eval_seconds + measurements * metric_seconds + verify_seconds,
        "memory_bytes": peak_bytes(device),
        "passes": len(batches),
        "longest_rows": _size(batches[-1]),
        **summary,
        "tokens_per_second": sum(batch.num_tokens for batch in batches) * total_steps / counted / train_seconds,
    }


def _eval_seconds(
    made: Assembled,
    loss_pass: LossPass,
    table: ExampleTable,
    passes_of: Callable[[ExampleTable, Sequence[int]], list[list[int]]],
    device: str,
) -> float:
    """Return what the loss of a table takes, from its largest pass."""
    import torch

    from tunesmith.train.batches import flatten

    sharing = loss_pass.shares_prefixes
    batches = [
        flatten(table, group, share_prefixes=sharing, device=device) for group in passes_of(table, range(len(table)))
    ]
    largest = max(batches, key=_size)
    begin = time.perf_counter()
    with torch.no_grad():
        float(loss_pass.loss(largest, denominator=1.0))  # A number is there when its device is done.
    return (time.perf_counter() - begin) / _size(largest) * sum(map(_size, batches))


def _metric_seconds(spec: TrainSpec, made: Assembled, contract: Path, val: ExampleTable) -> float:
    """Return what the task's metric takes, by measuring it once."""
    from tunesmith.chat.contract import load_contract

    assert spec.task_metric is not None
    measure_metric = metric_of(spec.task_metric, made.model, load_contract(contract), val)
    begin = time.perf_counter()
    measure_metric()
    return time.perf_counter() - begin


def _write(made: Assembled, folder: Path) -> Path:
    """Write a checkpoint and the result as a run does, for the time and memory that it takes; return the result."""
    from tunesmith.train.checkpoint import Counters, Identity, save_checkpoint

    save_checkpoint(
        folder,
        parameters=made.parameters,
        best={name: parameter.detach().cpu().clone() for name, parameter in made.parameters.items()},
        optimizer=made.optimizer,
        counters=Counters(),
        identity=Identity(data="probe", settings="probe"),
    )
    saved = folder / "result"
    made.save(saved)
    return saved


def _wait_for(device: str) -> None:
    """Return when a GPU has done what it was given: it works on while the clock is read."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


def _size(batch: FlatBatch) -> int:
    return batch.num_rows


def _train_on(batch: FlatBatch, made: Assembled, loss_pass: LossPass) -> None:
    """Do all the work of a step whose learning rate is 0."""
    made.optimizer.zero_grad(set_to_none=True)
    loss_pass.loss(batch, denominator=float(batch.weights.sum())).backward()  # type: ignore[no-untyped-call]
    made.optimizer.step()
    made.publish()
    loss_pass.refresh_()


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    request = json.loads(sys.argv[1])
    result = measure(
        TrainSpec.model_validate(request["spec"]),
        base=Path(request["base"]),
        examples=Path(request["examples"]),
        device=request["device"],
        contract=None if request["contract"] is None else Path(request["contract"]),
    )
    sys.stdout.write(json.dumps(result) + "\n")
