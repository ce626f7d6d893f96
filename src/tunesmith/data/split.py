"""Split: which side each row stands on, and the proof that no side knows another.

What lives here: units (rows that must stay together), their assignment, and an independent check of the result. What
does not: what a near-duplicate is (`data.near`, `data.dedup`).

    rows --group key, near-duplicate prompts--> units --stratum, content hash--> sides --prove--> zero overlap

A unit is all rows that are connected by an equal group key or near-duplicate prompts. Units are dealt to the sides
within strata (label, source, length), in order of a hash of their content: the same rows give the same sides on any
machine, in any order, and a new row moves few others. Held-out sides that rows name themselves (a split from outside)
are kept as they are: a row elsewhere that belongs together with one of theirs is on no side (`leak`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunesmith.data.dedup import SIDE_RANK, prompt_pairs
from tunesmith.data.engines import LOCAL, Engine
from tunesmith.data.near import clusters
from tunesmith.data.words import normal_text, prompt_text
from tunesmith.data.wordtable import Ints
from tunesmith.errors import DataError
from tunesmith.types import JSON, Row, RowRole, sha256_hex

SIDES = ("train", "val", "test")
HELD_OUT = ("val", "test")
LENGTH_BANDS = (50, 100, 200, 400, 800, 1600, 3200)
"""Upper bounds, in characters, of the length bands of strata and drift."""
MIN_STRATUM_UNITS = 10
"""Smaller strata join the next coarser one: ten units are the fewest of which a tenth is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A row of another side, or of none, that belongs together with a row of a held-out side from outside."""

    row: Row
    heldout: Row
    score: float | None
    """Of the prompts; `None` where the group is what both share."""

    @property
    def detail(self) -> str:
        """Why the row is on no side."""
        place = f"{self.heldout.provenance.path}:{self.heldout.provenance.line}"
        why = "nearly the same prompt as" if self.score is not None else f"the group {self.row.group!r} of"
        return f"{why} {place}, which is held out on the side {self.heldout.split}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Rows by side, in their given order, and what ties them."""

    sides: dict[str, list[Row]]
    num_units: int
    num_groups: int
    num_clusters: int
    from_outside: list[str]
    """Held-out sides that the rows named themselves."""
    leaks: list[Leak]
    """Rows that are on no side, as a side from outside holds what belongs together with them."""


def split_rows(
    rows: Sequence[Row],
    *,
    shares: Mapping[str, float],
    label: str | None,
    near_threshold: float,
    engine: Engine = LOCAL,
) -> Split:
    """Assign every row a side.

    `shares` gives each side its share of the rows and sums to 1. `label` names the label to stratify by; `None` takes
    no label. Rows that name val or test keep that side; all others, those that name train as well, are dealt to train
    and to the held-out sides that no row names. General rows train, and so does all that must stay together with
    them; the shares deal the others. Raises `DataError` where a side with a share stays empty.
    """
    rows, leaks, (left, right) = _without_leaks(rows, near_threshold, engine)
    by_group = _pairs_of_equal([row.group for row in rows])
    units = clusters(len(rows), np.concatenate([left, by_group[0]]), np.concatenate([right, by_group[1]]))
    members: dict[int, list[int]] = defaultdict(list)
    for index, unit in enumerate(units.tolist()):
        members[unit].append(index)
    named = {row.split for row in rows if row.split in HELD_OUT}
    sides = _named_sides(rows, members)
    free = {unit: indices for unit, indices in members.items() if unit not in sides}
    sides.update(_deal(rows, free, _free_shares(shares, named), label))
    out: dict[str, list[Row]] = {side: [] for side in SIDES}
    for index, row in enumerate(rows):
        side = sides[int(units[index])]
        out[side].append(row if row.split == side else replace(row, split=side))
    _refuse_empty(out, shares, named, num_units=len(members))
    return Split(
        sides=out,
        num_units=len(members),
        num_groups=len({row.group for row in rows if row.group is not None}),
        num_clusters=len(set(clusters(len(rows), left, right).tolist())),
        from_outside=sorted(side for side in named if side is not None),
        leaks=leaks,
    )


def _without_leaks(
    rows: Sequence[Row], near_threshold: float, engine: Engine
) -> tuple[list[Row], list[Leak], tuple[Ints, Ints]]:
    """Take out the rows that belong together with a row of a held-out side that came from outside.

    The held-out side stays as it was given: test before val, val before all others. Word weights follow the rows, so
    this goes on until nothing is found; what is found last are the near-duplicate prompts among the rows that stay.
    """
    kept = list(rows)
    leaks: list[Leak] = []
    while True:
        left, right, scores = prompt_pairs(kept, threshold=near_threshold, engine=engine)
        ranks = [_rank(row) for row in kept]
        across = np.take(ranks, left) != np.take(ranks, right)
        pairs = [
            *zip(*(values[across].tolist() for values in (left, right, scores)), strict=True),
            *((one, other, None) for one, other in _pairs_across([row.group for row in kept], ranks)),
        ]
        found: dict[int, Leak] = {}
        for one, other, score in sorted(pairs, key=lambda pair: (min(ranks[pair[0]], ranks[pair[1]]), -(pair[2] or 0))):
            row, heldout = (one, other) if ranks[one] > ranks[other] else (other, one)
            found.setdefault(row, Leak(row=kept[row], heldout=kept[heldout], score=score))
        if not found:
            return kept, leaks, (left, right)
        leaks += [found[row] for row in sorted(found)]
        kept = [row for index, row in enumerate(kept) if index not in found]


def _rank(row: Row) -> int:
    return SIDE_RANK.get(row.split or "", 2)


def _pairs_across(keys: Sequence[str | None], ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Each row of a key with the first row of the lowest rank among those of the key, where ranks differ."""
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key is not None and ranks[index] < ranks[first.setdefault(key, index)]:
            first[key] = index
    return [
        (first[key], index) for index, key in enumerate(keys) if key is not None and ranks[first[key]] < ranks[index]
    ]


def _pairs_of_equal(keys: Sequence[str | None]) -> tuple[Ints, Ints]:
    first: dict[str, int] = {}
    left, right = [], []
    for index, key in enumerate(keys):
        if key is not None and first.setdefault(key, index) != index:
            left.append(first[key])
            right.append(index)
    return np.asarray(left, dtype=np.int64), np.asarray(right, dtype=np.int64)


def _named_sides(rows: Sequence[Row], members: Mapping[int, list[int]]) -> dict[int, str]:
    """Sides of the units that are not dealt: of a held-out side from outside, and those that hold general rows."""
    sides = {}
    for unit, indices in members.items():
        side = rows[indices[0]].split
        # No unit has rows of a held-out side and others: those were leaks.
        if side in HELD_OUT:
            sides[unit] = side
        elif any(rows[index].role is RowRole.GENERAL for index in indices):
            sides[unit] = "train"
    return sides


def _free_shares(shares: Mapping[str, float], named: set[str]) -> dict[str, float]:
    """Shares of the rows that name no side: held-out sides that are named from outside get no more rows."""
    free = {side: share for side, share in shares.items() if share > 0 and side not in named}
    total = sum(free.values())
    return {side: share / total for side, share in free.items()} if total else {"train": 1.0}


def _deal(
    rows: Sequence[Row], units: Mapping[int, list[int]], shares: Mapping[str, float], label: str | None
) -> dict[int, str]:
    """Deal units to sides so that each side has its share of the rows of each stratum.

    Within a stratum units are ordered by the hash of their content, and cut at the shares: new rows move only the few
    units at a cut. A unit of more than half a held-out side's rows trains, so that no cluster becomes the test set.
    """
    first = {unit: min((_content_key(rows[index]), index) for index in indices) for unit, indices in units.items()}
    total = sum(map(len, units.values()))
    heldout = [share for side, share in shares.items() if side != "train"]
    largest = min(heldout, default=1.0) * total / 2
    sides = {unit: "train" for unit, indices in units.items() if "train" in shares and len(indices) > max(1.0, largest)}
    waiting = [unit for unit in units if unit not in sides]
    for level in range(4):
        strata: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for unit in waiting:
            strata[_stratum(rows[first[unit][1]], label)[: 3 - level]].append(unit)
        waiting = []
        for members in strata.values():
            if len(members) < MIN_STRATUM_UNITS and level < 3:
                waiting += members
            else:
                sides.update(_cut(sorted(members, key=lambda unit: first[unit]), units, shares))
    return sides


def _cut(order: Sequence[int], units: Mapping[int, list[int]], shares: Mapping[str, float]) -> dict[int, str]:
    """Give each unit the side within whose share of the rows its middle lies: test first, then val, then train."""
    total = sum(len(units[unit]) for unit in order)
    bounds = []
    reached = 0.0
    for side in reversed(SIDES):
        reached += shares.get(side, 0.0)
        bounds.append((side, reached))
    last = next(side for side in SIDES if shares.get(side, 0) > 0)
    sides = {}
    before = 0
    for unit in order:
        middle = (before + len(units[unit]) / 2) / total
        sides[unit] = next((side for side, bound in bounds if middle < bound), last)
        before += len(units[unit])
    return sides


def _content_key(row: Row) -> str:
    return sha256_hex(normal_text(prompt_text(row.conversation)))


def _stratum(row: Row, label: str | None) -> tuple[str, ...]:
    said = row.labels.get(label, "") if label is not None else ""
    return (said, row.provenance.source, length_band(row))


def length_band(row: Row) -> str:
    """Return the band of a row's prompt length."""
    length = len(prompt_text(row.conversation))
    bound = next((bound for bound in LENGTH_BANDS if length < bound), None)
    return f">={LENGTH_BANDS[-1]}" if bound is None else f"<{bound}"


def _refuse_empty(
    out: Mapping[str, Sequence[Row]], shares: Mapping[str, float], named: set[str], *, num_units: int
) -> None:
    for side in SIDES:
        if not out[side] and (shares.get(side, 0) > 0 or side in named):
            raise DataError(
                f"the side {side} of the split is empty",
                expected=f"a share of {shares.get(side, 0):.0%} of {sum(map(len, out.values()))} rows",
                found=f"{num_units} units that must stay together",
                hint="add rows, lower the number of sides, or look at the group field and the largest clusters",
            )


def prove(
    sides: Mapping[str, Sequence[Row]], *, near_threshold: float, label: str | None, engine: Engine = LOCAL
) -> dict[str, JSON]:
    """Look for overlaps between the sides afresh, without anything that made the split, and measure their drift.

    Counts rows that have the same prompt after normalisation, a near-duplicate prompt, or the same group on another
    side. Drift is the total variation distance (0 to 1) of each side from all rows of the task, for label, length and
    source: general rows are on one side on purpose.
    """
    rows = [row for side in SIDES for row in sides.get(side, ())]
    side_of = [side for side in SIDES for _ in sides.get(side, ())]
    exact = _overlaps_of([normal_text(prompt_text(row.conversation)) for row in rows], side_of)
    group = _overlaps_of([row.group for row in rows], side_of)
    left, right, scores = prompt_pairs(rows, threshold=near_threshold, engine=engine)
    across = [
        (int(one), int(other), float(score))
        for one, other, score in zip(left, right, scores, strict=True)
        if side_of[int(one)] != side_of[int(other)]
    ]
    examples = [
        {"rows": [rows[one].id, rows[other].id], "sides": [side_of[one], side_of[other]], "score": round(score, 4)}
        for one, other, score in sorted(across, key=lambda pair: -pair[2])[:10]
    ]
    task = [(row, on) for row, on in zip(rows, side_of, strict=True) if row.role is RowRole.TASK]
    facets = _facets([row for row, _ in task], label)
    return {
        "rows": {side: len(sides.get(side, ())) for side in SIDES},
        "groups": len({row.group for row in rows if row.group is not None}),
        "near_threshold": near_threshold,
        "overlaps": {"exact": len(exact), "near": len(across), "group": len(group)},
        "examples": examples,
        "general_rows": len(rows) - len(task),
        "drift": {name: _drift(values, [on for _, on in task]) for name, values in facets.items()},
    }


def _overlaps_of(keys: Sequence[str | None], side_of: Sequence[str]) -> list[str]:
    first: dict[str, str] = {}
    return sorted({key for key, side in zip(keys, side_of, strict=True) if key and first.setdefault(key, side) != side})


def _facets(rows: Sequence[Row], label: str | None) -> dict[str, list[str]]:
    facets = {
        "length": [length_band(row) for row in rows],
        "source": [row.provenance.source for row in rows],
    }
    if label is not None:
        facets["label"] = [row.labels.get(label, "") for row in rows]
    return facets


def _drift(values: Sequence[str], side_of: Sequence[str]) -> dict[str, JSON]:
    everything = Counter(values)
    out: dict[str, JSON] = {}
    for side in SIDES:
        here = Counter(value for value, on in zip(values, side_of, strict=True) if on == side)
        if here:
            total, all_rows = sum(here.values()), len(values)
            out[side] = round(sum(abs(here[v] / total - n / all_rows) for v, n in everything.items()) / 2, 4)
    return out


def refuse_overlap(proof: Mapping[str, JSON]) -> None:
    """Raise `DataError` where a proof found rows of one side on another."""
    overlaps = proof["overlaps"]
    if any(overlaps.values()):
        raise DataError(
            "the sides of the split overlap",
            where="split_proof.json",
            expected="no prompt and no group on two sides",
            found=", ".join(f"{kind} {count}" for kind, count in overlaps.items())
            + f"; first: {proof['examples'][:1]}",
            hint="curate with the same near_duplicates threshold drops such rows from training",
        )
