"""Train all weights of a model: float32 masters beside a model in any dtype, and the folder that training leaves.

What lives here: which parameters train, their masters, saving. What does not: adapters (`model.lora`), the loop
(`train.loop`).

Why masters: an AdamW step changes a weight by about the learning rate, 1e-5; bfloat16 has 8 bits, so at a weight of 0.1
steps below 4e-4 round to nothing, and a run in pure bfloat16 hardly learns while its loss looks healthy.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tunesmith.errors import TrainingError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def train_all_(model: PreTrainedModel) -> tuple[dict[str, torch.nn.Parameter], Callable[[], None]]:
    """Make every weight trainable; return the parameters for the optimizer and a function that publishes them.

    The parameters are the model's own where it is float32, else float32 masters: each backward adds the model's
    gradients to the masters' and frees them, and `publish()` rounds the masters into the model after an update.
    The padding row of the embedding trains as well: batches hold no padding, and the padding token is often the one
    that ends an answer (transformers freezes that row).
    """
    embedding = model.get_input_embeddings()
    embedding.padding_idx = None
    model.requires_grad_(True)
    own = dict(model.named_parameters())
    if all(parameter.dtype == torch.float32 for parameter in own.values()):
        return own, lambda: None
    masters = {name: torch.nn.Parameter(parameter.detach().float()) for name, parameter in own.items()}

    def collect_into(master: torch.nn.Parameter) -> Callable[[torch.Tensor], None]:
        def collect(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None

        return collect

    for name, parameter in own.items():
        parameter.register_post_accumulate_grad_hook(collect_into(masters[name]))

    def publish() -> None:
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(masters[name])

    return masters, publish


def save_model(model: PreTrainedModel, folder: Path, *, base_dir: Path) -> None:
    """Write a whole Hugging Face folder, tokenizer and template of the base included, and check it bit for bit.

    Raises `TrainingError` where a file differs from the live model.
    """
    attention = model.config._attn_implementation
    model.set_attn_implementation("sdpa")  # A folder must not name an attention that only training has.
    model.save_pretrained(str(folder))
    model.set_attn_implementation(attention)
    for name in TOKENIZER_FILES:
        if (base_dir / name).is_file():
            shutil.copyfile(base_dir / name, folder / name)
    live = model.state_dict()
    saved: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        file.chmod(0o644)
        saved |= load_file(file)
    for name, tensor in saved.items():
        if name not in live or not torch.equal(tensor, live[name].cpu()):
            raise TrainingError("the saved model differs from the live one", where=str(folder), found=name)
    # Tied weights are saved once; everything else must be there.
    pointers = {live[name].data_ptr() for name in saved}
    missing = [name for name, tensor in live.items() if tensor.data_ptr() not in pointers]
    if missing:
        raise TrainingError("the saved model is incomplete", where=str(folder), found=", ".join(missing[:3]))
