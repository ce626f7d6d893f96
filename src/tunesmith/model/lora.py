"""Put a low-rank adapter on a model, save it as a plain PEFT folder, and prove that the folder holds it.

What lives here: making, saving and comparing adapters, over PEFT. What does not: training them (`train.loop`), loading
one for use (`model.load`), the fast forward that folds them into matrix products (`model.flat_decoder`).

    model = add_lora(load_model(base, dtype="bfloat16"), rank=16, alpha=32)
    save_adapter(model, Path("adapter"))        # adapter_config.json, adapter_model.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import PlanError, TrainingError, nearest
from tunesmith.model.load import quiet_peft
from tunesmith.model.quantised import Quantisation, write_record

Scaling = Literal["classic", "rslora"]
Decomposition = Literal["none", "dora"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def uncovered_experts(model: torch.nn.Module) -> list[str]:
    """Return a warning where experts lie in stacked tensors, which are no linear layers and carry no adapter."""
    sizes = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and "expert" in name and not parameter.requires_grad
    }
    if not sizes:
        return []
    return [
        f"the experts carry no adapter: {len(sizes)} stacked tensors of {sum(sizes.values()):,} weights, such as "
        f"{next(iter(sizes))}, stay as they are, and only the linear layers around them learn"
    ]


def add_lora(
    model: torch.nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    scaling: Scaling = "classic",
    decomposition: Decomposition = "none",
    seed: int = 0,
) -> PeftModel:
    """Return the model with a fresh adapter on it: B is zero, A random from `seed`, everything else frozen.

    `targets` are module names such as `q_proj`; `None` is every linear layer but the head.
    `scaling` multiplies the update by `alpha / rank`, or by `alpha / sqrt(rank)` for `rslora` (Kalajdzievski 2023).
    `decomposition="dora"` trains the length of each output's weights apart from their direction (Liu et al. 2024).
    Adapter weights are float32 whatever the base is. Raises `PlanError` for a target that the model has not.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    linear = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, part in model.named_modules()
            if isinstance(part, (torch.nn.Linear, Conv1D)) and part is not head
        }
    )
    for target in targets or ():
        if target not in linear:
            raise PlanError(
                f"the model has no linear layer {target!r}",
                where="train.adapter.targets",
                expected=", ".join(nearest(target, linear)),
            )
    config = LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        lora_dropout=dropout,
        # Short names: PEFT's own "all-linear" writes full paths, which not every server reads.
        target_modules=list(targets) if targets is not None else linear,
        bias="none",
        use_rslora=scaling == "rslora",
        use_dora=decomposition == "dora",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.modules()),
    )
    gpus = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=gpus), quiet_peft():  # Of all GPUs it would take memory on each.
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:  # Layers that read each other's weights past an adapter, such as Mamba's.
            raise PlanError(
                "PEFT cannot put an adapter on these layers of the model",
                where="train.adapter.targets",
                found=str(error),
                hint="name other layers, or set train.adapter to {kind: full}",
            ) from error


def adapter_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the trainable parameters by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_adapter(
    model: PeftModel, folder: Path, *, base_name: str | None = None, quantisation: Quantisation | None = None
) -> None:
    """Write a plain PEFT folder and check it: every trainable tensor is in the file, bit for bit.

    `base_name` is written as `base_model_name_or_path`: a name that means something elsewhere, not a local path.
    `quantisation` says how the base was stored; `model.load` gives the adapter that base again.
    Raises `TrainingError` where the file differs from the live adapter.
    """
    # PEFT's own save_pretrained also writes an empty model card; what a loader reads is these two files.
    live = get_peft_model_state_dict(model, save_embedding_layers=False)
    config = model.peft_config[model.active_adapter].to_dict()
    config |= {"base_model_name_or_path": base_name, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])  # A set in PEFT, in any order.
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in live.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    if quantisation is not None:
        write_record(quantisation, folder)
    saved = load_file(folder / WEIGHTS_FILE)
    strays = sorted(saved.keys() ^ live.keys())
    if strays:
        raise TrainingError(
            "the saved adapter is not the live one", where=str(folder / WEIGHTS_FILE), found=", ".join(strays[:3])
        )
    for name, tensor in live.items():
        if not torch.equal(saved[name], tensor.detach().cpu()):
            raise TrainingError("the saved adapter differs from the live one", where=str(folder), found=name)


def unmoved_tensors(model: torch.nn.Module) -> list[str]:
    """Return the adapter's B matrices that are still all zero: layers that trained nothing."""
    return [
        name
        for name, parameter in adapter_parameters(model).items()
        if ".lora_B." in name and not bool(torch.any(parameter))
    ]


def count_adapted_layers(model: torch.nn.Module) -> int:
    """Return how many layers carry an adapter."""
    return sum(".lora_B." in name for name in adapter_parameters(model))
