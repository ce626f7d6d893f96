"""Each verifiable instruction can be followed and broken; loose forgives what it says it forgives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.evals.ifeval import accuracies, check, loose_readings
from tunesmith.evals.ifeval_rules import RULES, detect_language, followed, sentences

ENGLISH = "this is a plain sentence that anyone can read in the english language"

CASES = [
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "A Cat and a doghouse", "A cat"),
    ("keywords:frequency", {"keyword": " cat", "relation": "at least", "frequency": 2}, "cat concat", "cat"),
    ("keywords:frequency", {"keyword": "cat", "relation": "less than", "frequency": 2}, "cat", "cat Cat"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concatenate", "a CAT."),
    ("keywords:letter_frequency", {"letter": "Z", "let_relation": "at least", "let_frequency": 2}, "zZ", "z"),
    ("keywords:letter_frequency", {"letter": "#", "let_relation": "at least", "let_frequency": 2}, "##", "#"),
    ("language:response_language", {"language": "de"}, "Das ist ein ganz gewöhnlicher deutscher Satz.", ENGLISH),
    ("language:response_language", {"language": "hi"}, "यह हिंदी में एक साधारण वाक्य है", ENGLISH),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "Mr. A went. He sat.", "Mr. A went."),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "don't", "I don't"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***", "one\n\ntwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***one***two", "one***   ***two"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Word"},
        "one\n\n\"word,\" he said",
        "word\n\none",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b [c]", "[a\n] [b]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye. p. s. more", "PS more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye. P.P.S more", "P.S. more"),
    ("detectable_content:postscript", {"postscript_marker": "Note:"}, "Bye. note: more", "more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b", "* a\n** b\n* c\n- d"),
    ("detectable_format:constrained_response", {}, "Well: My answer is no. Sorry", "My answer is: no"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and ** ** *b"),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}, "Part 1 a Part2", "Part I, Part II"),
    ("detectable_format:json_format", {}, "```json\n{\"a\": 1}\n```", "Here: {\"a\": 1}"),
    ("detectable_format:title", {}, "<<A song>>", "<< >>"),
    ("combination:two_responses", {}, "one******two", "one******one"),
    ("combination:two_responses", {}, "******one******two", "one************two"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi. "}, " say HI. Hi!", "OK. Say hi. Hi!"),
    ("startend:end_checker", {"end_phrase": "The end."}, '"It is over. the END."', "The end. Bye"),
    ("startend:quotation", {}, ' "all of it" ', '"'),
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2}, "A WELL-KNOWN thing", "Only ONE"),
    ("change_case:english_capital", {}, ENGLISH.upper() + "!", ENGLISH.upper() + "! no"),
    ("change_case:english_lowercase", {}, ENGLISH, ENGLISH.capitalize()),
    ("change_case:english_lowercase", {}, ENGLISH, "das ist ein ganz gewöhnlicher deutscher satz"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "good", "bad"), CASES)
def test_each_instruction_is_followed_by_one_response_and_broken_by_another(name, args, good, bad):
    assert followed(name, good, args)
    assert not followed(name, bad, args)


def test_all_25_instructions_are_there_and_tried():
    assert len(RULES) == 25
    assert {name for name, *_ in CASES} == RULES.keys()


@pytest.mark.parametrize("name", sorted(RULES))
def test_an_empty_response_follows_nothing_and_missing_arguments_are_refused(name):
    args = next(args for case, args, *_ in CASES if case == name)
    verdict = check(" \n ", [name], [args])
    assert (verdict.strict, verdict.loose) == ((False,), (False,))
    for key in args:
        with pytest.raises(DataError, match="lacks a usable argument"):
            check("", [name], [{**args, key: None}])


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("keywords:letter_frequency", {"letter": "ab", "let_relation": "at least", "let_frequency": 1}),
        ("keywords:frequency", {"keyword": "a", "relation": "at most", "frequency": 1}),
        ("keywords:frequency", {"keyword": "a", "relation": "at least", "frequency": -1}),
        ("keywords:frequency", {"keyword": "a", "relation": "at least", "frequency": 1.5}),
        ("keywords:existence", {"keywords": "cat"}),
        ("keywords:existence", {"keywords": []}),
    ],
)
def test_an_impossible_argument_is_refused_rather_than_drawn_at_random(name, args):
    with pytest.raises(DataError):
        check("a", [name], [args])


def test_an_unknown_instruction_names_the_nearest():
    with pytest.raises(DataError, match="no_comma"):
        check("a", ["punctuation:no_commas"], [{}])


def test_rows_whose_lists_differ_in_length_are_refused():
    for names, args in (([], []), (["punctuation:no_comma"], [])):
        with pytest.raises(DataError, match="one set of arguments"):
            check("a", names, args)


def test_loose_forgives_an_introduction_a_farewell_and_asterisks():
    response = "Sure, here it is:\n**no commas at all**\nBye, friend"
    verdict = check(response, ["punctuation:no_comma"], [{}])
    assert (verdict.strict, verdict.loose) == ((False,), (True,))
    assert loose_readings("a\n*b*\nc") == ("a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b")


@given(st.text(alphabet='aB*,\n"[]-. <>1', max_size=60))
def test_loose_is_never_below_strict(response):
    names, args = zip(
        *[(name, args) for name, args, *_ in CASES if not name.startswith(("language", "change"))], strict=True
    )
    verdict = check(response, names, args)
    assert all(loose >= strict for strict, loose in zip(verdict.strict, verdict.loose, strict=True))


def test_a_keyword_that_is_no_pattern_is_matched_as_text():
    assert followed("keywords:existence", "I like C++.", {"keywords": ["c++("]}) is False
    assert followed("keywords:existence", "call f(", {"keywords": ["f("]})


def test_a_count_from_a_table_column_may_be_a_float():
    assert followed("length_constraints:number_words", "a b", {"relation": "at least", "num_words": 2.0})


def test_language_ignores_addresses_emoji_and_case_and_may_be_unknown():
    assert detect_language("123 !? 🍾") is None
    assert detect_language(ENGLISH.upper()) == "en"
    assert detect_language(f"🍾🍾🍾🍾🍾🍾🍾🍾🍾🍾 {ENGLISH} https://ejemplo.es/una-cosa") == "en"


def test_titles_and_initials_end_no_sentence():
    text = "Dr. Smith met J. R. Jones on Jan. 5 at 3 p.m. in the U.S. embassy. They talked! Why? Nobody knows..."
    assert len(sentences(text)) == 4


def test_the_four_accuracies_count_prompts_and_instructions():
    verdicts = [
        check("a, b", ["punctuation:no_comma", "keywords:existence"], [{}, {"keywords": ["a"]}]),
        check("a\nb, c", ["punctuation:no_comma"], [{}]),
    ]
    assert accuracies(verdicts) == {
        "prompt_level_strict_acc": 0.0,
        "inst_level_strict_acc": pytest.approx(1 / 3),
        "prompt_level_loose_acc": 0.5,
        "inst_level_loose_acc": pytest.approx(2 / 3),
    }
    with pytest.raises(ValueError, match="no verdicts"):
        accuracies([])
