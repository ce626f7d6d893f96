"""Review: what people decided about rows, kept in a file that only grows and applied on every rebuild.

What lives here: decisions, their file, conflicts between reviewers, and what they do to rows. What does not: which rows
are shown to reviewers (`data.review_queue`), Label Studio's shapes (`data.labelstudio`).

    {"content_hash": "6c1f...", "decision": "drop", "reason": "answers another question", "reviewer": "ada",
     "time": "2025-01-31T12:00:00.000Z"}

A decision is keyed by the hash of the row's conversation as ingest read it, so it holds wherever that conversation
comes from, in every later data version. The newest decision of a reviewer replaces the reviewer's older ones. Where
reviewers disagree, nothing is applied until one of them, or a third, says `"final": true`.

Decisions overrule the rules of quality, contamination and near-duplicates. They never overrule licences, opt-outs,
personal data, exact duplicates, or leaks into held-out sides.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tunesmith.data.lineage import Ledger
from tunesmith.data.write import content_hash
from tunesmith.errors import DataError, nearest
from tunesmith.types import JSON, Message, Row

Verdict = Literal["keep", "drop", "edit"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
_FIELDS = ("content_hash", "decision", "reason", "reviewer", "time", "messages", "final")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What one person decided about one content."""

    content_hash: str
    """Of the conversation as ingest read it: `before_hash` of the row in `lineage.parquet`."""
    decision: Verdict
    reason: str
    reviewer: str
    time: str
    """ISO 8601."""
    messages: tuple[Message, ...] | None = None
    """The whole conversation after an edit."""
    final: bool = False
    """Whether it settles a disagreement."""

    def to_json(self) -> dict[str, JSON]:
        """Return one line of the file."""
        out: dict[str, JSON] = {name: getattr(self, name) for name in _FIELDS[:5]}
        if self.messages is not None:
            out["messages"] = [message.to_json() for message in self.messages]
        if self.final:
            out["final"] = True
        return out

    @property
    def outcome(self) -> tuple[str, tuple[Message, ...] | None]:
        """What it comes to: two decisions with the same outcome agree."""
        return self.decision, self.messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Decisions after the newest of each reviewer were compared."""

    current: dict[str, Decision]
    """Content hash -> the decision that holds."""
    conflicts: dict[str, tuple[Decision, ...]]
    """Content hash -> decisions of reviewers who disagree; none of them holds."""


def read_decisions(path: Path) -> list[Decision]:
    """Read a file of decisions, oldest first. Raises `DataError` naming the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("cannot read a file of decisions", where=str(path), found=str(error)) from error
    return [_read_line(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _read_line(line: str, where: str) -> Decision:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(
            "a line is no decision",
            where=where,
            expected="one JSON object",
            found=line[:80],
            hint="a write that was cut short leaves such a line: delete it and decide again",
        ) from error
    return decision_from(value, where=where)


def decision_from(value: Any, *, where: str) -> Decision:
    """Check one decision as the file holds it. Raises `DataError`."""
    if not isinstance(value, dict):
        raise DataError("a line is no decision", where=where, expected="one JSON object", found=str(value)[:80])
    for name in value:
        if name not in _FIELDS:
            hint = f"nearest: {nearest(name, _FIELDS)[0]}"
            raise DataError("a decision has a field that nobody reads", where=where, found=name, hint=hint)
    for name in _FIELDS[:5]:
        if not isinstance(value.get(name), str) or (not value[name] and name != "reason"):
            raise DataError(
                "a decision lacks a field", where=where, expected=f"{name}, as text", found=repr(value.get(name))
            )
    if value["decision"] not in VERDICTS:
        raise DataError(
            "this is no decision", where=where, expected=f"one of {', '.join(VERDICTS)}", found=value["decision"]
        )
    messages = value.get("messages")
    if (value["decision"] == "edit") != (messages is not None):
        raise DataError(
            "an edit, and nothing else, says how the row reads now",
            where=where,
            expected="messages for an edit, none for keep and drop",
            found=f"{value['decision']} {'with' if messages is not None else 'without'} messages",
        )
    try:
        read = None if messages is None else tuple(Message.from_json(message) for message in messages)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError("the messages of an edit cannot be read", where=where, found=str(error)) from error
    return Decision(**{**value, "messages": read, "final": value.get("final") is True})


def append_decisions(path: Path, decisions: Iterable[Decision]) -> int:
    """Add the decisions that the file does not hold yet, and bring them to disk; return how many were new."""
    known = {
        json.dumps(decision.to_json(), sort_keys=True) for decision in (read_decisions(path) if path.exists() else ())
    }
    fresh = [decision for decision in decisions if json.dumps(decision.to_json(), sort_keys=True) not in known]
    if fresh:
        text = "".join(json.dumps(decision.to_json(), ensure_ascii=False) + "\n" for decision in fresh)
        with path.open("ab") as handle:
            if handle.tell() and not path.read_bytes().endswith(b"\n"):
                text = "\n" + text
            handle.write(text.encode())  # one write: a reader sees whole lines
            handle.flush()
            os.fsync(handle.fileno())
    return len(fresh)


def settle(decisions: Sequence[Decision]) -> Settled:
    """Compare the newest decision of each reviewer on each content; a final one settles what came before it."""
    newest: dict[str, dict[str, Decision]] = {}
    for decision in sorted(decisions, key=lambda decision: decision.time):
        said = newest.setdefault(decision.content_hash, {})
        if decision.final:
            said.clear()
        said.pop(decision.reviewer, None)
        said[decision.reviewer] = decision
    current: dict[str, Decision] = {}
    conflicts: dict[str, tuple[Decision, ...]] = {}
    for digest, said in newest.items():
        voices = tuple(said.values())
        if len({voice.outcome for voice in voices}) == 1:
            current[digest] = voices[-1]
        else:
            conflicts[digest] = voices
    return Settled(current=current, conflicts=conflicts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed:
    """Rows after decisions were applied."""

    rows: list[Row]
    pinned: frozenset[str]
    """Ids of rows that a person kept or edited: rules that may be overruled pass over them."""
    num_unused: int
    """Decisions about contents that are not among the rows."""

    def unless_pinned(self, rows: Sequence[Row], rule: Callable[[Sequence[Row]], Sequence[Row]]) -> list[Row]:
        """Apply a rule to the rows that nobody pinned; the order stays."""
        if not self.pinned:
            return list(rule(rows))
        passed = {row.id: row for row in rule([row for row in rows if row.id not in self.pinned])}
        return [
            row if row.id in self.pinned else passed[row.id]
            for row in rows
            if row.id in self.pinned or row.id in passed
        ]


def apply_decisions(rows: Sequence[Row], ledger: Ledger, decisions: Sequence[Decision]) -> Reviewed:
    """Drop, edit or pin the rows that people decided about, and flag those on which they disagree."""
    settled = settle(decisions)
    kept: list[Row] = []
    pinned: set[str] = set()
    used: set[str] = set()
    for row in rows:
        digest = content_hash(row.conversation) if decisions else ""
        if digest in settled.conflicts:
            used.add(digest)
            voices = ", ".join(f"{voice.reviewer} says {voice.decision}" for voice in settled.conflicts[digest])
            ledger.flag(row, reason="review_conflict", detail=f"nothing is applied while reviewers disagree: {voices}")
            kept.append(row)
            continue
        decision = settled.current.get(digest)
        if decision is None:
            kept.append(row)
            continue
        used.add(digest)
        detail = f"{decision.reviewer} on {decision.time}: {decision.reason or 'no reason was given'}"
        if decision.decision == "drop":
            ledger.drop(row, reason="review_drop", detail=detail)
            continue
        pinned.add(row.id)
        if decision.messages is None:
            ledger.flag(row, reason="review_keep", detail=detail)
            kept.append(row)
        else:
            conversation = dataclasses.replace(row.conversation, messages=decision.messages)
            edited = dataclasses.replace(row, conversation=conversation)
            ledger.change(row, edited, reason="review_edit", detail=detail)
            kept.append(edited)
    known = {*settled.current, *settled.conflicts}
    return Reviewed(rows=kept, pinned=frozenset(pinned), num_unused=len(known - used))
