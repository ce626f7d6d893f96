"""Score one answer: exact match, JSON, fields, token overlap.

What lives here: functions from one answer (and what was expected) to a number. What does not: corpus metrics against
reference implementations (`evals.text`), intervals (`evals.stats`), tables over many items (`evals.run`).

A score is a number in [0, 1], or `None` for *not scored*: an item without an expected value is not wrong.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from tunesmith.types import JSON, canonical_json

Score = float | None
"""A number in [0, 1]; `None` where there is nothing to score against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedJson:
    """The outcome of reading an answer as JSON. `value` is meaningful only where `ok`."""

    ok: bool
    value: JSON = None


def parse_json(answer: str) -> ParsedJson:
    """Read a whole answer as one JSON value, white space around it allowed.

    Strict: prose before or after, code fences, single quotes, trailing commas, `NaN` and repeated keys all fail,
    since a program that reads the answer would fail, or silently keep one of two values.
    """
    try:
        return ParsedJson(
            ok=True, value=json.loads(answer, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        )
    except (ValueError, RecursionError):
        return ParsedJson(ok=False)


def _unique_keys(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key is repeated")
    return out


def _refuse_constant(name: str) -> JSON:
    raise ValueError(f"{name} is not JSON")


def exact_match(answer: str, expected: str | None) -> Score:
    """1 where the answer equals what was expected.

    If the expected text is a JSON object or array, the two are compared as JSON values: key order, white space and
    escapes do not count, types do (`1` is not `true`, `1` is not `"1"`, and `1` equals `1.0`). Any other text is
    compared after stripping white space at both ends; case and punctuation count.
    """
    if expected is None:
        return None
    wanted = parse_json(expected)
    if wanted.ok and isinstance(wanted.value, (dict, list)):
        found = parse_json(answer)
        return float(found.ok and same_json(found.value, wanted.value))
    return float(answer.strip() == expected.strip())


def same_json(a: JSON, b: JSON) -> bool:
    """Whether two parsed values are equal as JSON: object keys in any order, `true` unlike `1`, `1` equal to `1.0`."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same_json(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


def field_scores(answer: str, expected: str | None) -> dict[str, float]:
    """Return, for each top-level field of an expected JSON object, 1 where the answer has the same value.

    Every field of an answer that is no JSON object scores 0. Empty where the expected answer is no JSON object.
    """
    wanted = parse_json(expected) if expected is not None else ParsedJson(ok=False)
    if not wanted.ok or not isinstance(wanted.value, dict):
        return {}
    found = parse_json(answer)
    value = found.value if found.ok and isinstance(found.value, dict) else {}
    return {name: float(name in value and same_json(value[name], item)) for name, item in sorted(wanted.value.items())}


def field_presence(answer: str, fields: tuple[str, ...]) -> Score:
    """Return the share of `fields` that the answer, read as a JSON object, has at its top level; 0 if it is none."""
    if not fields:
        return None
    found = parse_json(answer)
    if not found.ok or not isinstance(found.value, Mapping):
        return 0.0
    return sum(name in found.value for name in fields) / len(fields)


_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = frozenset(string.punctuation)


def squad_normalise(text: str) -> str:
    """Lower-case, drop ASCII punctuation and English articles, join white space (SQuAD evaluate-v1.1.py)."""
    bare = "".join(char for char in text.lower() if char not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def squad_exact(answer: str, references: tuple[str, ...]) -> Score:
    """1 where the normalised answer equals one of the normalised references (SQuAD evaluate-v1.1.py)."""
    if not references:
        return None
    return float(any(squad_normalise(answer) == squad_normalise(reference) for reference in references))


def squad_f1(answer: str, references: tuple[str, ...]) -> Score:
    """Return the best token F1 of the answer against any reference, after normalisation (SQuAD evaluate-v2.0.py).

    Two empty token lists agree fully; one empty list agrees not at all.
    """
    if not references:
        return None
    return max(_token_f1(squad_normalise(answer).split(), squad_normalise(item).split()) for item in references)


def _token_f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    # F1 = 2PR / (P + R) with P = common / len(answer), R = common / len(reference)
    return 2 * common / (len(answer) + len(reference))


def macro_f1(answers: list[str | None], expected: list[str]) -> float:
    """Return the unweighted mean of the F1 of each label that occurs in `expected` or `answers`.

    `None` is an answer that could not be read: it counts against recall and is no label of its own. A label without
    a true positive has F1 0, as in scikit-learn's `f1_score(average="macro", zero_division=0)`.
    """
    labels = sorted({*expected, *(answer for answer in answers if answer is not None)})
    total = 0.0
    for label in labels:
        hits = sum(a == label == e for a, e in zip(answers, expected, strict=True))
        given = sum(answer == label for answer in answers)
        wanted = sum(item == label for item in expected)
        total += 2 * hits / (given + wanted)
    return total / len(labels) if labels else 0.0


def canonical_answer(answer: str) -> str:
    """Return an answer's canonical JSON where it is JSON, else its stripped text: equal answers get equal texts."""
    parsed = parse_json(answer)
    return canonical_json(parsed.value) if parsed.ok else answer.strip()


_NUMBER = re.compile(r"(?<![\d.])-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?")
FINAL_MARK = "####"


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text, or the first one after its last `####`, GSM8K's mark of a final answer.

    Currency signs and thousands separators do not count: `$1,200.00` is 1200. A fraction is its value.
    """
    marked = text.rpartition(FINAL_MARK)[2] if FINAL_MARK in text else None
    found = _NUMBER.findall(text if marked is None else marked)
    if not found:
        return None
    number, _, divisor = found[0 if marked is not None else -1].replace("$", "").replace(",", "").partition("/")
    if divisor and not int(divisor):
        return None
    return Decimal(number) / int(divisor) if divisor else Decimal(number)
