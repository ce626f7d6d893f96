"""Word tables: the words and numbers of many texts as sparse matrices.

What lives here: texts in, weighted word sets out. What does not: what a word is (`data.words`), what is compared with
what (`data.compare`).

    prompts, answers -> bytes of all texts -> words by Arrow -> one table a side, and words joined by spaces for MinHash

Tens of millions of words pass here, so that no word is a Python object: a chunk of texts is one buffer of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
import xxhash

from tunesmith.data.words import WORD_BYTES, money_signs, numbers, word_text

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
_ROWS_PER_CHUNK = 16_384
_Number = TypeVar("_Number", bound=np.generic)


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
class _Vocabulary:
    """Words by number, and the numbers that stand inside words."""

    ids: dict[str, int]
    numbers: list[list[str]]
    """For each word the numbers in it."""

    def add_(self, names: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return the numbers of some words; new words are added."""
        known = len(self.ids)
        found = np.fromiter((self.ids.setdefault(name, len(self.ids)) for name in names), np.int32, len(names))
        new = np.flatnonzero(found >= known).tolist()
        self.numbers += [numbers(names[place]) for place in new]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """The words of some rows, text by text."""

    words: npt.NDArray[np.int32]
    """Different words of each text, in order of their numbers, one text after the other."""
    sizes: Ints
    """Different words of each text."""
    with_numbers: tuple[Ints, npt.NDArray[np.int32]]
    """(text, word) of each word that holds a number, as often as it stands there."""
    signs: tuple[Ints, Ints]
    """(text, code) of each sign of money or percent."""
    hashes: npt.NDArray[np.uint64]
    first: pa.Array
    whole: pa.Array


def words_of_sides(*sides: Sequence[str]) -> Words:
    """Tokenise the sides of all rows and weigh their words."""
    num_rows, num_sides = len(sides[0]), len(sides)
    vocabulary = _Vocabulary({}, [])
    chunks = []
    for start in range(0, num_rows, _ROWS_PER_CHUNK):
        rows = [side[start : start + _ROWS_PER_CHUNK] for side in sides]
        chunks.append(_read([text for row in zip(*rows, strict=True) for text in row], num_sides, vocabulary))
    names = list(vocabulary.ids)
    counts = _numbers(chunks, vocabulary.numbers)
    hashes = _joined_arrays([chunk.hashes for chunk in chunks], np.uint64)
    starts = np.r_[0, np.cumsum(_joined_arrays([chunk.sizes for chunk in chunks], np.int64))]
    indices = _joined_arrays([chunk.words for chunk in chunks], np.int32)
    ones = np.ones(len(indices), dtype=np.float32)
    sets = sp.csr_matrix((ones, indices, starts), shape=(num_rows * num_sides, len(names)))
    tables = [
        _table(sets[side::num_sides], counts[side::num_sides], hashes[side::num_sides], names)
        for side in range(num_sides)
    ]
    return Words(tables=tables, first=[chunk.first for chunk in chunks], whole=[chunk.whole for chunk in chunks])


def _joined_arrays(parts: Sequence[npt.NDArray[_Number]], kind: type[_Number]) -> npt.NDArray[_Number]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=kind)


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


def _read(texts: list[str], num_sides: int, vocabulary: _Vocabulary) -> _Chunk:
    """Return the words of a chunk of texts, of which `num_sides` after another are one row."""
    other_signs: list[tuple[int, int]] = []
    raw = []
    for place, text in enumerate(texts):
        if text.isascii():
            raw.append(text.encode())
        else:
            raw.append(word_text(text).encode("utf-8", "replace"))
            other_signs += [(place, ord(sign)) for sign in money_signs(text)]
    ends = np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw)) + 1)
    buffer = b" ".join([*raw, b""])
    split = _split(buffer.translate(WORD_BYTES), ends)
    starts = split.offsets.to_numpy()
    encoded = split.flatten().dictionary_encode()
    names = vocabulary.add_(encoded.dictionary.to_pylist())
    has_number = np.fromiter((bool(vocabulary.numbers[word]) for word in names.tolist()), np.bool_, len(names))
    places = encoded.indices.to_numpy()
    ids = names[places]
    text_of = np.repeat(np.arange(len(texts)), np.diff(starts))
    packed = sorted_unique((text_of << 32) | ids)
    at = np.flatnonzero(has_number[places])
    sides = _with_blanks(split)
    rows = split if num_sides == 1 else pa.ListArray.from_arrays(split.offsets[::num_sides], split.values)
    return _Chunk(
        words=(packed & 0xFFFFFFFF).astype(np.int32),
        sizes=np.bincount(packed >> 32, minlength=len(texts)),
        with_numbers=(text_of[at], ids[at]),
        signs=_signs(np.frombuffer(buffer, dtype=np.uint8), ends, other_signs),
        hashes=_hashes(sides),
        first=sides if num_sides == 1 else sides.take(pa.array(np.arange(0, len(texts), num_sides))),
        whole=sides if num_sides == 1 else _with_blanks(rows),
    )


def _split(letters: bytes, ends: Ints) -> pa.ListArray:
    """The words of texts that lie one after the other, with a blank behind each; `ends` is where the blanks end."""
    offsets = pa.py_buffer(np.r_[0, ends].tobytes())
    texts = pc.ascii_trim_whitespace(pa.LargeStringArray.from_buffers(len(ends), offsets, pa.py_buffer(letters)))
    # An empty text would be split into one empty word.
    texts = pc.if_else(pc.equal(pc.binary_length(texts), 0), pa.scalar(None, pa.large_string()), texts)
    return pc.ascii_split_whitespace(texts)


def _with_blanks(words: pa.ListArray) -> pa.Array:
    """Each list of words as a text with one blank between words: what MinHash splits at."""
    return pc.fill_null(pc.binary_join(words, pa.scalar(" ", pa.large_string())), "")


def _hashes(texts: pa.Array) -> npt.NDArray[np.uint64]:
    """A hash of the words of each text in order; 0 for texts without words."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view = memoryview(data if data is not None else b"")
    found = (xxhash.xxh3_64_intdigest(view[a:b]) if b > a else 0 for a, b in pairwise(ends))
    return np.fromiter(found, np.uint64, len(texts))


def _signs(raw: npt.NDArray[np.uint8], ends: Ints, others: list[tuple[int, int]]) -> tuple[Ints, Ints]:
    """Text and code of each sign of money or percent; those of texts that are not ASCII are given."""
    at = np.flatnonzero((raw == ord("$")) | (raw == ord("%")))
    texts = np.searchsorted(ends, at, side="right")
    more = np.array(others, dtype=np.int64).reshape(-1, 2)
    return np.r_[texts, more[:, 0]], np.r_[raw[at].astype(np.int64), more[:, 1]]


def _numbers(chunks: Sequence[_Chunk], numbers_in: Sequence[Sequence[str]]) -> sp.csr_matrix:
    """How often each number, and each sign of money, stands in each text."""
    names: dict[str, int] = {}
    sizes = np.fromiter(map(len, numbers_in), np.int64, len(numbers_in))
    flat = np.fromiter(
        (names.setdefault(number, len(names)) for word in numbers_in for number in word), np.int64, int(sizes.sum())
    )
    starts = np.cumsum(sizes) - sizes
    rows, columns = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    first = 0
    for chunk in chunks:
        texts, words = chunk.with_numbers
        many = sizes[words]
        offsets = np.arange(int(many.sum())) - np.repeat(np.cumsum(many) - many, many)
        sign_texts, codes = chunk.signs
        signs = [names.setdefault(chr(code), len(names)) for code in codes.tolist()]
        rows += [np.repeat(texts, many) + first, sign_texts + first]
        columns += [flat[np.repeat(starts[words], many) + offsets], np.array(signs, dtype=np.int64)]
        first += len(chunk.sizes)
    row, column = np.concatenate(rows), np.concatenate(columns)
    ones = np.ones(len(row), dtype=np.int32)
    return sp.coo_matrix((ones, (row, column)), shape=(first, max(1, len(names)))).tocsr()


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
