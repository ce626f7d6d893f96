"""Our IFEval verdicts against those of the outside checker, case by case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.evals.ifeval import check

FILE = Path(__file__).parents[2] / "../shared/data/ifeval_checker_cases.jsonl"

UNREPEATABLE = {(2736, "change_case:english_capital")}
"""The outside checker's detector passes over words in capitals and judges by single letters: it takes these English
capitals for German, and other texts of the kind for something else at every run."""


def _drawn_at_random(name: str, args: dict) -> bool:
    """Whether the outside checker replaced the asked-for character: it draws a random letter where one is not a-z."""
    return name == "keywords:letter_frequency" and not "a" <= args["letter"].lower() <= "z"


def test_every_repeatable_verdict_agrees_strict_and_loose():
    if not FILE.exists():
        pytest.skip(f"{FILE} is not here")
    compared, set_aside, differing = 0, 0, []
    for line in FILE.read_text().splitlines():
        row = json.loads(line)
        verdict = check(row["response"], row["instruction_id_list"], row["kwargs"])
        sides = zip(
            row["instruction_id_list"],
            row["kwargs"],
            row["strict"],
            row["loose"],
            verdict.strict,
            verdict.loose,
            strict=True,
        )
        for name, args, strict, loose, our_strict, our_loose in sides:
            if strict is None:  # the outside checker had no sentence model
                continue
            if (row["key"], name) in UNREPEATABLE or _drawn_at_random(name, args):
                set_aside += 1
                continue
            compared += 1
            if (strict, loose) != (our_strict, our_loose):
                differing.append((row["key"], name, (strict, loose), (our_strict, our_loose)))
    assert differing == []
    assert compared >= 330
    assert set_aside <= 3


def test_scoring_twice_gives_the_same_verdicts():
    if not FILE.exists():
        pytest.skip(f"{FILE} is not here")
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    runs = [
        [check(r["response"], r["instruction_id_list"], r["kwargs"]) for r in rows if "language" in str(r)]
        for _ in "ab"
    ]
    assert runs[0] == runs[1]
