"""Load a causal language model, and an adapter on it, from local folders.

What lives here: reading weights with every key accounted for. What does not: where the folder comes from
(`model.fetch`), adding a fresh adapter (`model.lora`), generating (`model.generate`).

    model = load_model(Path("base/model"), dtype="bfloat16", adapter_dir=Path("adapter"))
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tunesmith.errors import DataError, TrainingError
from tunesmith.model.quantised import Quantisation, cast_, quantise_, read_record

DtypeName = Literal["float32", "bfloat16", "float16"]


def torch_dtype(name: DtypeName | torch.dtype) -> torch.dtype:
    """Return the torch dtype of a name; a torch dtype passes through."""
    if isinstance(name, torch.dtype):
        return name
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def load_model(
    base_dir: Path,
    *,
    dtype: DtypeName | torch.dtype,
    adapter_dir: Path | None = None,
    quantisation: Quantisation | None = None,
) -> torch.nn.Module:
    """Return the model of a Hugging Face folder in evaluation mode, on the CPU, the adapter applied and not merged.

    `adapter_dir` is a PEFT folder, or the whole model folder that full fine-tuning leaves; then `base_dir` is not read.
    `quantisation` stores the base's linear layers in fewer bits, made from the values in the file whatever `dtype` is;
    an adapter that was trained on such a base says so itself, and gets it.
    Adapter weights stay float32 whatever `dtype` is, as PEFT does. Weights that the architecture lacks or the folder
    lacks raise `DataError`: transformers itself fills them with random numbers and only warns.
    An adapter whose keys do not all land in the model raises `TrainingError`: PEFT only warns.
    """
    transformers_logging.disable_progress_bar()
    if adapter_dir is not None and is_whole_model(adapter_dir):
        base_dir, adapter_dir = adapter_dir, None
    if adapter_dir is not None:
        quantisation = read_record(adapter_dir)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(base_dir),
            dtype="auto" if quantisation else torch_dtype(dtype),
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError("cannot load the base model", where=str(base_dir), found=str(error)) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info[kind])
        if keys:
            raise DataError(
                f"the weights do not fit the architecture: {len(keys)} {kind.replace('_', ' ')}",
                where=str(base_dir),
                found=", ".join(keys[:3]),
                hint="the folder is incomplete or its config.json belongs to another model",
            )
    if quantisation is not None:
        quantise_(model, quantisation)
        cast_(model, torch_dtype(dtype))
    model.eval()
    if adapter_dir is None:
        assert isinstance(model, torch.nn.Module)
        return model
    return apply_adapter(model, adapter_dir)


def is_whole_model(folder: Path) -> bool:
    """Whether a folder of trained weights holds a whole model, not an adapter."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").exists()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep back one warning of a library to a library: PEFT 0.21 reads a property that transformers 5.23 renames."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def apply_adapter(model: PreTrainedModel, adapter_dir: Path) -> torch.nn.Module:
    """Return `model` with the PEFT adapter of a folder on it, frozen; every tensor of the file must find its place.

    Raises `TrainingError` for an incomplete or foreign adapter.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    file = adapter_dir / "adapter_model.safetensors"
    if not file.exists() or not (adapter_dir / "adapter_config.json").exists():
        raise TrainingError(
            "not a PEFT adapter folder",
            where=str(adapter_dir),
            expected="adapter_config.json and adapter_model.safetensors",
        )
    with quiet_peft():
        peft_model = PeftModel.from_pretrained(model, str(adapter_dir), is_trainable=False)
    with safe_open(file, framework="pt") as saved:
        names = set(saved.keys())
    live = set(get_peft_model_state_dict(peft_model, save_embedding_layers=False))
    strays = sorted(names ^ live) if names and live else sorted(names | live) or ["the file is empty"]
    if strays:
        raise TrainingError(
            f"the adapter does not fit the base model: {len(strays)} tensors on one side only",
            where=str(file),
            found=", ".join(strays[:3]),
            hint="load it on the base model that it was trained from",
        )
    peft_model.eval()
    assert isinstance(peft_model, torch.nn.Module)
    return peft_model
