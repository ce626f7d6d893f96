"""pass@k is unbiased, code is taken out of answers by one rule, unusable tests are not failures."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError, PlanError
from tunesmith.evals.code import CodeProblem, extract_code, pass_at_k, pass_at_k_of, run_samples
from tunesmith.evals.sandbox import SandboxResult, Verdict, require_sandbox


def _result(verdict: Verdict) -> SandboxResult:
    return SandboxResult(verdict=verdict, tests=(), detail="", output="", seconds=0.0)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_of_k_samples_that_hold_a_correct_one(case):
    n, c, k = case
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k=k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_is_unbiased_where_the_plain_estimate_is_not():
    p, n, k = 0.3, 6, 3
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - p) ** k
    assert sum(w * pass_at_k(n, c, k=k) for c, w in enumerate(weights)) == pytest.approx(truth, abs=1e-12)
    plain = sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(weights))
    assert abs(plain - truth) > 0.01


def test_pass_at_k_holds_for_thousands_of_samples():
    assert pass_at_k(5000, 1, k=100) == pytest.approx(0.02, abs=1e-12)
    assert pass_at_k(5000, 0, k=100) == 0.0
    assert pass_at_k(5000, 4901, k=100) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (0, 0, 1), (3, 1, 0)])
def test_an_undefined_pass_at_k_is_refused(n, c, k):
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(n, c, k=k)


def test_a_problem_with_too_few_scored_samples_is_left_out_and_counted():
    runs = [
        [_result(Verdict.PASSED), _result(Verdict.FAILED)],
        [_result(Verdict.UNUSABLE_TEST), _result(Verdict.PASSED)],
        [_result(Verdict.TIMEOUT), _result(Verdict.NOT_LOADED)],
    ]
    at_2 = pass_at_k_of(runs, k=2)
    assert (at_2.value, at_2.num_scored, at_2.num_unscored) == (0.5, 2, 1)
    assert at_2.per_problem == (1.0, None, 0.0)
    assert pass_at_k_of(runs, k=1).per_problem == (0.5, 1.0, 0.0)
    with pytest.raises(DataError, match="no problem has 3"):
        pass_at_k_of(runs, k=3)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("def f(): pass", "def f(): pass"),
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```bash\npip install x\n```\n```py\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1", "x = 1"),
        ("```json\n{}\n```", "```json\n{}\n```"),
        ("```python\nx = 1\n```\n```python\ny = 1\n```", "x = 1\n"),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
    ],
)
def test_the_first_python_fence_is_the_code(answer, code):
    assert extract_code(answer) == code


@pytest.mark.parametrize(
    "row", [{"id": 1}, {"id": 1, "tests": []}, {"id": 1, "tests": [1]}, {"id": 1, "tests": "assert"}]
)
def test_a_problem_without_tests_is_refused_because_everything_would_pass(row):
    with pytest.raises(DataError, match="no tests"):
        CodeProblem.from_row(row)


def test_samples_are_run_in_order_and_reported_as_they_come():
    try:
        require_sandbox()
    except PlanError as error:
        pytest.skip(str(error))
    problems = [CodeProblem(id=str(i), tests=(f"assert f() == {i}",)) for i in range(3)]
    samples = [["def f(): return 0", "def f(): return 1"]] * 3
    seen = []
    results = run_samples(problems, samples, workers=2, on_result=lambda i, j, r: seen.append((i, j, r.verdict.value)))
    assert [[r.verdict.value for r in runs] for runs in results] == [
        ["passed", "failed"],
        ["failed", "passed"],
        ["failed"] * 2,
    ]
    assert seen == [(i, j, results[i][j].verdict.value) for i in range(3) for j in range(2)]
    assert pass_at_k_of(results, k=1).value == pytest.approx(1 / 3)
