"""Coverage and diversity of a data set: what it holds much of, little of, and nothing of.

What lives here: figures over rows that are kept. What does not: any decision, the page (`data.coverage_report`).

    measure_coverage(rows)                           ->  lengths, turns, languages, n-grams, labels, clusters of prompts
    measure_coverage(rows, production=["Where ..."]) ->  besides, which production prompts no row is like

Prompts are compared as bags of words weighted by rarity (TF-IDF, cosine): it tells subjects, not phrasings.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from tunesmith.data.patterns import find
from tunesmith.data.quality import language_of
from tunesmith.data.words import answer_text, prompt_text, words
from tunesmith.types import JSON, Row

SAMPLE_ROWS = 5_000
"""Rows that clusters and n-grams are taken from, dealt by content: those of a larger set stand for all."""
SAMPLE_LANGUAGES = 1_000
MAX_CLUSTERS = 12
ROUNDS = 12
COVERED_FROM = 0.35
"""Cosine with the nearest training prompt from which a production prompt counts as covered. Banking questions that
were held out have one of 0.35 and more in 99% of cases, arithmetic problems beside banking questions in 2%."""
MAX_UNCOVERED = 25
MAX_LABELS = 40
SHOWN_CHARS = 160

Floats = npt.NDArray[np.float64]


def measure_coverage(rows: Sequence[Row], *, production: Sequence[str] = ()) -> dict[str, JSON]:
    """Return the figures of some rows as JSON. Independent of the order of the rows."""
    sample = heapq.nsmallest(SAMPLE_ROWS, rows, key=lambda row: (hashlib.sha256(row.id.encode()).digest(), row.id))
    prompts = [words(prompt_text(row.conversation)) for row in sample]
    answers = [words(answer_text(row.conversation)) for row in sample]
    return {
        "rows": len(rows),
        "sampled": len(sample),
        "prompt_words": _spread([len(found) for found in prompts]),
        "answer_words": _spread([len(found) for found in answers]),
        "turns": _counts(Counter(_num_turns(row) for row in rows)),
        "languages": _languages(sample[:SAMPLE_LANGUAGES]),
        "labels": _labels(rows),
        "distinct_ngrams": {"prompts": _distinct(prompts), "answers": _distinct(answers)},
        "clusters": _clusters(prompts, [prompt_text(row.conversation) for row in sample]),
        "production": _production(rows, production) if production else None,
    }


def _num_turns(row: Row) -> int:
    return sum(message.role == "user" for message in row.conversation.messages)


def _counts(counter: Counter[int]) -> dict[str, int]:
    return {str(key): count for key, count in sorted(counter.items())}


def _spread(values: Sequence[int]) -> dict[str, JSON]:
    """Quantiles, and counts in bins that double: 0, 1, 2-3, 4-7, ..."""
    if not values:
        return {"quantiles": {}, "bins": {}}
    points = np.quantile(np.array(values), [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
    bins = Counter(value.bit_length() for value in values)
    return {
        "quantiles": dict(zip(("min", "p5", "p25", "p50", "p75", "p95", "max"), points.tolist(), strict=True)),
        "bins": {_bin_name(size): bins[size] for size in range(min(bins), max(bins) + 1)},
    }


def _bin_name(bits: int) -> str:
    return str(bits) if bits < 2 else f"{1 << (bits - 1)}-{(1 << bits) - 1}"


def _languages(rows: Sequence[Row]) -> dict[str, int]:
    """Language of prompt and answer together; `unknown` for short texts, code and doubt."""
    found = Counter(
        language_of(f"{prompt_text(row.conversation)}\n{answer_text(row.conversation)}") or "unknown" for row in rows
    )
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _labels(rows: Sequence[Row]) -> dict[str, JSON]:
    """Label -> its values with their rows, and how even they are: entropy by that of as many equal values."""
    values: dict[str, Counter[str]] = {}
    for row in rows:
        for name, value in row.labels.items():
            values.setdefault(name, Counter())[value] += 1
    return {
        name: {
            "values": len(counter),
            "balance": round(_evenness(counter), 4),
            "most_common": dict(sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:MAX_LABELS]),
        }
        for name, counter in sorted(values.items())
    }


def _evenness(counter: Counter[str]) -> float:
    total = sum(counter.values())
    if len(counter) < 2:
        return 1.0
    entropy = -math.fsum(count / total * math.log(count / total) for count in sorted(counter.values()))
    return entropy / math.log(len(counter))


def _distinct(texts: Sequence[Sequence[str]]) -> dict[str, float]:
    """Share of different ones among all n-grams of 1 to 3 words (distinct-n, Li et al. 2016)."""
    out = {}
    for size in (1, 2, 3):
        grams = [gram for found in texts for gram in zip(*(found[start:] for start in range(size)), strict=False)]
        out[f"distinct_{size}"] = round(len(set(grams)) / len(grams), 4) if grams else 0.0
    return out


def _weights(texts: Sequence[Sequence[str]], vocabulary: dict[str, int], idf: Floats) -> sp.csr_matrix:
    """One row a text: TF-IDF of its known words, of length 1."""
    places = [[vocabulary[word] for word in found if word in vocabulary] for found in texts]
    starts = np.cumsum([0, *map(len, places)])
    columns = np.array([place for found in places for place in found], dtype=np.int64)
    matrix = sp.csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(texts), len(vocabulary)))
    matrix.sum_duplicates()
    matrix.data = _rounded(1 + np.log(matrix.data)) * idf[matrix.indices]
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sp.diags(1 / np.where(norms > 0, norms, 1)) @ matrix


def _rounded(values: Floats) -> Floats:
    """Logarithms differ in their last bit from machine to machine; which text is nearest must not."""
    return np.round(values, 6)


def _vocabulary(texts: Sequence[Sequence[str]]) -> tuple[dict[str, int], Floats]:
    held = Counter(word for found in texts for word in set(found))
    known = sorted(held)
    idf = _rounded(np.log((1 + len(texts)) / np.array([held[word] for word in known], dtype=np.float64)))
    return {word: place for place, word in enumerate(known)}, idf


def _clusters(prompts: Sequence[Sequence[str]], texts: Sequence[str]) -> list[JSON]:
    """Group prompts by k-means on the sphere: size, the words that tell a group, its most typical prompt."""
    if len(prompts) < 4:
        return []
    vocabulary, idf = _vocabulary(prompts)
    matrix = _weights(prompts, vocabulary, idf)
    nearest = _kmeans(matrix, min(MAX_CLUSTERS, max(2, int(math.sqrt(len(prompts) / 2)))))
    names = list(vocabulary)
    out: list[JSON] = []
    for number in np.unique(nearest):
        inside = np.flatnonzero(nearest == number)
        centre = np.asarray(matrix[inside].mean(axis=0)).ravel()
        typical = int(inside[np.argmax(matrix[inside] @ centre)])
        top = [names[place] for place in np.argsort(-centre, kind="stable")[:6] if centre[place] > 0]
        out.append({"rows": len(inside), "words": top, "typical": _shown(texts[typical])})
    return sorted(out, key=lambda one: (-one["rows"], one["typical"]))


def _kmeans(matrix: sp.csr_matrix, num_clusters: int) -> npt.NDArray[np.int64]:
    """Spherical k-means; each first centre is the text farthest from those before it, so no chance is in it."""
    first = [0]
    closeness = np.asarray((matrix @ matrix[0].T).todense()).ravel()
    while len(first) < num_clusters:
        first.append(int(np.argmin(closeness)))
        closeness = np.maximum(closeness, np.asarray((matrix @ matrix[first[-1]].T).todense()).ravel())
    centres = np.asarray(matrix[first].todense())
    nearest = np.zeros(matrix.shape[0], dtype=np.int64)
    for _ in range(ROUNDS):
        now = _rounded(matrix @ centres.T).argmax(axis=1)
        if (now == nearest).all():
            break
        nearest = now
        for number in range(num_clusters):
            inside = nearest == number
            if inside.any():
                centre = np.asarray(matrix[inside].mean(axis=0)).ravel()
                centres[number] = centre / max(1e-12, float(np.linalg.norm(centre)))
    return nearest


def _production(rows: Sequence[Row], production: Sequence[str]) -> dict[str, JSON]:
    """Share of production prompts that some row is like, and those that are farthest from all."""
    texts = [words(text) for text in production]
    prompts = [words(prompt_text(row.conversation)) for row in rows]
    vocabulary, idf = _vocabulary([*prompts, *texts])
    ours, theirs = _weights(prompts, vocabulary, idf), _weights(texts, vocabulary, idf)
    closest = np.zeros(len(texts))
    for start in range(0, len(texts), 500):
        block = theirs[start : start + 500] @ ours.T
        closest[start : start + 500] = block.max(axis=1).toarray().ravel()
    uncovered = np.flatnonzero(closest < COVERED_FROM)
    order = sorted(uncovered.tolist(), key=lambda place: (closest[place], production[place]))
    return {
        "prompts": len(production),
        "covered": len(production) - len(uncovered),
        "covered_from": COVERED_FROM,
        "farthest": [
            {"prompt": _shown(production[place]), "similarity": round(float(closest[place]), 4)}
            for place in order[:MAX_UNCOVERED]
        ],
    }


def _shown(text: str) -> str:
    """The beginning of a text without the personal data in it: production prompts come as they are."""
    out = []
    at = 0
    for span in find(text):
        out += [text[at : span.start], f"<{span.kind}>"]
        at = span.end
    flat = " ".join("".join([*out, text[at:]]).split())
    return flat if len(flat) <= SHOWN_CHARS else flat[:SHOWN_CHARS] + " …"
