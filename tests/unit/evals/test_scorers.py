"""Scores of one answer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evals.degeneration import ends_abruptly, ends_in_loop, is_empty
from tunesmith.evals.run import EvalItem, better, score_answer
from tunesmith.evals.scorers import (
    canonical_answer,
    exact_match,
    field_presence,
    field_scores,
    macro_f1,
    parse_json,
    squad_exact,
    squad_f1,
    squad_normalise,
)
from tunesmith.types import Completion, FinishReason

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_whatever_json_writes_is_read_back(value):
    parsed = parse_json(json.dumps(value))
    assert parsed.ok
    assert parsed.value == value


@pytest.mark.parametrize(
    "answer",
    ['Here: {"a": 1}', '```json\n{"a": 1}\n```', "{'a': 1}", '{"a": 1,}', '{"a": NaN}', '{"a": 1, "a": 2}', "", "{", '{"a": 1} {"b": 2}'],
)  # fmt: skip
def test_what_a_program_would_stumble_over_does_not_parse(answer):
    assert not parse_json(answer).ok


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ('{"b": [1, 2], "a": "\\u00e9"}', '{"a":"é","b":[1,2]}', 1),
        ('{"a": 1.0}', '{"a": 1}', 1),
        ('{"a": true}', '{"a": 1}', 0),
        ('{"a": "1"}', '{"a": 1}', 0),
        ('{"a": 1, "b": null}', '{"a": 1}', 0),
        ('{"a": [2, 1]}', '{"a": [1, 2]}', 0),
        ('The answer is {"a": 1}', '{"a": 1}', 0),
        (" Paris\n", "Paris", 1),
        ("paris", "Paris", 0),
        ("60%", "60", 0),
        ("1.0", "1", 0),
    ],
)
def test_exact_match(answer, expected, score):
    assert exact_match(answer, expected) == score


def test_nothing_expected_is_not_scored():
    assert exact_match("x", None) is None
    assert squad_f1("x", ()) is None
    assert field_presence("{}", ()) is None


@given(json_values)
def test_key_order_and_white_space_do_not_count(value):
    if isinstance(value, dict | list):
        shuffled = dict(reversed(list(value.items()))) if isinstance(value, dict) else value
        assert exact_match(json.dumps(shuffled, indent=2), json.dumps(value)) == 1
        assert canonical_answer(json.dumps(shuffled, indent=2)) == canonical_answer(json.dumps(value))


def test_fields_are_scored_one_by_one():
    expected = '{"intent": "refund", "urgent": true, "n": 2}'
    assert field_scores('{"intent": "refund", "urgent": "true", "extra": 1}', expected) == {
        "intent": 1.0,
        "n": 0.0,
        "urgent": 0.0,
    }
    assert field_scores("no JSON", expected) == {"intent": 0.0, "n": 0.0, "urgent": 0.0}
    assert field_scores("{}", "plain text") == {}
    assert field_presence('{"intent": 1, "n": 2}', ("intent", "urgent", "n")) == pytest.approx(2 / 3)


def test_squad_normalisation_and_f1():
    assert squad_normalise("The  quick, brown FOX!") == "quick brown fox"
    assert squad_f1("the cat sat", ("a cat sat down",)) == pytest.approx(2 * 2 / (2 + 3))
    assert squad_f1("", ("",)) == 1
    assert squad_f1("x", ("",)) == 0
    assert squad_exact("The cat.", ("dog", "cat")) == 1


def test_macro_f1_counts_unread_answers_against_recall():
    assert macro_f1(["a", "b", None], ["a", "b", "b"]) == pytest.approx((1.0 + 2 / 3) / 2)
    assert macro_f1(["c", "c"], ["a", "b"]) == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.lists(st.integers(6, 9), max_size=10))
def test_a_tail_that_repeats_is_a_loop_and_the_same_text_once_is_not(period, before):
    assert ends_in_loop(before + period * 12)
    assert not ends_in_loop([*range(100, 130), *before[:1]])


def test_short_repeats_are_no_loop():
    assert not ends_in_loop([1, 1, 1, 1])
    assert not ends_in_loop([])


def test_abrupt_and_empty():
    assert ends_abruptly("This is an answer that stops in the middle of", stopped=True)
    assert not ends_abruptly("This is an answer that stops where it should stop.", stopped=True)
    assert not ends_abruptly("This is an answer that stops in the middle of", stopped=False)
    assert not ends_abruptly("Paris", stopped=True)
    assert is_empty(" \n")


def item(expected):
    return EvalItem(row_id="r", prompt_ids=(1,), prompt="p", expected=expected)


def completion(reason=FinishReason.STOP):
    return Completion(ids=(1, 2), finish_reason=reason, prompt_tokens=1)


def test_an_answer_that_was_cut_neither_adheres_nor_matches():
    text = '{"a": 1}'
    whole = score_answer(item(text), "tuned", completion(), text, check_answer=lambda _: True)
    cut = score_answer(item(text), "tuned", completion(FinishReason.LENGTH), text, check_answer=lambda _: True)
    assert (whole.scores["schema_adherence"], whole.scores["exact_match"], whole.scores["cut"]) == (1, 1, 0)
    assert (cut.scores["schema_adherence"], cut.scores["exact_match"], cut.scores["cut"]) == (0, 0, 1)


def test_metrics_that_do_not_apply_are_absent():
    prose = score_answer(item("Paris is the capital."), "base", completion(), "It is Paris.", check_answer=None)
    assert "json_parse" not in prose.scores
    assert "token_f1" in prose.scores
    open_question = score_answer(item(None), "base", completion(), "Anything.", check_answer=None)
    assert "exact_match" not in open_question.scores
    data = score_answer(item('{"a": 1}'), "base", completion(), "x", check_answer=None)
    assert "token_f1" not in data.scores
    assert data.scores["field.a"] == 0


def test_every_metric_has_a_direction():
    scored = score_answer(item('{"a": 1}'), "base", completion(), "x", check_answer=lambda _: False)
    assert {better(name) for name in scored.scores} == {"higher", "lower"}
    with pytest.raises(KeyError):
        better("made_up")
