"""Near-duplicate texts: candidates by MinHash, then a verifier that spares templated texts.

What lives here: texts in, verified pairs with scores out. What does not: which of a pair goes (`data.dedup`).

Candidates alone are not duplicates: "A has 12 apples" and "A has 37 apples" share most of their words. A pair counts
only where both texts hold the same numbers and their words, weighted by how rare each is in this data set (IDF),
overlap enough: the words of a template are common, so they weigh little.

    texts -> words -> MinHash over word 3-grams (Daft) -> 32 bands of 4 -> buckets -> pairs -> verified pairs

Results do not depend on the order of the texts: a bucket is ordered by `rank`, which the caller gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import xxhash
from scipy.sparse.csgraph import connected_components

from tunesmith.data.words import numbers, words

NUM_HASHES = 128
NUM_BANDS = 32
"""Bands of four hashes: a pair with Jaccard 0.5 over word 3-grams is a candidate with probability 0.87."""
NGRAM_WORDS = 3
SEED = 1
MAX_ALL_PAIRS = 12
"""Buckets up to this size compare all pairs; larger ones each text with the first and with its neighbour."""
_PAIRS_PER_CHUNK = 200_000
_ROWS_PER_CHUNK = 65_536

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class WordTable:
    """Word sets of many texts with their weights: what the verifier needs."""

    sets: sp.csr_matrix
    """(texts, vocabulary), 1 where the word occurs."""
    weights: Floats
    """(vocabulary,) IDF: log(1 + texts / texts that hold the word)."""
    totals: Floats
    """(texts,) sum of weights of each text's words."""
    numbers: Ints
    """(texts,) hash of the sorted numbers of each text."""
    texts: list[str]
    """Words joined by one space: what MinHash sees."""


def word_table(texts: Sequence[str]) -> WordTable:
    """Tokenise texts and weigh their words."""
    vocabulary: dict[str, int] = {}
    starts = [0]
    indices: list[int] = []
    hashes = np.empty(len(texts), dtype=np.int64)
    joined = []
    for index, text in enumerate(texts):
        found = words(text)
        joined.append(" ".join(found))
        hashes[index] = hash_words(numbers(found))
        indices.extend({vocabulary.setdefault(word, len(vocabulary)) for word in found})
        starts.append(len(indices))
    columns = np.asarray(indices, dtype=np.int32)
    sets = sp.csr_matrix(
        (np.ones(len(columns), dtype=np.float32), columns, np.asarray(starts)), shape=(len(texts), len(vocabulary))
    )
    held = np.bincount(columns, minlength=len(vocabulary)).astype(np.float64)
    weights = np.log1p(len(texts) / np.maximum(held, 1))
    totals = np.asarray(sets @ weights).ravel() if len(texts) else np.zeros(0)
    return WordTable(sets=sets, weights=weights, totals=totals, numbers=hashes, texts=joined)


def hash_words(found: tuple[str, ...]) -> int:
    """Return a 63-bit hash of words that is the same in every process."""
    return int(xxhash.xxh3_64_intdigest("\0".join(found).encode()) >> 1)


def overlaps(table: WordTable, left: Ints, right: Ints) -> Floats:
    """Return the IDF-weighted Jaccard of pairs of texts: weight of shared words / weight of all words; 1 for two empty.

    `left` and `right` are row numbers, shape (pairs,).
    """
    out = np.empty(len(left), dtype=np.float64)
    weighted = table.sets @ sp.diags(table.weights)
    for start in range(0, len(left), _PAIRS_PER_CHUNK):
        part = slice(start, start + _PAIRS_PER_CHUNK)
        shared = weighted[left[part]].multiply(table.sets[right[part]]).sum(axis=1)
        inter = np.asarray(shared, dtype=np.float64).ravel()
        union = table.totals[left[part]] + table.totals[right[part]] - inter
        out[part] = np.where(union > 0, inter / np.where(union > 0, union, 1), 1.0)
    return out


def candidate_pairs(table: WordTable, rank: Ints) -> tuple[Ints, Ints]:
    """Return pairs of texts that share a MinHash band, each once, lower rank left. Texts without words are in none."""
    import daft
    import pyarrow as pa

    keys = np.empty((NUM_BANDS, len(table.texts)), dtype=np.uint64)
    for start in range(0, len(table.texts), _ROWS_PER_CHUNK):
        chunk = table.texts[start : start + _ROWS_PER_CHUNK]
        frame = daft.from_arrow(pa.table({"text": pa.array(chunk, type=pa.string())}))
        hashed = frame.select(
            frame["text"].minhash(num_hashes=NUM_HASHES, ngram_size=NGRAM_WORDS, seed=SEED, hash_function="xxhash3_64")
        ).to_arrow()
        values = hashed.column(0).combine_chunks().flatten().to_numpy().reshape(len(chunk), NUM_BANDS, -1)
        keys[:, start : start + len(chunk)] = _band_keys(values)
    empty = np.fromiter((not text for text in table.texts), dtype=bool, count=len(table.texts))
    found: list[npt.NDArray[np.int64]] = []
    for band in range(NUM_BANDS):
        found.append(_bucket_pairs(keys[band], rank, empty))
    pairs = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
    return pairs >> 32, pairs & 0xFFFFFFFF


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
    sorted_keys = keys[order]
    starts = np.flatnonzero(np.r_[True, sorted_keys[1:] != sorted_keys[:-1]]) if len(order) else np.zeros(0, dtype=int)
    sizes = np.diff(np.r_[starts, len(order)])
    pairs = []
    for distance in range(1, MAX_ALL_PAIRS):
        for_size = (sizes <= MAX_ALL_PAIRS) | (distance == 1)
        inside = np.repeat(np.where(for_size, sizes - distance, 0).clip(0), sizes)
        place = np.arange(len(order)) - np.repeat(starts, sizes)
        left = np.flatnonzero(place < inside)
        pairs.append((order[left] << 32) | order[left + distance])
    large = sizes > MAX_ALL_PAIRS
    first = np.repeat(order[starts] if len(starts) else order, sizes)
    member = np.repeat(large, sizes) & (order != first)
    pairs.append((first[member] << 32) | order[member])
    return np.unique(np.concatenate(pairs)) if pairs else np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Verified pairs: row numbers and the score of each."""

    left: Ints
    right: Ints
    scores: Floats


def near_pairs(texts: Sequence[str], *, rank: Ints, threshold: float) -> Pairs:
    """Return the pairs of texts that hold the same numbers and overlap at least `threshold` (0 to 1)."""
    table = word_table(texts)
    left, right = candidate_pairs(table, rank)
    return verified(table, left, right, threshold=threshold)


def verified(table: WordTable, left: Ints, right: Ints, *, threshold: float) -> Pairs:
    """Return those of the candidate pairs that hold the same numbers and overlap at least `threshold`."""
    same = table.numbers[left] == table.numbers[right]
    left, right = left[same], right[same]
    scores = overlaps(table, left, right)
    keep = scores >= threshold
    return Pairs(left=left[keep], right=right[keep], scores=scores[keep])


def clusters(num_texts: int, left: Ints, right: Ints) -> Ints:
    """Return for each text the smallest row number it is connected with through pairs: union-find by components."""
    ones = np.ones(len(left), dtype=np.int8)
    graph = sp.coo_matrix((ones, (left, right)), shape=(num_texts, num_texts))
    _, names = connected_components(graph, directed=False)
    first = np.full(names.max(initial=-1) + 1, num_texts, dtype=np.int64)
    np.minimum.at(first, names, np.arange(num_texts))
    out: Ints = first[names]
    return out
