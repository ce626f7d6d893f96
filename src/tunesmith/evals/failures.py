"""Group wrong answers by what is wrong with them.

What lives here: one name for each wrong answer, and counts. What does not: scoring (`evals.run`).

    group_failures(items, answers)["tuned"][0]    # FailureGroup(kind="wrong intent", row_ids=(...))
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tunesmith.evals.run import FIELD_PREFIX, Answer
from tunesmith.types import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Answers of one system that are wrong in the same way."""

    kind: str
    row_ids: tuple[str, ...]

    def to_json(self) -> dict[str, JSON]:
        """Return the shape of `results.json`."""
        return {"kind": self.kind, "n": len(self.row_ids), "row_ids": list(self.row_ids)}


def failure_kind(scores: Mapping[str, float]) -> str | None:
    """Return what is wrong with an answer, the first cause that explains the rest, or `None` where nothing is.

    The order is: empty, ends in a loop, cut by the token limit, not JSON, outside the schema, wrong fields, not equal.
    """
    if scores.get("empty"):
        return "empty"
    if scores.get("loop"):
        return "ends in a loop"
    if scores.get("cut"):
        return "cut by the token limit"
    if scores.get("json_parse") == 0:
        return "not JSON"
    if scores.get("schema_adherence") == 0:
        return "outside the schema"
    if scores.get("exact_match", 1) == 1:
        return None
    wrong = [
        name.removeprefix(FIELD_PREFIX) for name, score in scores.items() if name.startswith(FIELD_PREFIX) and not score
    ]
    return f"wrong {', '.join(sorted(wrong))}" if wrong else "not equal to the expected answer"


def group_failures(answers: Iterable[Answer]) -> dict[str, list[FailureGroup]]:
    """Return system -> groups of wrong answers, largest first."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        groups = found[answer.system]
        kind = failure_kind(answer.scores)
        if kind is not None:
            groups[kind].append(answer.row_id)
    return {
        system: [
            FailureGroup(kind=kind, row_ids=tuple(row_ids))
            for kind, row_ids in sorted(groups.items(), key=lambda pair: (-len(pair[1]), pair[0]))
        ]
        for system, groups in found.items()
    }
