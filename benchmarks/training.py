"""Tokens for each CPU-second of LoRA training: this engine against transformers + PEFT, its Trainer, and TRL.

    python benchmarks/training.py BASE_DIR EXAMPLES_DIR [--steps 3] [--rounds 2]

BASE_DIR is the `model/` folder of a fetch artefact, EXAMPLES_DIR the `data/` folder of an encode artefact. Every
contender trains the same rows in the same order in a process of its own with one thread; contenders take turns, so that
a busy machine is as busy for all. Counted are tokens without padding and CPU seconds of the steps after the first.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH, RANK, ALPHA, RATE = 16, 16, 32, 2e-4

CONTENDERS = {
    "tunesmith": "fused pass, shared prefixes once",
    "tunesmith, nothing shared": "fused pass, every row alone",
    "transformers + PEFT, row by row": "a plain loop, no padding",
    "Trainer, 1 x 16": "transformers Trainer at its best CPU setting",
    "TRL, 8 x 2": "SFTTrainer at its default batch, bf16 weights",
}


def rows_of(examples: Path, steps: int) -> list[list[tuple[list[int], list[float]]]]:
    """Return the rows of each step."""
    import pyarrow.parquet as pq

    table = pq.read_table(examples / "train.parquet").slice(0, steps * BATCH).to_pylist()
    rows = [(row["ids"], row["weights"]) for row in table]
    return [rows[begin : begin + BATCH] for begin in range(0, len(rows), BATCH)]


def adapted(base: Path):  # noqa: ANN201
    """Return the base in bfloat16 with the adapter that every contender begins with."""
    from tunesmith.model.load import load_model
    from tunesmith.model.lora import add_lora

    return add_lora(load_model(base, dtype="bfloat16"), rank=RANK, alpha=ALPHA)


def own_loop(base: Path, steps: list, *, kind: str) -> list[tuple[float, float]]:
    """Train with this engine's passes; return (CPU seconds, loss) of each step."""
    import torch

    from tunesmith.model.lora import adapter_parameters
    from tunesmith.train.batches import flatten
    from tunesmith.train.examples import table_of
    from tunesmith.train.optim import adamw, parameter_groups
    from tunesmith.train.passes import DocumentPass, FusedPass
    from tunesmith.types import Example

    model = adapted(base)
    parameters = adapter_parameters(model)
    optimizer = adamw(parameter_groups(parameters, weight_decay=0.0))
    for group in optimizer.param_groups:
        group["lr"] = RATE
    plain = kind.startswith("transformers")
    loss_pass = DocumentPass(model, attention="sdpa") if plain else FusedPass(model, gradient_checkpointing=False)
    model.train()
    out = []
    for rows in steps:
        begin = time.process_time()
        table = table_of(
            Example(row_id=str(at), ids=tuple(ids), weights=tuple(weights)) for at, (ids, weights) in enumerate(rows)
        )
        denominator = table.weight_of(range(len(table)))
        groups = [[at] for at in range(len(table))] if plain else [list(range(len(table)))]
        loss = 0.0
        for group in groups:
            batch = flatten(table, group, share_prefixes=kind == "tunesmith")
            part = loss_pass.loss(batch, denominator=denominator)
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss_pass.refresh_()
        out.append((time.process_time() - begin, loss))
    return out


def trainer_loop(base: Path, steps: list, *, kind: str) -> list[tuple[float, float]]:
    """Train with transformers' Trainer or TRL's; return (CPU seconds, loss) of each step."""
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            marks.append(time.process_time())

        def on_step_end(self, *_: object, **__: object) -> None:
            marks.append(time.process_time())

    dataset = Dataset.from_list(
        [
            {
                "input_ids": ids,
                "labels": [token if weight else -100 for token, weight in zip(ids, weights, strict=True)],
            }
            for rows in steps
            for ids, weights in rows
        ]
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    micro = 8 if kind.startswith("TRL") else 1
    common = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": BATCH // micro,
        "max_steps": len(steps),
        "learning_rate": RATE,
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
    if kind.startswith("TRL"):
        from trl import SFTConfig, SFTTrainer

        config = SFTConfig(**common, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
        trainer = SFTTrainer(
            model=adapted(base), args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[Clock()]
        )
    else:
        trainer = Trainer(
            model=adapted(base),
            args=TrainingArguments(**common),
            train_dataset=dataset,
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
            callbacks=[Clock()],
        )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return [(end - begin, loss) for begin, end, loss in zip(marks[::2], marks[1::2], losses, strict=True)]


def contend(kind: str, base: Path, examples: Path, steps: int) -> dict:
    """Run one contender in this process and return its figures."""
    import torch

    torch.set_num_threads(1)
    work = rows_of(examples, steps + 1)
    loop = trainer_loop if kind.startswith(("Trainer", "TRL")) else own_loop
    began = time.process_time()
    done = loop(base, work, kind=kind)
    seconds = [second for second, _ in done]
    tokens = [sum(len(ids) for ids, _ in rows) for rows in work]
    return {
        "rates": [count / second for count, second in zip(tokens[1:], seconds[1:], strict=True)],
        "losses": [loss for _, loss in done],
        "first": time.process_time() - began - sum(seconds[1:]),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def table_text(found: dict[str, list[dict]], steps: int, rounds: int) -> str:
    """Return the results as Markdown."""
    import peft
    import torch
    import transformers
    import trl

    rates = {kind: statistics.median(rate for run in runs for rate in run["rates"]) for kind, runs in found.items()}
    lines = [
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, one thread each; load {os.getloadavg()[0]:.1f}. "
        f"torch {torch.__version__}, transformers {transformers.__version__}, PEFT {peft.__version__}, "
        f"TRL {trl.__version__}. {rounds} rounds of {steps} timed steps of {BATCH} rows, LoRA r={RANK} on all linear "
        "layers, bfloat16. Medians.",
        "",
        "| contender | tokens per CPU-second | against Trainer 1 x 16 | against TRL 8 x 2 | peak memory | last loss |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for kind, runs in found.items():
        lines.append(
            f"| {kind} ({CONTENDERS[kind]}) | {rates[kind]:.0f} | {rates[kind] / rates['Trainer, 1 x 16']:.2f} "
            f"| {rates[kind] / rates['TRL, 8 x 2']:.2f} | {max(run['peak'] for run in runs) / 2**30:.1f} GiB "
            f"| {runs[0]['losses'][-1]:.4f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all contenders in turns, or one of them where `--contender` names it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("examples", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--contender", choices=sorted(CONTENDERS))
    given = parser.parse_args()
    if given.contender:
        print(json.dumps(contend(given.contender, given.base, given.examples, given.steps)))
        return
    found: dict[str, list[dict]] = {kind: [] for kind in CONTENDERS}
    for _ in range(given.rounds):
        for kind in CONTENDERS:
            command = [sys.executable, __file__, str(given.base), str(given.examples), "--contender", kind]
            command += ["--steps", str(given.steps)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                raise SystemExit(f"{kind} failed:\n{done.stderr[-3000:]}")
            run = json.loads(done.stdout.strip().splitlines()[-1])
            found[kind].append(run)
            print(f"{kind}: {[round(rate) for rate in run['rates']]} tokens/CPU-s, losses {run['losses']}", flush=True)
    print(table_text(found, given.steps, given.rounds))


if __name__ == "__main__":
    main()
