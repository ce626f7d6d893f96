"""Coverage figures say what a data set holds, whatever the order of its rows, and what production asks besides."""

import random

from tunesmith.data.coverage import measure_coverage
from tunesmith.data.coverage_report import coverage_parts
from tunesmith.types import Conversation, Message, Provenance, Row


def row(number, prompt, answer="It is on its way to you and will be there by the end of the week.", **labels):
    messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    provenance = Provenance(source="s", path="p", line=number)
    return Row(id=f"{number:016d}", conversation=Conversation(messages=messages), provenance=provenance, labels=labels)


PARCELS = [row(n, f"Where is my parcel, ordered in {month}, and who brings it?", intent="parcel") for n, month in
           enumerate(["March", "April", "May", "June", "July", "August"])]  # fmt: skip
LOGINS = [row(n, f"I cannot log in to the {name} app with my password", intent="login") for n, name in
          enumerate(["blue", "green"], start=6)]  # fmt: skip
ROWS = [*PARCELS, *LOGINS]


def test_figures_are_those_of_the_rows():
    found = measure_coverage(ROWS)
    assert found["rows"] == 8
    assert found["turns"] == {"1": 8}
    assert found["languages"] == {"en": 8}
    assert found["prompt_words"]["quantiles"]["max"] == 11
    assert sum(found["answer_words"]["bins"].values()) == 8
    assert found["labels"]["intent"]["most_common"] == {"parcel": 6, "login": 2}
    assert 0.8 < found["labels"]["intent"]["balance"] < 0.82
    assert found["distinct_ngrams"]["answers"]["distinct_3"] == round(1 / 8, 4)
    assert sorted(one["rows"] for one in found["clusters"]) == [2, 6]
    assert found["production"] is None


def test_figures_do_not_depend_on_the_order_of_the_rows():
    shuffled = ROWS[:]
    random.Random(1).shuffle(shuffled)
    assert measure_coverage(shuffled, production=["Where?"]) == measure_coverage(ROWS, production=["Where?"])


def test_production_prompts_that_no_row_is_like_are_named_without_personal_data():
    asked = ["Who brings my parcel, ordered in May?", "Can ann@example.org get an invoice with tax for her firm?"]
    found = measure_coverage(ROWS, production=asked)["production"]
    assert (found["prompts"], found["covered"]) == (2, 1)
    assert [one["prompt"] for one in found["farthest"]] == ["Can <EMAIL> get an invoice with tax for her firm?"]


def test_sets_of_one_row_and_of_other_scripts_have_figures_and_a_page():
    for rows in ([row(1, "?")], [row(1, "包裹在哪里", "明天到"), row(2, "", "x")]):
        found = measure_coverage(rows, production=["什么", ""])
        assert "production prompts" in "".join(coverage_parts(found))
