"""What comparing texts holds to: both ways round, in any order and chunk; every guard can fire, and spares an edit."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import wordtable
from tunesmith.data.contrast import asks_another, contrast, says_another, sentences_of
from tunesmith.data.formal import formal_text, is_formal, is_json
from tunesmith.data.verify import (
    LONG_TEXT_WORDS,
    Families,
    differences,
    is_misspelling,
    mended_weight,
    misspellings,
    rare_weight,
    same_numbers,
    scores_of,
    threshold_of,
    thresholds_for,
)
from tunesmith.data.words import numbers, tokens, words
from tunesmith.data.wordtable import shared_weight, words_of_sides

WORD = st.sampled_from("red Red lamp lamps 12 3.5 $7 not -r don't Köln 電車 über the of , . ? {x} a=b".split())  # noqa: SIM905
TEXT = st.lists(WORD, max_size=12).map(" ".join)
LETTERS = st.text(alphabet="abcdé", max_size=10)
LONG = (
    "The washing machine in our basement leaks water on the floor whenever the spin cycle starts, so please send someone "
    "who can repair it before the weekend, because the neighbours below us have already complained about the damp ceiling."
)


def pairs_of(count):
    """All pairs of numbers below `count`, both ways round."""
    grid = np.array([(i, j) for i in range(count) for j in range(count)], dtype=np.int64).reshape(-1, 2)
    return grid[:, 0], grid[:, 1]


class TestWordTables:
    @given(st.lists(TEXT, min_size=1, max_size=8))
    def test_a_table_holds_what_counting_word_by_word_gives(self, texts):
        (table,) = words_of_sides(texts).tables
        held = Counter(word for text in texts for word in set(words(text)))
        assert sorted(table.vocabulary) == sorted(held)
        names = [n for text in texts for n in numbers(text)]
        assert table.numbers.sum() == len(names)
        for row, text in enumerate(texts):
            mine = {table.vocabulary[word] for word in table.words_of(row)}
            assert mine == set(words(text))
            assert table.totals[row] == pytest.approx(
                sum(math.log1p(len(texts) / held[word]) for word in mine), abs=0.001 * (len(mine) + 1)
            )
            assert (table.hashes[row] == 0) == (not mine)

    @given(st.lists(TEXT, min_size=2, max_size=8))
    def test_hashes_are_equal_exactly_for_the_same_words_in_the_same_order(self, texts):
        (table,) = words_of_sides(texts).tables
        for one, other in zip(*pairs_of(len(texts)), strict=True):
            assert (table.hashes[one] == table.hashes[other]) == (words(texts[one]) == words(texts[other]))

    @given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=9), st.integers(1, 5))
    @settings(deadline=None)
    def test_the_size_of_chunks_changes_nothing(self, rows, size):
        sides = [row[0] for row in rows], [row[1] for row in rows]
        whole = words_of_sides(*sides)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wordtable, "_ROWS_PER_CHUNK", size)
            parts = words_of_sides(*sides)
        for one, other in zip(whole.tables, parts.tables, strict=True):
            assert sorted(one.vocabulary) == sorted(other.vocabulary)
            assert one.totals.tolist() == other.totals.tolist()
            assert one.hashes.tolist() == other.hashes.tolist()
        for name in ("first", "whole"):
            one, other = ([text.as_py() for chunk in getattr(w, name) for text in chunk] for w in (whole, parts))
            assert one == other

    @given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=9))
    def test_minhash_sees_the_words_of_a_side_and_of_the_whole_row(self, rows):
        found = words_of_sides([row[0] for row in rows], [row[1] for row in rows])
        assert [text.as_py().split() for chunk in found.first for text in chunk] == [words(row[0]) for row in rows]
        assert [text.as_py().split() for chunk in found.whole for text in chunk] == [
            words(row[0]) + words(row[1]) for row in rows
        ]

    @given(st.permutations([LONG, "red lamp 12", "", "red lamps", "12 Köln 電車", "not $7"]))
    def test_the_order_of_rows_changes_no_weight(self, texts):
        (table,) = words_of_sides(texts).tables
        weights = dict(zip(table.vocabulary, table.weights.tolist(), strict=True))
        (sorted_table,) = words_of_sides(sorted(texts)).tables
        assert weights == dict(zip(sorted_table.vocabulary, sorted_table.weights.tolist(), strict=True))


class TestScores:
    @given(st.lists(TEXT, min_size=2, max_size=6))
    def test_pairs_are_compared_the_same_way_round(self, texts):
        (table,) = words_of_sides(texts).tables
        left, right = pairs_of(len(texts))
        for function in (shared_weight, mended_weight, same_numbers):
            there, back = function(table, left, right), function(table, right, left)
            assert there.tolist() == pytest.approx(back.tolist())
        only_left, only_right = differences(table, left, right)
        for place, (one, other) in enumerate(zip(left, right, strict=True)):
            mine, yours = set(table.words_of(one).tolist()), set(table.words_of(other).tolist())
            assert set(only_left.of(place)) == mine - yours
            assert set(only_right.of(place)) == yours - mine
            assert shared_weight(table, left, right)[place] == pytest.approx(
                sum(table.weights[word] for word in mine & yours), abs=1e-3
            )
            gained = mended_weight(table, left, right)[place]
            assert gained <= rare_weight(table, left)[place] + rare_weight(table, right)[place] + 1e-9

    @given(st.floats(0, 50), st.floats(0, 50), st.floats(0, 50), st.integers(0, 80))
    def test_a_score_lies_between_nothing_and_equal_and_grows_with_what_is_shared(self, shared, left, right, length):
        def score(weight):
            return float(
                scores_of(
                    np.array([weight]), np.array([weight + left]), np.array([weight + right]), np.array([length])
                )[0]
            )

        assert 0 <= score(shared) <= 1
        assert score(shared + 1) >= score(shared) - 1e-12
        assert score(shared) == pytest.approx(
            float(
                scores_of(
                    np.array([shared]), np.array([shared + right]), np.array([shared + left]), np.array([length])
                )[0]
            )
        )

    @given(st.floats(0, 1), st.integers(0, 80), st.floats(0.5, 1))
    def test_the_largest_threshold_of_a_score_is_where_the_score_stops_being_enough(self, score, length, threshold):
        least = float(thresholds_for(np.array([length]), threshold)[0])
        largest = float(threshold_of(np.array([score]), np.array([length]))[0])
        if abs(score - least) > 1e-6:
            assert (largest >= threshold) == (score >= least)

    @given(LETTERS, LETTERS)
    def test_misspellings_are_mutual_and_a_word_is_none_of_its_own(self, one, other):
        if one and other and one != other:
            assert is_misspelling(one, other) == is_misspelling(other, one)

    def test_a_word_mends_one_other_word_only(self):
        (table,) = words_of_sides(["parameter", "parmeter paramter"]).tables
        number = {name: place for place, name in enumerate(table.vocabulary)}
        found = misspellings(table, [number["parameter"]], [number["parmeter"], number["paramter"]])
        assert len(found) == 1

    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            ("12 apples", "37 apples", False),
            ("5 $", "5 €", False),
            (LONG + " 1 2 3 4 5", LONG + " 1 2 3 4", True),
            (LONG + " 1 2 3 4 5", LONG + " 1 2 3", False),
            (LONG + " 1 2 3 4 5", LONG + " 1 2 3 4 6", False),
            ("version 3.5", "version 3 . 5", True),
        ],
    )
    def test_numbers_are_the_same_but_for_a_few_lost_in_a_long_text(self, one, other, same):
        (table,) = words_of_sides([one, other]).tables
        assert same_numbers(table, np.array([0]), np.array([1])).tolist() == [same]


class TestSlots:
    TOWNS = ("Graz", "Lyon", "Turin", "Gent", "Porto", "Basel")

    def filled(self, texts, one, other):
        (table,) = words_of_sides(texts).tables
        left, right = pairs_of(len(texts))
        some = left < right
        families = Families(table, left[some], right[some], np.arange(len(texts)))
        mine, yours = families.words_of(one), families.words_of(other)
        assert families.may_be(np.array([one]), np.array([other])).all()
        there = families.fill_slots(one, other, mine - yours, yours - mine)
        assert there == families.fill_slots(other, one, yours - mine, mine - yours)
        return there

    def test_what_most_relatives_lack_fills_a_slot(self):
        texts = [f"When does the parcel to {town} leave your shop in the harbour" for town in self.TOWNS]
        assert self.filled(texts, 0, 1)

    def test_what_an_edited_copy_lost_fills_none(self):
        texts = [f"When does the parcel to Graz leave {whose} shop in the harbour" for whose in ("your", "our", "my")]
        texts += ["When does your parcel to Graz leave the shop in the harbour"] * 3
        texts[3] = texts[3].replace("harbour", "haven")
        assert not self.filled(texts, 3, 4)

    def test_a_misspelt_word_fills_none(self):
        texts = [f"When does the parcel to {town} leave your shop in the harbour" for town in self.TOWNS]
        texts += [texts[0].replace("harbour", "harbuor").replace("Graz", "Grazz")]
        assert not self.filled(texts, 0, len(texts) - 1)


class TestContrast:
    @given(TEXT, TEXT)
    def test_what_is_said_of_two_texts_is_said_of_them_both_ways_round(self, one, other):
        assert says_another(one, other) == says_another(other, one)
        assert contrast(words(one), words(other)) == contrast(words(other), words(one))
        mine, yours = sentences_of(one), sentences_of(other)
        assert asks_another(mine, yours) == asks_another(yours, mine)

    @given(TEXT)
    def test_a_text_says_what_it_says_whatever_its_spacing(self, text):
        assert not says_another(text, "  " + text.replace(" ", "\n "))
        assert not asks_another(sentences_of(text), sentences_of(text))

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("is it allowed to park here", "is it not allowed to park here"),
            ("Ist das Parken hier erlaubt", "Ist das Parken hier nicht erlaubt"),
            ("这里可以停车吗", "这里不可以停车吗"),
            ("a train from Paris to Lyon", "a train from Lyon to Paris"),
            ("I ordered a lamp and yet today I have got a desk", "I ordered a desk and yet today I have got a lamp"),
            ("我买了雨伞可是收到的是书包", "我买了书包可是收到的是雨伞"),
            ("please ask Marie about it", "please ask Carol about it"),
            ("list them with -r", "list them with -R"),
            ("a change of 5%", "a change of -5%"),
            ("what does 'brave' mean", "what does 'bitter' mean"),
        ],
    )
    def test_a_small_difference_says_another(self, one, other):
        assert says_another(one, other)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("Is it allowed to park here?", "is it allowed to park here"),
            ("please tell me where it is", "kindly tell me where it is"),
            (LONG, LONG.upper()),
            (f"{LONG} It runs on C++ alone.", f"{LONG} It runs on C++ alone.".lower()),
            (LONG, LONG.replace("neighbours", "nieghbours")),
            ("First this. Then that.", "Then that. First this."),
            ("the quick brown fox", "the brown quick fox"),
            ("Dear Sir, I do not know", "Dear Sir, I don't know"),
        ],
    )
    def test_an_edit_does_not(self, one, other):
        assert not says_another(one, other)

    @pytest.mark.parametrize(
        ("one", "other", "found"),
        [
            (["smallest"], ["largest"], True),
            (["10kb"], ["10mb"], True),
            (["montag"], ["freitag"], True),
            (["monday"], ["largest"], False),
            (["lamp"], ["desk"], False),
            (["monday"], [], False),
        ],
    )
    def test_two_choices_of_one_group_contrast(self, one, other, found):
        assert contrast(one, other) is found

    def test_a_shared_passage_with_another_question_asks_another(self):
        passage = "The museum opens at nine. It is closed on holidays."
        one, other = (f"{passage} {end}" for end in ("Who built the old tower?", "When was its roof painted?"))
        assert asks_another(sentences_of(one), sentences_of(other))
        edited = f"{passage} Who built that old tower?"
        assert not asks_another(sentences_of(one), sentences_of(edited))


class TestFormal:
    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=6))
    def test_json_is_the_same_whatever_its_spacing_and_the_order_of_its_keys(self, value):
        document = {"b": value, "a": 1}
        turned = {"a": 1, "b": value}
        assert formal_text(json.dumps(document)) == formal_text(json.dumps(turned, indent=2))
        assert is_json(json.dumps(document))

    @given(TEXT | st.sampled_from(["ls  -R", "x > 5", "SELECT a FROM b", "def f(x):\n  return x", "print(x)"]))
    def test_the_form_of_a_formal_text_is_its_own_form(self, text):
        form = formal_text(text)
        if form is not None:
            assert formal_text(form) == form
            assert formal_text(f"  {text}\n") == form

    @pytest.mark.parametrize(
        "text",
        ["ls -r", "x > 5", "SELECT a FROM b WHERE c = 'd'", "f(x)", "```\ncode\n```", "git commit --amend", "[1, 2]"],
    )
    def test_code_commands_and_json_are_formal(self, text):
        assert formal_text(text) is not None

    @pytest.mark.parametrize(
        "text",
        [
            "Please list the files, thanks.",
            "It costs $5 (or 5%).",
            "12 - 5 + 3 = 10",
            LONG,
            "Open settings.py and read on about what every option in there means for you.",
            "{not json}",
            "",
        ],
    )
    def test_sentences_and_sums_are_not(self, text):
        assert formal_text(text) is None or text == "{not json}"
        assert not is_json(text)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("ls -r", "ls -R"),
            ("x > 5", "x < 5"),
            ('{"a": 1}', '{"a": 2}'),
            ("echo 'Bob' > f.txt", "echo 'Ann' > f.txt"),
        ],
    )
    def test_every_sign_counts(self, one, other):
        assert is_formal(one) or is_json(one)
        assert formal_text(one) != formal_text(other)


def test_tokens_of_scripts_without_spaces_are_characters():
    assert tokens("order 配送, now") == ["order", "配", "送", ",", "now"]
    assert len(tokens(LONG)) == len(LONG.split()) >= LONG_TEXT_WORDS - 4
