"""Quality rules over one row: each has a name, a reason that people can read, and a test that it can fail.

What lives here: what each rule looks at. What does not: what a recipe does with what is found (`data.filters`), rules
over pairs of rows (`data.dedup`), licences (`data.policy`).

    find_issues(conversation, Limits())  ->  [Issue(rule="truncated", detail='the answer ends in ", and"')]

The rules are heuristics. A row that breaks one is worth a look; what only looks broken (a list of answers, code, a
label of one letter) is meant to pass, and the thresholds were set on real rows of many tasks so that it does.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.data.words import answer_text, prompt_text, words
from tunesmith.types import Conversation

RuleName = Literal[
    "too_short",
    "language",
    "repetition",
    "truncated",
    "refusal",
    "prompt_copied",
    "broken_fence",
    "broken_json",
    "listed_words",
]

NGRAM_WORDS = 4
MIN_WORDS_FOR_REPETITION = 40
MIN_WORDS_FOR_TRUNCATION = 12
MIN_WORDS_FOR_COPY = 8
MIN_LETTERS_FOR_LANGUAGE = 40
MIN_LANGUAGE_SHARE = 0.95
"""Probability of the language that py3langid names, below which a text has none for us."""
REFUSAL_CHARS = 240
"""A refusal opens the answer; later in it, it is often a quotation."""
SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Thresholds of the rules."""

    min_answer_words: int = 3
    max_repetition: float = 0.6
    """Share of an answer's 4-grams that stand in it before."""
    languages: frozenset[str] = frozenset()
    """ISO 639-1 codes; empty allows all, and costs nothing."""
    listed_words: frozenset[str] = frozenset()
    """Words, in lower case, that no row should hold; empty allows all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """One thing that a rule found in a row."""

    rule: RuleName
    detail: str
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """A row as the rules see it."""

    conversation: Conversation
    prompt: str
    content: str
    """Text of the last answer, without its calls."""
    answer_words: list[str]


Found = tuple[str, float | None] | None
"""Detail and score, or nothing."""


def find_issues(conversation: Conversation, limits: Limits, rules: Sequence[RuleName] | None = None) -> list[Issue]:
    """Return what the named rules (all by default) find in a row, in their order."""
    answers = [message for message in conversation.messages if message.role == "assistant"]
    texts = _Texts(
        conversation=conversation,
        prompt=prompt_text(conversation),
        content=(answers[-1].content or "").strip() if answers else "",
        answer_words=words(answer_text(conversation)),
    )
    out = []
    for rule in rules if rules is not None else tuple(_RULES):
        found = _RULES[rule](texts, limits)
        if found is not None:
            out.append(Issue(rule=rule, detail=found[0], score=found[1]))
    return out


def _too_short(texts: _Texts, limits: Limits) -> Found:
    num_words = len(texts.answer_words)
    if num_words >= limits.min_answer_words:
        return None
    return f"expected an answer of at least {limits.min_answer_words} words, found {num_words}", float(num_words)


def _language(texts: _Texts, limits: Limits) -> Found:
    if not limits.languages:
        return None
    code = language_of(f"{texts.prompt}\n{texts.content}")
    if code is None or code in limits.languages:
        return None
    return (
        f"expected {', '.join(sorted(limits.languages))}, found {code}: {_shown(texts.content or texts.prompt)}",
        None,
    )


def _repetition(texts: _Texts, limits: Limits) -> Found:
    found = texts.answer_words
    if len(found) < MIN_WORDS_FOR_REPETITION:
        return None
    share = repeated_share(found)
    if share <= limits.max_repetition:
        return None
    return f"{share:.0%} of the answer repeats itself, at most {limits.max_repetition:.0%} may", round(share, 4)


def repeated_share(found: Sequence[str]) -> float:
    """Return the share of the 4-grams of some words that stand among them before, 0 to 1."""
    grams = list(zip(found, found[1:], found[2:], found[3:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


_CODE = re.compile(r"[(){}|=<>$`\\]|^\s")
_HANGING = re.compile(
    r"(?:[^\W\d_]['’]?[,:]|(?<=[.!?] )\d{1,2}\."
    r"|(?<= )(?:the|a|an|and|or|but|of|to|in|with|for|that|which|is|are|was|were|by|from|as|at|because"
    r"|than|und|oder|der|die|das|ein|eine|mit|für|le|la|les|et|ou|de|des|un|une|el|los|y|con|para|il|di|che))$"
)
_HANGING_CHARS = 12
"""More than the longest ending: the search need not begin before."""


def _truncated(texts: _Texts, limits: Limits) -> Found:
    last_line = texts.content.rsplit("\n", 1)[-1]
    prose = len(texts.answer_words) >= MIN_WORDS_FOR_TRUNCATION and last_line.count(" ") >= 5
    hanging = prose and _HANGING.search(last_line, len(last_line) - _HANGING_CHARS) is not None
    if not hanging or _CODE.search(last_line) is not None:
        return None
    return f'the answer ends in "{last_line[-SHOWN_CHARS:]}"', None


_REFUSAL = re.compile(
    r"\bas an? (?:(?:AI|artificial intelligence)\b(?:,? (?:language )?(?:model|assistant|chatbot)\b)?"
    r"|(?:large )?language model),? ?(?:I|my)\b"
    r"|\bI(?:'m| am) (?:(?:just|only) )?an? (?:AI\b(?! [a-z]*(?:er|ist|student|fan)\b)|(?:large )?language model)"
    r"|\b(?:I (?:can(?:no|')t|can not|won't|will not|won't be able to|must decline to)"
    r"|I(?:'m| am) (?:very |so |really )?(?:unable to|not able to|sorry,? (?:but )?I can(?:no|')t|unable)) "
    r"(?:fulfil?l\b|comply with|assist\b(?! (?:him|her|them))|support (?:that|this)|participate in"
    r"|help(?: you)?(?: (?:with|to|create|write|do|plan)\b|[.!]|$)|(?:answer|respond to) (?:that|this|your)"
    r"|(?:provide|offer|give)(?: you)?(?: with)? (?:that|this|instructions|information|guidance|assistance|advice|any)"
    r"|(?:create|generate|write|produce|share|discuss) (?:content|instructions|that|this|such|anything|explicit)"
    r"|engage in (?:that|this|such|any|conversations?|discussions?))"
    r"|\bI can(?:no|')t comply(?=[.!]|$)|\bI must decline\b|\bI (?:don't|do not) feel comfortable\b"
    r"|\bit(?:'s| is| would)(?: not|n't)(?: be)? (?:appropriate|ethical|right) for me to"
    r"|\bI (?:do not|don't) have (?:the ability to|personal (?:opinions|feelings|beliefs)|access to real-time)"
    r"|\bes tut mir leid,? (?:aber )?(?:ich kann|(?:\w+ ){0,3}kann ich)|\bals (?:KI|Sprachmodell)\b"
    r"|\bno puedo (?:ayudar|cumplir|responder|proporcionar)|\blo siento,? (?:pero )?no puedo"
    r"|\bje (?:suis désolée?,? (?:mais )?je )?ne (?:peux|suis) pas (?:répondre|vous|t'aider|fournir|en mesure)"
    r"|\ben tant qu'(?:IA|assistant)\b|\bmi dispiace,? (?:ma )?non posso",
    re.IGNORECASE,
)
_REFERRAL = re.compile(
    r"[^.!?]{0,80}\b(?:but|however),? (?:our|my colleagues?|the [\w ]{1,24}team|you can|they can|we can)\b"
)
"""What makes "I cannot help you with that myself" an answer: it says who or what can."""


def _refusal(texts: _Texts, limits: Limits) -> Found:
    opening = texts.content[:REFUSAL_CHARS].replace("’", "'")
    match = _REFUSAL.search(opening)
    if match is None or opening[: match.start()].endswith(('"', "“", "«")) or _REFERRAL.match(opening, match.end()):
        return None
    return f'the answer says "{match.group()}"', None


def _prompt_copied(texts: _Texts, limits: Limits) -> Found:
    asked = words(texts.prompt)
    if len(asked) < MIN_WORDS_FOR_COPY or texts.answer_words[: len(asked)] != asked:
        return None
    return f"the answer begins with the whole prompt, {len(asked)} words", None


_FENCE = re.compile(r"^ {0,3}(?:> ?)*(```+|~~~+)", re.MULTILINE)


def _broken_fence(texts: _Texts, limits: Limits) -> Found:
    """CommonMark closes a fence by one at least as long of the same sign."""
    opened = ""
    for mark in _FENCE.findall(texts.content):
        if not opened:
            opened = mark
        elif mark[0] == opened[0] and len(mark) >= len(opened):
            opened = ""
    return (f"a code block that opens with {opened} is never closed", None) if opened else None


_JSON_START = re.compile(r'\{\s*(?:"(?![^"]*"\s*\})|\}|$)|\[\s*(?:\{\s*"|"|\[\s*["{])')
_JSON_BLOCK = re.compile(r"^```json[ \t]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _broken_json(texts: _Texts, limits: Limits) -> Found:
    """An answer that begins as JSON, a block marked as JSON, and the arguments of a call must parse."""
    candidates = [texts.content] if _JSON_START.match(texts.content) else _JSON_BLOCK.findall(texts.content)
    for message in texts.conversation.messages:
        if message.role == "assistant":
            candidates += [call.arguments for call in message.tool_calls if isinstance(call.arguments, str)]
    for text in candidates:
        fault = _json_fault(text.strip())
        if fault is not None:
            return f"expected JSON, found {fault}: {_shown(text)}", None
    return None


def _json_fault(text: str) -> str | None:
    """What is wrong with JSON values that follow each other; prose behind them is none of their business."""
    at = 0
    while at == 0 or text[at : at + 1] in ("{", "["):
        try:
            at = json.JSONDecoder().raw_decode(text, at)[1]
        except ValueError as error:
            return str(error)
        at += len(text[at:]) - len(text[at:].lstrip())
    return f"{text[at]!r} behind the end" if text[at : at + 1] in ("}", "]", ",") else None


def _listed_words(texts: _Texts, limits: Limits) -> Found:
    if not limits.listed_words:
        return None
    held = sorted(limits.listed_words.intersection([*texts.answer_words, *words(texts.prompt)]))
    return (f"holds {', '.join(held[:5])}", float(len(held))) if held else None


_RULES: dict[RuleName, Callable[[_Texts, Limits], Found]] = {
    "too_short": _too_short,
    "language": _language,
    "repetition": _repetition,
    "truncated": _truncated,
    "refusal": _refusal,
    "prompt_copied": _prompt_copied,
    "broken_fence": _broken_fence,
    "broken_json": _broken_json,
    "listed_words": _listed_words,
}


def _shown(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN_CHARS else flat[:SHOWN_CHARS] + " …"


def language_of(text: str) -> str | None:
    """Return the ISO 639-1 code of a text, `None` where it is short or doubtful.

    Code, numbers and names are taken for many languages, so a text of fewer than 40 letters has none.
    """
    letters = re.sub(r"[\W\d_]+", " ", text[:2000])
    if len(letters) < MIN_LETTERS_FOR_LANGUAGE:
        return None
    code, share = _identifier().classify(letters)
    return str(code) if share >= MIN_LANGUAGE_SHARE else None


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
