"""Cost of ingest, curate and split on short rows, and how it grows with their number.

    python benchmarks/curate_scale.py OUT                               # 10,000, 100,000 and 1,000,000 rows
    python benchmarks/curate_scale.py OUT --sizes 10000 30000 --profile curate

The rows are made up, the same in every run: 8 in 10 are unique requests, 1 in 10 fills a template that thousands share,
1 in 20 repeats another row with one other word, 1 in 20 holds a made-up e-mail address and phone number. They are
written as JSON lines; then each stage runs in a process of its own on what the stage before it wrote, as a recipe runs
it, with the default rules and no contract. CPU seconds are those of the stage's process with all of its threads, its
imports included. The steps of curate are told by its progress; what comes behind the last one is written down as
"output". OUT gets `curate_scale.json`, `curate_scale.md` and `curate_scale.svg`.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

SIZES = (10_000, 100_000, 1_000_000)
STAGES = ("ingest", "curate", "split")
STEPS = (
    "read, licences",
    "empty, too long",
    "personal data, quality",
    "contamination, duplicates",
    "account",
    "output",
)
"""What ends with each of curate's reports of progress, and what follows the last one."""
COLORS = {"ingest": "#9aa5b1", "curate": "#20639b", "split": "#d1772a"}

_STARTS, _ENDS = "b br d dr f fl g gr h j k kl l m n p pl r s st t tr v w".split(), "a en i or u el ing is on".split()  # noqa: SIM905
VOCABULARY = sorted({a + v + c + b for a in _STARTS for v in "aeiou" for c in "lmnrst" for b in _ENDS})
OPENINGS = (
    "Please tell me",
    "I would like to know",
    "Can you explain",
    "Write down",
    "Summarise",
    "What do you say of",
)


def words(chance: random.Random, low: int, high: int) -> str:
    """Return some words; frequent ones are as frequent as in real texts (the inverse of their rank)."""
    number = chance.randint(low, high)
    return " ".join(VOCABULARY[int(len(VOCABULARY) ** chance.random()) - 1] for _ in range(number))


def texts(num_rows: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield prompts and answers of 20 to 50 words together."""
    chance = random.Random(seed)
    earlier: list[tuple[str, str]] = []
    for _ in range(num_rows):
        kind = chance.random()
        if kind < 0.1:
            number, other = chance.randrange(10_000), chance.randrange(10_000)
            prompt = f"A shop sells {number} lamps in spring and {other} lamps in autumn. How many lamps does it sell?"
            pair = prompt, f"It sells {number} + {other} = {number + other} lamps."
        elif kind < 0.15 and earlier:
            prompt, answer = chance.choice(earlier)
            changed = prompt.split(" ")
            changed[chance.randrange(len(changed))] = chance.choice(VOCABULARY)
            pair = " ".join(changed), answer
        else:
            prompt = f"{chance.choice(OPENINGS)} {words(chance, 8, 22)}?"
            if kind > 0.95:
                person = chance.choice(VOCABULARY)
                phone = f"+49 30 {chance.randrange(10**6, 10**7)}"
                prompt += f" Write to {person}{chance.randrange(999)}@example.org or call {phone}."
            pair = prompt, f"{words(chance, 8, 24)}."
            if len(earlier) < 20_000:
                earlier.append(pair)
        yield pair


def make_file(path: Path, num_rows: int, seed: int) -> None:
    """Write the rows as JSON lines."""
    with path.open("w", encoding="utf-8") as handle:
        for prompt, answer in texts(num_rows, seed):
            handle.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Stands for the artifact of the stage before: a stage asks only where it lies."""

    path: Path


def bound(stage: str, folder: Path) -> Callable[[Any], Any]:
    """Return a stage with the inputs and settings that it runs with here; all it still takes is its context."""
    if stage == "ingest":
        from tunesmith.stages.ingest import IngestInputs, IngestSpec, ingest

        source = {"path": str(folder / "made_up.jsonl"), "license": "CC0-1.0"}
        return lambda context: ingest(IngestInputs(), IngestSpec.model_validate({"sources": [source]}), context)
    before = Made(path=folder / STAGES[STAGES.index(stage) - 1])
    if stage == "curate":
        from tunesmith.stages.curate import CurateInputs, CurateSpec, curate

        inputs = CurateInputs.model_construct(rows=before, contract=None)
        return lambda context: curate(inputs, CurateSpec(), context)
    from tunesmith.stages.split import SplitInputs, SplitSpec, split

    return lambda context: split(SplitInputs.model_construct(rows=before), SplitSpec(), context)


def peak_megabytes() -> int:
    """Return the most memory that this process held so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(stage: str, folder: Path, *, num_rows: int, profile: bool) -> dict[str, Any]:
    """Run a stage once in this process and say what it cost."""
    from tunesmith.core.stage import Context

    out, work = folder / stage, folder / f"{stage}.work"
    out.mkdir()
    work.mkdir()
    marks = [(time.process_time(), peak_megabytes())]

    def progress(done: float, total: float | None, note: str = "", **fields: object) -> None:
        marks.append((time.process_time(), peak_megabytes()))

    def log(event: str, fields: object = None) -> None:
        """Nothing is kept: events are the kernel's."""

    run = bound(stage, folder)
    context = Context(out=out, work=work, log=log, progress=progress, workers=1, device="cpu")
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    summary = run(context)
    profiler.disable()
    marks.append((time.process_time(), peak_megabytes()))
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(30)
    total = time.process_time()  # imports and all: what a user pays
    figures: dict[str, Any] = {
        "stage": stage,
        "rows": num_rows,
        "cpu_seconds": round(total, 2),
        "rows_per_cpu_second": round(num_rows / total),
        "peak_megabytes": marks[-1][1],
    }
    if stage == "curate":
        assert len(marks) == len(STEPS) + 1, f"the stage reported {len(marks) - 2} steps"
        spent = [(after[0] - before[0], after[1]) for before, after in pairwise(marks)]
        figures["steps"] = {
            name: {"cpu_seconds": round(seconds, 2), "peak_megabytes": peak}
            for name, (seconds, peak) in zip(STEPS, spent, strict=True)
        }
    kept = ("rows_kept", "dropped", "pii_rows", "rows", "units", "clusters", "overlaps")
    return figures | {"summary": {name: summary[name] for name in kept if name in summary}}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the figures as two Markdown tables: of the stages, and of the steps of curate."""
    parts = [
        ("stage", "rows", "CPU seconds", "rows a CPU-second", "peak MB"),
        *(
            (one["stage"], f"{one['rows']:,}", one["cpu_seconds"], f"{one['rows_per_cpu_second']:,}", _peak(one))
            for one in sorted(results, key=lambda one: (STAGES.index(one["stage"]), one["rows"]))
        ),
    ]
    curated = [one for one in results if one["stage"] == "curate"]
    steps = [
        ("step of curate", *(f"{one['rows']:,} rows: CPU seconds, peak MB so far" for one in curated)),
        *(
            (step, *(f"{one['steps'][step]['cpu_seconds']}, {_peak(one['steps'][step])}" for one in curated))
            for step in STEPS
        ),
    ]
    return f"{_lines(parts)}\n{_lines(steps)}" if curated else _lines(parts)


def _peak(figures: dict[str, Any]) -> str:
    return f"{figures['peak_megabytes']:,}"


def _lines(cells: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in cells]
    lines.insert(1, "|---" + "|---:" * (len(cells[0]) - 1) + "|")
    return "\n".join(lines) + "\n"


def drawn(results: Sequence[dict[str, Any]], kind: str) -> bytes:
    """Return CPU seconds and peak memory over rows, both axes logarithmic, with a line of plain proportion."""
    import io

    import matplotlib as mpl

    mpl.use("svg" if kind == "svg" else "agg")
    mpl.rcParams["svg.hashsalt"] = "tunesmith"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    labels = {"cpu_seconds": "CPU seconds", "peak_megabytes": "peak memory, MB"}
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        for stage in STAGES:
            points = sorted((one["rows"], one[key]) for one in results if one["stage"] == stage)
            axes.plot(*zip(*points, strict=True), marker="o", color=COLORS[stage], label=stage)
        largest = max((one for one in results if one["stage"] == "curate"), key=lambda one: int(one["rows"]))
        sizes = sorted({one["rows"] for one in results})
        line = [largest[key] * size / largest["rows"] for size in sizes]
        axes.plot(sizes, line, ls=":", color="#333333", label="in proportion to the rows")
        axes.set(xscale="log", yscale="log", xlabel="rows", ylabel=label)
        axes.grid(color="#e6eaee")
    panels[0].legend(frameon=False, fontsize="small")
    out = io.BytesIO()
    figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else None, dpi=110)
    return out.getvalue()


def write(out: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write the figures as JSON, as tables and as a plot."""
    (out / "curate_scale.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "curate_scale.md").write_text(table(results), encoding="utf-8")
    for kind in ("svg", "png"):
        (out / f"curate_scale.{kind}").write_bytes(drawn(results, kind))


def in_own_process(stage: str, folder: str, arguments: argparse.Namespace, size: int) -> dict[str, Any]:
    """Run a stage in a process of its own: its memory is nobody else's."""
    command = [sys.executable, __file__, folder, "--one", stage, "--sizes", str(size)]
    if arguments.profile == stage:
        command += ["--profile", stage]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> int:
    """Measure each stage at each size; write tables and plot after each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--profile", choices=STAGES, help="print the functions of a stage that take the longest")
    parser.add_argument("--one", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        (size,) = arguments.sizes
        figures = measure(arguments.one, arguments.out, num_rows=size, profile=arguments.profile is not None)
        print(json.dumps(figures))
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for size in sorted(arguments.sizes):
        with tempfile.TemporaryDirectory() as folder:
            make_file(Path(folder) / "made_up.jsonl", size, arguments.seed)
            for stage in STAGES:
                results.append(in_own_process(stage, folder, arguments, size))
                print(json.dumps(results[-1]), flush=True)
        write(arguments.out, results)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
