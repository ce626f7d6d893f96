"""The `train` stage: encoded examples and a base model become an adapter.

    train:
      learning_rate: 2.0e-4
      num_train_epochs: 2
      adapter: {kind: lora, rank: 16, alpha: 32}

What lives here: the order in which the engine's parts are used, and the figures of a finished run. What does not: the
settings and their checks (`stages.training`), the loop (`train.loop`) and everything under it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.artifact import Artifact
from tunesmith.core.stage import Context, Estimate, Inputs, Summary, role, stage
from tunesmith.errors import TrainingError
from tunesmith.stages.training import TrainSpec, assemble, check, check_contract, order_of
from tunesmith.stages.training_mix import mix_account, mix_text, read_mix_origins
from tunesmith.stages.training_probe import estimate_by_probe
from tunesmith.types import JSON, sha256_hex

if TYPE_CHECKING:
    from tunesmith.model.load import DtypeName
    from tunesmith.train.batches import DataOrder
    from tunesmith.train.examples import ExampleTable
    from tunesmith.train.loop import Result
    from tunesmith.train.passes import Choice


class TrainInputs(Inputs):
    """What training reads."""

    examples: Artifact = role("examples", table="encode")
    base: Artifact = role("base", table="fetch")
    contract: Artifact = role("contract", table="contract")


def estimate(spec: TrainSpec, inputs: Mapping[str, Artifact | None]) -> Estimate:
    """Predict from a few passes over the encoded rows, once they are there."""
    from tunesmith.train.examples import read_examples

    examples, base = inputs.get("examples"), inputs.get("base")
    if examples is None or base is None:
        return Estimate(seconds=None, memory_bytes=None, basis="unknown until encode and fetch have run")
    found = estimate_by_probe(spec, base=base.path, examples=examples.path, device="cpu")
    if not spec.mix:
        return found
    rows, origins = read_examples(examples.path / "train.parquet"), read_mix_origins(examples.path, spec.mix)
    mix = mix_account(order_of(spec, rows, origins), rows, origins)
    return replace(found, basis=f"{found.basis}; {mix_text(mix)}")


@stage(name="train", version=1, produces="adapter", check=check, estimate=estimate)
def train(inputs: TrainInputs, spec: TrainSpec, ctx: Context) -> Summary:
    """Write `adapter/` (a plain PEFT folder), `metrics.jsonl` and `curve.json`."""
    from tunesmith.model.lora import count_adapted_layers, unmoved_tensors
    from tunesmith.train.checkpoint import Identity
    from tunesmith.train.examples import read_examples
    from tunesmith.train.loop import run_training
    from tunesmith.train.passes import base_of, choose_pass
    from tunesmith.train.schedule import learning_rate_at
    from tunesmith.train.verify import verify_trained

    check(spec, dict(inputs))
    check_contract(inputs.examples, inputs.contract)
    rows, val = (read_examples(inputs.examples.path / f"{side}.parquet") for side in ("train", "val"))
    base_dir = inputs.base.path / "model"
    base_name = json.loads((inputs.base.path / "source.json").read_text("utf-8"))["id"]

    choices = _Choices(ctx.work / "choices.json")
    if choices.recall("dtype") is None:
        choices.keep("dtype", choose_dtype(spec, base_dir, ctx.device))
    dtype, speeds = choices.recall("dtype")
    made = assemble(spec, base_dir=base_dir, base_name=base_name, dtype=dtype, device=ctx.device)
    model, parameters = made.model, made.parameters
    # A save that fails, fails now: same code, same disk, same size as the one at the end.
    made.save(ctx.work / "dry-run")
    shutil.rmtree(ctx.work / "dry-run")

    choice = choose_pass(
        model,
        rows,
        gradient_checkpointing=spec.gradient_checkpointing,
        noise_alpha=spec.neftune_noise_alpha,
        only=choices.recall("pass"),
    )
    choices.keep("pass", choice.loss_pass.name)
    if spec.gradient_checkpointing and choice.loss_pass.name != "fused":
        # Not reentrant: that form cuts the graph where the embeddings are frozen (peft#1142).
        base_of(model).gradient_checkpointing_enable(  # type: ignore[operator]
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )

    origins = read_mix_origins(inputs.examples.path, spec.mix)
    plan = order_of(spec, rows, origins)
    total_steps = plan.total_steps
    eval_every = max(1, round(plan.steps_per_epoch / spec.evals_per_epoch))
    arithmetic = {**_arithmetic(rows, val, plan), "mix": mix_account(plan, rows, origins)}
    ctx.log("train_begins", {**arithmetic, "dtype": dtype, "pass": choice.loss_pass.name, "notes": list(choice.notes)})
    data = rows.digest() + val.digest() + (origins.digest() if spec.mix and origins is not None else "")
    settings = {**spec.model_dump(mode="json"), "dtype": dtype, "pass": choice.loss_pass.name}
    result = run_training(
        model,
        parameters,
        train=rows,
        val=val,
        loss_pass=choice.loss_pass,
        plan=plan,
        optimizer=made.optimizer,
        publish=made.publish,
        learning_rate_at=lambda step: learning_rate_at(
            step,
            total_steps=total_steps,
            peak=spec.learning_rate,
            warmup_ratio=spec.warmup_ratio,
            schedule=spec.lr_scheduler_type,
        ),
        max_grad_norm=spec.max_grad_norm,
        max_tokens_per_batch=spec.max_tokens_per_batch,
        share_prefixes=spec.shares_prefixes,
        eval_every=eval_every,
        patience=spec.early_stopping_patience,
        work=ctx.work,
        identity=Identity(data=sha256_hex(data), settings=sha256_hex(json.dumps(settings, sort_keys=True))),
        log=ctx.log,
        report=ctx.progress,
    )

    if still := unmoved_tensors(model):
        raise TrainingError(f"{len(still)} layers of the adapter did not move", where=", ".join(still[:3]))
    made.save(ctx.out / "adapter")
    verified = verify_trained(
        model, ctx.out / "adapter", base_dir=base_dir, dtype=dtype, loss_pass=choice.loss_pass, table=val or rows
    )
    curve = _write_curves(ctx.work / "metrics.jsonl", ctx.out)
    return {
        **arithmetic,
        **_outcome(result, curve),
        "dtype": dtype,
        "dtype_measured": speeds,
        **_pass_summary(choice),
        "trained": spec.adapter.kind,
        "base_stored_in": None if spec.quantisation is None else str(spec.quantisation),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters.values()),
        "adapted_layers": count_adapted_layers(model),
        "device": ctx.device,
        "peak_memory_bytes": _peak_memory_bytes(),
        "verified": verified,
    }


class _Choices:
    """What was measured and chosen when a run began; it stays so when the run resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def recall(self, name: str) -> Any:
        """Return a choice made before, or `None`."""
        return self.made.get(name)

    def keep(self, name: str, value: JSON) -> None:
        """Keep a choice."""
        self.made[name] = value
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.made), "utf-8")
        partial.replace(self.path)


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


def _outcome(result: Result, curve: Mapping[str, JSON]) -> dict[str, JSON]:
    counters = result.counters
    warnings = []
    if counters.best_loss is not None and counters.first_loss is not None and counters.best_loss >= counters.first_loss:
        warnings.append("the validation loss never fell below the base model's")
    return {
        "steps_done": result.steps,
        "stopped_early": result.stopped_early,
        "resumed_from_step": result.resumed_from,
        "first_loss": curve["loss"][0] if curve["loss"] else None,
        "last_loss": result.last_loss,
        "base_val_loss": counters.first_loss,
        "best_val_loss": counters.best_loss,
        "best_step": counters.best_step if counters.best_loss is not None else result.steps,
        "tokens": counters.tokens,
        "supervised_tokens": counters.supervised_tokens,
        "train_seconds": counters.seconds,
        "tokens_per_second": counters.tokens / counters.seconds if counters.seconds else None,
        "warnings": warnings,
    }


def _pass_summary(choice: Choice) -> dict[str, JSON]:
    proof = choice.proof
    return {
        "pass": choice.loss_pass.name,
        "pass_notes": list(choice.notes),
        "pass_proof": None
        if proof is None
        else {"loss_difference": proof.loss_difference, "gradient_difference": proof.gradient_difference},
    }


def _write_curves(metrics: Path, out: Path) -> dict[str, list[JSON]]:
    """Copy `metrics.jsonl` and write `curve.json`: the same as columns, for plots."""
    text = metrics.read_text("utf-8")
    (out / "metrics.jsonl").write_text(text, "utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    steps = [record for record in records if "loss" in record]
    evals = [record for record in records if "val_loss" in record]
    curve: dict[str, list[JSON]] = {
        "step": [record["step"] for record in steps],
        "loss": [record["loss"] for record in steps],
        "learning_rate": [record["learning_rate"] for record in steps],
        "grad_norm": [record["grad_norm"] for record in steps],
        "tokens_per_second": [record["tokens_per_second"] for record in steps],
        "val_step": [record["step"] for record in evals],
        "val_loss": [record["val_loss"] for record in evals],
    }
    (out / "curve.json").write_text(json.dumps(curve) + "\n", "utf-8")
    return curve


def _peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
