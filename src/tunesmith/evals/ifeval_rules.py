"""The 25 verifiable instructions of IFEval: each a function from a response and its arguments to yes or no.

    followed("keywords:frequency", "the cat and the dog", {"keyword": "the", "relation": "at least", "frequency": 2})

What lives here: the published rules, one function each, and what they count (words, sentences, language). What does
not: strict and loose reading, accuracies (`ifeval`).

The rules are those of Zhou et al. 2023 (arXiv 2311.07911) as released with the paper, peculiarities included, since a
score is only comparable where they are kept:
 - Keywords, forbidden words, section markers and unknown postscript markers are regular expressions, ignoring case
   where the release does. One that does not compile is matched as plain text here; the release fails.
 - `*text*` and `**text**` both count as highlights; a bullet is a line that starts with `-`, or with `*` and no second.
 - A word is a run of letters, digits and underscores, so `don't` is two.
 - The exact number of bullets and paragraphs is asked for, but the least number of placeholders and sections.

Three things differ, all towards one answer for one text. Language comes from py3langid over the languages that the
release's detector knows; that detector is unseeded and answers differently from run to run. Sentences are split by
NLTK's Punkt algorithm with a list of English abbreviations instead of downloaded statistics. Arguments that are missing
are refused; the release draws them at random.
"""

from __future__ import annotations

import collections
import functools
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from tunesmith.errors import DataError, nearest
from tunesmith.types import JSON

Args = Mapping[str, JSON]
Rule = Callable[[str, Args], bool]

RULES: dict[str, Rule] = {}

CONSTRAINED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

DETECTABLE_LANGUAGES = """
    af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no pa pl pt ro
    ru sk sl so sq sv sw ta te th tl tr uk ur vi zh
""".split()  # noqa: SIM905 - read as prose
"""What langdetect 1.0.9 tells apart (it has two of Chinese); instructions ask for 30 of them."""

ABBREVIATIONS = """
    adm assn aug ave bldg blvd brig bros capt cmdr co col comdr corp cpl dec dept dr feb ft gen gov hon inc jan jr lt
    ltd maj messrs mr mrs ms msgr mt nov oct op p.m ph.d prof rep reps rev sen sens sep sept sgt sr ssgt st u.k u.n u.s
    v vs m.d d.c n.y l.a c d e f g h k l m n p r s t w
""".split()  # noqa: SIM905
"""English abbreviations whose full stop usually ends no sentence, without that stop.

Titles, months, companies and initials. `e.g.`, `i.e.`, `et al.` and `P.S.` are not among them: NLTK's English model
does not know them either, and counts are only comparable where both split after them."""


def followed(instruction_id: str, response: str, args: Args) -> bool:
    """Return whether `response` follows one instruction. `None` among the arguments is an absent argument.

    Raises `DataError` for an unknown instruction and for missing or impossible arguments.
    """
    if instruction_id not in RULES:
        raise DataError(
            f"there is no IFEval instruction {instruction_id!r}",
            expected="one of the 25, nearest: " + ", ".join(nearest(instruction_id, RULES)),
        )
    try:
        return RULES[instruction_id](response, args)
    except _BadArgument as error:
        raise DataError(
            f"the instruction {instruction_id!r} lacks a usable argument",
            where=error.name,
            expected=error.expected,
            found=repr(args.get(error.name)),
        ) from None


class _BadArgument(Exception):
    def __init__(self, name: str, expected: str) -> None:
        self.name, self.expected = name, expected


def _rule(instruction_id: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES[instruction_id] = function
        return function

    return register


def _text(args: Args, name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _BadArgument(name, "a text")
    return value.strip()


def _count(args: Args, name: str) -> int:
    value = args.get(name)
    if isinstance(value, float) and value.is_integer():  # tables turn a column with gaps into floats
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _BadArgument(name, "a number, 0 or more")
    return value


def _texts(args: Args, name: str) -> list[str]:
    value = args.get(name)
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(item, str) for item in value):
        raise _BadArgument(name, "a list of texts, at least one")
    return list(value)


def _holds(found: int, args: Args, *, relation: str, threshold: str) -> bool:
    kind = args.get(relation)
    if kind == "less than":
        return found < _count(args, threshold)
    if kind == "at least":
        return found >= _count(args, threshold)
    raise _BadArgument(relation, "'less than' or 'at least'")


def _pattern(source: str, *, flags: re.RegexFlag | int = 0, before: str = "", after: str = "") -> re.Pattern[str]:
    try:
        return re.compile(before + source + after, flags)
    except re.error:
        return re.compile(before + re.escape(source) + after, flags)


# ---------------------------------------------------------------------------------------------------- keywords


@_rule("keywords:existence")
def _has_keywords(response: str, args: Args) -> bool:
    return all(_pattern(word, flags=re.IGNORECASE).search(response) for word in _texts(args, "keywords"))


@_rule("keywords:frequency")
def _has_keyword_often(response: str, args: Args) -> bool:
    hits = sum(1 for _ in _pattern(_text(args, "keyword"), flags=re.IGNORECASE).finditer(response))
    return _holds(hits, args, relation="relation", threshold="frequency")


@_rule("keywords:forbidden_words")
def _has_no_forbidden_word(response: str, args: Args) -> bool:
    words = _texts(args, "forbidden_words")
    return not any(_pattern(w, flags=re.IGNORECASE, before=r"\b", after=r"\b").search(response) for w in words)


@_rule("keywords:letter_frequency")
def _has_letter_often(response: str, args: Args) -> bool:
    letter = _text(args, "letter").lower()
    if len(letter) != 1:
        raise _BadArgument("letter", "one letter")
    return _holds(response.lower().count(letter), args, relation="let_relation", threshold="let_frequency")


# ------------------------------------------------------------------------------------------- language and case


_ADDRESS = re.compile(r"https?://\S+|\S+@\S+")


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages([code for code in DETECTABLE_LANGUAGES if code in identifier.labels])
    return identifier


def detect_language(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language, or `None` where it holds no letter.

    Addresses, digits, punctuation and emoji are set aside first, and case does not matter: they would be read as a
    sign of some language. Under about 20 letters the answer is a guess.
    """
    bare = _ADDRESS.sub(" ", text).lower()
    letters = "".join(char if unicodedata.category(char)[0] in "LM" or char == "'" else " " for char in bare)
    if not any(char.isalpha() for char in letters):
        return None
    return str(_identifier().classify(" ".join(letters.split()))[0])


@_rule("language:response_language")
def _is_in_language(response: str, args: Args) -> bool:
    # A text without a language follows every language, as in the release.
    return detect_language(response) in (_text(args, "language").lower().split("-")[0], None)


@_rule("change_case:english_capital")
def _is_english_in_capitals(response: str, _: Args) -> bool:
    return response.isupper() and detect_language(response) in ("en", None)


@_rule("change_case:english_lowercase")
def _is_english_in_lower_case(response: str, _: Args) -> bool:
    return response.islower() and detect_language(response) in ("en", None)


@_rule("change_case:capital_word_frequency")
def _has_capital_words(response: str, args: Args) -> bool:
    from nltk.tokenize.destructive import NLTKWordTokenizer  # type: ignore[import-untyped]

    tokenizer = NLTKWordTokenizer()
    tokens = [token for sentence in sentences(response) for token in tokenizer.tokenize(sentence)]
    found = sum(token.isupper() for token in tokens)
    return _holds(found, args, relation="capital_relation", threshold="capital_frequency")


# ------------------------------------------------------------------------------------------------------- length


@functools.cache
def _sentence_splitter() -> Any:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer  # type: ignore[import-untyped]

    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)


def sentences(text: str) -> list[str]:
    """Split English text into sentences."""
    return list(_sentence_splitter().tokenize(text))


@_rule("length_constraints:number_sentences")
def _has_sentences(response: str, args: Args) -> bool:
    return _holds(len(sentences(response)), args, relation="relation", threshold="num_sentences")


@_rule("length_constraints:number_words")
def _has_words(response: str, args: Args) -> bool:
    return _holds(len(re.findall(r"\w+", response)), args, relation="relation", threshold="num_words")


@_rule("length_constraints:number_paragraphs")
def _has_paragraphs(response: str, args: Args) -> bool:
    """Paragraphs are divided by `***`; an empty one may stand at either end only."""
    wanted = _count(args, "num_paragraphs")
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", response)]
    return all(parts[1:-1]) and sum(1 for part in parts if part) == wanted


@_rule("length_constraints:nth_paragraph_first_word")
def _has_first_word(response: str, args: Args) -> bool:
    """Paragraphs are divided by an empty line; empty ones do not count, but they do take up a number."""
    wanted, nth, first = _count(args, "num_paragraphs"), _count(args, "nth_paragraph"), _text(args, "first_word")
    parts = response.split("\n\n")
    number = sum(1 for part in parts if part.strip())
    if not 1 <= nth <= number or not parts[nth - 1].strip():
        return False
    word = parts[nth - 1].split()[0].lstrip("'").lstrip('"')
    return number == wanted and re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower() == first.lower()


# ------------------------------------------------------------------------------------------- content and format


@_rule("detectable_content:number_placeholders")
def _has_placeholders(response: str, args: Args) -> bool:
    return len(re.findall(r"\[[^\]\n]*\]", response)) >= _count(args, "num_placeholders")


@_rule("detectable_content:postscript")
def _has_postscript(response: str, args: Args) -> bool:
    marker = _text(args, "postscript_marker")
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return _pattern(known.get(marker, marker.lower())).search(response.lower()) is not None


@_rule("detectable_format:number_bullet_lists")
def _has_bullets(response: str, args: Args) -> bool:
    stars = re.findall(r"^\s*\*[^*].*$", response, flags=re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", response, flags=re.MULTILINE)
    return len(stars) + len(dashes) == _count(args, "num_bullets")


@_rule("detectable_format:constrained_response")
def _is_constrained_answer(response: str, _: Args) -> bool:
    return any(answer in response for answer in CONSTRAINED_ANSWERS)


@_rule("detectable_format:number_highlighted_sections")
def _has_highlights(response: str, args: Args) -> bool:
    single = [found.strip("*").strip() for found in re.findall(r"\*[^\n*]*\*", response)]
    double = [found[2:-2].strip() for found in re.findall(r"\*\*[^\n*]*\*\*", response)]
    return sum(1 for found in single + double if found) >= _count(args, "num_highlights")


@_rule("detectable_format:multiple_sections")
def _has_sections(response: str, args: Args) -> bool:
    marker = _pattern(_text(args, "section_spliter"), before=r"\s?", after=r"\s?\d+\s?")
    return sum(1 for _ in marker.finditer(response)) >= _count(args, "num_sections")


@_rule("detectable_format:json_format")
def _is_json(response: str, _: Args) -> bool:
    """A code fence around it is allowed, tagged json or not."""
    text = response.strip()
    for opening in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(opening)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@_rule("detectable_format:title")
def _has_title(response: str, _: Args) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", response))


# ----------------------------------------------------------------------------------- combination, ends, commas


@_rule("combination:two_responses")
def _is_two_responses(response: str, _: Args) -> bool:
    """Two different answers, divided by `******`; nothing else may stand between or be divided off."""
    parts = [part.strip() for part in response.split("******")]
    if any(not part for part in parts[1:-1]):
        return False
    answers = collections.Counter(part for part in parts if part)
    return len(answers) == 2 and answers.total() == 2


@_rule("combination:repeat_prompt")
def _repeats_prompt(response: str, args: Args) -> bool:
    return response.strip().lower().startswith(_text(args, "prompt_to_repeat").lower())


@_rule("startend:end_checker")
def _ends_with_phrase(response: str, args: Args) -> bool:
    return response.strip().strip('"').lower().endswith(_text(args, "end_phrase").lower())


@_rule("startend:quotation")
def _is_quoted(response: str, _: Args) -> bool:
    text = response.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


@_rule("punctuation:no_comma")
def _has_no_comma(response: str, _: Args) -> bool:
    return "," not in response
