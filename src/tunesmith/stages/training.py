"""Settings of the `train` stage, and what is known to be wrong with them.

What lives here: `TrainSpec` and its checks before the run. What does not: the model that it describes
(`stages.training_model`), the stage itself (`stages.train`), the probe (`stages.training_probe`), the engine (`train`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import Circumstance, Spec
from tunesmith.errors import ContractError, PlanError
from tunesmith.stages.training_advice import context_of, unwise_for_rows, unwise_settings
from tunesmith.stages.training_mix import MixStage, check_mix, data_order
from tunesmith.stages.training_optimizers import AdamW, OptimizerSpec, check_optimizer
from tunesmith.stages.training_parallel import ParallelSpec, check_parallel
from tunesmith.stages.training_watch import GeneralWatch, TaskMetric, check_watches

if TYPE_CHECKING:
    from tunesmith.model.quantised import Quantisation
    from tunesmith.train.batches import DataOrder
    from tunesmith.train.examples import ExampleTable
    from tunesmith.train.mixing import Origins


class Nf4(Spec):
    """Four bits a weight."""

    kind: Literal["nf4"]
    """How the base's linear layers are stored while the adapter trains: `nf4` in 4 bits (QLoRA)."""
    double_quant: bool = True
    """Store the scales of the blocks in 8 bits as well, which saves another 0.4 bits a weight."""


class Int8(Spec):
    """Eight bits a weight."""

    kind: Literal["int8"]
    """How the base's linear layers are stored while the adapter trains: `int8` in 8 bits, a scale for each output."""


QuantizationSpec = Annotated[Nf4 | Int8, Field(discriminator="kind")]


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
    scaling: Literal["classic", "rslora"] = "classic"
    """`rslora` scales by `alpha / sqrt(rank)`, which keeps high ranks learning."""
    lora_plus_ratio: float = Field(default=1.0, ge=1)
    """LoRA+: how many times faster the B matrices learn than the A matrices; 16 is usual, 1 is off."""
    quantization: QuantizationSpec | None = None
    """Store the frozen base in fewer bits: `{kind: nf4}` (QLoRA) or `{kind: int8}`; needs `tunesmith[qlora]`. The
    adapter remembers it, and is evaluated and served on the same base. `null` keeps the base as it is."""


class Dora(Spec):
    """A low-rank adapter that trains the length of each weight vector apart from its direction."""

    kind: Literal["dora"]
    """What is trained: `dora` trains a low-rank direction and a length for each output."""
    rank: int = Field(default=16, ge=1, le=1024)
    """Rank of the update of each layer."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by `alpha / rank`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapter. Above 0 prefix sharing is off."""
    targets: tuple[str, ...] | None = None
    """Names of the linear layers to adapt, such as `q_proj`. `null` is every linear layer but the head."""
    quantization: QuantizationSpec | None = None
    """Store the frozen base in fewer bits: `{kind: nf4}` (QLoRA) or `{kind: int8}`; needs `tunesmith[qlora]`. The
    adapter remembers it, and is evaluated and served on the same base. `null` keeps the base as it is."""


class Full(Spec):
    """All weights of the model."""

    kind: Literal["full"]
    """What is trained: `full` trains every weight, with float32 masters; `adapter/` then holds a whole model folder."""


class CheckpointSpec(Spec):
    """When checkpoints are written and how many are kept; with the finished run they go."""

    every_seconds: float = Field(default=60.0, ge=0)
    """Seconds between two checkpoints, at most; 0 writes one after each step. There is one before the first step, one
    after each validation and one after the last step in any case."""
    keep: int = Field(default=2, ge=1)
    """The newest so many are kept, and with each the best weights so far."""


AdapterSpec = Annotated[Lora | Dora | Full, Field(discriminator="kind")]


class TrainSpec(Spec):
    """Settings of a fine-tuning run, in the field's own names."""

    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate, per optimizer step."""
    num_train_epochs: float = Field(2.0, gt=0)
    """Passes over the training rows; a fraction stops inside a pass."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps where that is earlier."""
    mix: tuple[MixStage, ...] = ()
    """Shares of general rows, task and single sources in the trained tokens: one mix, or stages in order. With a mix
    `num_train_epochs` counts passes over the task's rows, and general rows come on top. Without one all train alike."""
    max_source_epochs: float = Field(5.0, gt=0)
    """A mix that would pass over a source more often than this is refused."""
    batch_size: int = Field(16, ge=1)
    """Rows of one optimizer step, however many passes they take. The loss is the mean over their supervised tokens."""
    max_tokens_per_batch: int = Field(2048, ge=1)
    """Tokens computed in one pass: bounds the memory. A longer row makes a pass of its own."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0 to its peak."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "wsd"] = "cosine"
    """How the learning rate falls after warm-up; `wsd` holds it and falls in the last fifth."""
    optimizer: OptimizerSpec = AdamW(kind="adamw")
    """How gradients become steps: `{kind: adamw}`, `adamw_8bit`, `adafactor`, `muon`, `sgd`, any of torch's by
    `{kind: torch, name: NAdam}`, or one of your own by `{kind: file, path: my_optimizer.py}`."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of the trained matrices; norms and biases never decay."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this norm; `null` never clips."""
    adapter: AdapterSpec = Lora(kind="lora")
    """What is trained: `{kind: lora, rank: 16}`, `{kind: lora, quantization: {kind: nf4}}` (QLoRA), `{kind: dora}` or
    `{kind: full}`."""
    neftune_noise_alpha: float | None = Field(None, gt=0)
    """NEFTune: noise on the embeddings while training, 5 is usual. Prefixes are not shared under it."""
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    """Number format of weights and activations. `auto` measures bfloat16 and float32 and takes the faster; float16
    scales its loss, and is for GPUs without bfloat16. What the optimizer changes is always float32."""
    evals_per_epoch: float = Field(2.0, gt=0)
    """Validations in each epoch, besides one before the first step and one after the last."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after this many measurements of what decides without a better one; `null` never stops early. The best
    weights are kept."""
    metric_for_best_model: Literal["val_loss", "task_metric"] = "val_loss"
    """What decides which weights are kept and when patience is out: the validation loss, or the task's own metric."""
    task_metric: TaskMetric | None = None
    """Answer validation rows while training and score them, such as `{metric: exact_match}`; `null` does not."""
    general_watch: GeneralWatch | None = None
    """Measure the loss on general text at each validation, and warn where it rises: `{}`; `null` does not."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward: about a third slower, a fraction of the memory, the same result."""
    seed: int = Field(0, ge=0)
    """Seed of the adapter's start, the row order, dropout and noise."""
    checkpoints: Annotated[CheckpointSpec, Circumstance()] = CheckpointSpec()
    """How often and how many checkpoints: `{every_seconds: 600, keep: 3}`. No part of the result's identity."""
    parallel: Annotated[ParallelSpec | None, Circumstance()] = None
    """Several processes on one run: `{kind: replicated, processes: 2}` or `{kind: sharded, processes: 2}`; `null` is
    one. The loss is the same to rounding, so the key is no part of the result's identity."""

    @field_validator("mix", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @property
    def dropout(self) -> float:
        """Dropout before the adapter; a model that is trained whole has none."""
        return 0.0 if isinstance(self.adapter, Full) else self.adapter.dropout

    @property
    def best_by(self) -> str:
        """Name of the figure that decides which weights are kept."""
        if self.metric_for_best_model == "val_loss" or self.task_metric is None:
            return "val_loss"
        return self.task_metric.metric

    @property
    def quantisation(self) -> Quantisation | None:
        """How the base is stored, where not as it is."""
        from tunesmith.model.quantised import Quantisation

        chosen = None if isinstance(self.adapter, Full) else self.adapter.quantization
        if chosen is None:
            return None
        return Quantisation(kind=chosen.kind, double=isinstance(chosen, Nf4) and chosen.double_quant)

    @property
    def shares_prefixes(self) -> bool:
        """Whether rows may compute a common prefix once: not where each row draws noise of its own."""
        return self.dropout == 0 and self.neftune_noise_alpha is None


def check(spec: TrainSpec, inputs: Mapping[str, Artifact | None]) -> list[str]:
    """Refuse what is known to fail, and warn of settings that rarely do well."""
    warnings = unwise_settings(
        kind=spec.adapter.kind,
        optimizer=spec.optimizer.kind,
        learning_rate=spec.learning_rate,
        warmup_ratio=spec.warmup_ratio,
        dtype=spec.dtype,
    )
    if not isinstance(spec.adapter, Full) and spec.adapter.quantization is not None:
        _check_kernels("a quantised base", where="train.adapter.quantization")
    check_optimizer(spec.optimizer)
    if spec.optimizer.kind == "adamw_8bit":
        _check_kernels("an optimizer in 8 bits", where="train.optimizer")
    warnings += check_parallel(spec)
    examples, base, contract = inputs.get("examples"), inputs.get("base"), inputs.get("contract")
    if examples is not None:
        warnings += _check_examples(spec, examples, base, contract)
        warnings += check_mix(
            spec.mix,
            examples.path,
            num_epochs=spec.num_train_epochs,
            max_steps=spec.max_steps,
            batch_size=spec.batch_size,
            seed=spec.seed,
            max_source_epochs=spec.max_source_epochs,
        )
    if examples is not None and contract is not None:
        check_contract(examples, contract)
    return warnings


def _check_kernels(what: str, *, where: str) -> None:
    """Raise `PlanError` where something in few bits is asked for and its kernels are not installed."""
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise PlanError(
            f"{what} needs bitsandbytes, which is not installed",
            where=where,
            hint="pip install 'tunesmith[qlora]'",
        )


def _check_examples(spec: TrainSpec, examples: Artifact, base: Artifact | None, contract: Artifact | None) -> list[str]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    warnings = []
    lengths = pc.list_value_length(pq.read_table(examples.path / "train.parquet", columns=["ids"])["ids"])
    num_rows, longest = len(lengths), pc.max(lengths).as_py() or 0
    num_val = pq.read_metadata(examples.path / "val.parquet").num_rows
    if num_rows == 0:
        raise PlanError("there are no training examples", where=str(examples.path / "train.parquet"))
    check_watches(spec.task_metric, best_by=spec.metric_for_best_model, contract=contract, num_val=num_val)
    if num_val == 0 and spec.early_stopping_patience is not None:
        raise PlanError(
            "early stopping needs validation rows, and there are none",
            where="train.early_stopping_patience",
            hint="give the split stage a share for val, or set the key to null",
        )
    if num_val == 0:
        warnings.append("there are no validation rows: the last weights are kept, not the best")
    limit = None if base is None else context_of(base.path / "model")
    if limit is not None and longest > limit:
        raise PlanError(
            "a row is longer than the base model can read",
            where="encode",
            expected=f"at most {limit:,} tokens",
            found=f"{longest:,}",
            hint="set contract.loss.max_tokens",
        )
    return warnings + unwise_for_rows(
        examples.path / "train.parquet",
        contract,
        longest=longest,
        context=limit,
        num_epochs=spec.num_train_epochs,
        max_steps=spec.max_steps,
        batch_size=spec.batch_size,
        max_tokens_per_batch=spec.max_tokens_per_batch,
    )


def order_of(spec: TrainSpec, rows: ExampleTable, origins: Origins | None) -> DataOrder:
    """Return which rows each step of a run under these settings sees."""
    return data_order(
        spec.mix,
        rows,
        origins,
        batch_size=spec.batch_size,
        num_epochs=spec.num_train_epochs,
        max_steps=spec.max_steps,
        seed=spec.seed,
    )


def check_contract(examples: Artifact, contract: Artifact) -> None:
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
