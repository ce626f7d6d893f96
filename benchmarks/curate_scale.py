"""Cost of the whole curate stage on short rows, and how it grows with their number.

    python benchmarks/curate_scale.py OUT                               # 10,000, 100,000 and 1,000,000 rows
    python benchmarks/curate_scale.py OUT --sizes 10000 30000 --profile

The rows are made up, the same in every run: 8 in 10 are unique requests, 1 in 10 fills a template that thousands share,
1 in 20 repeats another row with one other word, 1 in 20 holds a made-up e-mail address and phone number. Each size runs
in a process of its own, as the stage that a recipe runs (rows.parquet in; rows, lineage, report out) with the default
rules and no contract. CPU seconds are those of the stage's process with all of its threads; steps are told by the
stage's progress, and what comes behind the last one is written down as "output". OUT gets `curate_scale.json`,
`curate_scale.md` and `curate_scale.svg`.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tunesmith.types import Conversation, Message, Provenance, Row

SIZES = (10_000, 100_000, 1_000_000)
STEPS = (
    "read, licences",
    "empty, too long",
    "personal data, quality",
    "contamination, duplicates",
    "account",
    "output",
)
"""What ends with each of the stage's reports of progress, and what follows the last one."""

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


def rows_of(num_rows: int, seed: int) -> Iterator[Row]:
    """Yield the rows as ingest would write them."""
    from tunesmith.data.write import row_id

    for line, (prompt, answer) in enumerate(texts(num_rows, seed), start=1):
        said = Message(role="user", content=prompt), Message(role="assistant", content=answer)
        conversation = Conversation(messages=said)
        yield Row(
            id=row_id(conversation, source="made_up", path="made_up.jsonl", line=line),
            conversation=conversation,
            provenance=Provenance(source="made_up", path="made_up.jsonl", line=line, license="CC0-1.0"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Stands for the artifact of ingest: the stage asks only where it lies."""

    path: Path


def measure(num_rows: int, seed: int, *, profile: bool) -> dict[str, Any]:
    """Run the stage once in this process and say what it cost."""
    from tunesmith.core.stage import Context
    from tunesmith.stages.curate import CurateInputs, CurateSpec, curate

    with tempfile.TemporaryDirectory() as folder:
        # The rows are made in another process, so that its memory is none of the stage's.
        making = [sys.executable, __file__, folder, "--make", str(num_rows), "--seed", str(seed)]
        subprocess.run(making, check=True)
        out, work = Path(folder) / "out", Path(folder) / "work"
        out.mkdir()
        work.mkdir()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        marks = [time.process_time()]

        def progress(done: float, total: float | None, note: str = "", **fields: object) -> None:
            marks.append(time.process_time())

        def log(event: str, fields: object = None) -> None:
            """Nothing is kept: events are the kernel's."""

        context = Context(out=out, work=work, log=log, progress=progress, workers=1, device="cpu")
        inputs = CurateInputs.model_construct(rows=Made(path=Path(folder)), contract=None)
        profiler = cProfile.Profile()
        if profile:
            profiler.enable()
        summary = curate(inputs, CurateSpec(), context)
        profiler.disable()
        marks.append(time.process_time())
        if profile:
            pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(30)
    spent = [end - start for start, end in pairwise(marks)]
    assert len(spent) == len(STEPS), f"the stage reported {len(spent) - 1} steps"
    total = marks[-1] - marks[0]
    return {
        "rows": num_rows,
        "cpu_seconds": round(total, 2),
        "rows_per_cpu_second": round(num_rows / total),
        "steps": {name: round(value, 2) for name, value in zip(STEPS, spent, strict=True)},
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "megabytes_before": round(before),
        "rows_kept": summary["rows_kept"],
        "dropped": summary["dropped"],
        "pii_rows": summary["pii_rows"],
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table, one row a size."""
    heads = ["rows", "CPU seconds", "rows a CPU-second", "peak MB", *(f"{step}, s" for step in STEPS)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
    for result in results:
        cells = [f"{result['rows']:,}", result["cpu_seconds"], f"{result['rows_per_cpu_second']:,}"]
        cells += [f"{result['peak_megabytes']:,}", *(result["steps"][step] for step in STEPS)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def drawn(results: Sequence[dict[str, Any]]) -> str:
    """Return CPU seconds and peak memory over rows, both axes logarithmic, each with a line of plain proportion."""
    import io

    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "tunesmith"
    from matplotlib import pyplot

    sizes = [result["rows"] for result in results]
    figure, panels = pyplot.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    for axes, key, label in zip(
        panels, ("cpu_seconds", "peak_megabytes"), ("CPU seconds", "peak memory, MB"), strict=True
    ):
        values = [result[key] for result in results]
        axes.plot(sizes, values, marker="o", color="#20639b", label="measured")
        axes.plot(
            sizes, [values[0] * size / sizes[0] for size in sizes], ls=":", color="#9aa5b1", label="in proportion"
        )
        axes.set(xscale="log", yscale="log", xlabel="rows", ylabel=label)
        axes.grid(color="#e6eaee")
        axes.legend(frameon=False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def main() -> int:
    """Measure each size in a process of its own; write the table and the plot after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="print the functions that take the longest")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        from tunesmith.data.write import write_rows

        write_rows(arguments.out / "rows.parquet", rows_of(arguments.make, arguments.seed))
        return 0
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.seed, profile=arguments.profile)))
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for size in sorted(arguments.sizes):
        command = [sys.executable, __file__, str(arguments.out), "--one", str(size), "--seed", str(arguments.seed)]
        if arguments.profile:
            command.append("--profile")
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        (arguments.out / "curate_scale.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (arguments.out / "curate_scale.md").write_text(table(results), encoding="utf-8")
        (arguments.out / "curate_scale.svg").write_text(drawn(results), encoding="utf-8")
        print(table(results[-1:]) if len(results) == 1 else table(results[-1:]).splitlines()[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
