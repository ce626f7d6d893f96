"""Laws of the text metrics, and what they refuse or leave unscored."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.evals.text import (
    Denominator,
    RougeTokens,
    Stemming,
    bits_per_byte,
    bleu,
    chrf,
    count_units,
    distinct,
    multiple_choice,
    perplexity,
    rouge,
    sentence_bleu,
    sentence_chrf,
)

TEXT = "the quick brown fox jumps over the lazy dog"


def test_an_equal_answer_is_perfect_and_a_foreign_one_is_zero():
    for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert rouge(TEXT, ("something else", TEXT), kind=kind).f1 == pytest.approx(1)
        assert rouge("nothing of it", (TEXT.replace("the", "a"),), kind=kind).f1 == 0
    assert bleu([TEXT], [[TEXT]]).score == pytest.approx(100)
    assert chrf([TEXT], [[TEXT]]).score == pytest.approx(100)
    assert sentence_bleu("xyz", [TEXT]) == 0
    assert sentence_chrf(TEXT, [TEXT]) == pytest.approx(100)


def test_without_a_usable_reference_an_item_is_not_scored_rather_than_zero():
    assert rouge("猫が座った", ("猫が座った",), kind="rouge1") is None
    assert rouge("猫が座った", ("猫が座った",), kind="rouge1", tokens=RougeTokens.UNICODE).f1 == 1
    assert rouge("a", (), kind="rouge1") is None
    assert sentence_bleu("a", ()) is None
    assert sentence_chrf("a", ()) is None


def test_stemming_joins_word_forms_and_is_off_by_default():
    assert rouge("running dogs", ("run dog",), kind="rouge1").f1 == 0
    assert rouge("running dogs", ("run dog",), kind="rouge1", stemming=Stemming.PORTER).f1 == pytest.approx(1.0)


def test_accents_and_scripts_survive_unicode_tokens():
    assert rouge("café", ("caf",), kind="rouge1").f1 == 1
    assert rouge("café", ("caf",), kind="rouge1", tokens=RougeTokens.UNICODE).f1 == 0
    assert rouge("привет мир", ("привет",), kind="rouge1", tokens=RougeTokens.UNICODE).precision == 0.5


def test_references_may_be_of_different_number_and_more_never_hurt():
    few = bleu(["the cat sat down", TEXT], [["a cat sat"], [TEXT]]).score
    more = bleu(["the cat sat down", TEXT], [["a cat sat", "the cat sat down"], [TEXT]])
    assert few < more.score == pytest.approx(100)
    assert "tok:13a" in more.signature


@pytest.mark.parametrize(
    ("answers", "references"), [([], []), (["a"], []), (["a"], [[]]), (["a"], ["a"]), (["a"], [["a"], ["b"]])]
)
def test_shapes_that_would_give_a_wrong_number_are_refused(answers, references):
    for metric in (bleu, chrf):
        with pytest.raises(DataError):
            metric(answers, references)


def test_mc1_wants_a_true_choice_alone_on_top_and_mc2_is_its_share():
    scored = multiple_choice([math.log(0.2), math.log(0.1), math.log(0.1)], truths=[True, False, True])
    assert scored.mc1 == 1
    assert scored.mc2 == pytest.approx(0.75)
    assert multiple_choice([-5.0, -5.0], truths=[True, False]).mc1 == 0
    assert multiple_choice([-5.0, -5.0, -9.0], truths=[True, True, False]).mc1 == 1


@given(st.lists(st.tuples(st.floats(-5000, 0), st.booleans()), min_size=2, max_size=8), st.floats(-3000, 3000))
def test_multiple_choice_depends_on_differences_only_and_never_underflows(choices, shift):
    likelihoods, truths = [value for value, _ in choices], [true for _, true in choices]
    if not any(truths) or all(truths):
        with pytest.raises(ValueError, match="one true and one false"):
            multiple_choice(likelihoods, truths=truths)
        return
    scored = multiple_choice(likelihoods, truths=truths)
    moved = multiple_choice([value + shift for value in likelihoods], truths=truths)
    assert 0 <= scored.mc2 <= 1
    assert moved.mc2 == pytest.approx(scored.mc2, abs=1e-6)
    swapped = multiple_choice(likelihoods, truths=[not true for true in truths])
    assert scored.mc2 + swapped.mc2 == pytest.approx(1)
    assert scored.mc1 + swapped.mc1 <= 1


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_likelihood_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        multiple_choice([bad, -1.0], truths=[True, False])


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices():
    assert perplexity([-3 * math.log(50), -math.log(50)], [3, 1], per=Denominator.TOKEN) == pytest.approx(50)
    pooled = perplexity([-10.0, -1.0], [2, 8], per=Denominator.WORD)
    assert pooled == pytest.approx(math.exp(1.1))
    assert pooled < (math.exp(5) + math.exp(1 / 8)) / 2


@pytest.mark.parametrize(
    ("totals", "counts"), [([], []), ([-1.0], [0]), ([-1.0], [1, 2]), ([0.5], [1]), ([-1.0, -1.0], [-1, 3])]
)
def test_a_perplexity_without_a_denominator_or_above_certainty_is_refused(totals, counts):
    with pytest.raises(ValueError, match=r"perplexity|probability"):
        perplexity(totals, counts, per=Denominator.TOKEN)


def test_bits_per_byte_counts_utf8_bytes():
    assert count_units("é ü", per=Denominator.BYTE) == 5
    assert count_units("é ü", per=Denominator.WORD) == 2
    assert bits_per_byte([-5 * math.log(256)], ["é ü"]) == pytest.approx(8)


def test_distinct_counts_over_all_answers_and_not_across_them():
    assert distinct(["a b", "a c"], n=1) == 0.75
    assert distinct(["a b", "a b"], n=2) == 0.5
    assert distinct(["a", "b"], n=2) is None
    assert distinct(["no"] * 10, n=1) == 0.1
