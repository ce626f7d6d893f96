"""Pairs of rows that repeat each other, with the threshold from which they do.

What lives here: candidates in, compared pairs out. What does not: which row of a pair goes (`data.dedup`).

    rows -> words of prompts and answers -> candidates -> scores -> guards -> PairTable

Two rows repeat each other where prompt and answer together are near enough, and neither side is another text. An
answer that is JSON, code or a command must be the same, sign for sign. Nothing here depends on the threshold that a
recipe sets: each pair carries the largest threshold at which it still is one, so that any other from `FLOOR` up can be
tried without comparing anything again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from tunesmith.data.contrast import (
    GROUPS_OF,
    MAX_FEW,
    MAX_FEW_OF_LONG,
    asks_another,
    contrast,
    says_another,
    sentences_of,
)
from tunesmith.data.engines import LOCAL, Engine
from tunesmith.data.formal import SHORT_TOKENS, formal_text, is_json
from tunesmith.data.near import candidate_pairs
from tunesmith.data.verify import (
    FAMILY,
    FAMILY_THRESHOLD,
    LONG_TEXT_WORDS,
    ROUNDING,
    SHORT_TEXT_WORDS,
    Families,
    differences,
    mended_weight,
    rare_weight,
    same_numbers,
    scores_of,
    threshold_of,
    thresholds_for,
)
from tunesmith.data.words import answer_text, normal_text, prompt_text, words
from tunesmith.data.wordtable import Flags, Floats, Ints, WordTable, shared_weight, sorted_unique, words_of_sides
from tunesmith.types import Row

FLOOR = 0.5
"""Pairs that are near-duplicates at this threshold or a higher one are found."""
SIDE_EASE = 0.3
"""By how much a long prompt, or an answer, alone may fall short where both together are near enough."""
MAX_REMEMBERED = 20_000
"""Texts of which a pass over the pairs remembers what it found."""
_NEVER = -np.inf
_PROSE, _SAME, _OTHER = range(3)
"""What two answers are: none is formal, formal and the same, at least one formal and not the same."""
_Said = TypeVar("_Said")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTable:
    """Pairs of rows, by row number, each once; the row that comes first by content is left."""

    left: Ints
    right: Ints
    prompt_scores: Floats
    prompt_at: Floats
    """Largest threshold at which the prompts alone are near-duplicates; minus infinity where they are none."""
    scores: Floats
    """Of prompt and answer together."""
    same_at: Floats
    """Largest threshold at which the rows repeat each other; minus infinity where they do not."""
    contrary: Flags
    """Whether the answers are labels, and contradict each other where the rows do not repeat each other."""
    equal: Flags
    """Whether the rows are the same, spacing and (of words) case apart."""

    def only(self, flags: Flags) -> PairTable:
        """Return some of the pairs."""
        return PairTable(**{name: getattr(self, name)[flags] for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What is compared of each row."""

    prompts: list[str]
    answers: list[str]
    rank: Ints
    """Place of each row in an order by content: the same whatever the order of the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One side of the candidate pairs."""

    table: WordTable
    left: Ints
    right: Ints
    lengths: Ints
    """Different words of the shorter text."""
    shared: Floats
    numbers: Flags
    """Whether the numbers are the same."""

    def only(self, flags: Flags) -> _Side:
        return _Side(
            table=self.table,
            left=self.left[flags],
            right=self.right[flags],
            lengths=self.lengths[flags],
            shared=self.shared[flags],
            numbers=self.numbers[flags],
        )

    @property
    def totals(self) -> tuple[Floats, Floats]:
        return self.table.totals[self.left], self.table.totals[self.right]

    @property
    def plain(self) -> Floats:
        return scores_of(self.shared, *self.totals, self.lengths)

    def most(self) -> Floats:
        """The largest shared weight that mending of typos could reach."""
        rare = rare_weight(self.table, self.left) + rare_weight(self.table, self.right)
        return np.minimum(self.shared + rare, np.minimum(*self.totals))

    def families(self, rank: Ints) -> Families:
        """Which texts resemble each other, whatever their numbers."""
        alike = (self.plain >= FAMILY * thresholds_for(self.lengths, FAMILY_THRESHOLD)) & (self.lengths > 0)
        return Families(self.table, self.left[alike], self.right[alike], rank)


def texts_of(rows: Sequence[Row], *, answers: bool) -> Texts:
    """Prompt and answer of each row; a text without a prompt stands as the prompt, so that it is compared as one."""
    prompts, said = [], []
    for row in rows:
        prompt, answer = prompt_text(row.conversation), answer_text(row.conversation)
        prompts.append(prompt or answer)
        said.append(answer if prompt and answers else "")
    keys = [
        np.fromiter((xxhash.xxh3_64_intdigest(text.encode("utf-8", "replace")) for text in side), np.uint64, len(rows))
        for side in (said, prompts)
    ]
    order = np.lexsort((np.arange(len(rows)), *keys))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))
    return Texts(prompts=prompts, answers=said, rank=rank)


def near_pairs(texts: Texts, *, floor: float = FLOOR, engine: Engine = LOCAL) -> PairTable:
    """Return all pairs whose rows, or whose prompts, are near-duplicates at `floor` or a higher threshold."""
    both = any(texts.answers)
    words = words_of_sides(texts.prompts, texts.answers) if both else words_of_sides(texts.prompts)
    tables = words.tables
    found = [candidate_pairs(words.first, texts.rank, engine), _equal_pairs(texts.rank, [tables[0].hashes])]
    if both:
        found.append(candidate_pairs(words.whole, texts.rank, engine))
        found.append(_equal_pairs(texts.rank, [table.hashes for table in tables]))
    left, right = _merged(found, texts.rank)
    del words, found
    sides = [_side(table, left, right) for table in tables]
    families = [side.families(texts.rank) for side in sides]
    likely = _reaches(sides, [side.most() for side in sides], floor)
    sides = [side.only(likely) for side in sides]
    mended = [
        np.minimum(side.shared + mended_weight(side.table, side.left, side.right), np.minimum(*side.totals))
        for side in sides
    ]
    near = _reaches(sides, mended, floor)
    sides, mended = [side.only(near) for side in sides], [shared[near] for shared in mended]
    return _judged(texts, sides, mended, families, floor)


def _side(table: WordTable, left: Ints, right: Ints) -> _Side:
    return _Side(
        table=table,
        left=left,
        right=right,
        lengths=np.minimum(table.lengths[left], table.lengths[right]),
        shared=shared_weight(table, left, right),
        numbers=same_numbers(table, left, right),
    )


def _equal_pairs(rank: Ints, hashes: list[npt.NDArray[np.uint64]]) -> tuple[Ints, Ints]:
    """Pair each row with the first one of equal words, in order of rank."""
    order = np.lexsort((rank, *hashes))
    differs = np.ones(len(order), dtype=np.bool_)
    differs[1:] = np.logical_or.reduce([np.diff(values[order]) != 0 for values in hashes])
    first = order[np.maximum.accumulate(np.where(differs, np.arange(len(order)), 0))]
    return first[~differs], order[~differs]


def _merged(found: list[tuple[Ints, Ints]], rank: Ints) -> tuple[Ints, Ints]:
    """All pairs once, the row of lower rank left: pairs are compared the same way round in any order of the rows."""
    left = np.concatenate([pair[0] for pair in found])
    right = np.concatenate([pair[1] for pair in found])
    packed = sorted_unique((np.minimum(rank[left], rank[right]) << 32) | np.maximum(rank[left], rank[right]))
    row_of = np.argsort(rank)
    return row_of[packed >> 32], row_of[packed & 0xFFFFFFFF]


def _together(sides: list[_Side], shared: list[Floats]) -> tuple[Floats, Ints]:
    """Score of all sides as one text, and the different words of the shorter of the two."""
    left, right = (np.add.reduce([side.totals[which] for side in sides]) for which in (0, 1))
    lengths = np.minimum(
        np.add.reduce([side.table.lengths[side.left] for side in sides]),
        np.add.reduce([side.table.lengths[side.right] for side in sides]),
    )
    return scores_of(np.add.reduce(shared), left, right, lengths), lengths


def _levels(sides: list[_Side], shared: list[Floats]) -> tuple[Floats, Floats, Floats, Floats]:
    """(score of prompts, their threshold, score of all, its threshold) of pairs with these shared weights."""
    asked = scores_of(shared[0], *sides[0].totals, sides[0].lengths)
    prompt_at = np.where(sides[0].numbers, threshold_of(asked, sides[0].lengths), _NEVER)
    if len(sides) == 1:
        return asked, prompt_at, asked, prompt_at
    together, lengths = _together(sides, shared)
    same_at = threshold_of(together, lengths)
    for side, weight in zip(sides, shared, strict=True):
        # What was put around one side of a long row is a little of the row, so sides are as uneven as their row may be.
        eased = scores_of(weight, *side.totals, lengths) + SIDE_EASE
        same_at = np.minimum(same_at, np.where(side.numbers, threshold_of(eased, side.lengths), _NEVER))
    return asked, prompt_at, together, same_at


def _reaches(sides: list[_Side], shared: list[Floats], floor: float) -> Flags:
    _, prompt_at, _, same_at = _levels(sides, shared)
    reaches: Flags = np.maximum(prompt_at, same_at) >= floor - ROUNDING
    return reaches


def _judged(
    texts: Texts, sides: list[_Side], mended: list[Floats], families: list[Families], floor: float
) -> PairTable:
    """Apply the guards, pair by pair where they must read the texts."""
    prompt_scores, prompt_at, scores, same_at = (values.copy() for values in _levels(sides, mended))
    left, right = sides[0].left, sides[0].right
    least = floor - ROUNDING
    both = len(sides) == 2
    formal, labels = _formal(texts.answers, sides[1]) if both else np.zeros((2, len(left)), dtype=np.int8)
    same_at[formal == _OTHER] = _NEVER
    another, slots = _other(sides[0], texts.prompts, families[0], np.maximum(prompt_at, same_at) >= least)
    prompt_at[another | slots] = _NEVER
    if both:
        answers = sides[1]
        same_answer = answers.table.hashes[left] == answers.table.hashes[right]
        said = _other(answers, texts.answers, families[1], (same_at >= least) & ~another & (formal == _PROSE))
        # Copies with other prompts and other answers are edited ones, unless both differ in what fills a template, or
        # in the same words.
        same_prompt = sides[0].table.hashes[left] == sides[0].table.hashes[right]
        alike = _replaced_alike(families, left, right, (slots | said[1]) & (same_at >= least))
        slots = (
            (slots & (same_answer | said[1] | (answers.lengths <= SHORT_TEXT_WORDS)))
            | (said[1] & same_prompt)
            | ((slots | said[1]) & alike)
        )
        another = another | said[0]
    same_at[another | slots] = _NEVER
    # Of formal answers that are the same the prompts alone decide how near the rows are.
    scores = np.where(formal != _PROSE, prompt_scores, scores)
    same_at = np.where(formal == _SAME, prompt_at, same_at)
    contrary = np.zeros(len(left), dtype=np.bool_)
    if both:
        short = sides[1].lengths <= SHORT_TEXT_WORDS
        contrary = (prompt_at >= 0) & np.where(formal == _PROSE, short, labels & (formal == _OTHER))
    return PairTable(
        left=left,
        right=right,
        prompt_scores=prompt_scores,
        prompt_at=prompt_at,
        scores=scores,
        same_at=same_at,
        contrary=contrary,
        equal=_equal(texts, sides, same_at),
    ).only(np.maximum(prompt_at, same_at) >= least)


def _equal(texts: Texts, sides: list[_Side], same_at: Floats) -> Flags:
    """Which pairs are the same but for spacing and case."""
    left, right = sides[0].left, sides[0].right
    equal = np.logical_and.reduce([side.table.hashes[left] == side.table.hashes[right] for side in sides])
    normal = _Cache(normal_text)
    for pair in np.flatnonzero(equal & (same_at >= 0)).tolist():
        one, other = int(left[pair]), int(right[pair])
        equal[pair] = all(normal(side[one]) == normal(side[other]) for side in (texts.prompts, texts.answers))
    out: Flags = equal & (same_at >= 0)
    return out


def _other(side: _Side, texts: Sequence[str], families: Families, asked: Flags) -> tuple[Flags, Flags]:
    """Which of the asked pairs of a side say something else, however near their words are, and which fill slots."""
    out, filled = np.zeros((2, len(side.left)), dtype=np.bool_)
    pairs = np.flatnonzero(asked)
    side = side.only(asked)
    only_left, only_right = differences(side.table, side.left, side.right)
    vocabulary = side.table.vocabulary
    choice = np.fromiter((word in GROUPS_OF or word[:1].isdigit() for word in vocabulary), np.bool_, len(vocabulary))
    chosen = np.logical_and(*(found.any_of(choice) for found in (only_left, only_right)))
    most = np.where(side.lengths < LONG_TEXT_WORDS, MAX_FEW, MAX_FEW_OF_LONG)
    few = np.maximum(only_left.counts, only_right.counts) <= most
    changed = np.minimum(only_left.counts, only_right.counts) > 0
    # Words that only one text holds may stand where the other says one of its words twice.
    changed |= few & (np.maximum(only_left.counts, only_right.counts) > 0)
    slots = changed & families.may_be(side.left, side.right)
    sentences = _Cache(sentences_of)
    rows = zip(pairs.tolist(), side.left.tolist(), side.right.tolist(), strict=True)
    for place, (pair, left, right) in enumerate(rows):
        one, other = texts[left], texts[right]
        if one == other:
            continue
        if side.lengths[place] == 0:
            out[pair] = one.split() != other.split()
            continue
        if chosen[place] and contrast(*([vocabulary[word] for word in d.of(place)] for d in (only_left, only_right))):
            out[pair] = True
        elif few[place]:
            out[pair] = says_another(one, other)
        else:
            out[pair] = asks_another(sentences(one), sentences(other))
        if slots[place] and not out[pair]:
            differing = frozenset(only_left.of(place)), frozenset(only_right.of(place))
            if not all(differing):
                differing = _said_more_often(one, other, side.table, left, right)
            filled[pair] = families.fill_slots(left, right, *differing)
    return out, filled


def _said_more_often(
    one: str, other: str, table: WordTable, left: int, right: int
) -> tuple[frozenset[int], frozenset[int]]:
    """The words that each text holds more often than the other: "from Lima to Lima" differs in them."""
    counts = Counter(words(one)), Counter(words(other))
    more = counts[0] - counts[1], counts[1] - counts[0]
    only_one = frozenset(word for word in table.words_of(left).tolist() if more[0][table.vocabulary[word]] > 0)
    only_other = frozenset(word for word in table.words_of(right).tolist() if more[1][table.vocabulary[word]] > 0)
    return only_one, only_other


def _replaced_alike(families: Sequence[Families], left: Ints, right: Ints, asked: Flags) -> Flags:
    """Which of the asked pairs have, on both sides, the same word of the one in place of the same word of the other."""
    out = np.zeros(len(left), dtype=np.bool_)
    for pair in np.flatnonzero(asked).tolist():
        one, other = ([family.words_of(int(texts[pair])) for family in families] for texts in (left, right))
        only_one, only_other = ((a[0] - b[0]) & (a[1] - b[1]) for a, b in ((one, other), (other, one)))
        out[pair] = bool(only_one and only_other)
    return out


class _Cache(Generic[_Said]):
    """Remembers what a function says of the texts it was asked about lately."""

    def __init__(self, function: Callable[[str], _Said]) -> None:
        self._function = function
        self._said: dict[str, _Said] = {}

    def __call__(self, text: str) -> _Said:
        if text not in self._said:
            if len(self._said) >= MAX_REMEMBERED:
                self._said.clear()
            self._said[text] = self._function(text)
        return self._said[text]


def _in_one_case(text: str) -> bool:
    """Whether a text is long, and in capitals or with a capital on each word: then it is no code that runs."""
    return len(text.split()) > SHORT_TOKENS and (text.isupper() or text.istitle())


def _formal(answers: Sequence[str], side: _Side) -> tuple[npt.NDArray[np.int8], Flags]:
    """Say of each pair whether its answers are code or JSON, which must be the same sign for sign.

    The second array tells which pairs have two answers in JSON.
    """
    said = np.full(len(side.left), _PROSE, dtype=np.int8)
    labels = np.zeros(len(side.left), dtype=np.bool_)
    formal = _Cache(formal_text)
    hashes = side.table.hashes
    for pair, (one, other) in enumerate(zip(side.left.tolist(), side.right.tolist(), strict=True)):
        mine, yours = formal(answers[one]), formal(answers[other])
        if mine is None and yours is None:
            continue
        if hashes[one] == hashes[other] and (_in_one_case(answers[one]) or _in_one_case(answers[other])):
            continue
        said[pair] = _SAME if mine == yours else _OTHER
        labels[pair] = is_json(answers[one]) and is_json(answers[other])
    return said, labels
