"""Kinds of tasks: what a record must hold, and what an answer must be."""

from decimal import Decimal

import pytest

from tunesmith.evals.questions import Reply
from tunesmith.evals.scorers import last_number
from tunesmith.evals.tasks import KINDS


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10 - 2 = 8", "8"),
        ("it costs 10-2", "2"),
        ("60/2", "30"),
        ("#### 1,200.50 and then 7", "1200.50"),
        ("so she makes $18.", "18"),
        ("it is -5 degrees", "-5"),
        (".5", "0.5"),
        ("nothing", None),
        ("1/0", None),
    ],
)
def test_the_last_number_of_an_answer(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_a_number_is_compared_by_value_and_a_cut_answer_has_no_final_one():
    record = {"id": "g", "prompt": "How many?", "answer": "She has 3 * 4 = 12.\n#### 12"}
    (question,) = KINDS["number"].read(record, "x, line 1")
    assert question.expected == "12"
    assert question.score(Reply(text="That is $12.00."))["number_match"] == 1
    assert question.score(Reply(text="First, 12", ended=False))["number_match"] == 0
    assert question.score(Reply(text="#### 12 and on and", ended=False))["number_match"] == 1
    assert question.score(Reply(text="I do not know")) == {"number_match": 0, "number_given": 0}


def test_the_tests_of_a_code_question_are_shown_only_where_they_call_a_name_that_nobody_could_guess():
    tests = ["assert add(1, 2) == 3", "assert len(str(add(1, 1))) == 1"]
    (unknown,) = KINDS["code"].read({"id": "a", "prompt": "Write a sum.", "tests": tests}, "x, line 1")
    assert unknown.conversation.messages[0].content == "\n".join(
        ["Write a sum. Your code should pass these tests:", "", *tests]
    )
    (known,) = KINDS["code"].read({"id": "b", "prompt": "Write `add`.", "test_list": tests}, "x, line 1")
    assert known.conversation.messages[0].content == "Write `add`."


def test_a_record_without_an_id_is_named_after_its_content():
    record = {"prompt": "x", "label": "safe"}
    (one,), (same,), (other,) = (
        KINDS["refusal"].read(r, "x") for r in (record, dict(record), {**record, "prompt": "y"})
    )
    assert one.id == same.id != other.id
