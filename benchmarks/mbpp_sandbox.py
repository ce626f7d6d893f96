"""Run every MBPP reference solution in the sandbox: all must pass, and the time per program is printed.

    python benchmarks/mbpp_sandbox.py code_mbpp.jsonl [--workers 2]

The input has one JSON object a line: id, messages (the last is the reference solution), tests.
"""

from __future__ import annotations

import argparse
import collections
import json
import resource
import time
from pathlib import Path

from tunesmith.evals.code import CodeProblem, pass_at_k_of, run_samples


def main() -> None:
    """Print verdict counts, problems that did not pass, and seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.file.read_text().splitlines()]
    problems = [CodeProblem.from_row(row) for row in rows]
    programs = [[row["messages"][-1]["content"]] for row in rows]
    started = time.monotonic()
    results = run_samples(problems, programs, workers=args.workers)
    seconds = time.monotonic() - started
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(dict(collections.Counter(runs[0].verdict.value for runs in results)))
    for problem, (result,) in zip(problems, results, strict=True):
        if result.verdict.value != "passed":
            print(problem.id, result.verdict.value, result.detail)
    print(f"pass@1 {pass_at_k_of(results, k=1).value:.4f} of {len(rows)} problems")
    print(f"{seconds:.1f} s, {1000 * seconds / len(rows):.0f} ms a program, {args.workers} workers")
    print(f"{1000 * (cpu.ru_utime + cpu.ru_stime) / len(rows):.0f} CPU ms a program")


if __name__ == "__main__":
    main()
