"""The `train` stage: encoded examples and a base model become an adapter.

    train:
      learning_rate: 2.0e-4
      num_train_epochs: 2
      adapter: {kind: lora, rank: 16, alpha: 32}

What lives here: the settings, their checks, and the order in which the engine's parts are used. What does not: the loop
(`train.loop`) and everything under it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context, Estimate, Inputs, Summary, role, stage
from tunesmith.errors import ContractError, PlanError, TrainingError
from tunesmith.types import JSON, sha256_hex

if TYPE_CHECKING:
    from tunesmith.train.batches import StepPlan
    from tunesmith.train.examples import ExampleTable
    from tunesmith.train.loop import Result
    from tunesmith.train.passes import Choice

LORA_LEARNING_RATES = (1e-4, 3e-4)
"""Usual peak rates of LoRA with AdamW (Hu et al. 2021, table 11; Biderman et al. 2024)."""

FEW_STEPS = 10
MANY_EPOCHS = 5.0


class Lora(Spec):
    """A low-rank adapter on a frozen base."""

    kind: Literal["lora"]
    """What is trained: `lora` trains a low-rank update of linear layers."""
    rank: int = Field(default=16, ge=1, le=1024)
    """Rank of the update of each layer."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by `alpha / rank`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapter. Above 0 the fused forward and prefix sharing are off, and training is slower."""
    targets: tuple[str, ...] | None = None
    """Names of the linear layers to adapt, such as `q_proj`. `null` is every linear layer but the head."""


class TrainInputs(Inputs):
    """What training reads."""

    examples: Artifact = role("examples", table="encode")
    base: Artifact = role("base", table="fetch")
    contract: Artifact = role("contract", table="contract")


class TrainSpec(Spec):
    """Settings of a fine-tuning run, in the field's own names."""

    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate, per optimizer step."""
    num_train_epochs: float = Field(2.0, gt=0)
    """Passes over the training rows; a fraction stops inside a pass."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps where that is earlier."""
    batch_size: int = Field(16, ge=1)
    """Rows of one optimizer step, however many passes they take. The loss is the mean over their supervised tokens."""
    max_tokens_per_batch: int = Field(2048, ge=1)
    """Tokens computed in one pass: bounds the memory. A longer row makes a pass of its own."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0 to its peak."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "wsd"] = "cosine"
    """How the learning rate falls after warm-up; `wsd` holds it and falls in the last fifth."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of AdamW on the trained matrices."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this norm; `null` never clips."""
    adapter: Lora = Lora(kind="lora")
    """What is trained."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Number format of base and activations. `auto` measures both and takes the faster; adapters are always float32."""
    evals_per_epoch: float = Field(2.0, gt=0)
    """Validations in each epoch, besides one before the first step and one after the last."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after this many validations without a lower loss; `null` never stops early. The best weights are kept."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward: about a third slower, a fraction of the memory, the same result."""
    seed: int = Field(0, ge=0)
    """Seed of the adapter's start, the row order and dropout."""


def check(spec: TrainSpec, inputs: Mapping[str, Artifact | None]) -> list[str]:
    """Refuse what is known to fail, and warn of settings that rarely do well."""
    warnings = []
    low, high = LORA_LEARNING_RATES
    if not low <= spec.learning_rate <= high:
        warnings.append(
            f"learning_rate {spec.learning_rate:g} lies outside {low:g} to {high:g}, where LoRA usually does best"
        )
    if spec.warmup_ratio == 0:
        warnings.append("warmup_ratio is 0: the first steps run at the full rate on an untrained adapter")
    if spec.num_train_epochs > MANY_EPOCHS:
        warnings.append(f"{spec.num_train_epochs:g} epochs: adapters usually memorise the rows after about 3")
    examples, base, contract = inputs.get("examples"), inputs.get("base"), inputs.get("contract")
    if examples is not None:
        warnings += _check_examples(spec, examples, base)
    if examples is not None and contract is not None:
        _check_contract(examples, contract)
    return warnings


def _check_examples(spec: TrainSpec, examples: Artifact, base: Artifact | None) -> list[str]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    warnings = []
    lengths = pc.list_value_length(pq.read_table(examples.path / "train.parquet", columns=["ids"])["ids"])
    num_rows, longest = len(lengths), pc.max(lengths).as_py() or 0
    num_val = pq.read_metadata(examples.path / "val.parquet").num_rows
    if num_rows == 0:
        raise PlanError("there are no training examples", where=str(examples.path / "train.parquet"))
    if num_val == 0 and spec.early_stopping_patience is not None:
        raise PlanError(
            "early stopping needs validation rows, and there are none",
            where="train.early_stopping_patience",
            hint="give the split stage a share for val, or set the key to null",
        )
    if num_val == 0:
        warnings.append("there are no validation rows: the last weights are kept, not the best")
    if base is not None:
        limit = json.loads((base.path / "model" / "config.json").read_text("utf-8")).get("max_position_embeddings")
        if limit is not None and longest > limit:
            raise PlanError(
                "a row is longer than the base model can read",
                where="encode",
                expected=f"at most {limit:,} tokens",
                found=f"{longest:,}",
                hint="set a maximum length in the encode stage",
            )
    if longest > spec.max_tokens_per_batch:
        warnings.append(
            f"the longest row has {longest:,} tokens, above max_tokens_per_batch {spec.max_tokens_per_batch:,}: "
            "it makes a pass of its own and needs that much more memory"
        )
    steps = spec.num_train_epochs * num_rows / spec.batch_size
    if steps < FEW_STEPS:
        warnings.append(f"{steps:.0f} steps are few: use a smaller batch_size or more epochs")
    return warnings


def _check_contract(examples: Artifact, contract: Artifact) -> None:
    """Raise `ContractError` unless the examples were encoded under this very contract."""
    used = examples.manifest.inputs.get("contract")
    if used != contract.fingerprint:
        raise ContractError(
            "the examples were encoded under another contract",
            where="train",
            expected=f"contract {contract.fingerprint[:12]}",
            found=f"contract {str(used)[:12]}",
            hint="wire encode and train to the same contract table, and run encode again",
        )


def estimate(spec: TrainSpec, inputs: Mapping[str, Artifact | None]) -> Estimate:
    """Say what is not known before the examples are."""
    return Estimate(seconds=None, memory_bytes=None, basis="unknown until encode has run")


@stage(name="train", version=1, produces="adapter", check=check, estimate=estimate)
def train(inputs: TrainInputs, spec: TrainSpec, ctx: Context) -> Summary:
    """Write `adapter/` (a plain PEFT folder), `metrics.jsonl` and `curve.json`."""
    import torch

    from tunesmith.model.load import load_model
    from tunesmith.model.lora import (
        adapter_parameters,
        add_lora,
        count_adapted_layers,
        save_adapter,
        unmoved_tensors,
    )
    from tunesmith.train.batches import StepPlan, count_steps
    from tunesmith.train.checkpoint import Identity
    from tunesmith.train.examples import read_examples
    from tunesmith.train.loop import run_training
    from tunesmith.train.optim import adamw
    from tunesmith.train.passes import choose_pass
    from tunesmith.train.schedule import learning_rate_at
    from tunesmith.train.verify import verify_adapter

    check(spec, dict(inputs))
    _check_contract(inputs.examples, inputs.contract)
    rows, val = (read_examples(inputs.examples.path / f"{side}.parquet") for side in ("train", "val"))
    base_dir = inputs.base.path / "model"
    base_name = json.loads((inputs.base.path / "source.json").read_text("utf-8"))["id"]

    choices = _Choices(ctx.work / "choices.json")
    dtype, speeds = _dtype(spec, choices, base_dir, ctx.device)
    torch.manual_seed(spec.seed)
    base = load_model(base_dir, dtype=dtype).to(ctx.device)
    lora = spec.adapter
    model = add_lora(base, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets, seed=spec.seed)
    parameters = adapter_parameters(model)
    # A save that fails, fails now: same code, same disk, same size as the one at the end.
    save_adapter(model, ctx.work / "dry-run", base_name=base_name)

    choice = choose_pass(model, rows, gradient_checkpointing=spec.gradient_checkpointing, only=choices.recall("pass"))
    choices.keep("pass", choice.loss_pass.name)
    if spec.gradient_checkpointing and choice.loss_pass.name != "fused":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()

    total_steps = count_steps(
        len(rows), batch_size=spec.batch_size, num_epochs=spec.num_train_epochs, max_steps=spec.max_steps
    )
    plan = StepPlan(num_examples=len(rows), batch_size=spec.batch_size, total_steps=total_steps, seed=spec.seed)
    eval_every = max(1, round(plan.steps_per_epoch / spec.evals_per_epoch))
    arithmetic = _arithmetic(rows, val, plan)
    ctx.log("train_begins", {**arithmetic, "dtype": dtype, "pass": choice.loss_pass.name, "notes": list(choice.notes)})
    settings = {**spec.model_dump(mode="json"), "dtype": dtype, "pass": choice.loss_pass.name}
    result = run_training(
        model,
        parameters,
        train=rows,
        val=val,
        loss_pass=choice.loss_pass,
        plan=plan,
        optimizer=adamw(parameters, weight_decay=spec.weight_decay),
        learning_rate_at=lambda step: learning_rate_at(
            step,
            total_steps=total_steps,
            peak=spec.learning_rate,
            warmup_ratio=spec.warmup_ratio,
            schedule=spec.lr_scheduler_type,
        ),
        max_grad_norm=spec.max_grad_norm,
        max_tokens_per_batch=spec.max_tokens_per_batch,
        share_prefixes=lora.dropout == 0,
        eval_every=eval_every,
        patience=spec.early_stopping_patience,
        work=ctx.work,
        identity=Identity(
            data=sha256_hex(rows.digest() + val.digest()), settings=sha256_hex(json.dumps(settings, sort_keys=True))
        ),
        log=ctx.log,
        report=ctx.progress,
    )

    if still := unmoved_tensors(model):
        raise TrainingError(f"{len(still)} layers of the adapter did not move", where=", ".join(still[:3]))
    save_adapter(model, ctx.out / "adapter", base_name=base_name)
    verified = verify_adapter(
        model, ctx.out / "adapter", base_dir=base_dir, dtype=dtype, loss_pass=choice.loss_pass, table=val or rows
    )
    curve = _write_curves(ctx.work / "metrics.jsonl", ctx.out)
    return {
        **arithmetic,
        **_outcome(result, curve),
        "dtype": dtype,
        "dtype_measured": speeds,
        **_pass_summary(choice),
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


def _dtype(spec: TrainSpec, choices: _Choices, base_dir: Path, device: str) -> tuple[Any, str]:
    """Return the dtype to train in and what was measured to choose it."""
    from tunesmith.model.precision import measure_speeds

    if spec.dtype != "auto":
        return spec.dtype, "not measured: set in the recipe"
    if choices.recall("dtype") is None:
        config = json.loads((base_dir / "config.json").read_text("utf-8"))
        text_config = config.get("text_config", config)
        hidden = int(text_config["hidden_size"])
        speeds = measure_speeds(
            hidden_size=hidden,
            intermediate_size=int(text_config.get("intermediate_size") or 4 * hidden),
            device=device,
        )
        choices.keep("speeds", str(speeds))
        choices.keep("dtype", speeds.faster)
    return choices.recall("dtype"), choices.recall("speeds")


def _arithmetic(rows: ExampleTable, val: ExampleTable, plan: StepPlan) -> dict[str, JSON]:
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
