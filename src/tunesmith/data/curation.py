"""Curation: the rules of one data set applied to its rows, in order, with every action in a ledger.

What lives here: the order of the rules and what comes out. What does not: the rules (`policy`, `filters`, `redact`,
`dedup`), files (`stages.curate`).

    curated = curate_rows(rows, Rules(licenses=("CC0-1.0",)), lint=None)
    curated.rows, curated.ledger.rejects, curated.ledger.actions
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Literal, Protocol

from tunesmith.data.canaries import measured_recall
from tunesmith.data.compare import FLOOR, PairTable
from tunesmith.data.decontam import Index
from tunesmith.data.dedup import SIDE_RANK, STAYING, Standing, cluster_name, compare, settle
from tunesmith.data.difficulty import Difficulty, Scored, difficulty_summary, judge_difficulty
from tunesmith.data.engines import LOCAL, Engine, parts_of
from tunesmith.data.filters import (
    Lint,
    Quality,
    drop_contract_violations,
    drop_empty,
    drop_too_long,
    judge_quality,
)
from tunesmith.data.licenses import PERMISSIVE
from tunesmith.data.lineage import Ledger
from tunesmith.data.names import Names, with_finders
from tunesmith.data.policy import OptOut, drop_opted_out, drop_unlicensed
from tunesmith.data.redact import Redacted, placeholder_detail, redact_row, redact_rows
from tunesmith.data.review import Decision, apply_decisions
from tunesmith.data.semantic import Semantic, suggest
from tunesmith.data.words import answer_text, prompt_text
from tunesmith.errors import DataError
from tunesmith.types import JSON, Row, RowRole

__all__ = ["Curated", "Lint", "Rules", "curate_rows"]

_DUPLICATE_WORDS = {
    "exact_duplicate": "the same prompt and answer as",
    "near_duplicate": "nearly the same prompt and answer as",
    "leak": "nearly the same prompt as the held-out",
    "conflict": "nearly the same prompt, but another answer than",
    "heldout_duplicate": "held-out, and nearly the same as",
    "semantic_duplicate": "may say the same in other words as",
}


class ShowProgress(Protocol):
    """Show how far the work is."""

    def __call__(self, done: float, total: float | None, note: str = "") -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What may stay and what must change."""

    licenses: tuple[str, ...] = PERMISSIVE
    unknown_license: str = "refuse"
    opt_out: OptOut = field(default_factory=OptOut)
    max_chars: int = 200_000
    quality: Quality = field(default_factory=Quality)
    redact: frozenset[str] | None = None
    names: Names | None = None
    near_threshold: float = 0.6
    semantic: Semantic | None = None
    """Embeddings by which rows are told that may say the same in other words; nothing is looked for without."""
    difficulty: Difficulty | None = None
    """How the base model scores answers, and the limits; nothing is scored without."""
    evaluations: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Registered evaluation -> its items: rows that hold one are contaminated."""
    contaminated: Literal["flag", "drop"] = "flag"
    decisions: tuple[Decision, ...] = ()
    """What people decided in review."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curated:
    """The rows that stay, and the account of all."""

    num_in: int
    came: Mapping[RowRole, int]
    """Rows that came in, by role."""
    rows: list[Row]
    ledger: Ledger
    duplicates: list[dict[str, JSON]]
    """One entry a duplicate: row, keeper, kind, score, cluster."""
    compared: Compared
    personal_data: dict[str, JSON]
    """Counts by type, masked samples, the share of planted canaries that were found, and the types of names, if any."""
    scored: Scored = field(default_factory=list)
    """Rows that the base model scored, those dropped for it included."""
    num_unused_decisions: int = 0
    """Decisions of reviewers about contents that did not come in."""

    def summary(self) -> dict[str, JSON]:
        """Return the figures of the stage."""
        kinds = Counter(str(entry["kind"]) for entry in self.duplicates)
        counts = self.personal_data["counts"]
        return {
            "rows_in": self.num_in,
            "rows_kept": len(self.rows),
            "rows_dropped": self.num_in - len(self.rows),
            "dropped": dict(sorted(self.ledger.dropped.items())),
            "changed": dict(sorted(self.ledger.changed.items())),
            "flagged": dict(sorted(self.ledger.flagged.items())),
            "duplicates_exact": kinds["exact_duplicate"],
            "duplicates_near": kinds["near_duplicate"],
            "leaks": self.ledger.dropped["leak"],
            "conflicts": kinds["conflict"],
            "contaminated": self.ledger.flagged["contaminated"] + self.ledger.dropped["contaminated"],
            "pii": dict(counts),
            **({"pii_names": self.personal_data["names"]} if "names" in self.personal_data else {}),
            "pii_rows": self.ledger.changed["personal_data"],
            "pii_canary_recall": self.personal_data["canary_recall"],
            **({"difficulty": difficulty_summary(self.scored)} if self.scored else {}),
            "review_unused": self.num_unused_decisions,
            "licenses": dict(Counter(row.provenance.license or "unknown" for row in self.rows)),
            "sources": dict(Counter(row.provenance.source for row in self.rows)),
            "roles": self._by_role(),
        }

    def _by_role(self) -> dict[str, JSON]:
        """Return the funnel of each role: rows in, rows kept, rows dropped by reason."""
        kept = Counter(row.role for row in self.rows)
        dropped: dict[RowRole, Counter[str]] = {role: Counter() for role in self.came}
        for reject in self.ledger.rejects:
            assert reject.row is not None, "curation drops rows, never raw input"
            dropped[reject.row.role][reject.reason] += 1
        return {
            role.value: {"rows_in": count, "rows_kept": kept[role], "dropped": dict(sorted(dropped[role].items()))}
            for role, count in sorted(self.came.items())
        }


def curate_rows(
    rows: Sequence[Row],
    rules: Rules,
    *,
    lint: Lint | None,
    progress: ShowProgress | None = None,
    engine: Engine = LOCAL,
) -> Curated:
    """Apply all rules, what depends on single rows or pairs on `engine`. Raises `DataError` where no row is left."""
    ledger = Ledger("curate")
    steps = 5

    def say(step: int, note: str) -> None:
        if progress is not None:
            progress(step, steps, note)

    kept = drop_opted_out(rows, ledger, rules.opt_out)
    kept = drop_unlicensed(kept, ledger, allowed=rules.licenses, unknown=rules.unknown_license)
    reviewed = apply_decisions(kept, ledger, rules.decisions)
    say(1, f"{len(reviewed.rows):,} rows may be used")
    kept = reviewed.unless_pinned(reviewed.rows, lambda rows: _drop_poor(rows, ledger, rules, lint))
    say(2, f"{len(kept):,} rows pass the quality rules")
    kept, personal_data = _redact_all(kept, ledger, rules, lint, reviewed.pinned, engine)
    # behind redaction: its details show pieces of the text
    kept = reviewed.unless_pinned(kept, lambda rows: judge_quality(rows, ledger, rules.quality, engine=engine))
    say(3, f"{ledger.changed['personal_data']:,} rows held personal data or secrets")
    kept = _contamination(_drop_group_leaks(kept, ledger), ledger, rules, reviewed.pinned, engine)
    kept, duplicates, compared = _drop_duplicates(kept, ledger, rules.near_threshold, reviewed.pinned, engine)
    say(4, f"{len(kept):,} rows after duplicates")
    scored: Scored = []
    if rules.difficulty is not None and kept:
        kept, scored = judge_difficulty(kept, ledger, rules.difficulty, pinned=reviewed.pinned)
    if not kept:
        raise _nothing_left(len(rows), ledger)
    if rules.semantic is not None:
        duplicates += _flag_semantic(kept, ledger, rules.semantic, reviewed.pinned, compared, duplicates)
    for row in kept:
        ledger.keep(row)
    ledger.balance(len(rows))
    say(5, f"{len(kept):,} of {len(rows):,} rows kept")
    return Curated(
        num_in=len(rows),
        came=Counter(row.role for row in rows),
        rows=kept,
        ledger=ledger,
        duplicates=duplicates,
        compared=compared,
        personal_data=personal_data,
        scored=scored,
        num_unused_decisions=reviewed.num_unused,
    )


def _drop_poor(rows: Sequence[Row], ledger: Ledger, rules: Rules, lint: Lint | None) -> list[Row]:
    """Apply the rules of quality: what a reviewer may overrule."""
    kept = drop_too_long(drop_empty(rows, ledger), ledger, max_chars=rules.max_chars)
    return kept if lint is None else drop_contract_violations(kept, ledger, lint)


def _nothing_left(num_in: int, ledger: Ledger) -> DataError:
    reasons = ", ".join(f"{reason} {count}" for reason, count in ledger.dropped.most_common())
    hints = {
        "license_unknown": "say the source's license in ingest.sources, or set curate.allow_unknown",
        "license_refused": "add the licence to curate.licenses if you may use it",
        "schema": "compare the contract's output_schema with the answers",
        "tools_dropped": "set contract.tool_format: the base's template renders no tools",
        "tool_calls_dropped": "set contract.tool_format: the base's template renders no calls",
        "reasoning_dropped": "set contract.loss.reasoning: drop, or a template that renders reasoning",
    }
    first = ledger.rejects[0] if ledger.rejects else None
    return DataError(
        f"none of {num_in} rows is left after curation",
        where=f"{first.path}:{first.line}" if first else None,
        expected="at least one row to train on",
        found=f"{reasons}; the first: {first.detail}" if first else "no row came in",
        hint=next((hints[reason] for reason, _ in ledger.dropped.most_common() if reason in hints), None),
    )


def _redactions(
    rows: Sequence[Row], names: Names | None, kinds: frozenset[str] | None, engine: Engine
) -> Iterator[Redacted | None]:
    """Yield what each row becomes; `None` where it stays. A tagger of names is one object of this process."""
    if names is None:
        yield from chain.from_iterable(engine.map(partial(redact_rows, kinds=kinds), parts_of(rows)))
        return
    for row, find_spans in with_finders(rows, names):
        redacted = redact_row(row, kinds=kinds, find_spans=find_spans)
        yield redacted if redacted.counts else None


def _redact_all(
    rows: Sequence[Row], ledger: Ledger, rules: Rules, lint: Lint | None, pinned: frozenset[str], engine: Engine
) -> tuple[list[Row], dict[str, JSON]]:
    named = frozenset[str]() if rules.names is None else rules.names.kinds
    kinds = None if rules.redact is None else rules.redact | named
    kept: list[Row] = []
    counts: Counter[str] = Counter()
    samples: dict[str, list[str]] = {}
    for row, redacted in zip(rows, _redactions(rows, rules.names, kinds, engine), strict=True):
        if redacted is None:
            kept.append(row)
            continue
        violations = lint(redacted.row) if lint is not None and row.id not in pinned else []
        if violations:
            detail = f"with its personal data replaced it breaks the contract: {violations[0][1]}"
            ledger.drop(redacted.row, reason="redaction_breaks_contract", detail=detail)
            continue
        counts.update(redacted.counts)
        for kind, sample in redacted.samples:
            shown = samples.setdefault(kind, [])
            if len(shown) < MAX_SAMPLES and sample not in shown:
                shown.append(sample)
        ledger.change(row, redacted.row, reason="personal_data", detail=placeholder_detail(redacted.counts))
        kept.append(redacted.row)
    account: dict[str, JSON] = {
        "counts": dict(sorted(counts.items())),
        "masked_samples": dict(sorted(samples.items())),
        "canary_recall": measured_recall(rows, kinds=rules.redact),
    }
    if rules.names is not None:
        account["names"] = sorted(named)
    return kept, account


MAX_SAMPLES = 12


def _drop_group_leaks(rows: Sequence[Row], ledger: Ledger) -> list[Row]:
    """Drop rows whose group (ticket, customer, document) stands on a held-out side that came from outside."""
    heldout: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: SIDE_RANK.get(row.split or "", 2)):
        if row.group is not None and row.split in SIDE_RANK:
            heldout.setdefault(row.group, row)
    kept = []
    for row in rows:
        other = heldout.get(row.group) if row.group is not None else None
        if other is None or row.split == other.split:
            kept.append(row)
            continue
        detail = f"the group {row.group!r} is held out: {_place(other)} is on the side {other.split}"
        ledger.drop(row, reason="leak", detail=detail, matched_id=other.id)
    return kept


HELD_OUT = "the held-out rows"
"""Name under which the recipe's own held-out rows are registered as an evaluation."""


def _contamination(
    rows: Sequence[Row], ledger: Ledger, rules: Rules, pinned: frozenset[str], engine: Engine
) -> list[Row]:
    """Flag, or drop, training rows that hold an item of a registered evaluation or of the recipe's own held-out sides.

    Held-out items are flagged only: `leak` drops the rows that repeat them, and what is left may be a template's twin.
    """
    training = [row for row in rows if row.split not in SIDE_RANK]
    held_out = [prompt_text(row.conversation) for row in rows if row.split in SIDE_RANK]
    index = Index({**rules.evaluations, HELD_OUT: held_out})
    gone: set[str] = set()
    prompts = [prompt_text(row.conversation) for row in training]
    for match in index.matches([_whole_text(row) for row in training], prompts=prompts, engine=engine):
        row = training[match.row]
        detail = f'holds item {match.item} of {match.evaluation}: "{match.text}"'
        drop = rules.contaminated == "drop" and match.evaluation != HELD_OUT and row.id not in pinned
        say = ledger.drop if drop else ledger.flag
        say(row, reason="contaminated", detail=detail, score=match.score)
        if drop:
            gone.add(row.id)
    return [row for row in rows if row.id not in gone]


def _whole_text(row: Row) -> str:
    return f"{prompt_text(row.conversation)}\n{answer_text(row.conversation)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What duplicates were told from: enough to settle them again at another threshold (`data.whatif`)."""

    rows: list[Row]
    pairs: PairTable
    standing: Standing
    pinned: frozenset[str]
    """Ids of rows that a reviewer keeps."""


def _drop_duplicates(
    rows: Sequence[Row], ledger: Ledger, threshold: float, pinned: frozenset[str], engine: Engine
) -> tuple[list[Row], list[dict[str, JSON]], Compared]:
    pairs, standing = compare(rows, floor=min(FLOOR, threshold), engine=engine)
    entries: list[dict[str, JSON]] = []
    gone: set[int] = set()
    for duplicate in settle(standing, pairs, threshold=threshold):
        row, keeper = rows[duplicate.row], rows[duplicate.keeper]
        cluster = cluster_name(rows[duplicate.cluster])
        detail = f"{_DUPLICATE_WORDS[duplicate.kind]} {_place(keeper)} (row {keeper.id}, cluster {cluster})"
        stays = duplicate.kind in STAYING or (duplicate.kind == "near_duplicate" and row.id in pinned)
        say = ledger.flag if stays else ledger.drop
        say(row, reason=duplicate.kind, detail=detail, matched_id=keeper.id, score=duplicate.score)
        entries.append(_entry(duplicate.kind, duplicate.score, row, keeper, cluster))
        if not stays:
            gone.add(duplicate.row)
    kept = [row for index, row in enumerate(rows) if index not in gone]
    return kept, entries, Compared(rows=list(rows), pairs=pairs, standing=standing, pinned=pinned)


def _flag_semantic(
    rows: Sequence[Row],
    ledger: Ledger,
    semantic: Semantic,
    pinned: frozenset[str],
    compared: Compared,
    duplicates: Sequence[Mapping[str, JSON]],
) -> list[dict[str, JSON]]:
    """Flag rows that may say the same as another one that stays, unless a person decided about them already."""
    number = {row.id: index for index, row in enumerate(compared.rows)}
    places = [number[row.id] for row in rows]
    known = {(str(entry[one]), str(entry[other])) for entry in duplicates for one, other in _BOTH_WAYS}
    entries: list[dict[str, JSON]] = []
    found = suggest(
        rows,
        semantic,
        rank=compared.standing.rank[places],
        tasks=[compared.standing.tasks[place] for place in places],
        known=known,
    )
    for row, partner, score in ((rows[each.row], rows[each.partner], each.score) for each in found):
        if row.id in pinned:
            continue
        detail = f"{_DUPLICATE_WORDS['semantic_duplicate']} {_place(partner)} (row {partner.id})"
        ledger.flag(row, reason="semantic_duplicate", detail=detail, matched_id=partner.id, score=score)
        entries.append(_entry("semantic_duplicate", score, row, partner, cluster_name(partner)))
    return entries


_BOTH_WAYS = (("row_id", "keeper_id"), ("keeper_id", "row_id"))


def _place(row: Row) -> str:
    return f"{row.provenance.path}:{row.provenance.line}"


def _entry(kind: str, score: float, row: Row, keeper: Row, cluster: str) -> dict[str, JSON]:
    return {
        "row_id": row.id,
        "keeper_id": keeper.id,
        "kind": kind,
        "score": score,
        "cluster": cluster,
        "row_place": _place(row),
        "keeper_place": _place(keeper),
    }
