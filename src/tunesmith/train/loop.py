"""The training loop: one function, top to bottom.

    for each step:  gradients of every pass / one global denominator -> sum over processes -> clip -> optimizer
                    checks -> log; every so often: validation loss, best weights, early stopping, checkpoint

What lives here: the order of things. What does not: each thing. The loop is handed the pass that computes a loss, the
examples, the optimizer and the schedule, and mutates the parameters it is given.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from tunesmith.memory import release_free_memory
from tunesmith.train.batches import DataOrder, FlatBatch, divide, flatten, idle_batch, micro_batches
from tunesmith.train.checkpoint import (
    CHECKPOINTS_KEPT,
    CheckpointWriter,
    Counters,
    Identity,
    OtherWorld,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from tunesmith.train.examples import ExampleTable
from tunesmith.train.guards import (
    WINDOW,
    check_divergence,
    check_gradients,
    check_held_out,
    check_learned,
    check_measured,
    check_step,
    fingerprint_of,
)
from tunesmith.train.memory import peak_bytes
from tunesmith.train.passes import LossPass
from tunesmith.train.scaling import LossScale
from tunesmith.train.validation import Figure, judged, measure_due
from tunesmith.train.world import World, own_part, whole
from tunesmith.types import JSON, Log

CHECKPOINT_SECONDS = 60.0
"""At most this much work is lost to a crash, besides what a validation and its checkpoint cost."""

VAL_LOSS, GENERAL_LOSS = "val_loss", "general_loss"

ALONE, UNSCALED = World(), LossScale()

RELEASE_STEPS = 16
"""Passes of different lengths leave holes of about 5 MB a step; giving them back takes a few milliseconds."""


class Report(Protocol):
    """Show progress: `report(done, total, note, loss=1.2)`."""

    def __call__(self, done: float, total: float | None, note: str = "", **fields: JSON) -> None:
        """Take note of `done` out of `total` steps."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a finished run says about itself."""

    counters: Counters
    steps: int
    stopped_early: bool
    resumed_from: int | None
    last_loss: float


def run_training(
    model: torch.nn.Module,
    parameters: Mapping[str, torch.nn.Parameter],
    *,
    train: ExampleTable,
    val: ExampleTable,
    loss_pass: LossPass,
    plan: DataOrder,
    optimizer: torch.optim.Optimizer,
    publish: Callable[[], None],
    learning_rate_at: Callable[[int], float],
    max_grad_norm: float | None,
    max_tokens_per_batch: int,
    share_prefixes: bool,
    eval_every: int,
    general: ExampleTable | None = None,
    task_metric: Figure | None = None,
    patience: int | None,
    best_by: str = VAL_LOSS,
    loss_scale: LossScale = UNSCALED,
    work: Path,
    identity: Identity,
    log: Log,
    report: Report,
    world: World = ALONE,
    other_world: OtherWorld = "refuse",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    checkpoints_kept: int = CHECKPOINTS_KEPT,
    checkpoint_writer: CheckpointWriter | None = None,
) -> Result:
    """Train `parameters` of `model` in place and leave the best weights in it: lowest validation loss, else the last.

    `parameters` are what the optimizer changes; `publish()` carries them into the model where it holds rounded copies.
    Validation runs before the first step, every `eval_every` steps and after the last: the loss of `val`, and of
    `general`, which shows what the run costs. `task_metric` is measured at steps of its own. `best_by` names the figure
    that decides which weights are kept; `patience` is how many measurements of it without improvement stop the run,
    `None` never stops early.
    `loss_scale` is what a float16 run begins with; a step whose gradients overflow changes nothing and is counted.
    Checkpoints are written by `checkpoint_writer` while training goes on, or at once where there is none.
    Every process of `world` calls this with the same arguments and takes its share of each step; the first one writes
    and reports.
    Metrics go line by line to `work/metrics.jsonl`. A run that was interrupted continues from the newest checkpoint in
    `work`, and ends with the same weights, bit for bit, as one that was not (same machine, same threads).
    Raises `TrainingError` for NaN, zero or missing gradients, divergence, or a tensor that never moved.
    """
    device = next(iter(parameters.values())).device
    sharing = share_prefixes and loss_pass.shares_prefixes
    metrics = _Metrics(work / "metrics.jsonl" if world.leads else None, log)

    def passes_of(table: ExampleTable, examples: Sequence[int]) -> list[FlatBatch]:
        """Return the passes of this process's share of some examples."""
        groups = [
            micro_batches(table, share, max_tokens=max_tokens_per_batch, share_prefixes=sharing)
            for share in divide(table, examples, parts=world.size)
        ]
        own = [flatten(table, group, share_prefixes=sharing, device=device) for group in groups[world.rank]]
        if world.layout == "sharded":  # Weights are gathered pass by pass: all processes make equally many.
            own += [idle_batch(table, device=device)] * (max(map(len, groups)) - len(own))
        return own

    def loss_of(table: ExampleTable, examples: Sequence[int]) -> Callable[[], float]:
        """Return a function that computes the mean loss over the supervised tokens of some examples."""
        batches, weight = passes_of(table, examples), table.weight_of(examples)
        return lambda: evaluate_loss(model, loss_pass, batches, denominator=weight, world=world)

    def loss_figure(name: str, table: ExampleTable) -> Figure:
        """Return the loss of a table as a figure of every validation."""
        return Figure(name=name, better="lower", every=eval_every, measure=loss_of(table, range(len(table))))

    held_out = {VAL_LOSS: val, GENERAL_LOSS: general}
    figures = [loss_figure(name, table) for name, table in held_out.items() if table is not None and len(table)]
    figures += [task_metric] if task_metric is not None else []
    deciding = next((figure for figure in figures if figure.name == best_by), None)
    num_supervised_each = train.num_supervised_each

    # -- begin, or continue ------------------------------------------------------------------------------------------
    initial = {name: fingerprint_of(parameter) for name, parameter in parameters.items()}
    counters = Counters(loss_scale=loss_scale)
    best: dict[str, torch.Tensor] = {}
    newest = latest_checkpoint(work)
    if newest is not None:
        counters, best = load_checkpoint(
            newest,
            parameters=parameters,
            optimizer=optimizer,
            identity=identity,
            world=world,
            other_world=other_world,
        )
        log("train_resumed", {"step": counters.step, "checkpoint": newest.name})
    resumed_from = None if newest is None else counters.step
    metrics.keep_until(-1 if newest is None else counters.step)
    publish()
    loss_pass.refresh_()

    def validate(counters: Counters) -> Counters:
        """Record the figures that are due after `counters.step` steps, and the weights where these are the best."""
        begin = time.perf_counter()
        measured = measure_due(figures, counters, last_step=plan.total_steps)
        if not measured:
            return counters
        check_measured(counters.step, measured)
        counters, improved = judged(counters, measured, by=deciding)
        if improved:
            best.update({name: own_part(parameter.detach()).cpu().clone() for name, parameter in parameters.items()})
        metrics.write(
            {"step": counters.step, **measured, "best": improved, "eval_seconds": time.perf_counter() - begin}
        )
        if VAL_LOSS in measured and deciding is not None:
            gained = deciding.gained(counters.best, over=counters.first)
            check_held_out(counters.step, base=counters.first[VAL_LOSS], now=measured[VAL_LOSS], gained=gained)
        return counters

    def save(counters: Counters) -> None:
        save_checkpoint(
            work,
            parameters=parameters,
            best=best,
            optimizer=optimizer,
            counters=counters,
            identity=identity,
            world=world,
            keep=checkpoints_kept,
            writer=checkpoint_writer,
        )

    counters = validate(counters)
    if newest is None and not len(val) and plan.total_steps >= WINDOW:
        # What the base says of the rows of the first steps: without validation, steps that run away at once would be
        # compared with themselves.
        base = (loss_of(train, plan.examples_of(step))() for step in range(WINDOW))
        counters = replace(counters, early_losses=tuple(base))
    if newest is None:
        save(counters)  # A disk or a permission that fails, fails before the work, not after.
        if checkpoint_writer is not None:
            checkpoint_writer.wait()
    last_save = time.monotonic()
    last_loss = counters.recent_losses[-1] if counters.recent_losses else float("nan")
    out_of_patience = patience is not None and counters.evals_since_best >= patience
    model.train()

    # -- steps -------------------------------------------------------------------------------------------------------
    while counters.step < plan.total_steps and not out_of_patience:
        step = counters.step
        begin = time.perf_counter()
        examples = plan.examples_of(step)
        learning_rate = learning_rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]

        # One denominator for the step: the mean over its supervised tokens, in however many passes and processes.
        denominator = train.weight_of(examples)
        scale = counters.loss_scale
        optimizer.zero_grad(set_to_none=True)
        batches = passes_of(train, examples)
        own_loss = torch.zeros((), dtype=torch.float64, device=device)  # A number would wait for the GPU in each pass.
        for batch in batches:
            part = loss_pass.loss(batch, denominator=denominator / scale.value)
            part.backward()  # type: ignore[no-untyped-call]
            own_loss += part.detach()
        world.sum_gradients_(parameters.values())
        if step == 0:
            check_gradients(parameters)
        scale.unscale_(parameters.values())
        limit = float("inf") if max_grad_norm is None else max_grad_norm
        grad_norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters.values(), limit)))
        loss, computed_tokens, num_passes = world.totals(
            float(own_loss) / scale.value,
            sum(batch.num_rows for batch in batches),
            sum(1 for batch in batches if batch.num_tokens),
        )
        overflowed = scale.dynamic and not math.isfinite(grad_norm)
        if not overflowed:
            row_ids = [train.row_ids[index] for index in examples]
            check_step(step, loss=loss, grad_norm=grad_norm, row_ids=row_ids)
            optimizer.step()
            publish()
            loss_pass.refresh_()

        # -- account -------------------------------------------------------------------------------------------------
        seconds = time.perf_counter() - begin
        tokens = sum(train.length(index) for index in examples)
        supervised = sum(int(num_supervised_each[index]) for index in examples)
        watched = () if overflowed else (loss,)
        if step > 0 and plan.begins_stage(step):
            counters = replace(counters, early_losses=(), recent_losses=())
        counters = replace(
            counters,
            step=step + 1,
            tokens=counters.tokens + tokens,
            supervised_tokens=counters.supervised_tokens + supervised,
            seconds=counters.seconds + seconds,
            early_losses=(*counters.early_losses, *watched)[:WINDOW],
            recent_losses=(*counters.recent_losses, *watched)[-WINDOW:],
            loss_scale=scale.after(finite=not overflowed),
            skipped_steps=counters.skipped_steps + overflowed,
        )
        last_loss = loss
        metrics.write(
            {
                "step": counters.step,
                "epoch": counters.step / plan.steps_per_epoch,
                "loss": loss,
                "learning_rate": learning_rate,
                "grad_norm": None if overflowed else grad_norm,
                **({"loss_scale": scale.value} if scale.dynamic else {}),
                "tokens": tokens,
                "supervised_tokens": supervised,
                "computed_tokens": int(computed_tokens),
                "passes": int(num_passes),
                "seconds": seconds,
                "tokens_per_second": tokens / seconds,
                "supervised_per_second": supervised / seconds,
                "peak_memory_bytes": peak_bytes(device),
            }
        )
        check_divergence(step, early=counters.early_losses, recent=counters.recent_losses)
        report(
            counters.step,
            plan.total_steps,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            tokens_per_second=counters.tokens / counters.seconds,
            supervised_per_second=counters.supervised_tokens / counters.seconds,
            peak_memory_bytes=peak_bytes(device),
            seconds_left=counters.seconds / counters.step * (plan.total_steps - counters.step),
        )

        # -- validate, stop, save ------------------------------------------------------------------------------------
        counters = validate(counters)
        out_of_patience = patience is not None and counters.evals_since_best >= patience
        evaluated = counters.last_evaluated == counters.step
        is_due = evaluated or counters.step == plan.total_steps or time.monotonic() - last_save >= checkpoint_seconds
        if counters.step % RELEASE_STEPS == 0 or counters.step == plan.total_steps:
            release_free_memory()
        if world.agreed(is_due):
            save(counters)
            last_save = time.monotonic()

    if checkpoint_writer is not None:
        checkpoint_writer.wait()
    check_learned(parameters, initial)

    # -- keep the best -----------------------------------------------------------------------------------------------
    if best:
        with torch.no_grad():
            for name, parameter in parameters.items():
                own_part(parameter).copy_(best[name])
        publish()
        loss_pass.refresh_()
    model.eval()
    return Result(
        counters=counters,
        steps=counters.step,
        stopped_early=counters.step < plan.total_steps,
        resumed_from=resumed_from,
        last_loss=last_loss,
    )


def evaluate_loss(
    model: torch.nn.Module,
    loss_pass: LossPass,
    batches: Sequence[FlatBatch],
    *,
    denominator: float,
    world: World = ALONE,
) -> float:
    """Return the mean negative log-likelihood over all supervised tokens, weighted; one batch in memory at a time.

    `batches` are this process's share, `denominator` the sum of the loss weights of everybody's.
    """
    was_training = model.training
    model.eval()
    own = torch.zeros((), dtype=torch.float64, device=batches[0].ids.device if batches else "cpu")
    with torch.no_grad():
        for batch in batches:
            own += loss_pass.loss(batch, denominator=1.0)
    model.train(was_training)
    (total,) = world.totals(float(own))
    return total / denominator


class _Metrics:
    """`metrics.jsonl`: one line for each step and validation, cut back to the checkpoint when a run resumes."""

    def __init__(self, path: Path | None, log: Log) -> None:
        """`path` is `None` in a process that writes nothing."""
        self.path = path
        self.log = log

    def keep_until(self, step: int) -> None:
        """Drop what an interrupted run wrote after `step`."""
        if self.path is None:
            return
        kept = []
        if self.path.is_file():
            for line in self.path.read_text("utf-8").splitlines(keepends=True):
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    kept.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(kept), "utf-8")

    def write(self, record: Mapping[str, JSON]) -> None:
        """Append one record."""
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")
        self.log("train_eval" if "eval_seconds" in record else "train_step", record)
