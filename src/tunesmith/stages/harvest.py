"""harvest: failures and bad ratings of a closed span become candidate rows for the next data version.

harvest:
  license: LicenseRef-customer-consent
  subject_tag: customer

What lives here: traces to rows, and the comparison with the held-out rows. What does not: the choice
(`monitor.candidates`), text comparison (`data.dedup`). Writes `rows.parquet` (with corrected answers), `review.parquet`
(no answer yet: a person must give one) and `excluded.parquet` (with reasons).
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context, Inputs, Summary, role, stage
from tunesmith.types import JSON, Conversation, Feedback, Message, Provenance, Row, RowKind, Trace

if TYPE_CHECKING:
    from tunesmith.data.write import Reject
    from tunesmith.monitor.candidates import Candidate, Overlap

HELD_OUT = ("test", "val")
"""Sides that no harvested row may repeat, in the order in which an overlap is named."""
NEAR_THRESHOLD = 0.6
"""Where the split proof names none."""


class HarvestInputs(Inputs):
    """Traces, and the splits whose held-out rows must stay apart."""

    traces: Artifact = role("traces", table="rehearse")
    splits: Artifact = role("splits", table="split")


class HarvestSpec(Spec):
    """What is said of the rows."""

    source: str = Field("traces", min_length=1)
    """Name of the source in the rows' provenance."""
    license: str | None = None
    """Licence or consent under which the traffic may be trained on; without one, curate will not take the rows."""
    subject_tag: str | None = None
    """Name in the requests' `metadata` that holds the id of the person a request is about, for opt-out."""
    group_tag: str | None = None
    """Name in the requests' `metadata` whose value keeps rows on one side of a split, such as a ticket."""


@stage(name="harvest", version=2, produces="candidates")
def harvest(inputs: HarvestInputs, spec: HarvestSpec, ctx: Context) -> Summary:
    """Sort the span's failures into rows to train on, rows to label, and rows that stay out."""
    from tunesmith.data.write import write_rejects, write_rows
    from tunesmith.serve.traces import open_closed_span

    traces, feedback = open_closed_span(inputs.traces.path / "traces.sqlite")
    candidates = collect(traces, feedback, splits=inputs.splits.path)
    rows, review, excluded = make_rows(candidates, spec, path="traces.sqlite")
    write_rows(ctx.out / "rows.parquet", rows)
    write_rejects(ctx.out / "review.parquet", review)
    write_rejects(ctx.out / "excluded.parquet", excluded)
    account = summarise(candidates, num_traces=len(traces))
    (ctx.out / "account.json").write_text(json.dumps(account, indent=1) + "\n", encoding="utf-8")
    ctx.progress(1, 1, f"{len(rows)} rows, {len(review)} to label, {len(excluded)} excluded")
    return account


def collect(traces: Sequence[Trace], feedback: Iterable[Feedback], *, splits: Path) -> list[Candidate]:
    """Return the settled candidates of some traces."""
    from tunesmith.data.words import normal_text, prompt_text
    from tunesmith.monitor.candidates import find_candidates, settle

    candidates = find_candidates(traces, feedback)
    return settle(
        candidates,
        overlaps=lambda usable: find_overlaps(usable, splits),
        key=lambda candidate: normal_text(prompt_text(candidate.prompt)),
    )


def find_overlaps(candidates: Sequence[Candidate], splits: Path) -> dict[str, Overlap]:
    """Return trace id -> held-out row, by the hash of the text before redaction, and by near-duplicate prompts.

    The measure and its threshold are those with which the split proved itself.
    """
    from tunesmith.data.dedup import prompt_pairs
    from tunesmith.data.words import prompt_text
    from tunesmith.data.write import read_rows
    from tunesmith.monitor.candidates import Overlap
    from tunesmith.serve.traces import leak_key

    if not candidates:
        return {}
    proof: Mapping[str, JSON] = json.loads((splits / "split_proof.json").read_text(encoding="utf-8"))
    held_out = [(side, row) for side in HELD_OUT for row in read_rows(splits / f"{side}.parquet")]
    by_key: dict[str, Overlap] = {}
    for side, row in held_out:
        asked = [message.content or "" for message in row.conversation.prompt.messages if message.role == "user"]
        by_key.setdefault(leak_key("\n".join(asked)), Overlap(side=side, row_id=row.id, score=1.0))
    found = {
        candidate.trace.id: by_key[candidate.trace.leak_key]
        for candidate in candidates
        if candidate.trace.leak_key in by_key
    }
    asked_rows = [_row_of(candidate.prompt, number) for number, candidate in enumerate(candidates)]
    known_rows = [row for _, row in held_out if prompt_text(row.conversation)]
    sides = {row.id: side for side, row in reversed(held_out)}
    left, right, scores = prompt_pairs(
        [*known_rows, *asked_rows], threshold=float(proof.get("near_threshold", NEAR_THRESHOLD))
    )
    for one, other, score in zip(left.tolist(), right.tolist(), scores.tolist(), strict=True):
        low, high = min(one, other), max(one, other)
        if low < len(known_rows) <= high:
            trace_id, row_id = candidates[high - len(known_rows)].trace.id, known_rows[low].id
            before = found.get(trace_id)
            if before is None or (sides[row_id] == HELD_OUT[0] and before.side != HELD_OUT[0]):
                found[trace_id] = Overlap(side=sides[row_id], row_id=row_id, score=float(score))
    return found


def make_rows(
    candidates: Sequence[Candidate], spec: HarvestSpec, *, path: str
) -> tuple[list[Row], list[Reject], list[Reject]]:
    """Return rows to train on, rows to label and excluded ones.

    The model's own answer to a corrected request is kept as the worse answer of a pair, for preference training.
    """
    from tunesmith.data.write import Reject
    from tunesmith.monitor.candidates import Fate

    rows: list[Row] = []
    review: list[Reject] = []
    excluded: list[Reject] = []
    for number, candidate in enumerate(candidates, start=1):
        kept = candidate.trace.messages is not None and candidate.trace.consent is True
        row = _candidate_row(candidate, spec, path=path, line=number) if kept else None
        if candidate.fate is Fate.TRAIN:
            assert row is not None
            rows.append(row)
            continue
        overlap = candidate.overlap
        reject = Reject(
            stage="harvest",
            reason=candidate.reason,
            detail=", ".join(candidate.why),
            source=spec.source,
            path=path,
            line=number,
            row=row,
            matched_id=overlap.row_id if overlap is not None else candidate.repeats,
            score=overlap.score if overlap is not None else None,
            raw=None if row is not None else candidate.trace.id,
        )
        (review if candidate.fate is Fate.REVIEW else excluded).append(reject)
    return rows, review, excluded


def _candidate_row(candidate: Candidate, spec: HarvestSpec, *, path: str, line: int) -> Row:
    from tunesmith.data.write import row_id

    trace = candidate.trace
    messages = candidate.prompt.messages
    if candidate.correction is not None:
        messages = (*messages, Message(role="assistant", content=candidate.correction))
    conversation = Conversation(messages=messages)
    worse = trace.completion is not None and trace.completion != candidate.correction
    rejected = (Message(role="assistant", content=trace.completion),) if worse else ()
    when = datetime.datetime.fromtimestamp(trace.time, datetime.UTC)
    return Row(
        id=row_id(conversation, source=spec.source, path=path, line=line, rejected=rejected),
        conversation=conversation,
        provenance=Provenance(
            source=spec.source,
            path=path,
            line=line,
            license=spec.license,
            kind=RowKind.LOG,
            editor="feedback" if candidate.correction is not None else None,
            collected_at=when.isoformat(timespec="seconds"),
            subject=trace.tags.get(spec.subject_tag) if spec.subject_tag is not None else None,
        ),
        labels={"why": "+".join(candidate.why), "trace": trace.id, "contract": trace.contract_sha256[:12]},
        group=trace.tags.get(spec.group_tag) if spec.group_tag is not None else None,
        rejected=rejected,
    )


def _row_of(prompt: Conversation, number: int) -> Row:
    return Row(
        id=f"candidate {number}", conversation=prompt, provenance=Provenance(source="", path="", line=number + 1)
    )


def summarise(candidates: Sequence[Candidate], *, num_traces: int) -> dict[str, JSON]:
    """Return the account: every trace is a candidate or is not, every candidate has one fate."""
    fates = Counter(candidate.fate.value for candidate in candidates)
    return {
        "traces": num_traces,
        "candidates": len(candidates),
        "rows": fates["train"],
        "to_label": fates["review"],
        "excluded": fates["excluded"],
        "reasons": dict(sorted(Counter(c.reason for c in candidates if c.fate.value == "excluded").items())),
        "why": dict(sorted(Counter(why.value for candidate in candidates for why in candidate.why).items())),
    }
