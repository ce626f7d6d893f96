"""Rows that hold an item of an evaluation are found through edits; rows of the same subject are not."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.curation import Rules, curate_rows
from tunesmith.data.decontam import Index, longest_run
from tunesmith.data.items import read_items
from tunesmith.errors import DataError
from tunesmith.types import Conversation, Message, Provenance, Row

_PATH = Path(__file__).parents[3] / "benchmarks" / "decontamination.py"
_SPEC = importlib.util.spec_from_file_location("benchmark_decontamination", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
benchmark = importlib.util.module_from_spec(_SPEC)
sys.modules["benchmark_decontamination"] = benchmark
_SPEC.loader.exec_module(benchmark)

ITEM = (
    "A robe takes two bolts of blue fibre and half that much white fibre, how many bolts in total does the robe take?"
)


def row(number, prompt, *, answer="ok", split=None):
    messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Row(
        id=f"{number:016x}",
        conversation=Conversation(messages=messages),
        provenance=Provenance(source="s", path="p", line=number, license="MIT"),
        split=split,
    )


def test_planted_items_are_found_and_clean_rows_are_not():
    indexed, siblings, clean = benchmark.made_up((300, 100, 1000), random.Random(3))
    result = benchmark.measure(indexed, siblings, clean, 3)
    assert result["clean_flagged"] == result["siblings_flagged"] == 0
    assert result["recall"]["edit20"] >= 0.95
    assert all(result["recall"][name] >= 0.99 for name in ("exact", "case_and_points", "chat_wrapped", "reordered"))


def test_the_benchmark_can_fail():
    bad = {"recall": {"edit20": 0.5}, "clean_flagged": 1, "rows_per_cpu_second": 10}
    assert len(benchmark.verdicts(bad)) == 3


def test_a_match_names_evaluation_item_and_text():
    index = Index(
        {"other": ["Nothing of the kind is asked in this long item about the weather of last week"], "exam": [ITEM]}
    )
    (match,) = index.matches(["What is the capital?", f"Please help me. {ITEM} Thank you."])
    assert (match.row, match.evaluation, match.item, match.score) == (1, "exam", 1, 1.0)
    assert match.text.startswith("a robe takes two bolts")


def test_short_items_must_be_there_whole():
    index = Index({"exam": ["What is the capital of Peru?"]})
    assert index.matches(["what is the capital of peru"])
    assert index.matches(["What is the capital of Chile?", "What is the capital?"]) == []


@pytest.mark.parametrize("item", ["hi", "Thank you!", "is it possible", "can you help me"])
def test_an_item_of_few_words_must_be_the_whole_prompt(item):
    index = Index({"exam": [item, ITEM]})
    inside = f"{item} I made a transfer and would like to know when it will be there"
    texts = [f"{item}\nHello.", f"{inside}\n{item}", item.upper(), f"{item}\n{ITEM}"]
    prompts = [item, inside, item.upper(), f"{item}\n{ITEM}"]
    assert [(match.row, match.item) for match in index.matches(texts, prompts=prompts)] == [(0, 1), (2, 1), (3, 2)]


def test_an_item_of_five_words_is_found_inside_a_prompt():
    index = Index({"exam": ["what does a mole eat?"]})
    assert index.matches(["Please answer me: What does a mole eat? Thank you."])


def test_items_of_one_word_and_of_none():
    index = Index({"exam": ["Why?", "???"]})
    assert [match.item for match in index.matches(["why", "because"])] == [1]
    assert Index({}).matches(["anything"]) == []


def test_common_openings_find_nothing_and_items_of_nothing_else_are_still_found():
    items = [f"How many of the {thing} are there" for thing in ["big apples"] * 40]
    assert Index({"exam": items}).matches(["How many of the big apples are there"])
    starts = [f"In the following text find the {word}" for word in "abcdefghijklmnopqrstuvwxyz" * 2]
    assert Index({"exam": starts}).matches(["In the following text there is something else altogether"]) == []


@given(
    st.lists(st.text(alphabet="ab c", max_size=12), max_size=6),
    st.lists(st.text(alphabet="ab c", max_size=20), max_size=6),
)
def test_matches_do_not_depend_on_the_order_of_the_texts(items, texts):
    index = Index({"exam": items})
    one = {texts[match.row]: (match.item, match.score) for match in index.matches(texts)}
    other = {texts[::-1][match.row]: (match.item, match.score) for match in index.matches(texts[::-1])}
    assert one == other


def test_the_longest_run_is_the_matching_text():
    grams = frozenset({("a", "b", "c"), ("b", "c", "d"), ("x", "y", "z")})
    assert longest_run(["x", "y", "z", "q", "a", "b", "c", "d", "e"], grams) == "a b c d"
    assert longest_run(["q"], grams) == ""


@pytest.mark.parametrize("action", ["flag", "drop"])
def test_contaminated_rows_are_flagged_or_dropped_with_the_text(action):
    rows = [row(1, ITEM), row(2, "Tell me about the weather in the mountains of the south, please")]
    curated = curate_rows(rows, Rules(evaluations={"exam": [ITEM]}, contaminated=action), lint=None)
    assert len(curated.rows) == (2 if action == "flag" else 1)
    assert curated.summary()["contaminated"] == 1
    (said,) = [entry for entry in curated.ledger.actions if entry.reason == "contaminated"]
    assert (said.row_id, said.action) == (rows[0].id, action)
    assert 'holds item 1 of exam: "a robe takes' in said.detail


def test_held_out_rows_of_the_recipe_are_always_registered_and_never_contaminated_themselves():
    rows = [row(1, ITEM.replace("two", "2"), split="test"), row(2, ITEM.replace("two", "5"), answer="no")]
    curated = curate_rows(rows, Rules(contaminated="drop"), lint=None)
    assert [entry.row_id for entry in curated.ledger.actions if entry.reason == "contaminated"] == [rows[1].id]
    assert len(curated.rows) == 2


def test_items_are_read_with_and_without_answers(tmp_path):
    records = [
        {"question": "q", "answer": "a"},
        {"prompt": "only a prompt", "label": "unsafe"},
        {"messages": [{"role": "user", "content": "chat"}]},
        {"text": "plain"},
        {"prompt": [{"role": "user", "content": "in turns"}]},
    ]
    (tmp_path / "exam.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert read_items(tmp_path / "exam.jsonl") == ["q", "only a prompt", "chat", "plain", "in turns"]
    (tmp_path / "bad.jsonl").write_text('{"prompt": "fine"}\n{"other": "field"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:2"):
        read_items(tmp_path / "bad.jsonl")


def test_an_item_of_one_or_two_words_is_held_where_nothing_else_is_asked():
    index = Index({"held out": ["hi", "thank you", "tell me a joke"]})
    prompts = ["hi there, please cancel it", "hi", "thank you for the help", "please tell me a joke", "Tell me a joke!"]
    found = index.matches([f"{prompt}\nyes?" for prompt in prompts], prompts=prompts)
    assert [(match.row, match.item) for match in found] == [(1, 1), (4, 3)]
