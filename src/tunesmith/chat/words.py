"""Words: encoding by remembered pieces, for tokenizers that never join what stands on two sides of a single space.

What lives here: which tokenizers those are, and the memory. What does not: control tokens (the texts here have none).

    "What color is" -> "What" + " color" + " is"          each encoded once and remembered

Byte-level tokenizers split a text by a pattern before they merge bytes, and no alternative of the patterns below has a
space anywhere but at its front, except in a run of whitespace. So where a space stands alone between two other
characters, a word begins at it, whatever the characters are. Texts with two whitespace characters in a row are encoded
whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tunesmith.chat.tokenizer import Tokenizer
from tunesmith.types import JSON

MAX_WORDS = 500_000
"""Words that are remembered before the memory starts again."""

PATTERNS = frozenset(
    (
        # GPT-2, as the byte-level pre-tokenizer has it built in and as some files spell it out
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        # Llama 3, and Qwen 2 and 3 with single digits (source: their tokenizer.json)
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)
"""Splitting patterns for which the argument above holds."""

_RUN = re.compile(r"\s\s")


class Words:
    """Encodes texts that have no control strings."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._usable = splits_at_spaces(tokenizer)
        self._ids: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        if not self._usable:
            return self._tokenizer.encode_batch(texts)
        cut = [None if _RUN.search(text) else _cut(text) for text in texts]
        self._learn({word for words in cut if words is not None for word in words})
        whole = [text for text, words in zip(texts, cut, strict=True) if words is None]
        others = iter(self._tokenizer.encode_batch(whole) if whole else ())
        known = self._ids
        out: list[list[int]] = []
        for words in cut:
            if words is None:
                out.append(next(others))
                continue
            ids: list[int] = []
            for word in words:
                ids += known[word]
            out.append(ids)
        return out

    def _learn(self, words: set[str]) -> None:
        if len(self._ids) > MAX_WORDS:
            self._ids = {}
        missing = sorted(words - self._ids.keys())
        if missing:
            self._ids.update(zip(missing, self._tokenizer.encode_batch(missing), strict=True))


def _cut(text: str) -> list[str]:
    """Cut a text before each space."""
    first, *rest = text.split(" ")
    words = [" " + word for word in rest]
    return [first, *words] if first else words


def splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is known to begin a word at every space that stands alone."""
    spec = tokenizer.spec
    if spec["model"].get("type") != "BPE" or spec["model"].get("dropout"):
        return False
    if any(" " in token.content for token in tokenizer.added):
        return False
    normalizer = spec.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        return False
    steps = _steps(spec.get("pre_tokenizer") or {})
    return bool(steps) and all(_is_known(step) for step in steps) and any(_splits(step) for step in steps)


def _steps(step: Mapping[str, JSON]) -> list[Mapping[str, JSON]]:
    return list(step["pretokenizers"]) if step.get("type") == "Sequence" else [step]


def _is_known(step: Mapping[str, JSON]) -> bool:
    if step.get("type") == "Digits":
        return bool(step.get("individual_digits"))
    if step.get("type") == "ByteLevel":
        return not step.get("add_prefix_space")
    return _splits(step)


def _splits(step: Mapping[str, JSON]) -> bool:
    if step.get("type") == "ByteLevel":
        return bool(step.get("use_regex", True))
    pattern = step.get("pattern") or {}
    isolated = step.get("behavior") == "Isolated" and not step.get("invert")
    return step.get("type") == "Split" and isolated and pattern.get("Regex") in PATTERNS
