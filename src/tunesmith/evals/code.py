"""Code that is judged by running it: which part of an answer is code, unit tests in the sandbox, pass@k.

    problems = [CodeProblem(id="mbpp-2", tests=("assert f((1, 2), (2, 3)) == (2,)",))]
    results = run_samples(problems, [["def f(a, b): ..."]], workers=2)
    pass_at_k_of(results, k=1).value

What lives here: everything between an answer's text and a pass@k. What does not: how a program is run safely
(`sandbox`), intervals (`stats`).
"""

from __future__ import annotations

import ast
import builtins
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tunesmith.errors import DataError
from tunesmith.evals.sandbox import Limits, SandboxResult, run_tests
from tunesmith.types import JSON

_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON_TAGS = frozenset({"", "py", "python", "python3"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeProblem:
    """One problem and its hidden tests: Python statements, run in order (see `sandbox.run_tests`)."""

    id: str
    tests: tuple[str, ...]
    setup: str = ""

    @classmethod
    def from_row(cls, row: Mapping[str, JSON]) -> CodeProblem:
        """Read a row in MBPP's shape: `id` (or `task_id`), `tests` (or `test_list`), optional `test_setup_code`.

        Raises `DataError` where there are no tests: such a row would pass whatever the model writes.
        """
        found = row.get("tests", row.get("test_list"))
        if not isinstance(found, (list, tuple)) or not found or not all(isinstance(test, str) for test in found):
            raise DataError(
                "a code problem has no tests",
                where=str(row.get("id", row.get("task_id", "?"))),
                expected="tests: a list of Python statements, at least one",
                found=repr(found)[:120],
            )
        identity = row.get("id", row.get("task_id"))
        return cls(id=str(identity), tests=tuple(found), setup=str(row.get("test_setup_code") or ""))


def called_names(tests: Sequence[str]) -> list[str]:
    """Return the names that tests call and Python does not define; a test that does not parse names none."""
    found: dict[str, None] = {}
    for test in tests:
        try:
            tree = ast.parse(test)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not hasattr(builtins, node.func.id):
                found[node.func.id] = None
    return list(found)


def extract_code(answer: str) -> str:
    """Return the code of an answer: its first fenced Python block, or the whole text where it has no fence.

    A fence with another language's tag (`bash`, `json`) is passed over; an unclosed fence reaches to the end. Prose
    around an unfenced program is not guessed at: it stays, does not parse, and fails.
    """
    for match in _FENCE.finditer(answer):
        if match.group(1).lower() in _PYTHON_TAGS:
            return match.group(2)
    return answer


def pass_at_k(num_samples: int, num_correct: int, *, k: int) -> float:
    """Return the unbiased estimate of the chance that at least one of k samples passes: 1 - C(n-c, k) / C(n, k).

    Computed in whole numbers, so it is exact up to the last division. With n = k = 1 it is 0 or 1. Taking the best of
    k samples out of exactly k, or 1 - (1 - c/n)^k, is biased; neither is this.
    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.

    Raises `ValueError` where k is not in 1..n or c is not in 0..n.
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ValueError(f"pass@{k} of {num_correct} correct in {num_samples} samples is not defined")
    all_draws = math.comb(num_samples, k)
    return (all_draws - math.comb(num_samples - num_correct, k)) / all_draws


@dataclass(frozen=True, slots=True, kw_only=True)
class PassAtK:
    """pass@k over problems, with what it rests on."""

    k: int
    value: float
    """Mean over the scored problems."""
    per_problem: tuple[float | None, ...]
    """In the problems' order; `None` where a problem could not be scored."""
    num_scored: int
    num_unscored: int
    """Problems with fewer than k samples that say anything about the program (a test that cannot run says nothing)."""


def pass_at_k_of(results: Sequence[Sequence[SandboxResult]], *, k: int) -> PassAtK:
    """Return pass@k over problems; `results[i]` are the runs of problem i's samples. The mean is over problems.

    Raises `DataError` where no problem could be scored.
    """
    estimates: list[float | None] = []
    for runs in results:
        scored = [run for run in runs if run.verdict.scored]
        num_correct = sum(run.verdict.value == "passed" for run in scored)
        estimates.append(pass_at_k(len(scored), num_correct, k=k) if len(scored) >= k else None)
    known = [estimate for estimate in estimates if estimate is not None]
    if not known:
        raise DataError(
            f"no problem has {k} scored samples, so pass@{k} is not defined",
            expected=f"at least {k} samples a problem",
            found=f"{max((len(runs) for runs in results), default=0)} at most",
        )
    return PassAtK(
        k=k,
        value=math.fsum(known) / len(known),
        per_problem=tuple(estimates),
        num_scored=len(known),
        num_unscored=len(estimates) - len(known),
    )


def run_samples(
    problems: Sequence[CodeProblem],
    samples: Sequence[Sequence[str]],
    *,
    workers: int,
    limits: Limits | None = None,
    on_result: Callable[[int, int, SandboxResult], None] | None = None,
) -> list[list[SandboxResult]]:
    """Run every sample of every problem in the sandbox, `workers` at a time; results stand in the same order.

    `samples[i]` are programs for `problems[i]`, already taken out of their answers with `extract_code`. `on_result`
    is called with (problem, sample, result) as they come. Raises `PlanError` where there is no sandbox.
    """
    assert len(problems) == len(samples), "one list of samples a problem"
    jobs = [(i, j) for i, programs in enumerate(samples) for j in range(len(programs))]

    def run(job: tuple[int, int]) -> SandboxResult:
        i, j = job
        return run_tests(samples[i][j], problems[i].tests, setup=problems[i].setup, limits=limits)

    results: list[list[SandboxResult]] = [[] for _ in problems]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for (i, j), result in zip(jobs, pool.map(run, jobs), strict=True):
            results[i].append(result)
            if on_result is not None:
                on_result(i, j, result)
    return results
