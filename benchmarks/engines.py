"""Cost of the curate stage on the local engine and on a local Ray, on the rows of `curate_scale.py`.

    python benchmarks/engines.py OUT --rows 30000 --workers 2

Each engine runs the stage in a process of its own. CPU seconds, peak memory and the number of processes are those of
that process and of all that it starts, Ray's servers too, as the kernel counts them every fifth of a second; memory is
the sum of what each process holds alone and its part of what it shares (PSS). OUT gets `engines.json` and
`engines.md`; the digests over all files of the stage must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from curate_scale import Made

from tunesmith.types import EngineChoice, sha256_hex

ENGINES = ("local", "ray")
INTERVAL_SECONDS = 0.2
_TICKS = os.sysconf("SC_CLK_TCK")


class Family:
    """This process and all below it, watched by a thread."""

    def __init__(self) -> None:
        self._ticks: dict[int, int] = {}
        self.peak_bytes = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Family:
        self._look()
        self._before = sum(self._ticks.values())
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._look()

    @property
    def cpu_seconds(self) -> float:
        """Since the watch began; what a process used after the last look at it is not in it."""
        return (sum(self._ticks.values()) - self._before) / _TICKS

    @property
    def num_processes(self) -> int:
        """All that were ever seen."""
        return len(self._ticks)

    def _watch(self) -> None:
        while not self._end.wait(INTERVAL_SECONDS):
            self._look()

    def _look(self) -> None:
        parents: dict[int, int] = {}
        ticks: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            pid = int(path.parent.name)
            parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
        family = {os.getpid()}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        self._ticks.update({pid: ticks[pid] for pid in family if pid in ticks})
        self.peak_bytes = max(self.peak_bytes, sum(_held_bytes(pid) for pid in family))


def _held_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def measure(engine: str, num_rows: int, num_workers: int) -> dict[str, Any]:
    """Run the stage once on an engine and say what it cost."""
    from tunesmith.core.stage import Context
    from tunesmith.stages.curate import CurateInputs, CurateSpec, curate
    from tunesmith.types import ignore

    with tempfile.TemporaryDirectory() as folder:
        making = [sys.executable, str(Path(__file__).with_name("curate_scale.py")), folder, "--make", str(num_rows)]
        subprocess.run(making, check=True)
        out, work = Path(folder) / "out", Path(folder) / "work"
        out.mkdir()
        work.mkdir()
        steps: list[tuple[str, float]] = []
        context = Context(
            out=out,
            work=work,
            log=ignore,
            progress=lambda done, total, note="", **fields: steps.append((note, time.monotonic())),
            workers=num_workers,
            device="cpu",
            engine=EngineChoice(kind=engine),
        )
        inputs = CurateInputs.model_construct(rows=Made(path=Path(folder)), contract=None)
        started = time.monotonic()
        with Family() as family:
            curate(inputs, CurateSpec(), context)
        seconds = time.monotonic() - started
        files = sorted(path for path in out.rglob("*") if path.is_file())
        digest = sha256_hex("".join(f"{path.name} {sha256_hex(path.read_bytes())}\n" for path in files))
    return {
        "engine": engine,
        "rows": num_rows,
        "cpu_seconds": round(family.cpu_seconds, 1),
        "wall_seconds": round(seconds, 1),
        "peak_megabytes": round(family.peak_bytes / 2**20),
        "processes": family.num_processes,
        "digest": digest,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    keys = ("engine", "rows", "cpu_seconds", "wall_seconds", "peak_megabytes", "processes")
    lines = ["| " + " | ".join(key.replace("_", " ") for key in keys) + " |", "|" + "---|" * len(keys)]
    return (
        "\n".join([*lines, *("| " + " | ".join(str(result[key]) for key in keys) + " |" for result in results)]) + "\n"
    )


def main() -> int:
    """Measure both engines; fail where they disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.rows, arguments.workers)))
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = []
    for engine in ENGINES:
        command = [sys.executable, __file__, str(arguments.out), "--one", engine]
        command += ["--rows", str(arguments.rows), "--workers", str(arguments.workers)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    (arguments.out / "engines.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "engines.md").write_text(table(results), encoding="utf-8")
    print(table(results))
    return 0 if len({result["digest"] for result in results}) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
