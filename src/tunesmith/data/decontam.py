"""Decontamination: rows that hold an item of an evaluation, found by the rare 3-grams that they share.

What lives here: items of evaluations in, matches out. What does not: whether a matched row stays (`data.curation`).

    index = Index({"gsm8k": ["Natalia sold clips to 48 of her friends ..."]})
    index.matches(["Question: Natalia sold clips to 50 of her friends ..."])
    ->  [Match(row=0, evaluation="gsm8k", item=1, score=0.93, text="natalia sold clips to")]

A row holds an item where it holds most of the item's words and some of its 3-grams, each weighted by how rare it is
(IDF, as allenai/decon weighs them). An edit of every fifth word leaves four words of five and a third of the 3-grams,
where rules of 8 or 13 words in a row find nothing left (`benchmarks/decontamination.py`); the words alone, or the
3-grams alone, would flag innocent rows of the same subject. Short items share their words with innocent rows, so they
need more. Numbers are not compared: a test item with other numbers is still a test item.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tunesmith.data.words import words

NGRAM_WORDS = 3
THRESHOLD = 0.7
"""Share of the weight of an item's words that a row must hold."""
MIN_GRAMS = 0.2
"""Share of the weight of an item's 3-grams that a row must hold besides."""
LONG_ITEM_WORDS = 25
SHORT_ITEM_WORDS = 8
SHORT_ITEM_THRESHOLD = 0.95
"""Items of up to 8 words must be there nearly whole; both shares fall in a line to their own values at 25 words."""

MAX_ITEMS_A_GRAM, MAX_SHARE_A_GRAM = 20, 0.02
"""A 3-gram that more items share, in number and as a share of all, is common."""

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


class Index:
    """The items of all registered evaluations, ready to be looked for."""

    def __init__(self, evaluations: Mapping[str, Sequence[str]]) -> None:
        """Take the items by evaluation. Items without words are left out: they are in every row."""
        self._items: list[_Item] = []
        for name, texts in evaluations.items():
            for number, text in enumerate(texts, start=1):
                found = words(text)
                if found:
                    self._items.append(
                        _Item(
                            evaluation=name,
                            number=number,
                            grams=frozenset(grams_of(found)),
                            words=frozenset(found),
                            num_words=len(found),
                        )
                    )
        self._items_of: dict[Gram, list[int]] = {}
        for place, item in enumerate(self._items):
            for gram in item.grams:
                self._items_of.setdefault(gram, []).append(place)
        self._drop_common_()
        self._short = {len(gram) for gram in self._items_of if len(gram) < NGRAM_WORDS}
        held = Counter(word for item in self._items for word in item.words)
        self._word_weights = {word: math.log1p(len(self._items) / count) for word, count in held.items()}

    def _drop_common_(self) -> None:
        """Leave out 3-grams that many items share ("how many does she"): they tell no item and cost most of the time.

        An item all of whose 3-grams are common keeps them.
        """
        most = max(MAX_ITEMS_A_GRAM, int(MAX_SHARE_A_GRAM * len(self._items)))
        common = {gram for gram, places in self._items_of.items() if len(places) > most}
        for item in self._items:
            if item.grams <= common:
                common -= item.grams
        for place, item in enumerate(self._items):
            if item.grams & common:
                self._items[place] = replace(item, grams=item.grams - common)
        self._items_of = {}
        for place, item in enumerate(self._items):
            for gram in item.grams:
                self._items_of.setdefault(gram, []).append(place)

    def matches(self, texts: Sequence[str], *, threshold: float = THRESHOLD) -> list[Match]:
        """Return the best match of each text that holds an item, in order of the texts.

        `threshold` is the share of an item's words, for items of 25 words and more. Weights of 3-grams count all
        texts, so texts belong in one call; the result does not depend on their order.
        """
        shared = [self._known_grams(words(text)) for text in texts]
        held = Counter(gram for grams in shared for gram in grams)
        total = len(self._items) + len(texts)
        weights = {gram: math.log1p(total / (len(of) + held[gram])) for gram, of in self._items_of.items()}
        whole = [math.fsum(weights[gram] for gram in item.grams) for item in self._items]
        out = []
        for row, grams in enumerate(shared):
            if not grams:
                continue
            candidates = self._candidates(grams, weights, whole)
            if candidates:
                found = words(texts[row])
                best = self._best(candidates, frozenset(found), threshold)
                if best is not None:
                    score, item = best
                    run = longest_run(found, item.grams)
                    out.append(
                        Match(row=row, evaluation=item.evaluation, item=item.number, score=round(score, 4), text=run)
                    )
        return out

    def _known_grams(self, found: Sequence[str]) -> set[Gram]:
        """The 3-grams of a text that any item has, and the shorter ones where items are as short as that."""
        known = self._items_of
        grams: set[Gram] = {gram for gram in zip(found, found[1:], found[2:], strict=False) if gram in known}
        for size in self._short:
            every = (tuple(found[start : start + size]) for start in range(len(found) - size + 1))
            grams.update(gram for gram in every if gram in known)
        return grams

    def _candidates(self, grams: set[Gram], weights: Mapping[Gram, float], whole: Sequence[float]) -> list[int]:
        """Items of which a text holds enough 3-grams."""
        gained: dict[int, list[float]] = {}
        for gram in grams:
            for place in self._items_of[gram]:
                gained.setdefault(place, []).append(weights[gram])
        return [
            place
            for place, parts in gained.items()
            if math.fsum(parts) >= share_for(self._items[place].num_words, MIN_GRAMS) * whole[place] - 1e-9
        ]

    def _best(self, places: Sequence[int], found: frozenset[str], threshold: float) -> tuple[float, _Item] | None:
        """The item of which a text holds most words, if that is enough; of equals the first."""
        best: tuple[float, int] | None = None
        for place in sorted(places):
            item = self._items[place]
            weight = math.fsum(self._word_weights[word] for word in item.words)
            score = math.fsum(self._word_weights[word] for word in item.words & found) / weight
            if score >= share_for(item.num_words, threshold) - 1e-9 and (best is None or score > best[0]):
                best = score, place
        return None if best is None else (best[0], self._items[best[1]])


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
