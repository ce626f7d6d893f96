"""Review: the queue of a curated version, and decisions that the next one applies.

What lives here: from a run to its queue, and where decisions are kept. What does not: what a decision does
(`data.review`), which rows are shown (`data.review_queue`).

    board = open_board("decisions.jsonl", run=None, store=store)
    board.items            -> rows to look at, undecided
    decide(board.path, item, decision="drop", reason="answers another question", reviewer="ada")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.artifact import Artifact
from tunesmith.core.events import now
from tunesmith.core.refs import user_name
from tunesmith.core.runs import artifact_of, find_run
from tunesmith.core.store import Store
from tunesmith.data.labelstudio import read_annotations, write_tasks
from tunesmith.data.review import Decision, Settled, Verdict, append_decisions, read_decisions, settle
from tunesmith.data.review_queue import STRATA, QueueItem, make_queue, with_answer
from tunesmith.errors import DataError, PlanError, StoreError

DECISIONS = Path("decisions.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What there is to review, and what was decided."""

    path: Path
    version: Artifact
    items: tuple[QueueItem, ...]
    decisions: tuple[Decision, ...]
    settled: Settled
    hashes: frozenset[str]
    """Contents of the version: decisions about others wait for a version that holds them."""

    def counts(self) -> dict[str, int]:
        """Return the state in figures."""
        current = self.settled.current
        return {
            "decided": len(current),
            **{f"decided_{name}": n for name, n in sorted(Counter(d.decision for d in current.values()).items())},
            "conflicts": len(self.settled.conflicts),
            "not_in_this_version": len({*current, *self.settled.conflicts} - self.hashes),
            "queued": len(self.items),
        }


def curated_version(store: Store, run: str | None) -> Artifact:
    """Return the curated rows of a run. Raises `StoreError` where it has none."""
    record = find_run(store, run)
    for stage in record.stages.values():
        artifact = artifact_of(store, stage) if stage.stage == "curate" else None
        if artifact is not None:
            return artifact
    raise StoreError(
        f"the run {record.run} has no curated rows",
        where=str(store.runs / record.run),
        hint=f"tunesmith run {record.recipe_path} --until curate",
    )


def open_board(
    decisions: Path,
    *,
    store: Store,
    run: str | None = None,
    per_stratum: int = 20,
    strata: Collection[str] = STRATA,
) -> Board:
    """Return queue and decisions. Raises `DataError`, `StoreError`, or `PlanError` for a stratum that is none."""
    unknown = [name for name in strata if name not in STRATA]
    if unknown:
        raise PlanError("no such part of the queue", expected=f"one of {', '.join(STRATA)}", found=unknown[0])
    version = curated_version(store, run)
    made = read_decisions(decisions) if decisions.exists() else []
    settled = settle(made)
    items = make_queue(
        version.path,
        per_stratum=per_stratum,
        decided=settled.current,
        first=settled.conflicts,
        strata=strata,
    )
    return Board(
        path=decisions,
        version=version,
        items=tuple(items),
        decisions=tuple(made),
        settled=settled,
        hashes=_hashes(version),
    )


def _hashes(version: Artifact) -> frozenset[str]:
    import pyarrow.parquet as pq

    table = pq.read_table(version.path / "lineage.parquet", columns=["before_hash"])
    return frozenset(table.column("before_hash").to_pylist())


def decide(
    path: Path,
    item: QueueItem,
    *,
    decision: Verdict,
    reason: str,
    answer: str | None = None,
    reviewer: str | None = None,
    final: bool = False,
) -> Decision:
    """Add one decision to the file. `answer` is the new answer of an edit. Raises `DataError`."""
    if (decision == "edit") != (answer is not None):
        raise DataError("an edit, and nothing else, gives an answer", found=f"{decision}, answer {answer!r}")
    made = Decision(
        content_hash=item.content_hash,
        decision=decision,
        reason=reason,
        reviewer=reviewer or user_name(),
        time=now(),
        messages=None if answer is None else with_answer(item.conversation, answer),
        final=final,
    )
    append_decisions(path, [made])
    return made


def export_tasks(board: Board, target: Path) -> int:
    """Write the queue as Label Studio tasks and return how many."""
    with target.open("w", encoding="utf-8") as handle:
        return write_tasks(handle, board.items)


def import_annotations(source: Path, decisions: Path) -> tuple[int, int]:
    """Add the decisions of a Label Studio export; return how many it holds and how many were new."""
    found = read_annotations(source)
    return len(found), append_decisions(decisions, found)
