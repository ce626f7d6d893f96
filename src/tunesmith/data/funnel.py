"""Funnel: what came in, what each rule took, and what stayed, in rows and in tokens, for each source.

What lives here: the count over an account that is complete. What does not: the account (`data.lineage`), the page
(`data.curation_report`).

    funnel = make_funnel(rows, rejects, count_tokens=lambda texts: [...])
    funnel.steps[0]        -> Step(reason="opt_out", rows=3, units=411)
    funnel.unit            -> "tokens", or "characters" where nobody brought a tokenizer
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.data.words import message_text
from tunesmith.data.write import Reject
from tunesmith.types import JSON, Row

CountTokens = Callable[[Sequence[str]], list[int]]

MAX_COUNTED_ROWS = 50_000
"""Of more rows so many, evenly spaced, are tokenised; the others are estimated from their characters."""
_BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one rule took."""

    reason: str
    rows: int
    units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFunnel:
    """One source: what came in, what stayed, what each rule took."""

    source: str
    rows_in: int
    units_in: int
    rows_kept: int
    units_kept: int
    taken: dict[str, int]
    """Reason -> rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Funnel:
    """The whole, and each source. Texts are counted as they came in, so that the sums are even."""

    unit: str
    """`tokens` or `characters`."""
    counted_rows: int
    """Rows whose tokens were counted; those of the others are estimated."""
    rows_in: int
    units_in: int
    steps: tuple[Step, ...]
    """In the order in which the rules are applied."""
    sources: tuple[SourceFunnel, ...]

    @property
    def rows_kept(self) -> int:
        """Rows that stayed."""
        return self.rows_in - sum(step.rows for step in self.steps)

    @property
    def units_kept(self) -> int:
        """Tokens or characters of the rows that stayed."""
        return self.units_in - sum(step.units for step in self.steps)

    def to_json(self) -> dict[str, JSON]:
        """Return what `funnel.json` holds."""
        return {
            "unit": self.unit,
            "counted_rows": self.counted_rows,
            "rows_in": self.rows_in,
            "units_in": self.units_in,
            "rows_kept": self.rows_kept,
            "units_kept": self.units_kept,
            "steps": [{"reason": step.reason, "rows": step.rows, "units": step.units} for step in self.steps],
            "sources": {
                part.source: {
                    "rows_in": part.rows_in,
                    "units_in": part.units_in,
                    "rows_kept": part.rows_kept,
                    "units_kept": part.units_kept,
                    "taken": part.taken,
                }
                for part in self.sources
            },
        }


def make_funnel(rows: Sequence[Row], rejects: Sequence[Reject], *, count_tokens: CountTokens | None) -> Funnel:
    """Count rows that came in and those that were rejected, in the order of the rejections."""
    units, counted = _units(rows, count_tokens)
    reason_of = {reject.row_id: reject.reason for reject in rejects}
    order = list(dict.fromkeys(reject.reason for reject in rejects))
    taken: dict[str, list[int]] = {reason: [0, 0] for reason in order}
    came: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    stayed: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    gone: dict[str, dict[str, int]] = defaultdict(dict)
    for row, size in zip(rows, units, strict=True):
        source, reason = row.provenance.source, reason_of.get(row.id)
        tallies = [came[source], stayed[source] if reason is None else taken[reason]]
        for tally in tallies:
            tally[0] += 1
            tally[1] += size
        if reason is not None:
            gone[source][reason] = gone[source].get(reason, 0) + 1
    return Funnel(
        unit="characters" if count_tokens is None else "tokens",
        counted_rows=counted,
        rows_in=len(rows),
        units_in=sum(units),
        steps=tuple(Step(reason=reason, rows=taken[reason][0], units=taken[reason][1]) for reason in order),
        sources=tuple(
            SourceFunnel(
                source=source,
                rows_in=came[source][0],
                units_in=came[source][1],
                rows_kept=stayed[source][0],
                units_kept=stayed[source][1],
                taken=gone[source],
            )
            for source in came
        ),
    )


def _units(rows: Sequence[Row], count_tokens: CountTokens | None) -> tuple[list[int], int]:
    """Return tokens (or characters) of each row, and how many rows were counted and not estimated."""
    chars = [sum(len(message_text(message)) for message in row.conversation.messages) for row in rows]
    if count_tokens is None:
        return chars, len(rows)
    every = max(1, -(-len(rows) // MAX_COUNTED_ROWS))
    chosen = range(0, len(rows), every)
    counts: dict[int, int] = {}
    for start in range(0, len(chosen), _BATCH_ROWS):
        batch = chosen[start : start + _BATCH_ROWS]
        texts = ["\n".join(message_text(message) for message in rows[i].conversation.messages) for i in batch]
        counts.update(zip(batch, count_tokens(texts), strict=True))
    per_char = sum(counts.values()) / max(1, sum(chars[index] for index in chosen))
    return [counts.get(index, round(size * per_char)) for index, size in enumerate(chars)], len(counts)
