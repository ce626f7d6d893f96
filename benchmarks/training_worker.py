"""One contender of `benchmarks/training.py`: trains one step for each line on its standard input.

    python benchmarks/training_worker.py '{"contender": "ours", "base": DIR, "rows": FILE, "job": "lora", ...}'

What lives here: each trainer over the same rows, the same adapter to begin with, the same optimizer. What does not:
whose turn it is, tables (`training.py`). It writes one JSON line when it is ready, one a step, and one at the end.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RANK, ALPHA = 16, 32
RATES = {"lora": 2e-4, "full": 2e-5}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Row = tuple[list[int], list[float]]
Say = Callable[..., None]


def labels_of(row: Row) -> list[int]:
    """Return the token where it has a weight, else -100."""
    return [token if weight else -100 for token, weight in zip(*row, strict=True)]


def model_of(job: dict[str, Any]) -> Any:
    """Return the base in the job's dtype, with PEFT's adapter on it where the job is LoRA."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=getattr(torch, job["dtype"]))
    if job["job"] == "full":
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM", bias="none")
    )


class Turns:
    """Waits for a line before each step and tells what the step took."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.began: tuple[float, float] | None = None

    def wait(self) -> None:
        """Block until it is this contender's turn, then start the clocks. The first time, tell what the start took."""
        if self.began is None:
            self.say(startup=time.process_time())
        if not sys.stdin.readline():
            raise SystemExit(0)
        self.began = (time.process_time(), time.perf_counter())

    def done(self, **facts: object) -> None:
        """Stop the clocks."""
        assert self.began is not None
        cpu, wall = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
        self.say(cpu=cpu, wall=wall, **facts)


def ours(job: dict[str, Any], steps: list[list[Row]], turns: Turns) -> Any:
    """Train with this engine: its fused pass unless the job names another."""
    from tunesmith.model.full import train_all_
    from tunesmith.train.batches import flatten, micro_batches
    from tunesmith.train.examples import table_of
    from tunesmith.train.optim import adamw, parameter_groups
    from tunesmith.train.passes import DocumentPass, FlatPass, FusedPass
    from tunesmith.types import Example

    model = model_of(job)
    publish: Callable[[], None] = lambda: None  # noqa: E731
    if job["job"] == "full":
        parameters, publish = train_all_(model)
    else:
        parameters = {name: part for name, part in model.named_parameters() if part.requires_grad}
    optimizer = adamw(parameter_groups(parameters, weight_decay=0.0))
    for group in optimizer.param_groups:
        group["lr"] = RATES[job["job"]]
    loss_pass: DocumentPass | FlatPass | FusedPass
    if job.get("pass") == "document":
        loss_pass = DocumentPass(model, attention="sdpa")
    elif job.get("pass") == "flat":
        loss_pass = FlatPass(model, plain_head=True)
    else:
        loss_pass = FusedPass(model, gradient_checkpointing=job.get("checkpointing", False))
    sharing = job.get("share_prefixes", True) and loss_pass.shares_prefixes
    model.train()
    for rows in steps:
        turns.wait()
        table = table_of(Example(row_id=str(at), ids=tuple(ids), weights=tuple(w)) for at, (ids, w) in enumerate(rows))
        everything = range(len(table))
        denominator, loss = table.weight_of(everything), 0.0
        for group in micro_batches(table, everything, max_tokens=job["max_tokens"], share_prefixes=sharing):
            part = loss_pass.loss(flatten(table, group, share_prefixes=sharing), denominator=denominator)
            part.backward()
            loss += float(part.detach())
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        publish()
        loss_pass.refresh_()
        turns.done(loss=loss)
    return model


def trainer(job: dict[str, Any], steps: list[list[Row]], turns: Turns) -> Any:
    """Train with transformers' Trainer or TRL's SFTTrainer."""
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            turns.wait()

        def on_log(self, args: object, state: object, control: object, logs: dict[str, Any], **_: object) -> None:
            if "loss" in logs:
                turns.done(loss=float(logs["loss"]))

    rows = [row for step in steps for row in step]
    dataset = Dataset.from_list([{"input_ids": row[0], "labels": labels_of(row)} for row in rows])
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    common = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": job["micro"],
        "gradient_accumulation_steps": len(steps[0]) // job["micro"],
        "max_steps": len(steps),
        "learning_rate": RATES[job["job"]],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
    }
    if job["contender"] == "trl":
        from trl import SFTConfig, SFTTrainer

        made = SFTTrainer(
            model=model_of(job),
            args=SFTConfig(**common, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
    else:
        made = Trainer(
            model=model_of(job),
            args=TrainingArguments(**common),
            train_dataset=dataset,
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
            callbacks=[Clock()],
        )
    made.train()
    return made.model


def llama_factory(job: dict[str, Any], steps: list[list[Row]], turns: Turns) -> Any:
    """Train with LLaMA-Factory, over rows that are encoded already."""
    from datasets import Dataset
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    trained = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            turns.wait()

        def on_log(self, args: object, state: object, control: object, logs: dict[str, Any], **_: object) -> None:
            if "loss" in logs:
                turns.done(loss=float(logs["loss"]))

        def on_train_end(self, *_: object, model: Any, **__: object) -> None:
            trained.append(model)

    folder = Path(tempfile.mkdtemp())
    rows = [row for step in steps for row in step]
    encoded = [{"input_ids": row[0], "attention_mask": [1] * len(row[0]), "labels": labels_of(row)} for row in rows]
    Dataset.from_list(encoded).save_to_disk(str(folder / "rows"))
    if job["job"] == "lora":
        model_of(job).save_pretrained(str(folder / "adapter"))
        # Weights in bfloat16 and no autocast, which is what the other contenders do and faster than its `bf16`.
        kind = {"finetuning_type": "lora", "adapter_name_or_path": str(folder / "adapter"), "infer_dtype": job["dtype"]}
    else:
        kind = {"finetuning_type": "full", "bf16": job["dtype"] == "bfloat16"}
    run_exp(
        {
            **kind,
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": job["base"],
            "template": "smollm2",
            "dataset": "encoded already",  # It insists on a name, and reads the next instead.
            "tokenized_path": str(folder / "rows"),
            "cutoff_len": max(len(row[0]) for row in rows),
            "output_dir": str(folder / "out"),
            "per_device_train_batch_size": job["micro"],
            "gradient_accumulation_steps": len(steps[0]) // job["micro"],
            "max_steps": len(steps),
            "learning_rate": RATES[job["job"]],
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "disable_shuffling": True,
            "disable_gradient_checkpointing": True,
        },
        callbacks=[Clock()],
    )
    return trained[0]


def held_out_loss(model: Any, rows: list[Row]) -> float:
    """Return the loss of each answer token in float32, row by row, through transformers' own layers."""
    model = model.float().eval()
    (model.get_base_model() if hasattr(model, "get_base_model") else model).set_attn_implementation("sdpa")
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            labels = torch.tensor(labels_of(row)[1:])
            logits = model(input_ids=torch.tensor([row[0]]), use_cache=False).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            count += int((labels >= 0).sum())
    return total / count


def main() -> None:
    """Read the job, take turns, tell the end."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What the trainers print goes to the log; the answers have a channel of their own.

    def say(**facts: object) -> None:
        out.write(json.dumps(facts) + "\n")
        out.flush()

    found = json.loads(Path(job["rows"]).read_text("utf-8"))
    steps = [[(ids, weights) for ids, weights in step] for step in found["steps"]]
    train = {"ours": ours, "llama-factory": llama_factory}.get(job["contender"], trainer)
    model = train(job, steps, Turns(say))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    say(peak=peak, held_out=held_out_loss(model, found["held_out"]) if job["judged"] else None)


if __name__ == "__main__":
    main()
