"""JSON text taken apart without changing it: its strings and numbers, each with its place and the key it stands under.

What lives here: where the scalars of a JSON text are. What does not: reading JSON files (`data.jsonfiles`).

    scalars('{"phoneNumber": 41, "b": "x\\n"}')
    ->  phoneNumber (a key) at 1..14, 41 under "phone Number" at 16..18, b (a key), "x" and a line break under "b"
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

_SCALAR = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*', re.DOTALL)
_COLON = re.compile(r"\s*:")
_WORDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """One string or number."""

    start: int
    end: int
    """Place of its text, with the quotes of a string."""
    value: str
    """What it says; the digits of a number."""
    words: str
    """The last key before it in words, as `phone Number` of `phoneNumber`; empty for a key."""
    is_string: bool


def is_json(text: str) -> bool:
    """Whether a text as a whole is a JSON object or list."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def scalars(text: str) -> Iterator[Scalar]:
    """Yield the strings and numbers of a JSON text in order; keys are strings too."""
    words = ""
    for match in _SCALAR.finditer(text):
        start, end = match.span()
        is_string = text[start] == '"'
        value = json.loads(match.group(), strict=False) if is_string else match.group()
        is_key = is_string and _COLON.match(text, end) is not None
        yield Scalar(start=start, end=end, value=value, words="" if is_key else words, is_string=is_string)
        if is_key:
            words = _WORDS.sub(" ", value).strip()
