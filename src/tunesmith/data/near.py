"""Near-duplicate texts, first half: word tables and the candidate pairs that share a MinHash band.

What lives here: texts in, weighted word sets and candidate pairs out. What does not: whether a candidate is a duplicate
(`data.verify`), which of a pair goes (`data.dedup`).

    texts -> words -> MinHash over word 3-grams (Daft) -> 32 bands of 4 -> buckets -> candidate pairs

Results do not depend on the order of the texts: a bucket is ordered by `rank`, which the caller gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from tunesmith.data.words import numbers, word_text

NUM_HASHES = 128
NUM_BANDS = 32
"""Bands of four hashes: a pair with Jaccard 0.5 over word 3-grams is a candidate with probability 0.87."""
NGRAM_WORDS = 2
SEED = 1
MAX_ALL_PAIRS = 12
"""Buckets up to this size compare all pairs; larger ones each text with the first and with its neighbour."""
_PAIRS_PER_CHUNK = 50_000
_ROWS_PER_CHUNK = 32_768

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


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
    texts: list[str]
    """Words joined by one space: what MinHash sees."""
    vocabulary: list[str]

    @property
    def lengths(self) -> Ints:
        """(texts,) different words of each text."""
        lengths: Ints = np.diff(self.sets.indptr).astype(np.int64)
        return lengths


def word_table(texts: Sequence[str]) -> WordTable:
    """Tokenise texts and weigh their words."""
    vocabulary: dict[str, int] = {}
    joined = [word_text(text) for text in texts]
    indices, starts = _sets(joined, vocabulary)
    shape = len(texts), len(vocabulary)
    sets = sp.csr_matrix((np.ones(len(indices), dtype=np.float32), indices, starts), shape=shape)
    frequency = np.bincount(indices, minlength=len(vocabulary)).astype(np.int64)
    # In steps of 1/1024 sums are exact, so that no score depends on the order in which words are added up.
    weights = np.rint(np.log1p(len(texts) / np.maximum(frequency, 1)) * 1024) / 1024
    return WordTable(
        sets=sets,
        weights=weights,
        frequency=frequency,
        totals=np.asarray(sets @ weights, dtype=np.float64).ravel() if vocabulary else np.zeros(len(texts)),
        numbers=_numbers(texts),
        texts=joined,
        vocabulary=list(vocabulary),
    )


def _sets(texts: Sequence[str], vocabulary: dict[str, int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Different words of each text as vocabulary numbers in order, and where each text's begin.

    Splitting and counting are Arrow's and numpy's: tens of millions of words pass here.
    """
    parts: list[npt.NDArray[np.int32]] = []
    sizes: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(texts), _ROWS_PER_CHUNK):
        chunk = pa.array(texts[start : start + _ROWS_PER_CHUNK], type=pa.large_string())
        split = pc.split_pattern(chunk, " ")
        encoded = split.flatten().dictionary_encode()
        names = encoded.dictionary.to_pylist()
        number_of = np.fromiter(
            (vocabulary.setdefault(name, len(vocabulary)) if name else -1 for name in names), np.int64, len(names)
        )
        found = number_of[encoded.indices.to_numpy()] if len(names) else np.zeros(0, dtype=np.int64)
        row = np.repeat(np.arange(len(chunk)), np.diff(split.offsets.to_numpy()))
        packed = sorted_unique(((row << 32) | found)[found >= 0])
        parts.append((packed & 0xFFFFFFFF).astype(np.int32))
        sizes.append(np.bincount(packed >> 32, minlength=len(chunk)))
    starts = np.r_[0, np.cumsum(np.concatenate(sizes))] if sizes else np.zeros(1, dtype=np.int64)
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32), starts


def _numbers(texts: Sequence[str]) -> sp.csr_matrix:
    """How often each number stands in each text."""
    vocabulary: dict[str, int] = {}
    rows: list[int] = []
    columns: list[int] = []
    for index, text in enumerate(texts):
        found = numbers(text)
        if not found:
            continue
        rows.extend([index] * len(found))
        columns.extend([vocabulary.setdefault(number, len(vocabulary)) for number in found])
    ones = np.ones(len(rows), dtype=np.int32)
    counts = sp.coo_matrix((ones, (rows, columns)), shape=(len(texts), max(1, len(vocabulary))))
    return counts.tocsr()


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


def candidate_pairs(texts: Sequence[str], rank: Ints) -> tuple[Ints, Ints]:
    """Return pairs of texts that share a MinHash band, each once, lower rank left.

    `texts` are words joined by one space; those without words are in no pair.
    """
    import daft

    keys = np.empty((NUM_BANDS, len(texts)), dtype=np.uint64)
    for start in range(0, len(texts), _ROWS_PER_CHUNK):
        chunk = texts[start : start + _ROWS_PER_CHUNK]
        frame = daft.from_arrow(pa.table({"text": pa.array(chunk, type=pa.string())}))
        hashed = frame.select(
            frame["text"].minhash(num_hashes=NUM_HASHES, ngram_size=NGRAM_WORDS, seed=SEED, hash_function="xxhash3_64")
        ).to_arrow()
        values = hashed.column(0).combine_chunks().flatten().to_numpy().reshape(len(chunk), NUM_BANDS, -1)
        keys[:, start : start + len(chunk)] = _band_keys(values)
    empty = np.fromiter((not text for text in texts), dtype=np.bool_, count=len(texts))
    pairs = sorted_unique(np.concatenate([_bucket_pairs(keys[band], rank, empty) for band in range(NUM_BANDS)]))
    return pairs >> 32, pairs & 0xFFFFFFFF


def sorted_unique(values: Ints) -> Ints:
    """Return the different values in order; sorting beats numpy's hashing for tens of millions."""
    values.sort()
    return values[np.r_[True, values[1:] != values[:-1]]] if len(values) else values


def _band_keys(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """Mix the hashes of each band to one key: (rows, bands, hashes) -> (bands, rows)."""
    keys = np.zeros(values.shape[:2], dtype=np.uint64)
    for position in range(values.shape[2]):
        keys = (keys ^ values[:, :, position]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys.T


def _bucket_pairs(keys: npt.NDArray[np.uint64], rank: Ints, empty: npt.NDArray[np.bool_]) -> Ints:
    """Pairs within buckets of equal keys, packed as left << 32 | right with rank[left] < rank[right]."""
    rows = np.flatnonzero(~empty)
    order = rows[np.lexsort((rank[rows], keys[rows]))]
    if not len(order):
        return order
    sorted_keys = keys[order]
    is_start = np.r_[True, sorted_keys[1:] != sorted_keys[:-1]]
    starts = np.flatnonzero(is_start)
    sizes = np.diff(np.r_[starts, len(order)])
    # Most buckets hold one text: go on with the members of the others only.
    member = np.repeat(sizes > 1, sizes)
    order, sizes = order[member], sizes[sizes > 1]
    starts = np.r_[0, np.cumsum(sizes)[:-1]].astype(np.int64) if len(sizes) else sizes
    place = np.arange(len(order)) - np.repeat(starts, sizes)
    size = np.repeat(sizes, sizes)
    pairs = []
    for distance in range(1, MAX_ALL_PAIRS):
        left = np.flatnonzero((place + distance < size) & ((size <= MAX_ALL_PAIRS) | (distance == 1)))
        pairs.append((order[left] << 32) | order[left + distance])
    large = np.flatnonzero((size > MAX_ALL_PAIRS) & (place > 1))
    pairs.append((order[np.repeat(starts, sizes)[large]] << 32) | order[large])
    return np.concatenate(pairs)


def clusters(num_texts: int, left: Ints, right: Ints) -> Ints:
    """Return for each text the smallest row number it is connected with through pairs: union-find by components."""
    ones = np.ones(len(left), dtype=np.int8)
    graph = sp.coo_matrix((ones, (left, right)), shape=(num_texts, num_texts))
    _, names = connected_components(graph, directed=False)
    first = np.full(names.max(initial=-1) + 1, num_texts, dtype=np.int64)
    np.minimum.at(first, names, np.arange(num_texts))
    out: Ints = first[names]
    return out
