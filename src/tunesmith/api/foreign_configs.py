"""What the keys of other trainers' configs mean here: tables for LLaMA-Factory, axolotl and TRL.

    "lora_rank": Moves("train.adapter.rank")        "packing": Always("documents never see each other ...")

What lives here: data. What does not: reading a config and writing the recipe (`api.config_import`). A key that stands
in no table is reported as unknown, never passed over.

Sources: LLaMA-Factory 0.9.5 `hparams/*.py`, axolotl 0.21 `utils/schemas`, TRL 1.16 `SFTConfig` and `ModelConfig`,
transformers 5.23 `TrainingArguments`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tunesmith.types import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """The key has a counterpart; `convert` returns its value here, or `None` where this value has none."""

    to: str
    convert: Callable[[JSON], JSON] = lambda value: value
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Always:
    """Nothing to set: what the key asks for is done anyway, or is not needed."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """No counterpart. `harmless` are values that ask for nothing."""

    why: str
    harmless: tuple[JSON, ...] = (None, False, "", 0, "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Read by the importer itself, together with other keys."""


Rule = Moves | Always | Lost | Read


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One other trainer."""

    name: str
    signs: tuple[str, ...]
    """Keys that tell its configs from the others'."""
    rules: Mapping[str, Rule]
    defaults: Mapping[str, JSON] = field(default_factory=dict)
    """Its defaults where they differ from ours: a config that leaves the key out means these."""


SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
}
OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw", "paged_adamw_32bit"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), "adamw_8bit"),
    **dict.fromkeys(("adafactor",), "adafactor"),
    **dict.fromkeys(("sgd",), "sgd"),
    **dict.fromkeys(("muon",), "muon"),
}
BITS = ("load_in_4bit", "load_in_8bit", "quantization_bit")
NESTED = ("use_bnb_nested_quant", "double_quantization")
QUANT_TYPES = ("bnb_4bit_quant_type", "quantization_type")


def _number(value: JSON) -> JSON:
    """YAML reads `1e-4` as text."""
    return float(value) if isinstance(value, str) else value


def _whole(value: JSON) -> JSON:
    return int(value)


def _above_zero(value: JSON) -> JSON:
    """A whole number; these tools write -1 or 0 for no limit."""
    return int(value) if int(value) > 0 else None


def _positive(value: JSON) -> JSON:
    return _number(value) or None


def _flag(value: JSON) -> JSON:
    """A switch, which axolotl also writes as a mapping of options."""
    return bool(value)


def _not(value: JSON) -> JSON:
    return not value


LOGGING = Always(why="every step and validation is logged, in metrics.jsonl and events.jsonl")
STORE = Always(why="results live in the store, under their fingerprint")
CHECKPOINTS = Always(why="checkpoints are written by time and at each validation, and are complete")
NO_PADDING = Always(why="batches have no padding, and documents never see each other")
SEVERAL_PROCESSES = Lost(
    why="say train.parallel: {kind: sharded, processes: N}", harmless=(None, False, "", [], {}, "no")
)
TRACKING = Lost(
    why="say it when it runs: tunesmith run --track NAME; metrics.jsonl holds every figure too",
    harmless=(None, "none", [], ["none"], ""),
)

TRAINING_ARGUMENTS: dict[str, Rule] = {
    "learning_rate": Moves(to="train.learning_rate", convert=_number),
    "num_train_epochs": Moves(to="train.num_train_epochs", convert=_number),
    "max_steps": Moves(to="train.max_steps", convert=_above_zero),
    "per_device_train_batch_size": Read(),
    "gradient_accumulation_steps": Read(),
    "lr_scheduler_type": Moves(to="train.lr_scheduler_type", convert=SCHEDULES.get),
    "warmup_ratio": Moves(to="train.warmup_ratio", convert=_number),
    "warmup_steps": Read(),
    "weight_decay": Moves(to="train.weight_decay", convert=_number),
    "max_grad_norm": Moves(to="train.max_grad_norm", convert=_positive),
    "optim": Read(),
    "adam_beta1": Read(),
    "adam_beta2": Read(),
    "adam_epsilon": Read(),
    "bf16": Read(),
    "fp16": Read(),
    "tf32": Lost(why="set it in torch"),
    "gradient_checkpointing": Moves(to="train.gradient_checkpointing", convert=_flag),
    "gradient_checkpointing_kwargs": Always(why="checkpointing is never reentrant"),
    "neftune_noise_alpha": Moves(to="train.neftune_noise_alpha", convert=_number),
    "seed": Moves(to="train.seed", convert=_whole),
    "data_seed": Lost(why="one seed decides the order of rows and the adapter's start", harmless=(None,)),
    "eval_strategy": Always(why="validation runs before the first step, at intervals and at the end"),
    "eval_steps": Lost(why="say train.evals_per_epoch instead", harmless=(None,)),
    "do_eval": Always(why="validation runs wherever there are validation rows"),
    "do_train": Always(why="the stage trains"),
    "per_device_eval_batch_size": Always(why="bounded by train.max_tokens_per_batch"),
    "load_best_model_at_end": Always(why="the weights with the lowest validation loss are kept"),
    "metric_for_best_model": Lost(
        why="say train.task_metric and train.metric_for_best_model: task_metric", harmless=(None, "loss", "eval_loss")
    ),
    "greater_is_better": Always(why="a lower loss is better"),
    "logging_steps": LOGGING,
    "logging_strategy": LOGGING,
    "logging_first_step": LOGGING,
    "logging_dir": LOGGING,
    "plot_loss": LOGGING,
    "include_num_input_tokens_seen": LOGGING,
    "disable_tqdm": Always(why="progress goes to the terminal only"),
    "report_to": TRACKING,
    "run_name": Always(why="runs are named after the recipe"),
    "output_dir": STORE,
    "overwrite_output_dir": STORE,
    "overwrite_cache": Always(why="results are found by content, so none is ever stale"),
    "save_steps": CHECKPOINTS,
    "save_strategy": CHECKPOINTS,
    "save_total_limit": CHECKPOINTS,
    "save_only_model": CHECKPOINTS,
    "save_safetensors": CHECKPOINTS,
    "resume_from_checkpoint": CHECKPOINTS,
    "dataloader_num_workers": Always(why="rows are encoded once, before training"),
    "dataloader_pin_memory": Always(why="rows are encoded once, before training"),
    "preprocessing_num_workers": Always(why="workers are circumstance: tunesmith run --workers"),
    "dataset_num_proc": Always(why="workers are circumstance: tunesmith run --workers"),
    "group_by_length": NO_PADDING,
    "ddp_timeout": Always(why="processes that are lost are told at once"),
    "ddp_find_unused_parameters": Always(why="every trained tensor must get a gradient, or the run stops"),
    "deepspeed": SEVERAL_PROCESSES,
    "fsdp": SEVERAL_PROCESSES,
    "fsdp_config": SEVERAL_PROCESSES,
    "torch_compile": Always(why="the engine brings its own compiled loops"),
    "push_to_hub": Lost(why="nothing is uploaded"),
    "use_cpu": Always(why="devices are circumstance: tunesmith run --device"),
    "label_smoothing_factor": Lost(why="the loss is plain cross-entropy"),
    "use_liger_kernel": Always(why="the engine's own fused kernels are used where they are proven equal"),
    "remove_unused_columns": Always(why="every column of a row is accounted for in ingest"),
    "trust_remote_code": Lost(why="code out of a model folder is never run"),
}

LLAMA_FACTORY = Tool(
    name="LLaMA-Factory",
    signs=("finetuning_type", "template", "cutoff_len", "dataset_dir", "stage", "lora_target"),
    rules={
        **TRAINING_ARGUMENTS,
        "model_name_or_path": Read(),
        "model_revision": Moves(to="fetch.revision"),
        "adapter_name_or_path": Lost(why="training begins at the base model"),
        "stage": Read(),
        "finetuning_type": Read(),
        "lora_rank": Moves(to="train.adapter.rank", convert=_whole),
        "lora_alpha": Moves(to="train.adapter.alpha", convert=_number),
        "lora_dropout": Moves(to="train.adapter.dropout", convert=_number),
        "lora_target": Read(),
        "use_rslora": Read(),
        "use_dora": Read(),
        "loraplus_lr_ratio": Moves(to="train.adapter.lora_plus_ratio", convert=_number),
        "additional_target": Lost(why="modules outside the adapter are not trained"),
        "pissa_init": Lost(why="the adapter starts at zero"),
        "quantization_bit": Read(),
        "quantization_type": Read(),
        "double_quantization": Read(),
        "quantization_method": Lost(why="bitsandbytes' formats are used", harmless=(None, "bnb", "bitsandbytes")),
        "dataset": Read(),
        "eval_dataset": Lost(why="name the file under ingest.sources with `split: val`"),
        "dataset_dir": Read(),
        "val_size": Read(),
        "template": Read(),
        "default_system": Moves(to="contract.system"),
        "enable_thinking": Read(),
        "cutoff_len": Moves(
            to="contract.loss.max_tokens", convert=_whole, why="longer rows are dropped and reported, not cut"
        ),
        "train_on_prompt": Lost(why="prompts are never trained"),
        "mask_history": Read(),
        "packing": NO_PADDING,
        "neat_packing": NO_PADDING,
        "max_samples": Lost(why="take a smaller file"),
        "flash_attn": Always(why="attention over documents is the engine's own"),
        "enable_liger_kernel": Always(why="the engine's own fused kernels are used where they are proven equal"),
        "use_unsloth": Lost(why="the engine is its own"),
        "disable_gradient_checkpointing": Moves(to="train.gradient_checkpointing", convert=_not),
        "use_reentrant_gc": Always(why="checkpointing is never reentrant"),
        "upcast_layernorm": Always(why="norms are computed in float32"),
        "early_stopping_steps": Moves(to="train.early_stopping_patience", convert=_above_zero),
        "use_muon": Read(),
        "mix_strategy": Lost(why="rows are concatenated", harmless=(None, "concat")),
        "streaming": Lost(why="rows are read once, into the store"),
    },
    defaults={
        "learning_rate": 5e-5,
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.0,
        "lora_rank": 8,
        "disable_gradient_checkpointing": False,
        "cutoff_len": 2048,
        "seed": 42,
    },
)

TRL = Tool(
    name="TRL",
    signs=("dataset_name", "use_peft", "lora_r", "max_length", "lora_target_modules", "assistant_only_loss"),
    rules={
        **TRAINING_ARGUMENTS,
        "model_name_or_path": Read(),
        "model_revision": Moves(to="fetch.revision"),
        "use_peft": Read(),
        "lora_r": Moves(to="train.adapter.rank", convert=_whole),
        "lora_alpha": Moves(to="train.adapter.alpha", convert=_number),
        "lora_dropout": Moves(to="train.adapter.dropout", convert=_number),
        "lora_target_modules": Read(),
        "lora_modules_to_save": Lost(why="modules outside the adapter are not trained", harmless=(None, [])),
        "lora_task_type": Always(why="causal language models only"),
        "use_rslora": Read(),
        "use_dora": Read(),
        "load_in_4bit": Read(),
        "load_in_8bit": Read(),
        "bnb_4bit_quant_type": Read(),
        "use_bnb_nested_quant": Read(),
        "dtype": Read(),
        "torch_dtype": Read(),
        "attn_implementation": Always(why="attention over documents is the engine's own"),
        "dataset_name": Read(),
        "dataset_config": Lost(why="name a local file under ingest.sources"),
        "dataset_train_split": Lost(why="name the files under ingest.sources", harmless=(None, "train")),
        "dataset_test_split": Lost(why="name the files under ingest.sources", harmless=(None, "test")),
        "dataset_text_field": Lost(why="rows are conversations", harmless=(None, "text")),
        "max_length": Moves(
            to="contract.loss.max_tokens", convert=_whole, why="longer rows are dropped and reported, not cut"
        ),
        "packing": NO_PADDING,
        "packing_strategy": NO_PADDING,
        "padding_free": NO_PADDING,
        "eval_packing": NO_PADDING,
        "pad_to_multiple_of": NO_PADDING,
        "assistant_only_loss": Lost(why="only answers train", harmless=(None, True)),
        "completion_only_loss": Lost(why="only answers train", harmless=(None, True)),
        "eos_token": Lost(why="the contract names the stop tokens: contract.stop", harmless=(None,)),
        "chat_template_path": Lost(why="name the file under contract.template", harmless=(None,)),
        "loss_type": Lost(why="the loss is cross-entropy", harmless=(None, "nll", "chunked_nll")),
    },
    defaults={
        "learning_rate": 2e-5,
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.0,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "max_length": 1024,
        "gradient_checkpointing": True,
        "use_bnb_nested_quant": False,
        "seed": 42,
    },
)

AXOLOTL = Tool(
    name="axolotl",
    signs=("base_model", "micro_batch_size", "datasets", "sequence_len", "sample_packing"),
    rules={
        **{
            key: rule
            for key, rule in TRAINING_ARGUMENTS.items()
            if key not in ("num_train_epochs", "per_device_train_batch_size", "lr_scheduler_type", "optim")
        },
        "base_model": Read(),
        "base_model_config": Always(why="the model's folder holds its config"),
        "revision_of_model": Moves(to="fetch.revision"),
        "model_type": Always(why="the model's config names its class"),
        "tokenizer_type": Always(why="the model's folder holds its tokenizer"),
        "datasets": Read(),
        "dataset_prepared_path": STORE,
        "val_set_size": Read(),
        "test_datasets": Lost(why="name the files under ingest.sources with `split: val`", harmless=(None, [])),
        "num_epochs": Moves(to="train.num_train_epochs", convert=_number),
        "micro_batch_size": Read(),
        "lr_scheduler": Moves(to="train.lr_scheduler_type", convert=SCHEDULES.get),
        "optimizer": Read(),
        "sequence_len": Moves(
            to="contract.loss.max_tokens", convert=_whole, why="longer rows are dropped and reported, not cut"
        ),
        "adapter": Read(),
        "lora_r": Moves(to="train.adapter.rank", convert=_whole),
        "lora_alpha": Moves(to="train.adapter.alpha", convert=_number),
        "lora_dropout": Moves(to="train.adapter.dropout", convert=_number),
        "lora_target_modules": Read(),
        "lora_target_linear": Always(why="all linear layers are adapted unless targets are named"),
        "lora_modules_to_save": Lost(why="modules outside the adapter are not trained", harmless=(None, [])),
        "lora_fan_in_fan_out": Always(why="told from the layer's class"),
        "peft_use_rslora": Read(),
        "peft_use_dora": Read(),
        "loraplus_lr_ratio": Moves(to="train.adapter.lora_plus_ratio", convert=_number),
        "load_in_4bit": Read(),
        "load_in_8bit": Read(),
        "bnb_4bit_quant_type": Read(),
        "use_bnb_nested_quant": Read(),
        "sample_packing": NO_PADDING,
        "eval_sample_packing": NO_PADDING,
        "pad_to_sequence_len": NO_PADDING,
        "train_on_inputs": Lost(why="prompts are never trained"),
        "flash_attention": Always(why="attention over documents is the engine's own"),
        "sdp_attention": Always(why="attention over documents is the engine's own"),
        "attn_implementation": Always(why="attention over documents is the engine's own"),
        "chat_template": Read(),
        "special_tokens": Lost(why="the tokenizer of the base is used as it is", harmless=(None, {})),
        "evals_per_epoch": Moves(to="train.evals_per_epoch", convert=_number),
        "saves_per_epoch": CHECKPOINTS,
        "early_stopping_patience": Moves(to="train.early_stopping_patience", convert=_above_zero),
        "wandb_project": TRACKING,
        "wandb_entity": TRACKING,
        "wandb_watch": TRACKING,
        "wandb_name": TRACKING,
        "wandb_log_model": TRACKING,
        "hub_model_id": Lost(why="nothing is uploaded"),
        "strict": Always(why="an unknown key is always an error"),
        "plugins": Lost(why="axolotl's plugins do not run here", harmless=(None, [])),
        "lora_mlp_kernel": Always(why="the engine's own fused kernels are used where they are proven equal"),
        "lora_qkv_kernel": Always(why="the engine's own fused kernels are used where they are proven equal"),
        "lora_o_kernel": Always(why="the engine's own fused kernels are used where they are proven equal"),
        "debug": LOGGING,
    },
    defaults={
        "num_epochs": 1.0,
        "micro_batch_size": 1,
        "lr_scheduler": "cosine",
        "warmup_ratio": 0.0,
        "seed": 42,
    },
)

TOLD_FROM_ROWS = Always(why="told from the file and its rows")
AXOLOTL_DATASET: dict[str, Rule] = {
    "path": Read(),
    "data_files": Read(),
    "field_messages": Read(),
    "message_property_mappings": Read(),
    "ds_type": TOLD_FROM_ROWS,
    "type": Lost(why="rows are conversations", harmless=(None, "chat_template", "sharegpt", "alpaca")),
    "name": Lost(why="name the file, or the data set under ingest.hub with `subset:`", harmless=(None,)),
    "split": Lost(why="name the file of that split, or the data set under ingest.hub", harmless=(None, "train")),
    "chat_template": Lost(why="say contract.template", harmless=(None, "tokenizer_default")),
    "roles_to_train": Lost(why="answers train, nothing else", harmless=(None, ["assistant"], ["gpt"])),
    "train_on_eos": Lost(why="the token that ends an answer trains, no other", harmless=(None, "turn")),
}
"""Options of one of axolotl's data sets; others name columns."""

TOOLS = (LLAMA_FACTORY, AXOLOTL, TRL)
