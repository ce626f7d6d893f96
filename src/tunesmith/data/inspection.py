"""Inspection: what a file holds that nobody has described yet.

    inspect_source(Path("tickets.jsonl"))  ->  SourceReport(shape="messages", rows=1200, labels={"answer.intent": ...})

What lives here: facts about one file or folder. What does not: choosing settings from them (`api.new_recipe`).
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.files import parts_of, read_records
from tunesmith.data.read import Origin, answer_object, rows_of
from tunesmith.data.records import BadRecord, Record
from tunesmith.data.write import Reject
from tunesmith.types import JSON, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """What one look at a file says."""

    shape: str
    rows: int
    fields: tuple[str, ...]
    median_chars: int
    """Of all turns of a row together, over all readable rows."""
    p95_chars: int
    labels: Mapping[str, Mapping[str, int]]
    """Field with few different values -> value -> rows: what one may slice and stratify by."""
    problems: Mapping[str, int]
    """Reason -> records that cannot be rows."""
    first_problem: str | None = None


def inspect_source(path: Path, *, encoding: str = "utf-8") -> SourceReport:
    """Read a file or folder once and say what it holds: shape, rows, fields, lengths, possible labels, problems.

    Raises `DataError` where a file as a whole cannot be used.
    """
    look = _Look()
    for part in parts_of(path):
        records = look.watched(read_records(part.path, encoding=encoding))
        shape, items = rows_of(records, Origin(name=path.stem), name=part.name)
        look.shapes.append(shape.value)
        for item in items:
            look.count(item)
    return look.report()


_MAX_LABEL_VALUES = 200
_MAX_LABEL_CHARS = 60


class _Look:
    """What is counted while a file streams by."""

    def __init__(self) -> None:
        self.shapes: list[str] = []
        self._fields: dict[str, None] = {}
        self._values: dict[str, Counter[str]] = {}
        self._lengths: list[int] = []
        self._problems: Counter[str] = Counter()
        self._first_problem: str | None = None

    def watched(self, records: Iterator[Record | BadRecord]) -> Iterator[Record | BadRecord]:
        for record in records:
            if isinstance(record, Record):
                self._fields.update(dict.fromkeys(record.value))
                self._count_values(record.value.items())
            yield record

    def count(self, item: Row | Reject) -> None:
        if isinstance(item, Reject):
            self._problems[item.reason] += 1
            self._first_problem = self._first_problem or f"{item.path}:{item.line} {item.detail}"
            return
        self._lengths.append(sum(len(message.content or "") for message in item.conversation.messages))
        answer = answer_object(item.conversation) or {}
        self._count_values((f"answer.{key}", value) for key, value in answer.items())

    def _count_values(self, places: Iterable[tuple[str, JSON]]) -> None:
        for name, value in places:
            if isinstance(value, (str, bool)) and len(str(value)) <= _MAX_LABEL_CHARS:
                counts = self._values.setdefault(name, Counter())
                if len(counts) <= _MAX_LABEL_VALUES:
                    counts[value if isinstance(value, str) else json.dumps(value)] += 1

    def report(self) -> SourceReport:
        lengths = sorted(self._lengths)
        return SourceReport(
            shape=", ".join(dict.fromkeys(self.shapes)),
            rows=len(lengths),
            fields=tuple(self._fields),
            median_chars=round(statistics.median(lengths)) if lengths else 0,
            p95_chars=lengths[int(0.95 * (len(lengths) - 1))] if lengths else 0,
            labels={
                name: dict(counts.most_common()) for name, counts in self._values.items() if self._is_label(counts)
            },
            problems=dict(self._problems),
            first_problem=self._first_problem,
        )

    def _is_label(self, counts: Counter[str]) -> bool:
        """Few values, each met several times on average, in nearly all rows."""
        rows = len(self._lengths)
        most = min(_MAX_LABEL_VALUES, max(2, rows // 5))
        return sum(counts.values()) >= 0.9 * rows and 2 <= len(counts) <= most
