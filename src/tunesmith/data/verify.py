"""How near two texts are: scores of pairs, and guards that keep texts of one template apart.

What lives here: scores and three guards over word tables. What does not: where candidates come from (`data.near`), what
small differences say (`data.contrast`), which guards decide about a row (`data.compare`).

    score = shared / (shared + 1.65 * only in the lighter text + 0.35 * only in the heavier one)

over words weighted by how rare they are (IDF): words of a template are common, so they weigh little, and words put
around a text cost less than words put in its place. Then

- **numbers**: texts with other numbers are other texts ("12 apples" and "37 apples"); of a text of 20 words and more,
  an edit may have lost one number in five;
- **typos**: a word that occurs once or twice and is one or two letters from a word of the other text is that word;
- **slots**: where more texts resemble the pair, words that most of them lack, in place of other such words, are what
  fills the slots of their template ("parcel to Graz", "parcel to Lyon"): the two are no duplicates. An edited copy
  differs in this: what it lacks is what its original and the other copies have.

Measured in `benchmarks/near_duplicates.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunesmith.data.wordtable import Floats, Ints, WordTable

UNEVEN = 0.65
"""By how much a word costs more that only the lighter of two texts holds, and less that only the heavier holds: 0 would
be Jaccard's overlap."""
UNEVEN_WORDS = 16
"""Texts of up to 8 different words are compared evenly, as one more word changes what they say; from 16 on unevenly."""
LONG_TEXT_WORDS = 40
SHORT_TEXT_WORDS = 8
SHORT_TEXT_THRESHOLD = 0.9
"""One word more or less changes what a short text says: texts of up to 8 different words need a score of 0.9, which
falls in a line to the given threshold at 40 words (allenai/decon eases its threshold with length as well)."""
ROUNDING = 1e-9
FAMILY, FAMILY_THRESHOLD = 0.75, 0.6
"""Share of the score for this threshold from which two texts belong to one family, in which slots are looked for."""
MAX_WORD_SETS = 20_000
"""Sets of words that are kept at once."""
MAX_NEAR = 24
"""So many relatives of each text are looked at."""
MAX_SLOT_SHARE = 0.75
"""What fills a slot occurs in at most this share of the relatives; what an edited copy lost occurs in nearly all."""
MAX_TYPO_FREQUENCY = 2
"""A misspelt word occurs in at most so many rows, and in one more for each 50,000 rows."""
_ROWS_PER_TYPO = 50_000
MAX_TYPO_LETTERS = 32
_PAIRS_PER_CHUNK = 50_000
MIN_WORDS_TO_LOSE_NUMBERS = 20
MAX_LOST_NUMBERS = 0.2


def scores_of(shared: Floats, left: Floats, right: Floats, lengths: Ints) -> Floats:
    """Return the score of pairs; 1 for two empty texts.

    `shared` is the weight of shared words, `left` and `right` that of each text, `lengths` the different words of the
    shorter one.
    """
    share = np.clip((lengths - SHORT_TEXT_WORDS) / (UNEVEN_WORDS - SHORT_TEXT_WORDS), 0, 1)
    lighter, heavier = np.minimum(left, right) - shared, np.maximum(left, right) - shared
    whole = shared + (1 + UNEVEN * share) * lighter.clip(0) + (1 - UNEVEN * share) * heavier.clip(0)
    scores: Floats = np.where(whole > 0, shared / np.where(whole > 0, whole, 1), 1.0)
    return scores


def thresholds_for(lengths: Ints, threshold: float) -> Floats:
    """Return the score from which texts of these many different words are near-duplicates."""
    share = np.clip((lengths - SHORT_TEXT_WORDS) / (LONG_TEXT_WORDS - SHORT_TEXT_WORDS), 0, 1)
    short = max(SHORT_TEXT_THRESHOLD, threshold)
    thresholds: Floats = short + (threshold - short) * share
    return thresholds


def threshold_of(scores: Floats, lengths: Ints) -> Floats:
    """Return the largest threshold at which pairs of these scores are near-duplicates: `thresholds_for` turned round.

    Minus infinity where none is low enough.
    """
    share = np.clip((lengths - SHORT_TEXT_WORDS) / (LONG_TEXT_WORDS - SHORT_TEXT_WORDS), 0, 1)
    eased = (scores - SHORT_TEXT_THRESHOLD * (1 - share)) / np.where(share > 0, share, 1)
    # From the short texts' threshold up the threshold is the same for all lengths.
    out: Floats = np.where(scores >= SHORT_TEXT_THRESHOLD - ROUNDING, scores, np.where(share > 0, eased, -np.inf))
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """The words that only one text of each pair holds."""

    starts: Ints
    """(pairs + 1,) where the words of each pair begin."""
    words: npt.NDArray[np.int32]
    """Vocabulary numbers, in order within a pair."""

    def of(self, pair: int) -> list[int]:
        """Return the words of one pair."""
        words: list[int] = self.words[self.starts[pair] : self.starts[pair + 1]].tolist()
        return words

    def any_of(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """(pairs,) whether a pair holds any of some words: a flag a vocabulary number."""
        held: npt.NDArray[np.bool_] = np.diff(np.r_[0, np.cumsum(chosen[self.words])][self.starts]) > 0
        return held

    @property
    def counts(self) -> Ints:
        """(pairs,) how many words there are."""
        return np.diff(self.starts)


def differences(table: WordTable, left: Ints, right: Ints) -> tuple[Differences, Differences]:
    """Return the words that only the left text of each pair holds, and those that only the right one does."""
    out = []
    for mine, yours in ((left, right), (right, left)):
        words, sizes = [], []
        for start in range(0, len(mine), _PAIRS_PER_CHUNK):
            part = slice(start, start + _PAIRS_PER_CHUNK)
            sets = table.sets[mine[part]]
            only = sets - sets.multiply(table.sets[yours[part]])
            only.eliminate_zeros()
            only.sort_indices()
            words.append(only.indices)
            sizes.append(np.diff(only.indptr))
        starts = np.r_[0, np.cumsum(np.concatenate(sizes))] if sizes else np.zeros(1, dtype=np.int64)
        flat = np.concatenate(words) if words else np.zeros(0, dtype=np.int32)
        out.append(Differences(starts=starts, words=flat))
    return out[0], out[1]


def mended_weight(table: WordTable, left: Ints, right: Ints) -> Floats:
    """Return the weight that pairs gain where misspelt words count as the words they stand for."""
    only_left, only_right = differences(table, left, right)
    gained = np.zeros(len(left), dtype=np.float64)
    rare = table.frequency <= _most_rows(table)
    held = np.r_[0, np.cumsum(rare[only_left.words])], np.r_[0, np.cumsum(rare[only_right.words])]
    num_rare = sum(np.diff(sums[found.starts]) for sums, found in zip(held, (only_left, only_right), strict=True))
    for pair in np.flatnonzero((num_rare > 0) & (only_left.counts > 0) & (only_right.counts > 0)).tolist():
        found = misspellings(table, only_left.of(pair), only_right.of(pair))
        gained[pair] = sum(float(min(table.weights[one], table.weights[other])) for one, other in found)
    return gained


def rare_weight(table: WordTable, texts: Ints) -> Floats:
    """Return the weight of each text's words that may be misspelt: mending gains no more than that of both texts."""
    rare = np.where(table.frequency <= _most_rows(table), table.weights, 0.0)
    weight: Floats = np.asarray(table.sets @ rare, dtype=np.float64).ravel()[texts]
    return weight


def _most_rows(table: WordTable) -> int:
    return MAX_TYPO_FREQUENCY + len(table.totals) // _ROWS_PER_TYPO


def same_numbers(table: WordTable, left: Ints, right: Ints) -> npt.NDArray[np.bool_]:
    """Return which pairs hold the same numbers; of a long text an edit may have lost a few."""
    out = np.empty(len(left), dtype=np.bool_)
    long = np.minimum(table.lengths[left], table.lengths[right]) >= MIN_WORDS_TO_LOSE_NUMBERS
    for start in range(0, len(left), _PAIRS_PER_CHUNK):
        part = slice(start, start + _PAIRS_PER_CHUNK)
        one, other = table.numbers[left[part]], table.numbers[right[part]]
        shared = np.asarray(one.minimum(other).sum(axis=1)).ravel()
        few, many = np.sort([np.asarray(side.sum(axis=1)).ravel() for side in (one, other)], axis=0)
        lost = many - shared
        out[part] = (shared == few) & ((lost == 0) | (long[part] & (lost <= np.maximum(1, MAX_LOST_NUMBERS * many))))
    return out


def misspellings(table: WordTable, left: Sequence[int], right: Sequence[int]) -> list[tuple[int, int]]:
    """Return pairs of words, one of each side, of which one is the other's misspelling; each word is used once."""
    most = _most_rows(table)
    names, frequency = table.vocabulary, table.frequency
    free = sorted((names[word], word) for word in right)
    rare_free = [(name, word) for name, word in free if frequency[word] <= most]
    found = []
    for name, word in sorted((names[word], word) for word in left):
        for entry in free if frequency[word] <= most else rare_free:
            other = entry[0]
            if -2 <= len(name) - len(other) <= 2 and is_misspelling(name, other):
                found.append((word, entry[1]))
                free.remove(entry)
                if entry in rare_free:
                    rare_free.remove(entry)
                break
    return found


def is_misspelling(one: str, other: str) -> bool:
    """Whether two different words are one edit apart, or two where both have 8 letters or more.

    An edit inserts, drops, replaces or swaps one letter. Words of three letters and less, and words with digits, are
    never misspellings of one another.
    """
    short, long = (one, other) if len(one) <= len(other) else (other, one)
    allowed = 2 if len(short) >= 8 else 1
    if len(long) - len(short) > allowed or len(short) < 3 or len(long) < 4:
        return False
    if one[0] != other[0] and one[-1] != other[-1] and one[1:3] != other[1:3]:
        return False  # one or two edits rarely change both ends and what is beside the first letter
    if not (one.isalpha() and other.isalpha()):
        return False
    while short and long and short[0] == long[0]:
        short, long = short[1:], long[1:]
    while short and long and short[-1] == long[-1]:
        short, long = short[:-1], long[:-1]
    if len(long) <= 1:
        return True
    if len(short) == len(long) == 2 and short == long[::-1]:
        return True
    return _distance(short, long, allowed) <= allowed


def _distance(short: str, long: str, most: int) -> int:
    """Levenshtein distance of two words; very long ones are never compared."""
    if len(long) > MAX_TYPO_LETTERS:
        return most + 1
    row = list(range(len(long) + 1))
    for i, a in enumerate(short, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(long, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


class Families:
    """For each text the texts that resemble it, whatever their numbers: where slots of templates are looked for."""

    def __init__(self, table: WordTable, left: Ints, right: Ints, rank: Ints) -> None:
        """Take the pairs of texts that resemble each other."""
        self._table = table
        both = np.concatenate([left, right]), np.concatenate([right, left])
        order = np.lexsort((rank[both[1]], both[0]))
        self._other = both[1][order]
        self._starts = np.searchsorted(both[0][order], np.arange(len(table.totals) + 1))
        self._words: dict[int, frozenset[int]] = {}

    def may_be(self, left: Ints, right: Ints) -> npt.NDArray[np.bool_]:
        """Return which pairs have any relative besides each other."""
        known = np.diff(self._starts)
        alone: npt.NDArray[np.bool_] = (known[left] <= 1) & (known[right] <= 1)
        return ~alone

    def _near(self, text: int) -> list[int]:
        near: list[int] = self._other[self._starts[text] : self._starts[text + 1]][:MAX_NEAR].tolist()
        return near

    def words_of(self, text: int) -> frozenset[int]:
        """Return the words of a text, as vocabulary numbers."""
        if text not in self._words:
            if len(self._words) >= MAX_WORD_SETS:
                self._words.clear()
            self._words[text] = frozenset(self._table.words_of(text).tolist())
        return self._words[text]

    def fill_slots(self, one: int, other: int, only_one: frozenset[int], only_other: frozenset[int]) -> bool:
        """Whether two texts differ in what fills a slot of the template that they share with others.

        `only_one` and `only_other` are the words in which they differ.
        """
        if not only_one or not only_other:
            return False
        family = {*self._near(one), *self._near(other)} - {one, other}
        if not family:
            return False
        members = [self.words_of(text) for text in family]
        if not (self._most_are_rare(only_one, members) and self._most_are_rare(only_other, members)):
            return False
        pairs = misspellings(self._table, sorted(only_one), sorted(only_other))
        if not pairs:
            return True
        only_one, only_other = only_one - {pair[0] for pair in pairs}, only_other - {pair[1] for pair in pairs}
        return self._most_are_rare(only_one, members) and self._most_are_rare(only_other, members)

    @staticmethod
    def _most_are_rare(found: frozenset[int], members: Sequence[frozenset[int]]) -> bool:
        """Whether more than half of some words are missing in many members of the family; none are not."""
        rare = sum(sum(word in member for member in members) <= MAX_SLOT_SHARE * len(members) for word in found)
        return 2 * rare > len(found)
