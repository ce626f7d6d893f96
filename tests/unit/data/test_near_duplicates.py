"""Near-duplicates are found whatever the order; numbers, slots and other answers keep a text from being one."""

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.dedup import find_duplicates, prompt_pairs
from tunesmith.data.near import clusters
from tunesmith.data.verify import is_misspelling
from tunesmith.data.words import normal_text, numbers, words
from tunesmith.types import Conversation, Message, Provenance, Row

_PATH = Path(__file__).parents[3] / "benchmarks" / "near_duplicates.py"
_SPEC = importlib.util.spec_from_file_location("benchmark_near_duplicates", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
benchmark = importlib.util.module_from_spec(_SPEC)
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(_PATH.parent))
    _SPEC.loader.exec_module(benchmark)


POOL = benchmark.sentences(modules=())


def row(number, prompt, answer="ok", *, split=None, system=None):
    messages = [Message(role="user", content=prompt), Message(role="assistant", content=answer)]
    if system is not None:
        messages.insert(0, Message(role="system", content=system))
    return Row(
        id=f"{number:016x}",
        conversation=Conversation(messages=tuple(messages)),
        provenance=Provenance(source="s", path="p", line=number),
        split=split,
    )


def found(*rows):
    return {duplicate.row: (duplicate.keeper, duplicate.kind) for duplicate in find_duplicates(rows, threshold=0.6)}


LONG = (
    "The washing machine in our basement leaks water on the floor whenever the spin cycle starts, please send someone"
)


def test_the_planted_set_is_found_and_its_twins_are_spared():
    result = benchmark.measure(benchmark.build(3000, 3, "text", POOL))
    assert [line for line in benchmark.verdicts(result) if "cpu" not in line and "megabytes" not in line] == []
    assert result["unique_rows_wrongly_lost"] == 0
    assert result["precision"] > 0.99


@pytest.mark.parametrize("layout", ["text", "pair"])
def test_other_templates_and_other_edits_are_told_apart_as_well(layout):
    world = benchmark.other_world
    result = benchmark.measure(world.build(3000, 4, layout, world.prose(())))
    failed = benchmark.verdicts(result, world.WANTED)
    assert [line for line in failed if "cpu" not in line and "megabytes" not in line] == []
    assert result["unique_rows_wrongly_lost"] <= 1


def test_the_benchmark_can_fail():
    worse = {"recall": dict.fromkeys(benchmark.CLASSES, 0.5), "twins_lost": 0.5, "cpu_seconds": 99, "peak_megabytes": 1}
    assert len(benchmark.verdicts(worse)) == 8


def test_results_do_not_depend_on_the_order_of_the_rows():
    rows, _, _ = benchmark.build(1000, 5, "pair", POOL)
    before = settled(rows)
    random.Random(1).shuffle(rows)
    after = settled(rows)
    assert before == after


def settled(rows):
    """All pairs with their scores, how many rows go, and the clusters that they belong to."""
    pairs = {
        frozenset((rows[a].id, rows[b].id)): score
        for a, b, score in zip(*prompt_pairs(rows, threshold=0.6), strict=True)
    }
    gone = [d for d in find_duplicates(rows, threshold=0.6) if d.kind in ("exact_duplicate", "near_duplicate")]
    members = {d.cluster: {rows[other.row].id for other in gone if other.cluster == d.cluster} for d in gone}
    for d in gone:
        members[d.cluster].add(rows[d.keeper].id)
    return pairs, len(gone), {frozenset(names) for names in members.values()}


def test_of_each_cluster_one_row_stays_and_what_stays_has_no_duplicate():
    rows, _, _ = benchmark.build(1000, 6, "text", POOL)
    gone = {d.row: d.keeper for d in find_duplicates(rows, threshold=0.6)}
    assert all(keeper not in gone for keeper in gone.values())


def test_the_first_of_two_stays_and_case_space_and_points_are_no_difference():
    assert found(row(1, LONG), row(2, LONG.upper() + " .  ")) == {1: (0, "near_duplicate")}
    assert found(row(1, LONG), row(2, "  " + LONG.replace(" ", "  ").lower())) == {1: (0, "exact_duplicate")}


def test_the_original_stays_and_its_edited_copies_go():
    copies = [
        LONG.replace("basement", "cellar"),
        LONG.replace("please", "kindly"),
        LONG,
        LONG.replace("floor", "tiles"),
    ]
    assert found(*(row(n, text) for n, text in enumerate(copies))) == {
        0: (2, "near_duplicate"),
        1: (2, "near_duplicate"),
        3: (2, "near_duplicate"),
    }


def test_other_numbers_make_other_texts():
    assert found(row(1, LONG + " order 4711"), row(2, LONG + " order 4712")) == {}
    assert found(row(1, LONG + " it cost $5"), row(2, LONG + " it cost €5")) == {}


def test_another_answer_is_a_contradiction_not_a_duplicate():
    same = found(row(1, LONG, '{"a": 1, "b": 2}'), row(2, LONG, '{"b":2,"a":1}'))
    assert same == {1: (0, "near_duplicate")}
    assert found(row(1, LONG, '{"a": "x"}'), row(2, LONG, '{"a": "y"}')) == {1: (0, "conflict")}
    assert found(row(1, LONG, "refund"), row(2, LONG, "shipping")) == {1: (0, "conflict")}


def test_the_same_answer_to_other_questions_stays():
    answer = (
        "I am an assistant made by the people of this shop, and I am here to help you with whatever you need today."
    )
    assert (
        found(row(1, "Who are you?", answer), row(2, "What is your name?", answer), row(3, "Say hello", answer)) == {}
    )


def test_other_instructions_make_other_tasks():
    assert found(row(1, LONG, "x", system="Label it."), row(2, LONG, "x", system="Answer it.")) == {}


def test_templates_with_other_words_in_their_slots_are_spared():
    towns = ["Graz", "Lyon", "Turin", "Gent", "Porto"]
    text = (
        "Hello, my name is {} and the {} that I ordered from your shop in {} has still not arrived, tell me where it is"
    )
    names, things = ["Anna", "Bela", "Carol", "Dario", "Edith"], ["lamp", "desk", "chair", "kettle", "radio"]
    rows = [row(n, text.format(*slots)) for n, slots in enumerate(zip(names, things, towns, strict=True))]
    assert found(*rows) == {}
    rows.append(row(9, text.format("Anna", "lamp", "Graz").replace("your shop", "the shop")))
    assert found(*rows) == {5: (0, "near_duplicate")}


def test_a_misspelt_copy_is_a_duplicate():
    text = "Plaese send a technician becuase the fridge makes a terible noise every evening since Monday and keeps us awake"
    clean = "Please send a technician because the fridge makes a terrible noise every evening since Monday and keeps us awake"
    assert found(row(1, clean), row(2, text)) == {1: (0, "near_duplicate")}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("parameter", "parmeter", True),
        ("parameter", "paramteer", True),
        ("motivation", "mbtivatio", True),
        ("address", "adress", True),
        ("from", "form", True),
        ("the", "he", False),
        ("4711", "4712", False),
        ("lamp", "lime", False),
        ("australia", "austria", False),
        ("refund", "return", False),
    ],
)
def test_words_are_misspellings_when_one_or_two_letters_apart(one, other, expected):
    assert is_misspelling(one, other) is expected
    assert is_misspelling(other, one) is expected


def test_common_words_are_never_taken_for_misspellings():
    rows = [row(n, f"{LONG} in {country} number {n}") for n, country in enumerate(["australia", "austria"] * 4)]
    assert found(*rows) == {}


def test_the_held_out_row_stays_and_the_training_row_goes():
    rows = [row(1, LONG, "a", split="train"), row(2, LONG, "b", split="test"), row(3, LONG + " soon", "a", split="val")]
    assert found(*rows) == {0: (1, "leak"), 2: (1, "leak")}


def test_duplicates_inside_a_held_out_side_are_flagged_only():
    assert found(row(1, LONG, split="test"), row(2, LONG, split="test")) == {1: (0, "heldout_duplicate")}


def test_texts_without_words_are_the_same_only_where_they_are_equal():
    assert found(row(1, "???"), row(2, "!!!"), row(3, "???")) == {2: (0, "exact_duplicate")}


def test_one_row_and_no_row_have_no_duplicates():
    assert found() == {}
    assert found(row(1, LONG)) == {}


@given(st.text())
def test_normal_texts_and_words_are_stable(text):
    assert normal_text(normal_text(text)) == normal_text(text)
    assert words(" ".join(words(text))) == words(text)
    assert numbers(normal_text(text)) == numbers(text) or not text.isascii()


def test_scripts_without_spaces_share_characters():
    assert words("配送はいつ") == list("配送はいつ")
    assert words("order 配送 now") == ["order", "配", "送", "now"]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_clusters_are_the_connected_components(pairs):
    left, right = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    names = clusters(10, left, right).tolist()
    expected = list(range(10))
    for _ in range(10):
        for one, other in pairs:
            expected[one] = expected[other] = min(expected[one], expected[other])
    assert names == expected
