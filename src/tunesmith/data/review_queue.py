"""Review queue: which rows of a data version a person should look at, and how each is shown.

What lives here: sampling over the files of a curated version, and items. What does not: decisions (`data.review`),
where items go (`data.labelstudio`, the command line).

Four strata, each a sample of its own: *borderline* (near-duplicates, the most doubtful first, and in turn with them
semantic duplicates, the likeliest first, as nothing is done about these), *flagged* (contamination, conflicts, rules
that only flag), *dropped*, *kept*. A sample is drawn by hashes, so it is the same on any machine, and it moves on as
decisions come in. Rows that had to go by licence or opt-out are never shown,
and nobody can bring them back here. Texts are those that would train; in rows that were dropped,
personal data is replaced before they are shown.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tunesmith.data.lineage import Action, read_lineage
from tunesmith.data.redact import redact_row
from tunesmith.data.words import message_text
from tunesmith.data.write import read_rejects, read_rows
from tunesmith.types import JSON, Conversation, Message, Provenance, Row, sha256_hex

Stratum = Literal["borderline", "flagged", "dropped", "kept"]
STRATA: tuple[Stratum, ...] = get_args(Stratum)
FINAL_REASONS = ("opt_out", "license_unknown", "license_refused", "leak", "exact_duplicate", "review_drop")
"""Drops that no decision overrules, or that a decision made."""
_REVIEW_REASONS = ("review_keep", "review_edit")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueItem:
    """One row to look at."""

    content_hash: str
    """What a decision is keyed by: the hash of the row as it came in."""
    row_id: str
    stratum: Stratum
    place: str
    source: str
    machine: str
    """What the rules did: `kept`, `dropped: near_duplicate`, `flagged: contaminated`."""
    detail: str
    score: float | None
    conversation: Conversation
    """As it would train."""
    twin: Conversation | None = None
    """The row that it is a duplicate of."""

    def to_json(self) -> dict[str, JSON]:
        """Return the item for programs."""
        return {
            **{
                name: getattr(self, name)
                for name in (
                    "content_hash", "row_id", "stratum", "place", "source", "machine", "detail", "score"
                )
            },
            "conversation": self.conversation.to_json(),
            "twin": None if self.twin is None else self.twin.to_json(),
        }  # fmt: skip


def make_queue(
    version: Path,
    *,
    per_stratum: int,
    decided: Collection[str] = (),
    first: Collection[str] = (),
    strata: Collection[str] = STRATA,
) -> list[QueueItem]:
    """Return the items to look at in a curated version's folder.

    Rows with a hash in `decided` are left out; those in `first` (on which reviewers disagree) come first and all.
    """
    shown = {row.id: row for row in read_rows(version / "rows.parquet")}
    dropped = {r.row.id: r.row for r in read_rejects(version / "rejects.parquet") if r.row is not None}
    shown.update(dropped)
    by_row: dict[str, list[Action]] = {}
    for action in read_lineage(version / "lineage.parquet"):
        by_row.setdefault(action.row_id, []).append(action)
    scores = {entry["row_id"]: entry for entry in json.loads((version / "duplicates.json").read_text("utf-8"))}
    found: dict[Stratum, list[tuple[float, str, QueueItem]]] = {name: [] for name in STRATA}
    seen = set(decided)
    for row_id, actions in by_row.items():
        digest = actions[0].before_hash
        stratum = "flagged" if digest in first else _stratum(actions, scores.get(row_id))
        if stratum is None or stratum not in strata or digest in seen or row_id not in shown:
            continue
        seen.add(digest)
        item = _item(shown[row_id], actions, stratum, shown)
        found[stratum].append((-1.0 if digest in first else 0.0, sha256_hex(digest), item))
    found["borderline"] = _in_turn(found["borderline"])
    return [
        _safe(item) if item.row_id in dropped else item
        for name in STRATA
        for _, _, item in sorted(found[name], key=lambda entry: entry[:2])[: per_stratum + _count(first, found[name])]
    ]


def _in_turn(entries: Sequence[tuple[float, str, QueueItem]]) -> list[tuple[float, str, QueueItem]]:
    """Take near-duplicates from the lowest score up and semantic ones from the highest down, one of each at a time."""
    near: list[tuple[float, str, QueueItem]] = []
    semantic: list[tuple[float, str, QueueItem]] = []
    for _, digest, item in entries:
        suggested = item.machine == "flagged: semantic_duplicate"
        score = item.score or 0.0
        (semantic if suggested else near).append((-score if suggested else score, digest, item))
    out = []
    for kind in (near, semantic):
        kind.sort(key=lambda entry: entry[:2])
        out += [(float(place), digest, item) for place, (_, digest, item) in enumerate(kind)]
    return out


def _count(first: Collection[str], entries: Sequence[tuple[float, str, QueueItem]]) -> int:
    return sum(item.content_hash in first for _, _, item in entries)


def _stratum(actions: Sequence[Action], duplicate: Mapping[str, JSON] | None) -> Stratum | None:
    last = actions[-1]
    reasons = {action.reason for action in actions}
    if reasons & {*FINAL_REASONS, *_REVIEW_REASONS}:
        return None
    if duplicate is not None and duplicate["kind"] in ("near_duplicate", "semantic_duplicate"):
        return "borderline"
    if last.action == "drop":
        return "dropped"
    return "flagged" if any(action.action == "flag" for action in actions) else "kept"


def _item(row: Row, actions: Sequence[Action], stratum: Stratum, shown: Mapping[str, Row]) -> QueueItem:
    told = next((action for action in reversed(actions) if action.action in ("drop", "flag")), None)
    words = {"drop": "dropped", "flag": "flagged"}
    twin = None if told is None or told.matched_id is None else shown.get(told.matched_id)
    return QueueItem(
        content_hash=actions[0].before_hash,
        row_id=row.id,
        stratum=stratum,
        place=f"{row.provenance.path}:{row.provenance.line}",
        source=row.provenance.source,
        machine="kept" if told is None else f"{words[told.action]}: {told.reason}",
        detail="" if told is None else told.detail or "",
        score=None if told is None else told.score,
        conversation=row.conversation,
        twin=None if twin is None else twin.conversation,
    )


def _safe(item: QueueItem) -> QueueItem:
    """Replace the personal data of a row that was dropped before curation came to it; kept rows are as they train."""
    place = Provenance(source="", path="", line=0)
    safe = [
        None if shown is None else redact_row(Row(id="", conversation=shown, provenance=place)).row.conversation
        for shown in (item.conversation, item.twin)
    ]
    assert safe[0] is not None
    return dataclasses.replace(item, conversation=safe[0], twin=safe[1])


def shown_text(conversation: Conversation) -> str:
    """Return a conversation as a person reads it."""
    return "\n\n".join(f"[{message.role}]\n{message_text(message)}" for message in conversation.messages)


def with_answer(conversation: Conversation, answer: str) -> tuple[Message, ...]:
    """Return the messages with another last assistant turn. Raises `ValueError` where there is none."""
    messages = list(conversation.messages)
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "assistant":
            messages[index] = dataclasses.replace(messages[index], content=answer, spans=())
            return tuple(messages)
    raise ValueError("the conversation has no answer to edit")
