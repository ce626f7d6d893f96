"""Supervised fine-tuning with LoRA in one file: plain PyTorch, so that nothing hides what the big engine does.

    python sft_in_150_lines.py MODEL_DIR rows.jsonl OUT_DIR

`rows.jsonl` holds one conversation a line, {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}; the last
message is trained. OUT_DIR becomes a PEFT adapter. A test holds this file's loss curve equal to tunesmith's engine.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

RANK, ALPHA, SEED = 16, 32, 0
EPOCHS, BATCH_SIZE, LEARNING_RATE, WARMUP_RATIO, WEIGHT_DECAY, CLIP = 2, 16, 2e-4, 0.05, 0.0, 1.0

Row = tuple[list[int], list[float]]  # token ids, and the loss weight of predicting each from what precedes it


class Lora(nn.Module):
    """A frozen linear layer plus a low-rank update: y = W x + alpha / rank * B A x. B starts at zero."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        self.a = nn.Parameter(torch.empty(rank, linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the update in the adapter's float32."""
        update = (x.to(self.a.dtype) @ self.a.T) @ self.b.T * self.scale
        return self.linear(x) + update.to(x.dtype)


def add_lora(model: nn.Module, rank: int = RANK, alpha: float = ALPHA) -> dict[str, Lora]:
    """Freeze the model and put an adapter on every linear layer but the head."""
    model.requires_grad_(False)
    torch.manual_seed(SEED)
    linear = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    adapters = {name: Lora(part, rank, alpha) for name, part in linear.items() if not name.endswith("lm_head")}
    for name, adapter in adapters.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, adapter)
    return adapters


def read_rows(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Tokenise conversations: the prompt as a server would send it, then the answer and the token that ends a turn."""
    rows = []
    for line in path.read_text("utf-8").splitlines():
        *prompt, answer = json.loads(line)["messages"]
        assert answer["role"] == "assistant", line
        rendered = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(answer["content"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        rows.append((prompt_ids + answer_ids, [0.0] * len(prompt_ids) + [1.0] * len(answer_ids)))
    return rows


def loss_of(model: nn.Module, rows: list[Row], denominator: float) -> torch.Tensor:
    """Weighted negative log-likelihood of a padded batch, divided by the weight of the whole step.

    What is padding is told by position, never by token: the padding token often is the one that ends a turn.
    """
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    weights = torch.zeros(len(rows), longest)
    for index, (row_ids, row_weights) in enumerate(rows):
        ids[index, : len(row_ids)] = torch.tensor(row_ids)
        mask[index, : len(row_ids)] = 1
        weights[index, : len(row_ids)] = torch.tensor(row_weights)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum() / denominator


def learning_rate_at(step: int, total: int) -> float:
    """Linear warm-up from zero, then half a cosine down to zero."""
    warmup = math.ceil(WARMUP_RATIO * total)
    if step < warmup:
        return LEARNING_RATE * step / warmup
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def train(model: nn.Module, rows: list[Row], micro_batch: int = 4, log: Callable[[str], None] = print) -> list[float]:
    """Train what requires gradients; return the loss of each step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=WEIGHT_DECAY)
    steps_per_epoch = math.ceil(len(rows) / BATCH_SIZE)
    total, losses = EPOCHS * steps_per_epoch, []
    model.train()
    for step in range(total):
        epoch, at = divmod(step, steps_per_epoch)
        order = np.random.default_rng([SEED, epoch]).permutation(len(rows))
        batch = [rows[index] for index in order[at * BATCH_SIZE : (at + 1) * BATCH_SIZE]]
        # One denominator for the step. A mean over each micro-batch would weigh tokens by how they were cut.
        denominator = sum(sum(weights) for _, weights in batch)
        loss = 0.0
        for begin in range(0, len(batch), micro_batch):
            part = loss_of(model, batch[begin : begin + micro_batch], denominator)
            part.backward()
            loss += part.item()
        norm = nn.utils.clip_grad_norm_(parameters, CLIP).item()
        assert math.isfinite(loss + norm), f"step {step}: loss {loss}, gradient norm {norm}"
        assert norm > 0, f"step {step}: no gradient"
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, total)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        log(f"step {step + 1}/{total}  loss {loss:.4f}  gradient norm {norm:.3f}")
    return losses


def save(adapters: dict[str, Lora], folder: Path, base: str) -> None:
    """Write a PEFT folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, adapter in adapters.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = adapter.a.detach().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = adapter.b.detach().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    rank = next(iter(adapters.values())).a.shape[0]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank}
    config |= {"lora_alpha": ALPHA, "target_modules": sorted({name.rpartition(".")[2] for name in adapters})}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def main(base: str, data: str, out: str) -> None:
    """Train on the rows of a file and save the adapter."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapters = add_lora(model)
    train(model, read_rows(Path(data), AutoTokenizer.from_pretrained(base)))
    save(adapters, Path(out), base)


if __name__ == "__main__":
    main(*sys.argv[1:])
