"""The `train` stage: encoded examples and a base model become an adapter.

    train:
      learning_rate: 2.0e-4
      num_train_epochs: 2
      adapter: {kind: lora, rank: 16, alpha: 32}

What lives here: the order in which the engine's parts are used, and the figures of a finished run. What does not: the
settings and their checks (`stages.training`), starting several processes (`stages.training_parallel`), the loop
(`train.loop`) and everything under it.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.artifact import Artifact
from tunesmith.core.stage import Context, Estimate, Inputs, Summary, role, stage
from tunesmith.errors import TrainingError
from tunesmith.memory import release_free_memory
from tunesmith.stages.training import Full, TrainSpec, check, check_contract, order_of
from tunesmith.stages.training_advice import card_notes
from tunesmith.stages.training_mix import mix_account, mix_text, read_mix_origins
from tunesmith.stages.training_model import Assembled, assemble
from tunesmith.stages.training_outcome import outcome, pass_summary, write_curves
from tunesmith.stages.training_parallel import in_processes, mesh_of, train_in_processes, with_whole_weights
from tunesmith.stages.training_probe import estimate_by_probe
from tunesmith.stages.training_watch import general_table, metric_of
from tunesmith.types import JSON, sha256_hex

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from tunesmith.model.load import DtypeName
    from tunesmith.train.batches import DataOrder
    from tunesmith.train.checkpoint import Identity
    from tunesmith.train.examples import ExampleTable
    from tunesmith.train.mixing import Origins
    from tunesmith.train.passes import Choice
    from tunesmith.train.scaling import LossScale
    from tunesmith.train.validation import Figure
    from tunesmith.train.verify import Reference
    from tunesmith.train.world import World


class TrainInputs(Inputs):
    """What training reads."""

    examples: Artifact = role("examples", table="encode")
    base: Artifact = role("base", table="fetch")
    contract: Artifact = role("contract", table="contract")


def estimate(spec: TrainSpec, inputs: Mapping[str, Artifact | None], device: str) -> Estimate:
    """Predict from a few passes over the encoded rows, once they are there."""
    from tunesmith.train.examples import read_examples

    examples, base = inputs.get("examples"), inputs.get("base")
    if base is None:
        unknown = Estimate(seconds=None, memory_bytes=None, basis="unknown until encode and fetch have run")
        return in_processes(unknown, spec.parallel)
    rank = 16 if isinstance(spec.adapter, Full) else spec.adapter.rank
    notes = card_notes(base.path / "model", tokens=spec.max_tokens_per_batch, rank=rank)
    if examples is None:
        unknown = Estimate(seconds=None, memory_bytes=None, basis="unknown until encode has run")
        return replace(in_processes(unknown, spec.parallel), notes=notes)
    contract = inputs.get("contract")
    found = estimate_by_probe(
        spec,
        base=base.path,
        examples=examples.path,
        device=device,
        contract=None if contract is None else contract.path,
    )
    found = replace(in_processes(found, spec.parallel), notes=notes)
    if not spec.mix:
        return found
    rows, origins = read_examples(examples.path / "train.parquet"), read_mix_origins(examples.path, spec.mix)
    mix = mix_account(order_of(spec, rows, origins), rows, origins)
    return replace(found, basis=f"{found.basis}; {mix_text(mix)}")


@stage(name="train", version=2, produces="adapter", check=check, estimate=estimate)
def train(inputs: TrainInputs, spec: TrainSpec, ctx: Context) -> Summary:
    """Write `adapter/` (a plain PEFT folder), `metrics.jsonl` and `curve.json`."""
    check(spec, dict(inputs))
    check_contract(inputs.examples, inputs.contract)
    compute = train_process if spec.parallel is None else train_in_processes
    return compute(spec, base=inputs.base.path, examples=inputs.examples.path, contract=inputs.contract.path, ctx=ctx)


def train_process(
    spec: TrainSpec, *, base: Path, examples: Path, contract: Path, ctx: Context, world: World | None = None
) -> dict[str, JSON]:
    """Do one process's part of a run, or all of it without a `world`; the first process writes and returns the figures.

    `base`, `examples` and `contract` are the folders of the artefacts.
    """
    from tunesmith.model.lora import count_adapted_layers, uncovered_experts
    from tunesmith.train.checkpoint import CheckpointWriter
    from tunesmith.train.examples import read_examples
    from tunesmith.train.loop import run_training
    from tunesmith.train.memory import peak_bytes
    from tunesmith.train.verify import live_logits, read_back, rounding_warning, verify_trained
    from tunesmith.train.world import World

    world = world or World()
    rows, val = (read_examples(examples / f"{side}.parquet") for side in ("train", "val"))
    base_name = json.loads((base / "source.json").read_text("utf-8"))["id"]
    choices = _Choices(ctx.work / "choices.json", world)
    dtype, speeds = choices.once("dtype", lambda: choose_dtype(spec, base / "model", ctx.device))

    def assembled(device: str, mesh: DeviceMesh | None = None) -> Assembled:
        return assemble(spec, base_dir=base / "model", base_name=base_name, dtype=dtype, device=device, mesh=mesh)

    made = assembled(ctx.device, mesh_of(world, ctx.device))
    _dry_run(with_whole_weights(made, world, lambda: assembled("cpu")), ctx.work / "dry-run")
    choice = _choose(spec, made, rows, choices, world)
    uncovered = [] if isinstance(spec.adapter, Full) else uncovered_experts(made.model)

    origins = read_mix_origins(examples, spec.mix)
    plan = order_of(spec, rows, origins)
    arithmetic = {**_arithmetic(rows, val, plan), "mix": mix_account(plan, rows, origins)}
    notes = [*choice.notes, *uncovered]
    ctx.log("train_begins", {**arithmetic, "dtype": dtype, "pass": choice.loss_pass.name, "notes": notes})
    world.seed_apart_(spec.seed)
    eval_every = max(1, round(plan.steps_per_epoch / spec.evals_per_epoch))
    with CheckpointWriter(world) as writer:
        result = run_training(
            made.model,
            made.parameters,
            train=rows,
            val=val,
            loss_pass=choice.loss_pass,
            plan=plan,
            optimizer=made.optimizer,
            publish=made.publish,
            learning_rate_at=_rates(spec, plan.total_steps),
            max_grad_norm=spec.max_grad_norm,
            max_tokens_per_batch=spec.max_tokens_per_batch,
            share_prefixes=spec.shares_prefixes,
            eval_every=eval_every,
            general=None if spec.general_watch is None else general_table(base / "model"),
            task_metric=_task_metric(spec, made, contract, val, eval_every, world),
            patience=spec.early_stopping_patience,
            best_by=spec.best_by,
            loss_scale=_loss_scale(dtype),
            work=ctx.work,
            identity=_identity(spec, rows, val, origins, dtype=dtype, loss_pass=choice.loss_pass.name),
            log=ctx.log,
            report=ctx.progress,
            checkpoint_writer=writer,
            checkpoint_seconds=spec.checkpoints.every_seconds,
            checkpoints_kept=spec.checkpoints.keep,
            world=world,
            other_world="refuse" if spec.parallel is None else spec.parallel.other_world,
        )

    proof_table = val or rows
    trained_loss = _proof_loss(choice, proof_table, made)
    memory = max(world.gathered(peak_bytes(ctx.device)))
    whole = with_whole_weights(made, world, lambda: assembled("cpu"))
    if whole is None:
        return {}
    folder = ctx.out / "adapter"
    _save(whole, folder)
    facts = {
        **pass_summary(choice),
        "trainable_parameters": sum(parameter.numel() for parameter in whole.parameters.values()),
        "adapted_layers": count_adapted_layers(whole.model),
    }
    live, device = live_logits(whole.model, proof_table), next(whole.model.parameters()).device
    reference: Reference = "float32" if choice.loss_pass.name == "fused" else "own dtype"
    del made, whole, choice  # The check reads the model once more; what was trained need not lie beside it.
    gc.collect()
    release_free_memory()
    saved = read_back(folder, base_dir=base / "model", dtype=dtype, device=device, table=proof_table)
    verified = verify_trained(folder, saved, live=live, trained_loss=trained_loss, reference=reference, dtype=dtype)
    curve = write_curves(ctx.work / "metrics.jsonl", ctx.out)
    return {
        **arithmetic,
        **outcome(spec, result, curve, [*uncovered, *rounding_warning(verified, dtype)]),
        **facts,
        "dtype": dtype,
        "dtype_measured": speeds,
        "trained": spec.adapter.kind,
        "base_stored_in": None if spec.quantisation is None else str(spec.quantisation),
        "device": ctx.device,
        "peak_memory_bytes": max(memory, peak_bytes(ctx.device)),
        "verified": verified,
    }


def _loss_scale(dtype: DtypeName) -> LossScale:
    from tunesmith.model.load import torch_dtype
    from tunesmith.train.scaling import LossScale

    return LossScale.of(torch_dtype(dtype))


def _identity(
    spec: TrainSpec, rows: ExampleTable, val: ExampleTable, origins: Origins | None, *, dtype: str, loss_pass: str
) -> Identity:
    """Return what a checkpoint must have been made with to be continued."""
    from tunesmith.train.checkpoint import Identity

    data = rows.digest() + val.digest() + (origins.digest() if spec.mix and origins is not None else "")
    # How many processes compute is no setting of the arithmetic: a checkpoint says for itself how many wrote it.
    settings = spec.model_dump(mode="json", exclude={"parallel", "checkpoints"}) | {"dtype": dtype, "pass": loss_pass}
    return Identity(data=sha256_hex(data), settings=sha256_hex(json.dumps(settings, sort_keys=True)))


def _rates(spec: TrainSpec, total_steps: int) -> Callable[[int], float]:
    from tunesmith.train.schedule import learning_rate_at

    return lambda step: learning_rate_at(
        step,
        total_steps=total_steps,
        peak=spec.learning_rate,
        warmup_ratio=spec.warmup_ratio,
        schedule=spec.lr_scheduler_type,
    )


def _task_metric(
    spec: TrainSpec, made: Assembled, contract: Path, val: ExampleTable, eval_every: int, world: World
) -> Figure | None:
    """Return the task's own metric as a figure of some validations; the first process answers for all."""
    from tunesmith.chat.contract import load_contract
    from tunesmith.train.validation import Figure

    if spec.task_metric is None:
        return None
    measure = metric_of(spec.task_metric, made.model, load_contract(contract), val)
    return Figure(
        name=spec.task_metric.metric,
        better="higher",
        every=eval_every * max(1, round(spec.evals_per_epoch / spec.task_metric.evals_per_epoch)),
        measure=lambda: world.agreed(measure() if world.leads else 0.0),
    )


def _dry_run(whole: Assembled | None, folder: Path) -> None:
    """Let a save that will fail, fail now: same code, same disk, same size as the one at the end."""
    if whole is not None:
        whole.save(folder)
        shutil.rmtree(folder)


def _choose(spec: TrainSpec, made: Assembled, rows: ExampleTable, choices: _Choices, world: World) -> Choice:
    """Return the pass to train with: a run that resumes uses the one it began with."""
    from tunesmith.model.kernels import why_not_compiled
    from tunesmith.train.passes import base_of, choose_pass

    choice = choose_pass(
        made.model,
        rows,
        gradient_checkpointing=spec.gradient_checkpointing,
        noise_alpha=spec.neftune_noise_alpha,
        only=choices.recall("pass"),
        sharded=made.sharded,
        world=world,
    )
    name = choices.once("pass", lambda: choice.loss_pass.name)
    if choice.loss_pass.name != name:
        raise TrainingError(
            "the processes of the run cannot compute alike",
            where=f"process {world.rank}",
            expected=f"the {name} pass, as in the first",
            found="; ".join(choice.notes),
            hint="run all processes on machines of one kind",
        )
    compiled = choices.once("compiled", lambda: why_not_compiled() is None)
    if compiled and why_not_compiled() is not None:
        note = f"begun with compiled loops, now without ({why_not_compiled()}): the same to rounding, not bit by bit"
        choice = replace(choice, notes=(*choice.notes, note))
    if spec.gradient_checkpointing and name != "fused":
        # Not reentrant: that form cuts the graph where the embeddings are frozen (peft#1142).
        base_of(made.model).gradient_checkpointing_enable(  # type: ignore[operator]
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    return choice


def _proof_loss(choice: Choice, table: ExampleTable, made: Assembled) -> float:
    from tunesmith.train.verify import proof_loss

    return proof_loss(choice.loss_pass, table, device=next(iter(made.parameters.values())).device)


def _save(whole: Assembled, folder: Path) -> None:
    from tunesmith.model.lora import unmoved_tensors

    if still := unmoved_tensors(whole.model):
        raise TrainingError(f"{len(still)} layers of the adapter did not move", where=", ".join(still[:3]))
    whole.save(folder)


class _Choices:
    """What was measured and chosen when a run began; it stays so when the run resumes, in all its processes."""

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self.world = world
        self.made: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def recall(self, name: str) -> Any:
        """Return a choice made before, or `None`."""
        return self.made.get(name)

    def once(self, name: str, choose: Callable[[], JSON]) -> Any:
        """Return a choice made before, or let the first process make it now and keep it."""
        if self.world.leads and name not in self.made:
            self.made[name] = choose()
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.made), "utf-8")
            partial.replace(self.path)
        return self.world.agreed(self.made.get(name))


def choose_dtype(spec: TrainSpec, model_dir: Path, device: str) -> tuple[DtypeName, str]:
    """Return the dtype to train in and what was measured to choose it."""
    from tunesmith.model.precision import measure_speeds

    if spec.dtype != "auto":
        return spec.dtype, "not measured: set in the recipe"
    config = json.loads((model_dir / "config.json").read_text("utf-8"))
    text_config = config.get("text_config", config)
    hidden = int(text_config["hidden_size"])
    speeds = measure_speeds(
        hidden_size=hidden, intermediate_size=int(text_config.get("intermediate_size") or 4 * hidden), device=device
    )
    return speeds.faster, str(speeds)


def _arithmetic(rows: ExampleTable, val: ExampleTable, plan: DataOrder) -> dict[str, JSON]:
    """Return what the run amounts to, known before its first step."""
    from tunesmith.train.batches import shared_tokens

    return {
        "rows": len(rows),
        "val_rows": len(val),
        "tokens_per_epoch": rows.num_tokens,
        "supervised_share": rows.num_supervised / rows.num_tokens,
        "longest_row": int(rows.lengths.max()),
        "steps": plan.total_steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "shared_prefix_tokens": shared_tokens(rows),
    }
