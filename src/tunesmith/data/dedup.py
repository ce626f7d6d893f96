"""Duplicate rows: which row of a group stays, and why each other one goes.

What lives here: exact and near duplicates among rows, and rows of training that stand in a held-out side as well.
What does not: how texts are compared (`data.compare`).

Rows with near-duplicate prompts and other labels contradict each other: both stay, flagged.
Across the sides of a split that came from outside the prompt alone decides: the held-out row stays, the row of the
other side goes (`leak`).

A row goes only where it is a duplicate of a row that stays: chains of pairs never take along a row that is not. Of an
original and its edited copies the original stays, as it repeats most others; of equals the first stays.
Duplicates inside a held-out side are flagged, never removed: who gave the test set decides what is in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tunesmith.data.compare import FLOOR, PairTable, near_pairs, texts_of
from tunesmith.data.engines import LOCAL, Engine
from tunesmith.data.near import clusters
from tunesmith.data.verify import ROUNDING
from tunesmith.data.wordtable import Flags, Floats, Ints
from tunesmith.types import Row, canonical_json, sha256_hex

SIDE_RANK = {"test": 0, "val": 1}
"""Held-out sides keep their rows before all others."""

DuplicateKind = Literal["exact_duplicate", "near_duplicate", "leak", "conflict", "heldout_duplicate"]
STAYING: tuple[DuplicateKind, ...] = ("conflict", "heldout_duplicate")
"""Kinds that are flagged; rows of the other kinds go."""
_ORDER: tuple[DuplicateKind, ...] = ("leak", "exact_duplicate", "near_duplicate", "heldout_duplicate", "conflict")


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
class Standing:
    """What decides, besides its texts, whether a row stays: one entry a row."""

    sides: list[str]
    """Side that the row names; empty where it names none."""
    tasks: list[str]
    """System prompt and tools, or a name for them: rows that differ in them are different tasks."""
    rank: Ints
    """Place in an order by content."""


def find_duplicates(rows: Sequence[Row], *, threshold: float, engine: Engine = LOCAL) -> list[Duplicate]:
    """Return the rows that repeat another row, in order of `row`.

    `threshold` is the score (see `data.verify`) from which texts of 40 words and more are near-duplicates. Of rows that
    repeat each other the one of a held-out side stays, then the one that repeats most others, then the first in `rows`.
    """
    pairs, standing = compare(rows, floor=min(FLOOR, threshold), engine=engine)
    return settle(standing, pairs, threshold=threshold)


def compare(rows: Sequence[Row], *, floor: float = FLOOR, engine: Engine = LOCAL) -> tuple[PairTable, Standing]:
    """Return what `settle` decides from, for any threshold from `floor` up."""
    texts = texts_of(rows, answers=True)
    standing = Standing(
        sides=[row.split or "" for row in rows], tasks=[_instructions(row) for row in rows], rank=texts.rank
    )
    return near_pairs(texts, floor=floor, engine=engine), standing


def prompt_pairs(rows: Sequence[Row], *, threshold: float, engine: Engine = LOCAL) -> tuple[Ints, Ints, Floats]:
    """Return all found pairs of rows with near-duplicate prompts, and the scores.

    A function of the set of prompts alone: a split and its proof find the same pairs.
    """
    pairs = near_pairs(texts_of(rows, answers=False), floor=threshold, engine=engine)
    return pairs.left, pairs.right, pairs.prompt_scores


def _instructions(row: Row) -> str:
    """System prompt and tools: rows that differ in them are different tasks, whatever else is the same."""
    shared = [message.content for message in row.conversation.messages if message.role in ("system", "developer")]
    if not shared and not row.conversation.tools:
        return ""
    return canonical_json([shared, [dict(tool) for tool in row.conversation.tools]])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """Pairs at one threshold, as plain lists: each is looked at a few times."""

    left: list[int]
    right: list[int]
    standing: Standing
    of: dict[int, list[int]]
    """Row -> its pairs."""
    same: list[bool]
    alone: list[bool]
    contrary: list[bool]
    equal: list[bool]
    prompt_scores: list[float]
    scores: list[float]

    def relatives(self, row: int) -> Iterator[tuple[int, int]]:
        """The rows that a row is paired with, and the pairs."""
        for pair in self.of[row]:
            yield self.left[pair] if self.right[pair] == row else self.right[pair], pair

    def rank(self, row: int) -> int:
        """0 and 1 for the held-out sides, 2 for the others."""
        return SIDE_RANK.get(self.standing.sides[row], 2)

    def kind(self, pair: int, keeper: int, row: int) -> DuplicateKind | None:
        """What a row is to a row that stays."""
        sides = self.standing.sides
        if sides[keeper] in SIDE_RANK and sides[row] != sides[keeper]:
            return "leak" if self.alone[pair] else None
        if self.standing.tasks[keeper] != self.standing.tasks[row]:
            return None
        if not self.same[pair]:
            return "conflict" if self.contrary[pair] and self.alone[pair] else None
        if sides[row] in SIDE_RANK:
            return "heldout_duplicate"
        return "exact_duplicate" if self.equal[pair] else "near_duplicate"

    def sentences(self, row: int, stays: Collection[int]) -> list[tuple[int, float, int]]:
        """What the rows that stay say of a row: (place in the order of kinds, -score, the row that stays)."""
        out = []
        for keeper, pair in self.relatives(row):
            kind = self.kind(pair, keeper, row) if keeper in stays else None
            if kind is not None:
                by_prompt = kind in ("leak", "conflict")
                score = self.prompt_scores[pair] if by_prompt else self.scores[pair]
                out.append((_ORDER.index(kind), -round(score, 6), keeper))
        return sorted(out)


def settle(standing: Standing, pairs: PairTable, *, threshold: float) -> list[Duplicate]:
    """Say of each row of a pair whether it stays, and of the others which row that stays they repeat."""
    pairs = pairs.only(np.maximum(pairs.prompt_at, pairs.same_at) >= threshold - ROUNDING)
    same: Flags = pairs.same_at >= threshold - ROUNDING
    num_rows = len(standing.sides)
    case = _case(standing, pairs, same, threshold)
    degree = np.bincount(np.r_[pairs.left[same], pairs.right[same]], minlength=num_rows)
    stays: set[int] = set()
    for row in sorted(case.of, key=lambda row: (case.rank(row), -int(degree[row]), int(standing.rank[row]))):
        if all(_ORDER[said[0]] in STAYING for said in case.sentences(row, stays)):
            stays.add(row)
    _prefer_earlier_(stays, case)
    cluster = clusters(num_rows, pairs.left, pairs.right)
    found = []
    for row in sorted(case.of):
        said = case.sentences(row, stays)
        if row in stays:
            # Of two rows that both stay, the later one (or the one that is not held out) is flagged.
            said = [entry for entry in said if (case.rank(entry[2]), entry[2]) < (case.rank(row), row)]
        if said:
            place, score, keeper = said[0]
            found.append(Duplicate(row=row, keeper=keeper, kind=_ORDER[place], score=-score, cluster=int(cluster[row])))
    return found


def _case(standing: Standing, pairs: PairTable, same: Flags, threshold: float) -> _Case:
    left, right = pairs.left.tolist(), pairs.right.tolist()
    pairs_of: dict[int, list[int]] = {}
    for pair, (one, other) in enumerate(zip(left, right, strict=True)):
        pairs_of.setdefault(one, []).append(pair)
        pairs_of.setdefault(other, []).append(pair)
    return _Case(
        left=left,
        right=right,
        standing=standing,
        of=pairs_of,
        same=same.tolist(),
        alone=(pairs.prompt_at >= threshold - ROUNDING).tolist(),
        contrary=pairs.contrary.tolist(),
        equal=pairs.equal.tolist(),
        prompt_scores=pairs.prompt_scores.tolist(),
        scores=pairs.scores.tolist(),
    )


def _prefer_earlier_(stays: set[int], case: _Case) -> None:
    """Exchange a row that stays for an earlier one that repeats all the same rows, so that of equals the first stays.

    How many rows stay was settled by content alone; this decides only which of several equals it is.
    """
    near = {row: {other for other, pair in case.relatives(row) if case.same[pair]} for row in case.of}
    sides, tasks = case.standing.sides, case.standing.tasks
    for keeper in sorted(stays):
        if sides[keeper] in SIDE_RANK:
            continue
        mine = {row for row in near[keeper] if len(near[row] & stays) == 1 and row not in stays}
        for row in sorted(mine):
            alike = tasks[row] == tasks[keeper] and sides[row] == sides[keeper]
            if row < keeper and alike and near[row] >= (near[keeper] - {row}) | {keeper}:
                stays.remove(keeper)
                stays.add(row)
                break


def cluster_name(row: Row) -> str:
    """Return a name for the cluster whose first row this is: the same in every run."""
    return "c" + sha256_hex(row.id)[:10]
