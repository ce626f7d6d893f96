"""Semantic duplicates: rows that say the same in other words, as suggestions for a person.

What lives here: which rows may be compared, and the nearest one of each by static embeddings. What does not: vectors
(`data.embeddings`), rows of nearly the same words (`data.compare`), removing anything: a suggestion never does.

    "I still wait for my card"  ~  "My card has not arrived yet"     same label, cosine of the prompts 0.93

Cosines of static embeddings know words, not what is said of them, so what can be told apart otherwise never meets:
rows with other instructions, with other numbers in the prompt, with other answers where these are short or formal
(labels, code, JSON). Of two long answers the cosine counts as well, and the lower one is the score.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunesmith.data.contrast import contrast
from tunesmith.data.embeddings import FloatMatrix, StaticEmbeddings, embed
from tunesmith.data.formal import formal_text
from tunesmith.data.verify import SHORT_TEXT_WORDS
from tunesmith.data.words import answer_text, normal_text, numbers, prompt_text, words
from tunesmith.types import Row

Ints = npt.NDArray[np.int64]

_BLOCK = 1024
_NEAREST = 8
"""Partners of a row that are looked at, nearest first, for one that no guard refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Semantic:
    """By what, and from where on, rows are near."""

    embeddings: StaticEmbeddings
    threshold: float
    """Least cosine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """Two rows, by row number, that may say the same."""

    row: int
    partner: int
    """The nearest of the rows that come before this one by content."""
    score: float
    """Cosine, rounded to four digits."""


def suggest(
    rows: Sequence[Row],
    semantic: Semantic,
    *,
    rank: Ints,
    tasks: Sequence[str],
    known: Collection[tuple[str, str]] = (),
) -> list[Suggestion]:
    """Return the rows with another one at `threshold` or nearer, in order of `row`: at most one suggestion a row.

    `rank` is a place in an order by content (`Standing.rank`), `tasks` the rows' instructions (`Standing.tasks`), and
    `known` pairs of row ids (in both directions) that another rule told of already. Takes time with the square of the
    largest number of rows that may be compared with each other, and memory of eight bytes a row and dimension.
    """
    order = np.argsort(rank, kind="stable")
    prompts = [prompt_text(rows[index].conversation) for index in order]
    answers = [answer_text(rows[index].conversation) for index in order]
    fixed = [_fixed(answer) for answer in answers]
    asked = _with_empty(embed(prompts, semantic.embeddings))
    free = ["" if key is not None else text for key, text in zip(fixed, answers, strict=True)]
    said = _with_empty(embed(free, semantic.embeddings))
    families: dict[tuple[object, ...], list[int]] = {}
    for place, index in enumerate(order.tolist()):
        key = (tasks[index], tuple(sorted(numbers(prompts[place]))), fixed[place])
        families.setdefault(key, []).append(place)
    found: dict[int, Suggestion] = {}
    for members in families.values():
        for place, other, score in _nearest(np.array(members), asked, said, semantic.threshold):
            row, partner = int(order[place]), int(order[other])
            taken = row in found or (rows[row].id, rows[partner].id) in known
            if not taken and not _opposed(prompts[place], prompts[other]):
                found[row] = Suggestion(row=row, partner=partner, score=score)
    return [found[row] for row in sorted(found)]


def _fixed(answer: str) -> str | None:
    """What two answers must share to be the same, where their words do not tell: of short and of formal answers."""
    formal = formal_text(answer)
    if formal is not None:
        return formal
    return normal_text(answer) if len(answer.split()) <= SHORT_TEXT_WORDS else None


def _with_empty(vectors: FloatMatrix) -> FloatMatrix:
    """Add a dimension that texts without a vector share: nothing is the same as nothing."""
    out: FloatMatrix = np.c_[vectors, ~vectors.any(axis=1)].astype(np.float32)
    return out


def _nearest(
    members: Ints, asked: FloatMatrix, said: FloatMatrix, threshold: float
) -> Iterator[tuple[int, int, float]]:
    """Yield (row, earlier row, score) of the nearest earlier members of each member, nearest first."""
    for start in range(0, len(members), _BLOCK):
        mine = members[start : start + _BLOCK]
        best: list[tuple[Ints, Ints, npt.NDArray[np.float64]]] = []
        for begin in range(0, start + 1, _BLOCK):
            others = members[begin : begin + _BLOCK]
            score = asked[mine] @ asked[others].T
            left, right = np.nonzero(score >= threshold - 1e-3)
            if begin == start:
                left, right = left[right < left], right[right < left]
            if not len(left):
                continue
            # Answers only of pairs whose prompts are near.
            both = np.minimum(score[left, right], np.einsum("ij,ij->i", said[mine[left]], said[others[right]]))
            rounded = np.round(both.astype(np.float64), 4)
            near = rounded >= threshold
            best.append(_first(left[near], others[right[near]], rounded[near]))
        if best:
            left, right, scores = _first(*(np.concatenate(parts) for parts in zip(*best, strict=True)))
            yield from zip(mine[left].tolist(), right.tolist(), scores.tolist(), strict=True)


def _first(left: Ints, right: Ints, scores: npt.NDArray[np.float64]) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
    """Keep the nearest partners of each row, nearest first, of equals the first by content."""
    order = np.lexsort((right, -scores, left))
    left, right, scores = left[order], right[order], scores[order]
    begins = np.searchsorted(left, left)
    keep = np.arange(len(left)) - begins < _NEAREST
    return left[keep], right[keep], scores[keep]


def _opposed(one: str, other: str) -> bool:
    """Whether the prompts make different choices of one group: opposites, units, months."""
    mine, yours = words(one), words(other)
    return contrast([w for w in mine if w not in set(yours)], [w for w in yours if w not in set(mine)])
