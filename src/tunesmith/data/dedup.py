"""Duplicate rows: which row of a group stays, and why each other one goes.

What lives here: exact and near duplicates among rows, and rows of training that stand in a held-out side as well.
What does not: how texts are compared (`data.near`, `data.verify`).

Two rows are duplicates where prompt and answer together are, and neither side is another text. An answer that is JSON
must be the same JSON. Rows with near-duplicate prompts and other labels contradict each other: both stay, flagged.
Across the sides of a split that came from outside the prompt alone decides: the held-out row stays, the row of the
other side goes (`leak`).

A row goes only where it is a duplicate of a row that stays: chains of pairs never take along a row that is not. Of an
original and its edited copies the original stays, as it repeats most others; of equals the first stays.
Duplicates inside a held-out side are flagged, never removed: who gave the test set decides what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import xxhash

from tunesmith.data.near import Floats, Ints, WordTable, candidate_pairs, clusters, sorted_unique, word_table
from tunesmith.data.verify import (
    FAMILY,
    SHORT_TEXT_WORDS,
    Families,
    rare_weight,
    same_numbers,
    scores_of,
    shared_with_typos,
    thresholds_for,
)
from tunesmith.data.words import answer_text, normal_text, prompt_text
from tunesmith.types import Row, canonical_json, sha256_hex

SIDE_RANK = {"test": 0, "val": 1}
"""Held-out sides keep their rows before all others."""
SIDE_EASE = 0.25
"""By how much a long prompt, or an answer, alone may fall short where both together are near enough."""

DuplicateKind = Literal["exact_duplicate", "near_duplicate", "leak", "conflict", "heldout_duplicate"]
STAYING: tuple[DuplicateKind, ...] = ("conflict", "heldout_duplicate")
"""Kinds that are flagged; rows of the other kinds go."""
_ORDER: tuple[DuplicateKind, ...] = ("leak", "exact_duplicate", "near_duplicate", "heldout_duplicate", "conflict")
Flags = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """One row that repeats another. `conflict` and `heldout_duplicate` rows stay; the other kinds go."""

    row: int
    keeper: int
    kind: DuplicateKind
    score: float
    cluster: int
    """Smallest row number connected with this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """What is compared of each row."""

    prompts: list[str]
    answers: list[str]
    rank: Ints
    """Order by content, in which large buckets are compared: the same whatever the order of the rows."""
    asked: Hashes
    """Hash of each normalised prompt."""
    answered: Hashes
    """Hash of each normalised answer."""
    tasks: list[str]
    """System prompt and tools of each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairs:
    """Pairs whose prompts are near-duplicates, in no order."""

    left: Ints
    right: Ints
    prompt_scores: Floats
    alone: Flags
    """Whether the prompts are near-duplicates by themselves."""
    scores: Floats
    """Of prompt and answer together."""
    same: Flags
    """Whether the answers say the same."""
    contrary: Flags
    """Whether the answers are labels that differ."""


def find_duplicates(rows: Sequence[Row], *, threshold: float) -> list[Duplicate]:
    """Return the rows that repeat another row, in order of `row`.

    `threshold` is the score (see `data.verify`) from which texts of 40 words and more are near-duplicates. Of rows that
    repeat each other the one of a held-out side stays, then the one that repeats most others, then the first in `rows`.
    """
    texts = _texts(rows)
    pairs = _compared(texts, word_table(texts.prompts), word_table(texts.answers), threshold)
    return _settle(rows, texts, pairs)


def prompt_pairs(rows: Sequence[Row], *, threshold: float) -> tuple[Ints, Ints, Floats]:
    """Return all found pairs of rows with near-duplicate prompts, and the scores.

    A function of the set of prompts alone: curate, split and the proof of a split find the same pairs.
    """
    texts = _texts(rows)
    table = word_table(texts.prompts)
    left, right = _prompt_candidates(texts, table)
    near, scores = _near_prompts(table, texts, left, right, threshold, ease=0.0)
    return left[near], right[near], scores[near]


def _prompt_candidates(texts: _Texts, table: WordTable) -> tuple[Ints, Ints]:
    return _merged([candidate_pairs(table.texts, texts.rank), _equal_pairs(texts, answers=False)], texts.rank)


def _texts(rows: Sequence[Row]) -> _Texts:
    """Prompt and answer of each row; a text without a prompt stands as the prompt, so that it is compared as one."""
    prompts, answers, tasks = [], [], []
    for row in rows:
        tasks.append(_instructions(row))
        prompt, answer = prompt_text(row.conversation), answer_text(row.conversation)
        prompts.append(prompt or answer)
        answers.append(answer if prompt else "")
    asked, answered = _hashes(prompts), _hashes(answers)
    order = np.lexsort((np.arange(len(rows)), answered, asked))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))
    return _Texts(prompts=prompts, answers=answers, rank=rank, asked=asked, answered=answered, tasks=tasks)


def _hashes(texts: Sequence[str]) -> Hashes:
    if not any(texts):
        return np.zeros(len(texts), dtype=np.uint64)
    return np.array([xxhash.xxh3_64_intdigest(normal_text(text).encode()) for text in texts], dtype=np.uint64)


def _equal_pairs(texts: _Texts, *, answers: bool) -> tuple[Ints, Ints]:
    """Pair each row with the first one of an equal prompt, and an equal answer if asked for, in order of rank."""
    order = np.argsort(texts.rank)
    differs = np.zeros(len(order), dtype=np.bool_)
    differs[:1] = True
    differs[1:] = np.diff(texts.asked[order]) != 0
    if answers:
        differs[1:] |= np.diff(texts.answered[order]) != 0
    first = order[np.maximum.accumulate(np.where(differs, np.arange(len(order)), 0))]
    return first[~differs], order[~differs]


def _merged(found: list[tuple[Ints, Ints]], rank: Ints) -> tuple[Ints, Ints]:
    """All pairs once, the row of lower rank left: pairs are compared the same way round in any order of the rows."""
    left = np.concatenate([pair[0] for pair in found])
    right = np.concatenate([pair[1] for pair in found])
    packed = sorted_unique((np.minimum(rank[left], rank[right]) << 32) | np.maximum(rank[left], rank[right]))
    row_of = np.argsort(rank)
    return row_of[packed >> 32], row_of[packed & 0xFFFFFFFF]


def _near_prompts(
    table: WordTable, texts: _Texts, left: Ints, right: Ints, threshold: float, *, ease: float
) -> tuple[Flags, Floats]:
    """Which pairs have near-duplicate prompts, or fall short by `ease` at most, and the score of all."""
    lengths = np.minimum(table.lengths[left], table.lengths[right])
    strict = thresholds_for(lengths, threshold)
    limits = thresholds_for(lengths, max(0.05, threshold - ease))
    totals = table.totals[left], table.totals[right]
    shared = shared_with_typos(table, left, right, np.zeros(len(left), dtype=np.bool_))
    plain = scores_of(shared, *totals, lengths)
    numbers = same_numbers(table, left, right)
    rare = rare_weight(table, left) + rare_weight(table, right)
    reachable = scores_of(np.minimum(shared + rare, np.minimum(*totals)), *totals, lengths) >= limits
    borderline = numbers & (plain < limits) & reachable
    scores = plain.copy()
    at = np.flatnonzero(borderline)
    mended = shared_with_typos(table, left[at], right[at], np.ones(len(at), dtype=np.bool_))
    scores[at] = scores_of(mended, totals[0][at], totals[1][at], lengths[at])
    near = numbers & (scores >= limits)
    wordless = near & (totals[0] == 0) & (totals[1] == 0)
    for pair in np.flatnonzero(wordless).tolist():
        near[pair] = normal_text(texts.prompts[left[pair]]) == normal_text(texts.prompts[right[pair]])
    alike = plain >= FAMILY * strict
    families = Families(table, left[alike], right[alike], texts.rank)
    for pair in np.flatnonzero(near & (plain < 1) & families.may_be(left, right)).tolist():
        near[pair] = not families.fill_slots(int(left[pair]), int(right[pair]))
    return near, scores


def _compared(texts: _Texts, asked: WordTable, answered: WordTable, threshold: float) -> _Pairs:
    """Find the pairs with near-duplicate prompts, and those whose prompts are carried by their answers."""
    candidates = _prompt_candidates(texts, asked)
    near, scores = _near_prompts(asked, texts, *candidates, threshold, ease=0.0)
    left, right, prompt_scores = candidates[0][near], candidates[1][near], scores[near]
    alone = np.ones(len(left), dtype=np.bool_)
    if any(texts.answers):
        both = [f"{prompt} {answer}" for prompt, answer in zip(asked.texts, answered.texts, strict=True)]
        eased = _merged([candidates, candidate_pairs(both, texts.rank), _equal_pairs(texts, answers=True)], texts.rank)
        near, scores = _near_prompts(asked, texts, *eased, threshold, ease=SIDE_EASE)
        near &= ~np.isin((eased[0] << 32) | eased[1], (left << 32) | right)
        left, right = np.r_[left, eased[0][near]], np.r_[right, eased[1][near]]
        prompt_scores = np.r_[prompt_scores, scores[near]]
        alone = np.r_[alone, np.zeros(int(near.sum()), dtype=np.bool_)]
    if not any(texts.answers):
        every, none = np.ones(len(left), dtype=np.bool_), np.zeros(len(left), dtype=np.bool_)
        scores, same, contrary = prompt_scores, every, none
    else:
        scores, same, contrary = _answers(texts, asked, answered, left, right, prompt_scores, threshold)
    keep = alone | same
    return _Pairs(
        left=left[keep],
        right=right[keep],
        prompt_scores=prompt_scores[keep],
        alone=alone[keep],
        scores=scores[keep],
        same=same[keep],
        contrary=contrary[keep] & alone[keep],
    )


def _answers(
    texts: _Texts,
    asked: WordTable,
    answered: WordTable,
    left: Ints,
    right: Ints,
    prompt_scores: Floats,
    threshold: float,
) -> tuple[Floats, Flags, Flags]:
    """Score of prompt and answer together, whether they are the same, whether the answers are contrary labels."""
    every = np.ones(len(left), dtype=np.bool_)
    shared = shared_with_typos(answered, left, right, every)
    answer_lengths = np.minimum(answered.lengths[left], answered.lengths[right])
    lengths = np.minimum(asked.lengths[left] + answered.lengths[left], asked.lengths[right] + answered.lengths[right])
    answer_scores = scores_of(shared, answered.totals[left], answered.totals[right], lengths)
    # Prompts weigh in by their score, in which misspelt words are mended already.
    asked_whole = np.minimum(asked.totals[left], asked.totals[right])
    answered_whole = np.minimum(answered.totals[left], answered.totals[right])
    whole = asked_whole + answered_whole
    mean = (prompt_scores * asked_whole + answer_scores * answered_whole) / np.where(whole > 0, whole, 1)
    scores = np.where(whole > 0, mean, np.minimum(prompt_scores, answer_scores))
    same = scores >= thresholds_for(lengths, threshold)
    same &= answer_scores >= thresholds_for(answer_lengths, threshold) - SIDE_EASE
    same &= same_numbers(answered, left, right)
    contrary = ~same & (answer_lengths <= SHORT_TEXT_WORDS)
    limits = thresholds_for(np.minimum(asked.lengths[left], asked.lengths[right]), threshold)
    parsed: dict[int, str | None] = {}
    for pair, (one, other) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        values = [parsed.setdefault(row, _canonical(texts.answers[row])) for row in (one, other)]
        if values[0] is not None or values[1] is not None:
            equal = values[0] == values[1]
            scores[pair] = prompt_scores[pair]
            same[pair] = equal and scores[pair] >= limits[pair]
            contrary[pair] = not equal
    return scores, same, contrary


def _canonical(answer: str) -> str | None:
    """An answer that is JSON as its one text, whatever its spacing and key order; `None` for any other."""
    if answer.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return canonical_json(json.loads(answer))
    except ValueError:
        return None


def _instructions(row: Row) -> str:
    """System prompt and tools: rows that differ in them are different tasks, whatever else is the same."""
    shared = [message.content for message in row.conversation.messages if message.role in ("system", "developer")]
    if not shared and not row.conversation.tools:
        return ""
    return canonical_json([shared, [dict(tool) for tool in row.conversation.tools]])


def _settle(rows: Sequence[Row], texts: _Texts, pairs: _Pairs) -> list[Duplicate]:
    """Say of each row of a pair whether it stays, and of the others which row that stays they repeat."""
    pairs_of: dict[int, list[int]] = {}
    for pair, (one, other) in enumerate(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)):
        pairs_of.setdefault(one, []).append(pair)
        pairs_of.setdefault(other, []).append(pair)

    def relatives(row: int) -> Iterator[tuple[int, int]]:
        for pair in pairs_of[row]:
            yield int(pairs.left[pair] if pairs.right[pair] == row else pairs.right[pair]), pair

    def sentences(row: int, stays: Collection[int]) -> list[tuple[int, float, int]]:
        """What the rows that stay say of a row: (place in the order of kinds, -score, the row that stays)."""
        out = []
        for keeper, pair in relatives(row):
            kind = _kind(rows, texts, pairs, pair, keeper, row) if keeper in stays else None
            if kind is not None:
                by_prompt = kind in ("leak", "conflict")
                score = pairs.prompt_scores[pair] if by_prompt else pairs.scores[pair]
                out.append((_ORDER.index(kind), -round(float(score), 6), keeper))
        return sorted(out)

    degree = np.bincount(np.r_[pairs.left[pairs.same], pairs.right[pairs.same]], minlength=len(rows))
    stays: set[int] = set()
    for row in sorted(pairs_of, key=lambda row: (_side_rank(rows[row]), -int(degree[row]), int(texts.rank[row]))):
        if all(_ORDER[said[0]] in STAYING for said in sentences(row, stays)):
            stays.add(row)
    _prefer_earlier_(stays, rows, texts, pairs_of, pairs)
    cluster = clusters(len(rows), pairs.left, pairs.right)
    found = []
    for row in sorted(pairs_of):
        said = sentences(row, stays)
        kinds = [_ORDER[place] for place, _, _ in said]
        if row in stays:
            # Of two rows that both stay, the later one (or the one that is not held out) is flagged.
            said = [entry for entry in said if (_side_rank(rows[entry[2]]), entry[2]) < (_side_rank(rows[row]), row)]
            kinds = [_ORDER[place] for place, _, _ in said]
        if said:
            found.append(
                Duplicate(row=row, keeper=said[0][2], kind=kinds[0], score=-said[0][1], cluster=int(cluster[row]))
            )
    return found


def _side_rank(row: Row) -> int:
    return SIDE_RANK.get(row.split or "train", 2)


def _prefer_earlier_(
    stays: set[int], rows: Sequence[Row], texts: _Texts, pairs_of: Mapping[int, Sequence[int]], pairs: _Pairs
) -> None:
    """Exchange a row that stays for an earlier one that repeats all the same rows, so that of equals the first stays.

    How many rows stay was settled by content alone; this decides only which of several equals it is.
    """
    near: dict[int, set[int]] = {
        row: {int(pairs.left[p] + pairs.right[p]) - row for p in found if pairs.same[p]}
        for row, found in pairs_of.items()
    }
    for keeper in sorted(stays):
        if rows[keeper].split in SIDE_RANK:
            continue
        mine = {row for row in near[keeper] if len(near[row] & stays) == 1 and row not in stays}
        for row in sorted(mine):
            alike = texts.tasks[row] == texts.tasks[keeper] and rows[row].split == rows[keeper].split
            if row < keeper and alike and near[row] >= (near[keeper] - {row}) | {keeper}:
                stays.remove(keeper)
                stays.add(row)
                break


def _kind(rows: Sequence[Row], texts: _Texts, pairs: _Pairs, pair: int, keeper: int, row: int) -> DuplicateKind | None:
    side = rows[row].split
    if rows[keeper].split in SIDE_RANK and side != rows[keeper].split:
        return "leak" if pairs.alone[pair] else None
    if texts.tasks[keeper] != texts.tasks[row]:
        return None
    if not pairs.same[pair]:
        return "conflict" if pairs.contrary[pair] else None
    if side in SIDE_RANK:
        return "heldout_duplicate"
    equal = texts.asked[keeper] == texts.asked[row] and texts.answered[keeper] == texts.answered[row]
    return "exact_duplicate" if equal else "near_duplicate"


def cluster_name(row: Row) -> str:
    """Return a name for the cluster whose first row this is: the same in every run."""
    return "c" + sha256_hex(row.id)[:10]
