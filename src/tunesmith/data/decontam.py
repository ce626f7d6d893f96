"""Decontamination: rows that hold an item of an evaluation, found by the rare 3-grams that they share.

What lives here: items of evaluations in, matches out. What does not: whether a matched row stays (`data.curation`).

    index = Index({"gsm8k": ["Natalia sold clips to 48 of her friends ..."]})
    index.matches(["Question: Natalia sold clips to 50 of her friends ..."])
    ->  [Match(row=0, evaluation="gsm8k", item=1, score=0.93, text="natalia sold clips to")]

A row holds an item where it holds most of the item's words and some of its 3-grams, each weighted by how rare it is
(IDF, as allenai/decon weighs them). An item of up to four words must be the whole prompt of the row. An edit of every
fifth word leaves four words of five and a third of the 3-grams, where rules of 8 or 13 words in a row find nothing left
(`benchmarks/decontamination.py`); the words alone, or the 3-grams alone, would flag innocent rows of the same subject.
Short items share their words with innocent rows, so they need more. Numbers are not compared: a test item with other
numbers is still a test item.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from tunesmith.data.engines import LOCAL, Engine, parts_of
from tunesmith.data.words import word_text, words

NGRAM_WORDS = 3
THRESHOLD = 0.7
"""Share of the weight of an item's words that a row must hold."""
MIN_GRAMS = 0.2
"""Share of the weight of an item's 3-grams that a row must hold besides."""
LONG_ITEM_WORDS = 25
SHORT_ITEM_WORDS = 8
SHORT_ITEM_THRESHOLD = 0.95
"""Items of up to 8 words must be there nearly whole; both shares fall in a line to their own values at 25 words."""

FEW_WORDS = 4
"""Items of up to so many words ("hi", "help me", "is it possible") must be the whole prompt, since innocent rows hold
them: 16 such items flagged 441 of 47,000 rows of other data. allenai/decon wants an exact match below 20 tokens."""

MAX_ITEMS_A_GRAM, MAX_SHARE_A_GRAM = 20, 0.02
"""A 3-gram that more items share, in number and as a share of all, is common."""

_WEIGHT_UNITS = 1 << 32
"""Weights of 3-grams are whole numbers, so that their sums do not depend on the order of a set."""

_CHUNK_TEXTS = 20_000
"""Texts that are looked at at once: some 100 MB at 100 words each."""
_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
"""Odd numbers of 64 bits that mix the words of a gram into one key; two grams with one key would add a candidate."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A row that holds an item."""

    row: int
    evaluation: str
    item: int
    """1-based place of the item in its evaluation."""
    score: float
    """Share of the weight of the item's words that the row holds, 0 to 1."""
    text: str
    """The longest run of words that both hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    evaluation: str
    number: int
    grams: frozenset[Gram]
    words: frozenset[str]
    num_words: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grams:
    """The 3-grams of all items as numbers: what is needed to find them in a text."""

    word_ids: Mapping[str, int]
    keys: npt.NDArray[np.uint64]
    """In order; the place of a key is the number of its gram."""
    sizes: Sequence[int]
    """Lengths of grams in words: 3, and less for items of fewer words."""


class Index:
    """The items of all registered evaluations, ready to be looked for."""

    def __init__(self, evaluations: Mapping[str, Sequence[str]]) -> None:
        """Take the items by evaluation. Items without words are left out: they are in every row."""
        self._items: list[_Item] = []
        self._short: dict[str, tuple[str, int]] = {}
        for name, texts in evaluations.items():
            for number, text in enumerate(texts, start=1):
                found = words(text)
                if 0 < len(found) <= FEW_WORDS:
                    self._short.setdefault(" ".join(found), (name, number))
                elif found:
                    self._items.append(
                        _Item(
                            evaluation=name,
                            number=number,
                            grams=frozenset(grams_of(found)),
                            words=frozenset(found),
                            num_words=len(found),
                        )
                    )
        self._drop_common_()
        held = Counter(word for item in self._items for word in item.words)
        self._word_weights = {word: math.log1p(len(self._items) / count) for word, count in held.items()}
        self._whole_words = [math.fsum(self._word_weights[word] for word in item.words) for item in self._items]
        word_ids = {word: number for number, word in enumerate(sorted(held))}
        sizes = sorted({len(gram) for item in self._items for gram in item.grams})
        pairs = [(_key(gram, word_ids), place) for place, item in enumerate(self._items) for gram in item.grams]
        keys, gram_of = np.unique(np.array([key for key, _ in pairs], dtype=np.uint64), return_inverse=True)
        self._grams = _Grams(word_ids=word_ids, keys=keys, sizes=sizes)
        order = np.argsort(gram_of, kind="stable")
        self._gram_of = gram_of[order]
        self._item_of = np.array([place for _, place in pairs], dtype=np.int64)[order]
        self._starts = np.searchsorted(self._gram_of, np.arange(len(keys) + 1))
        self._shares: Floats = np.array(
            [share_for(item.num_words, MIN_GRAMS) for item in self._items], dtype=np.float64
        )

    def _drop_common_(self) -> None:
        """Leave out 3-grams that many items share ("how many does she"): they tell no item and cost most of the time.

        An item all of whose 3-grams are common keeps them.
        """
        most = max(MAX_ITEMS_A_GRAM, int(MAX_SHARE_A_GRAM * len(self._items)))
        held = Counter(gram for item in self._items for gram in item.grams)
        common = {gram for gram, count in held.items() if count > most}
        for item in self._items:
            if item.grams <= common:
                common -= item.grams
        for place, item in enumerate(self._items):
            if item.grams & common:
                self._items[place] = replace(item, grams=item.grams - common)

    def matches(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str] | None = None,
        threshold: float = THRESHOLD,
        engine: Engine = LOCAL,
    ) -> list[Match]:
        """Return the best match of each text that holds an item, in order of the texts.

        `prompts` is the part of each text that was asked, which an item of up to four words must be; without it the
        whole text. `threshold` is the share of an item's words, for items of 25 words and more. Weights of 3-grams
        count all texts, so texts belong in one call; the result does not depend on their order. The search for 3-grams
        runs on `engine`.
        """
        out = []
        candidates = self._candidates(texts, engine)
        whole = self._whole_prompts(texts if prompts is None else prompts)
        for row in sorted({*candidates, *whole}):
            found = words(texts[row])
            best = self._best(candidates.get(row, ()), frozenset(found), threshold)
            if row in whole:
                text, evaluation, number = whole[row]
                out.append(Match(row=row, evaluation=evaluation, item=number, score=1.0, text=text))
            elif best is not None:
                score, item = best
                run = longest_run(found, item.grams)
                out.append(
                    Match(row=row, evaluation=item.evaluation, item=item.number, score=round(score, 4), text=run)
                )
        return out

    def _whole_prompts(self, prompts: Sequence[str]) -> dict[int, tuple[str, str, int]]:
        """Row -> (words, evaluation, number) of the item of few words that its prompt is."""
        if not self._short:
            return {}
        said = ((row, word_text(prompt)) for row, prompt in enumerate(prompts))
        return {row: (text, *self._short[text]) for row, text in said if text in self._short}

    def _candidates(self, texts: Sequence[str], engine: Engine) -> dict[int, list[int]]:
        """Text -> items of which it holds enough 3-grams, in order of the texts."""
        if not self._items or not texts:
            return {}
        parts = list(engine.map(partial(_grams_in, known=self._grams), parts_of(texts, _CHUNK_TEXTS)))
        held = np.diff(self._starts)
        for _, grams in parts:
            held = held + np.bincount(grams, minlength=len(held))
        weights = np.round(_WEIGHT_UNITS * np.log1p((len(self._items) + len(texts)) / held))
        whole = np.bincount(self._item_of, weights=weights[self._gram_of], minlength=len(self._items))
        needed: Floats = self._shares * whole - 1
        out: dict[int, list[int]] = {}
        for place, (rows, grams) in enumerate(parts):
            self._gain_(out, rows + place * _CHUNK_TEXTS, grams, weights, needed)
        return out

    def _gain_(self, out: dict[int, list[int]], rows: Ints, grams: Ints, weights: Floats, needed: Floats) -> None:
        """Add the items of which each text holds as much weight as is needed."""
        sizes = self._starts[grams + 1] - self._starts[grams]
        inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        items = self._item_of[np.repeat(self._starts[grams], sizes) + inside]
        pairs, place = np.unique(np.repeat(rows, sizes) * len(self._items) + items, return_inverse=True)
        gained = np.bincount(place, weights=np.repeat(weights[grams], sizes), minlength=len(pairs))
        for pair in pairs[gained >= needed[pairs % len(self._items)]].tolist():
            out.setdefault(pair // len(self._items), []).append(pair % len(self._items))

    def _best(self, places: Sequence[int], found: frozenset[str], threshold: float) -> tuple[float, _Item] | None:
        """The item of which a text holds most words, if that is enough; of equals the first."""
        best: tuple[float, int] | None = None
        for place in sorted(places):
            item = self._items[place]
            score = math.fsum(self._word_weights[word] for word in item.words & found) / self._whole_words[place]
            if score >= share_for(item.num_words, threshold) - 1e-9 and (best is None or score > best[0]):
                best = score, place
        return None if best is None else (best[0], self._items[best[1]])


def _key(gram: Gram, word_ids: Mapping[str, int]) -> int:
    """64 bits for a gram, as `_grams_in` computes them for many at once."""
    total = len(gram)
    for word, factor in zip(gram, _FACTORS, strict=False):
        total += (word_ids[word] + 1) * factor
    return total % 2**64


def _grams_in(texts: Sequence[str], *, known: _Grams) -> tuple[Ints, Ints]:
    """(text, gram) of all known grams of a part of the texts, each once, in order of the texts."""
    ids: list[int] = []
    ends = []
    for text in texts:
        ids.extend(map(known.word_ids.get, words(text), itertools.repeat(-1)))
        ends.append(len(ids))
    numbers = np.array(ids, dtype=np.int64).astype(np.uint64) + np.uint64(1)  # 0 where no item has the word
    bounds = np.array(ends, dtype=np.int64)
    rows_of_words = np.repeat(np.arange(len(texts)), np.diff(bounds, prepend=0))
    found = []
    for size in known.sizes:
        count = max(0, len(numbers) - size + 1)
        keys = np.full(count, size, dtype=np.uint64)
        inside = rows_of_words[:count] == rows_of_words[size - 1 :]
        for place in range(size):
            part = numbers[place : place + count]
            keys += part * np.uint64(_FACTORS[place])
            inside &= part != 0
        keys, rows = keys[inside], rows_of_words[:count][inside]
        places = np.minimum(np.searchsorted(known.keys, keys), len(known.keys) - 1)
        hit = known.keys[places] == keys
        found.append(rows[hit] * len(known.keys) + places[hit])
    pairs = np.unique(np.concatenate(found))
    return pairs // len(known.keys), pairs % len(known.keys)


def grams_of(found: Sequence[str]) -> set[Gram]:
    """Return the 3-grams of some words; of fewer than three words the one gram that they are."""
    if len(found) < NGRAM_WORDS:
        return {tuple(found)}
    return set(zip(found, found[1:], found[2:], strict=False))


def share_for(num_words: int, threshold: float) -> float:
    """Return the share of weight that a row must hold of an item of so many words."""
    share = min(1.0, max(0.0, (num_words - SHORT_ITEM_WORDS) / (LONG_ITEM_WORDS - SHORT_ITEM_WORDS)))
    short = max(SHORT_ITEM_THRESHOLD, threshold)
    return short + (threshold - short) * share


def longest_run(found: Sequence[str], grams: frozenset[Gram]) -> str:
    """Return the longest run of words whose every 3-gram is among `grams`."""
    size = min(NGRAM_WORDS, min(map(len, grams), default=NGRAM_WORDS))
    best = (0, 0)
    start: int | None = None
    for place in range(len(found) - size + 2):
        inside = place <= len(found) - size and tuple(found[place : place + size]) in grams
        if inside and start is None:
            start = place
        elif not inside and start is not None:
            end = place - 1 + size
            best = max(best, (end - start, -start))
            start = None
    length, begin = best
    return " ".join(found[-begin : -begin + length])
