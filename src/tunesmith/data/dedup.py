"""Duplicate rows: which row of a group stays, and why each other one goes.

What lives here: exact and near duplicates among rows, and rows of training that stand in a held-out side as well.
What does not: how texts are compared (`data.near`).

Two rows are duplicates where their prompts are near-duplicates *and* their answers are. Rows with near-duplicate
prompts and other answers contradict each other: both stay, flagged. Across the sides of a split that came from outside
the prompt alone decides: the held-out row stays, the row of the other side goes (`leak`).

A row goes only where it is a duplicate of a row that stays: chains of pairs never take along a row that is not.
Duplicates inside a held-out side are flagged, never removed: who gave the test set decides what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tunesmith.data.near import Floats, Ints, WordTable, candidate_pairs, clusters, overlaps, word_table
from tunesmith.data.words import answer_text, normal_text, prompt_text
from tunesmith.types import Row, canonical_json, sha256_hex

SIDE_RANK = {"test": 0, "val": 1}
"""Held-out sides keep their rows before all others."""

LONG_TEXT_WORDS = 40
SHORT_TEXT_WORDS = 8
SHORT_TEXT_THRESHOLD = 0.9
"""One word more or less changes what a short text says: texts of up to 8 different words need an overlap of 0.9, which
falls in a line to the given threshold at 40 words (allenai/decon eases its threshold with length as well)."""

DuplicateKind = Literal["exact_duplicate", "near_duplicate", "leak", "conflict", "heldout_duplicate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """One row that repeats another. `conflict` and `heldout_duplicate` rows stay; the other kinds go."""

    row: int
    keeper: int
    kind: DuplicateKind
    score: float
    cluster: int
    """Smallest row number connected with this one."""


def find_duplicates(rows: Sequence[Row], *, threshold: float) -> list[Duplicate]:
    """Return the rows that repeat another row, in order of `row`.

    `threshold` is the IDF-weighted overlap from which texts of 40 words and more are near-duplicates. Where two rows
    repeat each other the one of a held-out side stays, then the one that comes first in `rows`.
    """
    prompts, answers = _asked_and_answered(rows)
    rank = _ranks(rows)
    prompt_table, answer_table = word_table(prompts), word_table(answers)
    both = [f"{prompt}\n{answer}" for prompt, answer in zip(prompts, answers, strict=True)]
    candidates = [
        candidate_pairs(prompt_table, rank),
        candidate_pairs(word_table(both), rank),
        _exact_pairs(prompts, rank),
        _exact_pairs(both, rank),
    ]
    left, right = _merged(candidates, rank)
    prompt_scores = _scores(prompt_table, prompts, left, right)
    near = prompt_scores >= _thresholds(prompt_table, left, right, threshold)
    left, right, prompt_scores = left[near], right[near], prompt_scores[near]
    answer_scores = _answer_scores(answer_table, answers, left, right)
    same_answer = answer_scores >= _thresholds(answer_table, left, right, threshold)
    exact = _exact(prompts, answers, left, right)
    return _settle(rows, rank, left, right, np.minimum(prompt_scores, answer_scores), prompt_scores, same_answer, exact)


def prompt_clusters(rows: Sequence[Row], *, threshold: float) -> Ints:
    """Return for each row the smallest row number that it is connected with by near-duplicate prompts."""
    left, right, _ = prompt_pairs(rows, threshold=threshold)
    return clusters(len(rows), left, right)


def prompt_pairs(rows: Sequence[Row], *, threshold: float) -> tuple[Ints, Ints, Floats]:
    """Return all found pairs of rows with near-duplicate prompts, and the scores."""
    prompts, _ = _asked_and_answered(rows)
    rank = np.arange(len(rows), dtype=np.int64)
    table = word_table(prompts)
    left, right = _merged([candidate_pairs(table, rank), _exact_pairs(prompts, rank)], rank)
    scores = _scores(table, prompts, left, right)
    near = scores >= _thresholds(table, left, right, threshold)
    return left[near], right[near], scores[near]


def _asked_and_answered(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Prompt and answer of each row; a text without a prompt stands as the prompt, so that it is compared as one."""
    prompts, answers = [], []
    for row in rows:
        prompt, answer = prompt_text(row.conversation), answer_text(row.conversation)
        prompts.append(prompt or answer)
        answers.append(answer if prompt else "")
    return prompts, answers


def _instructions(row: Row) -> str:
    """System prompt and tools: rows that differ in them are different tasks, whatever else is the same."""
    shared = [message.content for message in row.conversation.messages if message.role in ("system", "developer")]
    return canonical_json([shared, [dict(tool) for tool in row.conversation.tools]])


def _ranks(rows: Sequence[Row]) -> Ints:
    """Position of each row in the order of precedence: held-out sides first, then as given."""
    order = sorted(range(len(rows)), key=lambda index: (SIDE_RANK.get(rows[index].split or "train", 2), index))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))
    return rank


def _exact_pairs(texts: Sequence[str], rank: Ints) -> tuple[Ints, Ints]:
    """Pair each text with the first of those that are equal to it after normalisation, in order of rank."""
    first: dict[str, int] = {}
    left, right = [], []
    for index in np.argsort(rank, kind="stable").tolist():
        keeper = first.setdefault(normal_text(texts[index]), index)
        if keeper != index:
            left.append(keeper)
            right.append(index)
    return np.asarray(left, dtype=np.int64), np.asarray(right, dtype=np.int64)


def _merged(found: list[tuple[Ints, Ints]], rank: Ints) -> tuple[Ints, Ints]:
    """All pairs once, the row that has precedence left."""
    left = np.concatenate([pair[0] for pair in found])
    right = np.concatenate([pair[1] for pair in found])
    swap = rank[left] > rank[right]
    left, right = np.where(swap, right, left), np.where(swap, left, right)
    packed = np.unique((left << 32) | right)
    return packed >> 32, packed & 0xFFFFFFFF


def _scores(table: WordTable, texts: Sequence[str], left: Ints, right: Ints) -> Floats:
    """Overlap of pairs, 0 where the numbers differ. Texts without words are the same only where they are equal."""
    scores = overlaps(table, left, right)
    scores[table.numbers[left] != table.numbers[right]] = 0.0
    for pair in np.flatnonzero((table.totals[left] == 0) & (table.totals[right] == 0)).tolist():
        if normal_text(texts[left[pair]]) != normal_text(texts[right[pair]]):
            scores[pair] = 0.0
    return scores


def _thresholds(table: WordTable, left: Ints, right: Ints, threshold: float) -> Floats:
    lengths = np.diff(table.sets.indptr)
    shorter = np.minimum(lengths[left], lengths[right]).astype(np.float64)
    share = np.clip((shorter - SHORT_TEXT_WORDS) / (LONG_TEXT_WORDS - SHORT_TEXT_WORDS), 0, 1)
    short = max(SHORT_TEXT_THRESHOLD, threshold)
    thresholds: Floats = short + (threshold - short) * share
    return thresholds


def _answer_scores(table: WordTable, answers: Sequence[str], left: Ints, right: Ints) -> Floats:
    """Overlap of answers; JSON answers are the same or not, whatever their spacing and key order."""
    scores = _scores(table, answers, left, right)
    parsed: dict[int, str | None] = {}
    for pair, (one, other) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        texts = []
        for row in (one, other):
            if row not in parsed:
                parsed[row] = _canonical(answers[row])
            texts.append(parsed[row])
        if texts[0] is not None or texts[1] is not None:
            scores[pair] = 1.0 if texts[0] == texts[1] else 0.0
    return scores


def _canonical(answer: str) -> str | None:
    if answer.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return canonical_json(json.loads(answer))
    except ValueError:
        return None


def _exact(prompts: Sequence[str], answers: Sequence[str], left: Ints, right: Ints) -> list[bool]:
    return [
        normal_text(prompts[one]) == normal_text(prompts[other])
        and normal_text(answers[one]) == normal_text(answers[other])
        for one, other in zip(left.tolist(), right.tolist(), strict=True)
    ]


def _settle(
    rows: Sequence[Row],
    rank: Ints,
    left: Ints,
    right: Ints,
    scores: Floats,
    prompt_scores: Floats,
    same_answer: np.ndarray[tuple[int], np.dtype[np.bool_]],
    exact: Sequence[bool],
) -> list[Duplicate]:
    """Go through the rows in order of precedence; a row goes where a row that stays is its duplicate."""
    cluster = clusters(len(rows), left, right)
    pairs_of: dict[int, list[int]] = {}
    for pair, later in enumerate(right.tolist()):
        pairs_of.setdefault(later, []).append(pair)
    gone: set[int] = set()
    found = []
    for row in sorted(pairs_of, key=lambda index: int(rank[index])):
        best: tuple[int, float, int, DuplicateKind] | None = None
        for pair in pairs_of[row]:
            keeper = int(left[pair])
            if keeper in gone:
                continue
            kind = _kind(rows[keeper].split, rows[row].split, same=bool(same_answer[pair]), exact=exact[pair])
            if kind != "leak" and _instructions(rows[keeper]) != _instructions(rows[row]):
                continue
            score = float(prompt_scores[pair] if kind in ("leak", "conflict") else scores[pair])
            order = ("leak", "exact_duplicate", "near_duplicate", "heldout_duplicate", "conflict").index(kind)
            candidate = (order, -score, int(rank[keeper]), kind)
            if best is None or candidate[:3] < (best[0], best[1], best[2]):
                best = candidate
        if best is None:
            continue
        order, score, keeper_rank, kind = best
        keeper = next(int(left[p]) for p in pairs_of[row] if int(rank[left[p]]) == keeper_rank)
        if kind not in ("conflict", "heldout_duplicate"):
            gone.add(row)
        found.append(Duplicate(row=row, keeper=keeper, kind=kind, score=round(-score, 6), cluster=int(cluster[row])))
    return sorted(found, key=lambda duplicate: duplicate.row)


def _kind(keeper_side: str | None, side: str | None, *, same: bool, exact: bool) -> DuplicateKind:
    if keeper_side in SIDE_RANK and side != keeper_side:
        return "leak"
    if not same:
        return "conflict"
    if side in SIDE_RANK:
        return "heldout_duplicate"
    return "exact_duplicate" if exact else "near_duplicate"


def cluster_name(row: Row) -> str:
    """Return a name for the cluster whose first row this is: the same in every run."""
    return "c" + sha256_hex(row.id)[:10]
