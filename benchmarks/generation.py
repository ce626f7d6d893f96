"""Tokens for each CPU-second of answering: this engine against `model.generate` of transformers at several batch sizes.

    python benchmarks/generation.py BASE_DIR [--prompts 500] [--new-tokens 64] [--dtype float32] [--batches 8 16 32 64]

BASE_DIR is the `model/` folder of a fetch artefact. Prompts are chat turns of mixed length that begin alike by no more
than the template: instructions of `recipes/general` and messages of the quickstart, some of them several at once. Each
contender answers the same prompts greedily in this process with one thread, sorted by length and padded on the left
where it pads; contenders take turns, part by part, so that a busy machine is as busy for all. Counted are CPU seconds
(never wall time) and answer tokens up to the stop token. In float32 the answers must be equal.

`--profile` prints where this engine's time goes instead.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer

from tunesmith.model.generate import generate
from tunesmith.model.load import load_model

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
STOP = "<|im_end|>"


def texts(count: int) -> list[str]:
    """Return that many different messages, from a few words to some hundred."""
    general = (RECIPES / "general" / "general.jsonl").read_text(encoding="utf-8").splitlines()
    short = [json.loads(line)["instruction"] for line in general if line]
    with (RECIPES / "quickstart" / "tickets_mail.csv").open(encoding="utf-8", newline="") as handle:
        long = [row["prompt"] for row in csv.DictReader(handle)]
    found: list[str] = []
    for place in range(count):
        parts = [short[place % len(short)]]
        if place % 2:
            parts.append(long[place % len(long)])
        if place % 7 == 0:
            parts.append(long[(3 * place + 1) % len(long)])
        if place >= len(short):
            parts.append(f"This is message {place}.")
        found.append("\n".join(parts))
    return found


Answers = list[tuple[int, ...]]


def with_transformers(
    model: torch.nn.Module, prompts: list[list[int]], *, stop: int, new_tokens: int, batch: int
) -> Answers:
    """Answer with `model.generate`, in batches of prompts of like length, padded on the left."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    out: dict[int, tuple[int, ...]] = {}
    for begin in range(0, len(order), batch):
        part = order[begin : begin + batch]
        width = max(len(prompts[index]) for index in part)
        ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in part])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in part])
        with torch.inference_mode():
            made = model.generate(  # type: ignore[operator]
                ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, eos_token_id=stop, pad_token_id=0
            )
        for index, row in zip(part, made[:, width:].tolist(), strict=True):
            out[index] = tuple(row[: row.index(stop)] if stop in row else row)
    return [out[index] for index in range(len(prompts))]


def with_tunesmith(model: torch.nn.Module, prompts: list[list[int]], *, stop: int, new_tokens: int) -> Answers:
    """Answer with `tunesmith.model.generate`."""
    return [tuple(c.ids) for c in generate(model, prompts, stop_ids=(stop,), max_new_tokens=new_tokens)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 16, 32, 64])
    parser.add_argument(
        "--parts", type=int, default=1, help="cut the prompts into parts that contenders answer in turn"
    )
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(args.base / "tokenizer.json"))
    stop = tokenizer.token_to_id(STOP)
    rendered = [f"<|im_start|>user\n{text}{STOP}\n<|im_start|>assistant\n" for text in texts(args.prompts)]
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in rendered]
    lengths = sorted(map(len, prompts))
    print(
        f"{len(prompts)} prompts, {sum(lengths)} tokens: shortest {lengths[0]}, median {lengths[len(lengths) // 2]}, "
        f"longest {lengths[-1]}; up to {args.new_tokens} new tokens, {args.dtype}, one thread"
    )
    model = load_model(args.base, dtype=args.dtype)
    if args.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            with_tunesmith(model, prompts, stop=stop, new_tokens=args.new_tokens)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))
        return
    contenders: dict[str, Callable[[list[list[int]]], Answers]] = {
        "tunesmith": lambda part: with_tunesmith(model, part, stop=stop, new_tokens=args.new_tokens)
    }
    for batch in args.batches:
        contenders[f"transformers, batches of {batch}"] = lambda part, batch=batch: with_transformers(  # type: ignore[misc]
            model, part, stop=stop, new_tokens=args.new_tokens, batch=batch
        )
    seconds, answers = dict.fromkeys(contenders, 0.0), {name: [] for name in contenders}  # type: ignore[var-annotated]
    for begin in range(args.parts):
        part = prompts[begin :: args.parts]
        for name, run in contenders.items():
            started = time.process_time()
            answers[name] += run(part)
            seconds[name] += time.process_time() - started
    speeds = {name: sum(map(len, answers[name])) / seconds[name] for name in contenders}
    best = max((speeds[name] for name in contenders if name != "tunesmith"), default=None)
    for name, speed in speeds.items():
        same = sum(a == b for a, b in zip(answers[name], answers["tunesmith"], strict=True))
        print(
            f"{name:30} {speed:7.1f} tokens a CPU-second  {seconds[name]:7.1f} CPU s  "
            f"{sum(map(len, answers[name]))} tokens  equal answers {same} of {len(prompts)}"
        )
    if best is not None:
        print(f"tunesmith against the best of transformers: {speeds['tunesmith'] / best:.2f}")


if __name__ == "__main__":
    main()
