"""Go through one config of another tool: each key to its place in a recipe, or to the reason why it has none.

What lives here: keys that are read together, and the account of every key. What does not: the meaning of single keys
(`api.foreign_configs`), files and the recipe's text (`api.config_import`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.api.foreign_configs import (
    AXOLOTL_DATASET,
    BITS,
    NESTED,
    OPTIMIZERS,
    QUANT_TYPES,
    Always,
    Lost,
    Moves,
    Read,
    Tool,
)
from tunesmith.errors import RecipeError
from tunesmith.types import JSON

HUB_NAME = re.compile(r"[\w-]+/[\w.-]+(?<!\.json)(?<!\.jsonl)(?<!\.csv)(?<!\.parquet)(?<!\.arrow)(?<!\.txt)")
"""`org/name`: what no file is called that holds rows, and is meant where no such folder is here."""
MESSAGE_KEYS = (("role", "role", ("role", "from")), ("content", "content", ("content", "value")))
"""What a message's parts are called: part, what axolotl takes where nothing is said, what is read here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What became of one key."""

    key: str
    value: JSON
    to: str | None = None
    """Key of the recipe that carries it."""
    why: str = ""
    by_default: bool = False
    """Whether the config left it out and the tool's own default is meant."""


class ConfigReader:
    """Goes through one config and keeps what became of each key."""

    def __init__(self, tool: Tool, config: Mapping[str, JSON], *, where: str, folder: Path) -> None:
        """`folder` is the recipe's, from which its paths are meant."""
        self.tool = tool
        self.given = config
        self.where = where
        self.folder = folder
        self.values: dict[str, JSON] = {**tool.defaults, **config}
        self.moved: list[Fate] = []
        self.always: list[Fate] = []
        self.lost: list[Fate] = []
        self.unknown: list[Fate] = []
        self.tables: dict[str, dict[str, Any]] = {
            name: {} for name in ("fetch", "contract", "ingest", "split", "train")
        }

    # -- keys on their own ---------------------------------------------------------------------------------------

    def recipe(self, name: str) -> dict[str, Any]:
        """Return the tables of the recipe."""
        self._model()
        self._adapter()
        self._single_keys()
        self._length()
        self._what_trains()
        self._batch()
        self._warmup()
        self._optimizer()
        self._numbers()
        self._template()
        self._data()
        self._rest()
        full = self.tables["train"]["adapter"]["kind"] == "full"
        if full:
            self.tables["train"]["adapter"] = {"kind": "full"}
        return {"name": name, **self.tables, "curate": {"allow_unknown": True}, "encode": {}}

    def _rest(self) -> None:
        """Account for keys that are read together with others and asked for nothing in this config."""
        seen = {fate.key for fate in (*self.moved, *self.always, *self.lost, *self.unknown)}
        for key, value in self.given.items():
            if key not in seen and value in (None, False, "", 0, [], {}):
                self.always.append(Fate(key=key, value=value, why="asks for nothing"))
            elif key not in seen:
                self._lose(key, "not needed beside the other keys, or without counterpart")

    def _single_keys(self) -> None:
        for key, value in self.values.items():
            rule = self.tool.rules.get(key)
            match rule:
                case None:
                    self.unknown.append(Fate(key=key, value=value))
                case Always():
                    self.always.append(Fate(key=key, value=value, why=rule.why))
                case Lost() if value in rule.harmless:
                    self.always.append(Fate(key=key, value=value, why="asks for nothing"))
                case Lost():
                    self.lost.append(Fate(key=key, value=value, why=rule.why))
                case Moves() if value is not None:
                    self._move(key, rule)
                case Moves() if key in self.given:
                    self.always.append(Fate(key=key, value=value, why="asks for nothing"))
                case Moves() | Read():
                    pass  # read elsewhere, and accounted for in `_rest`

    def _move(self, key: str, rule: Moves) -> None:
        value = self.values[key]
        if rule.to.startswith("train.adapter.") and self.tables["train"]["adapter"]["kind"] == "full":
            self.always.append(Fate(key=key, value=value, why="all weights are trained, no adapter"))
            return
        if rule.to.endswith(".lora_plus_ratio") and self.tables["train"]["adapter"]["kind"] == "dora":
            self.lost.append(Fate(key=key, value=value, why="LoRA+ is for plain LoRA"))
            return
        try:
            converted = rule.convert(value)
        except (TypeError, ValueError):
            converted = None
        if converted is None:
            self.lost.append(Fate(key=key, value=value, why=f"{rule.to} has no such value"))
        else:
            self._set(rule.to, converted, key, why=rule.why)

    def _set(self, to: str, value: JSON, *keys: str, why: str = "") -> None:
        table, *path = to.split(".")
        at = self.tables[table]
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at[path[-1]] = value
        for key in keys:
            self.moved.append(
                Fate(key=key, value=self.values.get(key), to=to, why=why, by_default=key not in self.given)
            )

    def _lose(self, key: str, why: str) -> None:
        self.lost.append(Fate(key=key, value=self.values.get(key), why=why))

    # -- keys that are read together -----------------------------------------------------------------------------

    def _model(self) -> None:
        key = "base_model" if self.tool.name == "axolotl" else "model_name_or_path"
        if not self.values.get(key):
            raise RecipeError(f"the config names no model: {key}", where=self.where)
        self._set("fetch.model", str(self.values[key]), key)

    def _adapter(self) -> None:
        values = self.values
        stage = values.get("stage", "sft")
        if stage != "sft":
            raise RecipeError(
                f"the config's stage is {stage!r}", where=f"{self.where}: stage", expected="sft", found=str(stage)
            )
        if "stage" in values:
            self.always.append(Fate(key="stage", value=stage, why="supervised fine-tuning"))
        named: Any
        match self.tool.name:
            case "LLaMA-Factory":
                key, named = "finetuning_type", values.get("finetuning_type", "lora")
            case "axolotl":
                key, named = "adapter", values.get("adapter") or "full"
            case _:
                key, named = "use_peft", "lora" if values.get("use_peft") else "full"
        if named == "qlora":
            named = "lora"
            self._set("train.adapter.quantization.kind", "nf4", key)
        if named not in ("lora", "full"):
            raise RecipeError(
                f"{key}: {named} has no counterpart", where=self.where, expected="lora or full", found=str(named)
            )
        dora = next((flag for flag in ("use_dora", "peft_use_dora") if flag in values), None)
        if named == "lora":
            self._quantization()
        rslora = next((flag for flag in ("use_rslora", "peft_use_rslora") if flag in values), None)
        kind = "dora" if named == "lora" and dora and values[dora] else named
        self._set("train.adapter.kind", kind, key, *([dora] if dora else []))
        if rslora and values[rslora] and kind == "lora":
            self._set("train.adapter.scaling", "rslora", rslora)
        elif rslora and values[rslora]:
            self._lose(rslora, "rank-stabilised scaling is for plain LoRA")
        elif rslora:
            self.always.append(Fate(key=rslora, value=values[rslora], why="asks for nothing"))
        if self.tool.name == "LLaMA-Factory" and kind != "full" and "lora_alpha" not in values:
            self.values["lora_alpha"] = 2 * int(values["lora_rank"])
        targets_key = "lora_target" if self.tool.name == "LLaMA-Factory" else "lora_target_modules"
        targets = values.get(targets_key)
        if isinstance(targets, str):
            targets = [part.strip() for part in targets.split(",")]
        if targets in (None, ["all"], ["all-linear"]):
            if targets_key in values:
                self.always.append(
                    Fate(key=targets_key, value=values[targets_key], why="all linear layers are adapted")
                )
            elif self.tool.name == "TRL" and kind != "full":
                why = "all linear layers are adapted; without it PEFT chooses some of them: say train.adapter.targets"
                self.lost.append(Fate(key=targets_key, value=None, why=why, by_default=True))
        elif kind != "full":
            self._set("train.adapter.targets", list(targets), targets_key)

    def _quantization(self) -> None:
        """Keys of a base in 4 or 8 bits; they ask for nothing where no key says how many."""
        bits_key = next((key for key in BITS if self.values.get(key)), None)
        if bits_key is None:
            return
        eight = bits_key == "load_in_8bit" or self.values[bits_key] == 8
        self._set("train.adapter.quantization.kind", "int8" if eight else "nf4", bits_key)
        for key in () if eight else (key for key in NESTED if key in self.values):
            self._set("train.adapter.quantization.double_quant", bool(self.values[key]), key)
        for key in (key for key in QUANT_TYPES if key in self.given):
            if self.values[key] == "nf4" and not eight:
                self.always.append(Fate(key=key, value="nf4", why="4 bits are NF4"))
            else:
                self._lose(key, "4 bits are NF4, 8 bits int8")

    def _batch(self) -> None:
        key = "micro_batch_size" if self.tool.name == "axolotl" else "per_device_train_batch_size"
        micro, accumulated = int(self.values[key]), int(self.values.get("gradient_accumulation_steps") or 1)
        keys = [key] + (["gradient_accumulation_steps"] if "gradient_accumulation_steps" in self.values else [])
        why = f"{micro} rows x {accumulated} accumulated, on one device"
        self._set("train.batch_size", micro * accumulated, *keys, why=why)

    def _warmup(self) -> None:
        steps = self.values.get("warmup_steps")
        if steps is None:
            return
        steps = float(steps)
        total = self.tables["train"].get("max_steps")
        if 0 < steps < 1:
            self._set("train.warmup_ratio", steps, "warmup_steps")
        elif steps == 0:
            self.always.append(Fate(key="warmup_steps", value=steps, why="asks for nothing"))
        elif total is not None:
            self._set("train.warmup_ratio", round(steps / total, 6), "warmup_steps")
        else:
            self._lose("warmup_steps", "warm-up is a share of the steps here: set train.warmup_ratio")
            if "warmup_ratio" not in self.given:  # Our own default is nearer to it than none at all.
                self.tables["train"].pop("warmup_ratio", None)
                self.moved = [fate for fate in self.moved if fate.key != "warmup_ratio"]

    def _optimizer(self) -> None:
        key = "optimizer" if self.tool.name == "axolotl" else "optim"
        chosen: dict[str, JSON] = {}
        if self.values.get("use_muon"):
            chosen["kind"] = "muon"
            self._set("train.optimizer.kind", "muon", "use_muon")
        elif key in self.values:
            name = str(self.values[key])
            if name in OPTIMIZERS:
                self._set("train.optimizer.kind", OPTIMIZERS[name], key)
            else:
                self._lose(key, f"there is no optimizer {name!r}; AdamW is taken")
        betas = {"adam_beta1": "beta1", "adam_beta2": "beta2", "adam_epsilon": "epsilon"}
        for key, name in betas.items():
            if self.values.get(key) is None:
                continue
            if self.tables["train"].get("optimizer", {}).get("kind", "adamw").startswith("adamw"):
                self.tables["train"].setdefault("optimizer", {}).setdefault("kind", "adamw")
                self._set(f"train.optimizer.{name}", float(self.values[key]), key)
            else:
                self._lose(key, "only AdamW has it")

    def _numbers(self) -> None:
        """Say what steps compute in: a switch that is on does, then the dtype of weights, then a switch that is off.

        Weights that the optimizer changes are float32 here whatever the wish is, as under these tools' mixed precision.
        """
        wishes: list[tuple[str, JSON]] = []
        for key, name in (("fp16", "float16"), ("bf16", "bfloat16")):
            value = self.values.get(key)
            if value not in (None, False, "false"):
                wishes.append((key, "auto" if value == "auto" else name))
        for key in ("dtype", "torch_dtype"):
            if self.values.get(key) is not None and key in self.tool.rules:
                wishes.append((key, self.values[key]))
        if self.values.get("bf16") in (False, "false"):
            wishes.append(("bf16", "float32"))
        chosen: str | None = None
        for key, name in wishes:
            if name not in ("auto", "bfloat16", "float32", "float16"):
                self._lose(key, "bfloat16, float32, float16 or auto")
            elif chosen is None or self.tables["train"]["dtype"] == name:
                chosen = chosen or key
                self._set("train.dtype", name, key)
            else:
                self.always.append(Fate(key=key, value=self.values[key], why=f"{chosen} says what steps compute in"))

    def _length(self) -> None:
        """Let `max_steps` decide alone, as it does in these tools: here the earlier of steps and epochs ends a run."""
        steps = self.tables["train"].get("max_steps")
        if steps is None:
            return
        self.tables["train"]["num_train_epochs"] = float(steps)  # A step takes at most one pass over the rows.
        why = "max_steps decides alone there, so that there are passes enough for it"
        self.moved = [replace(fate, why=why) if fate.to == "train.num_train_epochs" else fate for fate in self.moved]

    def _what_trains(self) -> None:
        """Tell where TRL trains on more than the answers because its config does not say otherwise."""
        switches = ("assistant_only_loss", "completion_only_loss")
        if self.tool.name != "TRL" or any(self.values.get(key) for key in switches) or switches[0] in self.given:
            return
        why = "only answers train here; without it TRL trains on whole conversations, unless rows have a completion"
        self.lost.append(Fate(key=switches[0], value=False, why=why, by_default=True))

    def _template(self) -> None:
        for key in ("template", "chat_template"):
            name = self.values.get(key)
            if name is not None and key in self.tool.rules:
                if name in ("default", "tokenizer_default", "auto"):
                    self.always.append(Fate(key=key, value=name, why="the base's own template"))
                else:
                    self._lose(key, f"the base's own template is used; for another say contract.template: {name}")
        if self.values.get("enable_thinking") is not None:
            self._set(
                "contract.template_arguments",
                {"enable_thinking": bool(self.values["enable_thinking"])},
                "enable_thinking",
            )
        if self.values.get("mask_history"):
            self._set("contract.loss.train_on", "last", "mask_history")

    def _data(self) -> None:
        sources: list[dict[str, JSON]] = []
        values = self.values
        match self.tool.name:
            case "LLaMA-Factory":
                names = values.get("dataset") or []
                names = [part.strip() for part in names.split(",")] if isinstance(names, str) else names
                info = f"{str(values.get('dataset_dir', 'data')).rstrip('/')}/dataset_info.json"
                sources = [{"path": info, "dataset": name, "license": None} for name in names]
                key = "dataset"
                if "dataset_dir" in values:
                    self.moved.append(Fate(key="dataset_dir", value=values["dataset_dir"], to="ingest.sources"))
            case "axolotl":
                key = "datasets"
                for entry in values.get("datasets") or []:
                    sources += self._axolotl_source(entry)
            case _:
                key = "dataset_name"
                if values.get("dataset_name"):
                    sources = [{"path": str(values["dataset_name"])}]
        if not sources:
            raise RecipeError(f"the config names no data: {key}", where=self.where)
        for path in (str(source["path"]) for source in sources):
            if HUB_NAME.fullmatch(path) and not (self.folder / path).exists():
                hint = f"is it on the hub? then say ingest.hub: [{{id: {path}, revision: COMMIT}}] instead"
                self.lost.append(Fate(key=f"{key}: {path}", value=path, why=f"there is no such file here; {hint}"))
        if len({source.get("path") for source in sources}) < len(sources):
            for source in sources:
                source["name"] = source.get("dataset") or source["path"]
        self._set(
            "ingest.sources",
            [{name: value for name, value in source.items() if value is not None} for source in sources],
            key,
            why="licences are not known: add `license:` to each source and remove curate.allow_unknown",
        )
        size_key = "val_set_size" if self.tool.name == "axolotl" else "val_size"
        share = float(values.get(size_key) or 0)
        if 0 < share < 1:
            self._set("split.shares", {"train": 1 - share, "val": share, "test": 0.0}, size_key)
        elif share:
            self._lose(size_key, "a number of rows; shares are fractions here: split.shares")

    def _axolotl_source(self, entry: Any) -> list[dict[str, JSON]]:
        for option, value in entry.items():
            fate = Fate(key=f"datasets[].{option}", value=value, to="ingest.sources")
            match AXOLOTL_DATASET.get(option):
                case None:
                    self.lost.append(replace(fate, to=None, why="say it under ingest.sources[].columns"))
                case Always(why=why):
                    self.always.append(replace(fate, to=None, why=why))
                case Lost(harmless=harmless) if value in harmless:
                    self.always.append(replace(fate, to=None, why="as rows are read and trained here"))
                case Lost(why=why):
                    self.lost.append(replace(fate, to=None, why=why))
                case Read() if option == "message_property_mappings":
                    known = all(value.get(part, own) in ours for part, own, ours in MESSAGE_KEYS)
                    (self.always if known else self.lost).append(
                        replace(fate, to=None, why="role and content, or from and value, are read in messages")
                    )
                case _:
                    self.moved.append(fate)
        files = entry.get("data_files")
        if isinstance(files, str):
            files = [files]
        source: dict[str, JSON] = {}
        if entry.get("field_messages"):
            source["columns"] = {"messages": entry["field_messages"]}
        return [{**source, "path": str(file)} for file in (files or [entry["path"]])]
