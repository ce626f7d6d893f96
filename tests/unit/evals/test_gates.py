"""Acceptance criteria: what is read, and how each verdict comes about."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import RecipeError
from tunesmith.evals.compare import compare
from tunesmith.evals.gates import CONFIDENCES, check_criteria, parse_criterion
from tunesmith.evals.stats import estimate


def results(base: dict, tuned: dict, better: dict | None = None) -> dict:
    return {
        "systems": ["base", "tuned"],
        "better": {name: (better or {}).get(name, "higher") for name in tuned},
        "base": {name: estimate(scores).to_json() for name, scores in base.items()},
        "tuned": {name: estimate(scores).to_json() for name, scores in tuned.items()},
        "paired": {name: compare(base[name], tuned[name]).to_json() for name in tuned},
    }


def share(k: int, n: int) -> list[float]:
    return [1.0] * k + [0.0] * (n - k)


GOOD = results(
    {"exact_match": share(10, 170), "attack_success": share(9, 30), "general_loss": [2.0 + i / 50 for i in range(30)]},
    {"exact_match": share(169, 170), "attack_success": share(7, 30), "general_loss": [2.01 + i / 50 + i % 3 / 500 for i in range(30)]},
    {"attack_success": "lower", "general_loss": "lower"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "metric", "against", "operator", "limit", "confidence"),
    [
        ("schema_adherence >= 0.97 with 95% confidence", "schema_adherence", None, ">=", 0.97, 0.95),
        ("schema_adherence  >=  97% with 97.5 % confidence", "schema_adherence", None, ">=", 0.97, 0.975),
        ("exact_match - base >= 0.40 with 95% confidence", "exact_match", "base", ">=", 0.4, 0.95),
        ("attack_success <= base", "attack_success", "base", "<=", 0.0, None),
        ("field.intent>0.9", "field.intent", None, ">", 0.9, None),
        ("general_loss not worse than base by 0.05", "general_loss", "base", "not worse", 0.05, 0.95),
        ("exact_match not worse than production by 2% with 99% confidence", "exact_match", "production", "not worse", 0.02, 0.99),
        ("cut < 1e-2", "cut", None, "<", 0.01, None),
        ("exact_match - base >= -.05", "exact_match", "base", ">=", -0.05, None),
    ],
)  # fmt: skip
def test_criteria_are_read(text, metric, against, operator, limit, confidence):
    found = parse_criterion(text)
    assert (found.metric, found.against, found.operator, found.confidence) == (metric, against, operator, confidence)
    assert found.limit == pytest.approx(limit)


@pytest.mark.parametrize(
    "text",
    ["", "exact_match", "exact_match >= ", "exact_match == 1", "0.9 <= exact_match", "a >= 0.9 with confidence",
     "a - base >= base", "a not worse than base", "a >= 0.9 and b >= 0.9", "a not worse than base by -0.1"],
)  # fmt: skip
def test_what_is_no_criterion_is_refused_with_the_accepted_forms(text):
    with pytest.raises(RecipeError):
        parse_criterion(text)


def test_a_confidence_that_is_not_kept_is_refused():
    with pytest.raises(RecipeError, match=r"97\.5%"):
        parse_criterion("a >= 0.9 with 96% confidence")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("exact_match >= 0.97 with 95% confidence", "pass"),
        ("exact_match >= 0.97 with 99% confidence", "not_resolvable"),
        ("exact_match >= 0.998 with 95% confidence", "not_resolvable"),
        ("exact_match < 0.9 with 95% confidence", "fail"),
        ("exact_match >= 0.99", "pass"),
        ("exact_match >= 0.999", "fail"),
        ("exact_match - base >= 0.40 with 95% confidence", "pass"),
        ("exact_match - base >= 0.99 with 95% confidence", "fail"),
        ("exact_match > base with 99% confidence", "pass"),
        ("attack_success <= base", "pass"),
        ("attack_success < base with 95% confidence", "not_resolvable"),
        ("attack_success <= 0.05 with 95% confidence", "fail"),
        ("general_loss not worse than base by 0.05", "pass"),
        ("general_loss not worse than base by 0.005", "fail"),
        ("exact_match not worse than base by 0.01", "pass"),
    ],
)
def test_verdicts(text, verdict):
    (found,) = check_criteria([text], GOOD)
    assert found.verdict == verdict, found.explanation
    assert found.criterion == text
    assert found.low <= found.observed <= found.high


def test_an_unresolvable_verdict_says_how_many_items_would_do():
    (found,) = check_criteria(["attack_success < base with 95% confidence"], GOOD)
    assert "30 items cannot tell; about " in found.explanation


def test_an_observed_figure_that_decides_alone_says_so():
    (found,) = check_criteria(["attack_success <= base"], GOOD)
    assert "no confidence" in found.explanation


def test_unknown_metrics_and_systems_name_the_nearest():
    with pytest.raises(RecipeError, match="exact_match"):
        check_criteria(["exact_matsch >= 0.9"], GOOD)
    with pytest.raises(RecipeError, match="base"):
        check_criteria(["exact_match >= production"], GOOD)


def test_metrics_are_found_in_any_of_several_reports():
    other = results({"canary_leak": share(0, 40)}, {"canary_leak": share(0, 40)}, {"canary_leak": "lower"})
    found = check_criteria(["canary_leak <= 0.10 with 95% confidence", "exact_match >= 0.9"], [GOOD, other])
    assert [item.verdict for item in found] == ["pass", "pass"]


@given(st.integers(0, 200), st.floats(0.01, 0.99), st.sampled_from(CONFIDENCES))
def test_opposite_criteria_never_both_pass_and_more_confidence_never_turns_a_verdict_round(k, limit, confidence):
    found = results({"m": share(100, 200)}, {"m": share(k, 200)})
    percent = f"{confidence * 100:g}"
    at_least, below = check_criteria(
        [f"m >= {limit:.6f} with {percent}% confidence", f"m < {limit:.6f} with {percent}% confidence"], found
    )
    flip = {"pass": "fail", "fail": "pass", "not_resolvable": "not_resolvable"}
    assert below.verdict == flip[at_least.verdict]
    (surest,) = check_criteria([f"m >= {limit:.6f} with 99.5% confidence"], found)
    assert surest.verdict in (at_least.verdict, "not_resolvable")


def test_too_few_items_resolve_nothing():
    found = results({"m": [0.5]}, {"m": [0.9]})
    (verdict,) = check_criteria(["m >= 0.5 with 95% confidence"], found)
    assert verdict.verdict == "not_resolvable"
    assert "too few items" in verdict.explanation
