"""Word tables: the words and numbers of many texts as sparse matrices.

What lives here: texts in, weighted word sets out. What does not: what a word is (`data.words`), what is compared with
what (`data.compare`).

    prompts, answers -> bytes of all texts -> words by Arrow -> one table a side, and words joined by spaces for MinHash

Tens of millions of words pass here, so that no word is a Python object: a chunk of texts is one buffer of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse as sp

from tunesmith.data.words import WORD_BYTES, money_signs, numbers, word_text

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
_ROWS_PER_CHUNK = 16_384
_SPACE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class WordTable:
    """Word sets of many texts with the weights of their words."""

    sets: sp.csr_matrix
    """(texts, vocabulary), 1 where the word occurs."""
    weights: Floats
    """(vocabulary,) IDF: log(1 + texts / texts that hold the word), in steps of 1/1024."""
    frequency: Ints
    """(vocabulary,) texts that hold the word."""
    totals: Floats
    """(texts,) sum of weights of each text's words."""
    numbers: sp.csr_matrix
    """(texts, numbers), how often each number stands in the text."""
    hashes: npt.NDArray[np.uint64]
    """(texts,) equal for texts of the same words in the same order; 0 for texts without words."""
    vocabulary: list[str]

    @property
    def lengths(self) -> Ints:
        """(texts,) different words of each text."""
        lengths: Ints = np.diff(self.sets.indptr).astype(np.int64)
        return lengths

    def words_of(self, text: int) -> npt.NDArray[np.int32]:
        """Return the words of a text, as vocabulary numbers in order."""
        words: npt.NDArray[np.int32] = self.sets.indices[self.sets.indptr[text] : self.sets.indptr[text + 1]]
        return words


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The words of rows that have one or two sides."""

    tables: list[WordTable]
    """One a side; they share a vocabulary, but not weights."""
    first: list[pa.Array]
    """Words of the first side joined by spaces, in chunks of rows."""
    whole: list[pa.Array]
    """Words of all sides joined by spaces, in chunks of rows."""


@dataclass(slots=True)
class _Parts:
    """What the chunks gave so far."""

    ids: list[npt.NDArray[np.int32]]
    sizes: list[Ints]
    signs: list[tuple[Ints, Ints]]
    first: list[pa.Array]
    whole: list[pa.Array]


def words_of_sides(*sides: Sequence[str]) -> Words:
    """Tokenise the sides of all rows and weigh their words."""
    num_rows, num_sides = len(sides[0]), len(sides)
    vocabulary: dict[str, int] = {}
    parts = _Parts([], [], [], [], [])
    for start in range(0, num_rows, _ROWS_PER_CHUNK):
        rows = [side[start : start + _ROWS_PER_CHUNK] for side in sides]
        texts = [text for row in zip(*rows, strict=True) for text in row]
        _read_(parts, texts, start * num_sides, num_sides, vocabulary)
    ids = np.concatenate(parts.ids) if parts.ids else np.zeros(0, dtype=np.int32)
    sizes = np.concatenate(parts.sizes) if parts.sizes else np.zeros(0, dtype=np.int64)
    text = np.repeat(np.arange(len(sizes)), sizes)
    hashes = _sequence_hashes(ids, sizes)
    counts = _numbers(ids, text, parts.signs, list(vocabulary), len(sizes))
    sets = _sets(ids, text, len(sizes), len(vocabulary))
    names = list(vocabulary)
    tables = [
        _table(sets[side::num_sides], counts[side::num_sides], hashes[side::num_sides], names)
        for side in range(num_sides)
    ]
    return Words(tables=tables, first=parts.first, whole=parts.whole)


def _table(sets: sp.csr_matrix, counts: sp.csr_matrix, hashes: npt.NDArray[np.uint64], names: list[str]) -> WordTable:
    num_texts, num_words = sets.shape
    frequency = np.bincount(sets.indices, minlength=num_words).astype(np.int64)
    # In steps of 1/1024 sums are exact, so that no score depends on the order in which words are added up.
    weights = np.rint(np.log1p(num_texts / np.maximum(frequency, 1)) * 1024) / 1024
    return WordTable(
        sets=sets,
        weights=weights,
        frequency=frequency,
        totals=np.asarray(sets @ weights, dtype=np.float64).ravel() if num_words else np.zeros(num_texts),
        numbers=counts,
        hashes=hashes,
        vocabulary=names,
    )


def _read_(parts: _Parts, texts: list[str], start: int, num_sides: int, vocabulary: dict[str, int]) -> None:
    """Add the words of a chunk of texts, of which `num_sides` after another are one row."""
    signs_at: list[tuple[int, int]] = []
    raw = []
    for place, text in enumerate(texts):
        if text.isascii():
            raw.append(text.encode())
        else:
            raw.append(word_text(text).encode("utf-8", "replace"))
            signs_at += [(place, ord(sign)) for sign in money_signs(text)]
    lengths = np.fromiter(map(len, raw), np.int64, len(raw)) + 1
    ends = np.cumsum(lengths)
    buffer = b" ".join([*raw, b""])
    parts.signs.append(_signs(np.frombuffer(buffer, dtype=np.uint8), ends, signs_at, start))
    letters = np.frombuffer(buffer.translate(WORD_BYTES), dtype=np.uint8)
    blank = letters == _SPACE
    after = np.ones(len(letters), dtype=np.bool_)
    after[1:] = blank[:-1]
    begins = np.flatnonzero(~blank & after)
    word_ends = np.flatnonzero(blank & ~after)
    word_lengths = word_ends - begins
    found = _dictionary(letters[~blank], word_lengths, vocabulary)
    sizes = np.diff(np.searchsorted(begins, np.r_[0, ends])) if len(ends) else np.zeros(0, dtype=np.int64)
    parts.ids.append(found)
    parts.sizes.append(sizes)
    # One blank after each word, but none after the last word of a row: what MinHash splits at.
    row_sizes = sizes.reshape(-1, num_sides)
    keep = ~blank
    keep[word_ends] = True
    spans = np.r_[0, np.cumsum(word_lengths + 1)]
    parts.whole.append(_joined(letters, keep, word_ends, spans, np.cumsum(row_sizes.sum(axis=1))))
    if num_sides == 1:
        parts.first.append(parts.whole[-1])
        return
    of_first = np.repeat(np.tile([True, *[False] * (num_sides - 1)], len(row_sizes)), sizes)
    inside = np.repeat(np.tile([True, *[False] * (num_sides - 1)], len(row_sizes)), lengths)
    spans = np.r_[0, np.cumsum((word_lengths + 1)[of_first])]
    parts.first.append(_joined(letters, keep & inside, word_ends[of_first], spans, np.cumsum(row_sizes[:, 0])))


def _joined(letters: npt.NDArray[np.uint8], keep: Flags, word_ends: Ints, spans: Ints, last_words: Ints) -> pa.Array:
    """Rows as strings: words with one blank between. `last_words` is the number of words up to each row's end."""
    keep = keep.copy()
    counts = np.diff(np.r_[0, last_words])
    keep[word_ends[last_words[counts > 0] - 1]] = False
    offsets = np.r_[0, spans[last_words] - np.cumsum(counts > 0)].astype(np.int64)
    data = pa.py_buffer(letters[keep].tobytes())
    return pa.LargeStringArray.from_buffers(len(counts), pa.py_buffer(offsets.tobytes()), data)


def _dictionary(data: npt.NDArray[np.uint8], lengths: Ints, vocabulary: dict[str, int]) -> npt.NDArray[np.int32]:
    """Vocabulary numbers of the words of one chunk; new words are added."""
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    words = pa.LargeStringArray.from_buffers(
        len(lengths), pa.py_buffer(offsets.tobytes()), pa.py_buffer(data.tobytes())
    )
    encoded = words.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    number_of = np.fromiter((vocabulary.setdefault(name, len(vocabulary)) for name in names), np.int32, len(names))
    found: npt.NDArray[np.int32] = number_of[encoded.indices.to_numpy()] if len(names) else np.zeros(0, dtype=np.int32)
    return found


def _signs(raw: npt.NDArray[np.uint8], ends: Ints, others: list[tuple[int, int]], start: int) -> tuple[Ints, Ints]:
    """Text and code of each sign of money or percent; those of texts that are not ASCII are given."""
    at = np.flatnonzero((raw == ord("$")) | (raw == ord("%")))
    texts = np.searchsorted(ends, at, side="right")
    more = np.array(others, dtype=np.int64).reshape(-1, 2)
    return np.r_[texts, more[:, 0]] + start, np.r_[raw[at].astype(np.int64), more[:, 1]]


def _sequence_hashes(ids: npt.NDArray[np.int32], sizes: Ints) -> npt.NDArray[np.uint64]:
    """A hash of the words of each text in order that does not depend on vocabulary numbers of other texts."""
    starts = np.cumsum(sizes) - sizes
    place = np.arange(len(ids), dtype=np.uint64) - np.repeat(starts, sizes).astype(np.uint64)
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(31)
    mixed *= (place * np.uint64(2) + np.uint64(3)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    out = np.zeros(len(sizes), dtype=np.uint64)
    some = sizes > 0
    if some.any():
        out[some] = np.add.reduceat(mixed, starts[some])
    return out


def _sets(ids: npt.NDArray[np.int32], text: Ints, num_texts: int, num_words: int) -> sp.csr_matrix:
    """Which words each text holds, in order of their numbers."""
    packed = sorted_unique((text << 32) | ids)
    starts = np.r_[0, np.cumsum(np.bincount(packed >> 32, minlength=num_texts))]
    indices = (packed & 0xFFFFFFFF).astype(np.int32)
    return sp.csr_matrix((np.ones(len(indices), dtype=np.float32), indices, starts), shape=(num_texts, num_words))


def _numbers(
    ids: npt.NDArray[np.int32], text: Ints, signs: list[tuple[Ints, Ints]], vocabulary: list[str], num_texts: int
) -> sp.csr_matrix:
    """How often each number, and each sign of money, stands in each text."""
    found = [numbers(word) for word in vocabulary]
    names: dict[str, int] = {}
    sizes = np.fromiter(map(len, found), np.int64, len(found))
    flat = np.fromiter((names.setdefault(n, len(names)) for word in found for n in word), np.int64, int(sizes.sum()))
    starts = np.cumsum(sizes) - sizes
    at = np.flatnonzero(sizes[ids] > 0) if len(ids) else np.zeros(0, dtype=np.int64)
    many = sizes[ids[at]]
    rows = [np.repeat(text[at], many)]
    offsets = np.arange(int(many.sum())) - np.repeat(np.cumsum(many) - many, many)
    columns = [flat[np.repeat(starts[ids[at]], many) + offsets]]
    for texts, codes in signs:
        rows.append(texts)
        columns.append(
            np.fromiter((names.setdefault(chr(c), len(names)) for c in codes.tolist()), np.int64, len(codes))
        )
    row, column = np.concatenate(rows), np.concatenate(columns)
    ones = np.ones(len(row), dtype=np.int32)
    return sp.coo_matrix((ones, (row, column)), shape=(num_texts, max(1, len(names)))).tocsr()


def sorted_unique(values: Ints) -> Ints:
    """Return the different values in order, and sort `values`; sorting beats numpy's hashing for tens of millions."""
    values.sort()
    return values[np.r_[True, values[1:] != values[:-1]]] if len(values) else values


def shared_weight(table: WordTable, left: Ints, right: Ints) -> Floats:
    """Return the weight of the words that both texts of each pair hold. `left` and `right` are row numbers."""
    out = np.empty(len(left), dtype=np.float64)
    sets = table.sets
    weighted = sp.csr_matrix((table.weights[sets.indices].astype(np.float32), sets.indices, sets.indptr), sets.shape)
    for start in range(0, len(left), _PAIRS_PER_CHUNK):
        part = slice(start, start + _PAIRS_PER_CHUNK)
        both = weighted[left[part]].multiply(sets[right[part]])
        out[part] = np.asarray(both.sum(axis=1, dtype=np.float64)).ravel()
    return out


_PAIRS_PER_CHUNK = 50_000
