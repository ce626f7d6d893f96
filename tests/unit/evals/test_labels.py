"""Macro F1 of label fields: as scikit-learn counts, with an interval, and only where answers are labels."""

import json
import random

import pytest

from tunesmith.evals.labels import label_figures, macro_f1_estimate
from tunesmith.evals.run import Answer, EvalItem
from tunesmith.evals.scorers import macro_f1
from tunesmith.types import FinishReason


def item(number, expected, cluster=None):
    return EvalItem(row_id=str(number), prompt_ids=(1,), prompt="", expected=expected, cluster=cluster)


def answer(number, output, reason=FinishReason.STOP):
    return Answer(
        row_id=str(number), system="tuned", output=output, finish_reason=reason, prompt_tokens=1, output_tokens=1,
        seconds=0.0, scores={},
    )  # fmt: skip


def test_the_value_is_that_of_the_plain_function_and_the_interval_holds_it():
    source = random.Random(0)
    wanted = [source.choice("abcd") for _ in range(200)]
    given = [w if source.random() < 0.7 else source.choice(["a", "b", "e", None]) for w in wanted]
    found = macro_f1_estimate(given, wanted, clusters=[str(n) for n in range(200)])
    assert found.value == pytest.approx(macro_f1(given, wanted))
    assert found.low < found.value < found.high
    grouped = macro_f1_estimate(given, wanted, clusters=[str(n // 20) for n in range(200)])
    assert grouped.clusters == 10
    assert grouped.value == found.value


def test_fields_whose_values_recur_are_labels_and_other_texts_are_not():
    items, answers = [], []
    for number in range(20):
        right = {"intent": "refund" if number % 3 else "login", "urgent": number % 2 == 0, "note": f"case {number}"}
        items.append(item(number, json.dumps(right)))
        answers.append(answer(number, json.dumps({**right, "intent": "refund"})))
    found = label_figures(items, answers)["tuned"]
    assert set(found) == {"macro_f1.intent", "macro_f1.urgent"}
    assert found["macro_f1.urgent"]["value"] == 1
    assert found["macro_f1.intent"]["value"] == pytest.approx(
        macro_f1(["refund"] * 20, ["refund" if n % 3 else "login" for n in range(20)])
    )
    assert label_figures([item(n, f"SELECT {n}") for n in range(20)], [answer(n, "x") for n in range(20)]) == {}


def test_a_cut_answer_and_one_that_is_no_object_are_no_label():
    items = [item(n, '{"intent": "a"}' if n % 2 else '{"intent": "b"}') for n in range(8)]
    answers = [answer(n, items[n].expected, FinishReason.LENGTH) for n in range(4)]
    answers += [answer(n, "sorry, no idea") for n in range(4, 8)]
    assert label_figures(items, answers)["tuned"]["macro_f1.intent"]["value"] == 0


def test_plain_text_labels_have_one_figure():
    items = [item(n, "yes" if n % 2 else "no") for n in range(10)]
    found = label_figures(items, [answer(n, " yes\n") for n in range(10)])["tuned"]
    assert found["macro_f1"]["value"] == pytest.approx(1 / 3)
