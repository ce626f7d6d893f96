"""Candidates for near-duplicates: pairs of texts that share a MinHash band.

What lives here: words of texts in, candidate pairs out, on any engine. What does not: whether a candidate is a
duplicate (`data.compare`), where the functions run (`data.engines`).

    chunks of texts -> band keys (MinHash over pairs of words, Daft) -> bands -> buckets -> candidate pairs

Both steps are pure functions of a chunk of texts, or of one band of all texts: the result does not depend on how many
workers there are, on the size of the chunks, or on the order of the texts (a bucket is ordered by `rank`, which the
caller gives).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from tunesmith.data.engines import Engine
from tunesmith.data.wordtable import Ints, sorted_unique

NUM_HASHES = 128
NUM_BANDS = 32
"""Bands of four hashes: a pair with Jaccard 0.5 over word pairs is a candidate with probability 0.87."""
NGRAM_WORDS = 2
SEED = 1
MAX_ALL_PAIRS = 12
"""Buckets up to this size compare all pairs; larger ones each text with the first and with its neighbour."""
_BANDS_PER_TASK = 8

Keys = npt.NDArray[np.uint64]


def candidate_pairs(chunks: Sequence[pa.Array], rank: Ints, engine: Engine) -> tuple[Ints, Ints]:
    """Return pairs of texts that share a MinHash band, each once, lower rank left.

    A text is its words joined by one space; those without words are in no pair. `rank` is the place of each text in an
    order by content.
    """
    if not len(rank):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    keys = np.concatenate(list(engine.map(band_keys, chunks)), axis=1)
    filled = np.concatenate([pc.binary_length(chunk).to_numpy() > 0 for chunk in chunks])
    row_of = np.argsort(rank)
    row_of = row_of[filled[row_of]]
    for band in keys:  # in place: the keys take more memory than anything else here
        band[: len(row_of)] = band[row_of]
    ordered = keys[:, : len(row_of)]
    bands = [ordered[start : start + _BANDS_PER_TASK] for start in range(0, NUM_BANDS, _BANDS_PER_TASK)]
    pairs = sorted_unique(np.concatenate(list(engine.map(bucket_pairs, bands))))
    return row_of[pairs >> 32], row_of[pairs & 0xFFFFFFFF]


@functools.cache
def _keep_daft_here() -> None:
    """Let Daft compute in this process: left to itself it imports Ray, 40 MB, to see whether it runs inside."""
    import daft
    from daft.exceptions import DaftCoreException

    with contextlib.suppress(DaftCoreException):  # Whoever uses Daft beside us chose already: it is set once a process.
        daft.set_runner_native()


def band_keys(texts: pa.Array) -> Keys:
    """Return (bands, texts): the MinHash of each text, the hashes of a band mixed to one key."""
    import daft

    _keep_daft_here()
    frame = daft.from_arrow(pa.table({"text": texts}))
    hashed = frame.select(
        frame["text"].minhash(num_hashes=NUM_HASHES, ngram_size=NGRAM_WORDS, seed=SEED, hash_function="xxhash3_64")
    ).to_arrow()
    values = hashed.column(0).combine_chunks().flatten().to_numpy().reshape(len(texts), NUM_BANDS, -1)
    keys = np.zeros(values.shape[:2], dtype=np.uint64)
    for position in range(values.shape[2]):
        keys = (keys ^ values[:, :, position]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return np.ascontiguousarray(keys.T)


def bucket_pairs(bands: Keys) -> Ints:
    """Return the pairs within the buckets of some bands, packed as left << 32 | right.

    Texts stand in order of rank and are named by their place in it.
    """
    num_texts = bands.shape[1]
    bits = np.uint64(max(1, int(num_texts).bit_length()))
    places = np.arange(num_texts, dtype=np.uint64)
    return sorted_unique(np.concatenate([_pairs_of_band(keys, places, bits) for keys in bands]))


def _pairs_of_band(keys: Keys, places: Keys, bits: np.uint64) -> Ints:
    # The upper bits of the key and the place in one number: one fast sort gives buckets in order of rank. Two keys
    # with the same upper bits make a needless candidate, no more.
    packed = (keys >> bits) << bits | places
    packed.sort()
    key, order = packed >> bits, (packed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else np.zeros(0, dtype=np.int64)
    sizes = np.diff(np.r_[starts, len(order)])
    # Most buckets hold one text: go on with the members of the others only.
    order, sizes = order[np.repeat(sizes > 1, sizes)], sizes[sizes > 1]
    starts = np.cumsum(sizes) - sizes
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
