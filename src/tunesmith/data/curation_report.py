"""report.html of curation: what came in, what stayed, what went and why.

What lives here: the list of sections, and what each shows of an account that is complete already. What does not: any
decision. A section is a title and a function from `Facts` to pieces of a page; one without pieces is left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from markupsafe import Markup

from tunesmith.data.coverage_report import coverage_parts
from tunesmith.data.curation import Curated
from tunesmith.data.datasheet import license_name
from tunesmith.data.difficulty_report import difficulty_parts
from tunesmith.data.funnel import Funnel
from tunesmith.data.lineage import Action
from tunesmith.data.words import answer_text, prompt_text
from tunesmith.page import (
    Cell,
    Number,
    Section,
    Tone,
    badge,
    cards,
    details,
    heading,
    lead,
    marked_columns,
    meter,
    page,
    table,
    text,
)
from tunesmith.types import JSON, Row

MAX_PAIRS = 60
MAX_EXACT_PAIRS = 5
MAX_SHOWN_CHARS = 700
MAX_SHOWN_ROWS = 25
"""Rows shown of one reason."""
MAX_MATCHES = 100
MAX_PLACES = 4
"""Rows named of one contaminating item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the sections are drawn from."""

    rows: Sequence[Row]
    """The rows that came in."""
    curated: Curated
    funnel: Funnel
    coverage: Mapping[str, JSON]
    """What `data.coverage` measured on the rows that stay."""


Draw = Callable[[Facts], list[Markup]]


def write_report(path: Path, facts: Facts) -> None:
    """Write the page."""
    sections = [Section(title, parts) for title, draw in SECTIONS if (parts := draw(facts))]
    subtitle = "Every row that came in is accounted for: tunesmith explain SOURCE:LINE tells the story of one."
    path.write_text(page("Curation", sections, subtitle=subtitle), encoding="utf-8")


# --------------------------------------------------------------------------------------------------------- funnel


def _funnel(facts: Facts) -> list[Markup]:
    funnel, ledger = facts.funnel, facts.curated.ledger
    unit = funnel.unit
    shown = [
        (f"{funnel.rows_in:,}", "rows in"),
        (f"{funnel.rows_kept:,}", f"rows kept ({_percent(funnel.rows_kept, funnel.rows_in)})"),
        (f"{funnel.units_kept:,}", f"{unit} kept ({_percent(funnel.units_kept, funnel.units_in)})"),
        (f"{sum(ledger.changed.values()):,}", "changes to rows that stay"),
        (f"{sum(ledger.flagged.values()):,}", "flags for a person to look at"),
    ]
    rows_left, units_left = funnel.rows_in, funnel.units_in
    body: list[list[Cell]] = [["came in", "", "", Number(f"{rows_left:,}"), Number(f"{units_left:,}"), meter(1.0)]]
    for step in funnel.steps:
        rows_left, units_left = rows_left - step.rows, units_left - step.units
        body.append(
            [
                step.reason,
                Number(f"−{step.rows:,}"),
                Number(f"−{step.units:,}"),
                Number(f"{rows_left:,}"),
                Number(f"{units_left:,}"),
                meter(rows_left / max(1, funnel.rows_in)),
            ]
        )
    body[0][1] = body[0][2] = Number("")
    note = f"{unit.capitalize()} are those of the texts as they came in, without the contract's template."
    if unit == "characters":
        note += " There is no contract, so no tokenizer: characters stand in for tokens."
    elif funnel.counted_rows < funnel.rows_in:
        note += f" {funnel.counted_rows:,} evenly spaced rows were counted; the others are estimated from characters."
    return [
        cards(shown),
        lead(note),
        table(["rule, in the order of use", "rows", unit, "rows left", f"{unit} left", "share left"], body),
        heading("By source"),
        _by_source(facts),
    ]


def _by_source(facts: Facts) -> Markup:
    funnel = facts.funnel
    role_of = {row.provenance.source: row.role.value for row in facts.rows}
    reasons = [step.reason for step in funnel.steps]
    body: list[list[Cell]] = [
        [
            part.source,
            role_of[part.source],
            Number(f"{part.rows_in:,}"),
            Number(f"{part.rows_kept:,}"),
            Number(_percent(part.rows_kept, part.rows_in)),
            Number(f"{part.units_kept:,}"),
            ", ".join(f"{reason} {part.taken[reason]:,}" for reason in reasons if reason in part.taken),
        ]
        for part in funnel.sources
    ]
    return table(["source", "role", "rows in", "rows kept", "kept", f"{funnel.unit} kept", "taken by"], body)


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"


# ----------------------------------------------------------------------------------------------------- duplicates


def _duplicates(facts: Facts) -> list[Markup]:
    curated = facts.curated
    if all(entry["kind"] == "semantic_duplicate" for entry in curated.duplicates):
        return [text("No two rows say the same, or nearly the same.")]
    by_id = _by_id(curated)
    told = (entry for entry in curated.duplicates if entry["kind"] != "semantic_duplicate")
    entries = sorted(told, key=lambda entry: (cast(float, entry["score"]), str(entry["row_id"])))
    exact = [entry for entry in entries if entry["kind"] == "exact_duplicate"]
    near = [entry for entry in entries if entry["kind"] != "exact_duplicate"]
    kinds = Counter(str(entry["kind"]) for entry in entries)
    parts: list[Markup] = [
        table(["kind", "rows"], [[kind, Number(f"{count:,}")] for kind, count in kinds.most_common()]),
        lead(
            "The most doubtful pair first. Left the row that went (or is flagged), right the one that stays; words "
            "that only one side has are marked. A reviewer may overrule a near-duplicate: tunesmith review."
        ),
    ]
    parts += [part for entry in near[:MAX_PAIRS] for part in _pair(entry, by_id)]
    if exact:
        shown = [part for entry in exact[:MAX_EXACT_PAIRS] for part in _pair(entry, by_id)]
        parts.append(details(f"{len(exact):,} exact duplicates, {min(len(exact), MAX_EXACT_PAIRS)} shown", *shown))
    if len(near) > MAX_PAIRS:
        parts.append(text(f"{len(near) - MAX_PAIRS:,} more are in duplicates.json."))
    return parts


def _by_id(curated: Curated) -> dict[str, Row]:
    by_id = {row.id: row for row in curated.rows}
    by_id.update({reject.row.id: reject.row for reject in curated.ledger.rejects if reject.row is not None})
    return by_id


def _semantic(facts: Facts) -> list[Markup]:
    found = [entry for entry in facts.curated.duplicates if entry["kind"] == "semantic_duplicate"]
    if not found:
        return []
    entries = sorted(found, key=lambda entry: (-cast(float, entry["score"]), str(entry["row_id"])))
    by_id = _by_id(facts.curated)
    parts = [
        lead(
            f"{len(found):,} rows that stay may say the same as another one in other words; the nearest first. Nothing "
            "was done about them: whoever wants a row to go says so in tunesmith review."
        )
    ]
    parts += [part for entry in entries[:MAX_PAIRS] for part in _pair(entry, by_id)]
    if len(entries) > MAX_PAIRS:
        parts.append(text(f"{len(entries) - MAX_PAIRS:,} more are in duplicates.json."))
    return parts


def _pair(entry: dict[str, JSON], by_id: dict[str, Row]) -> list[Markup]:
    title = f"{entry['kind']}, score {entry['score']:.3f}: {entry['row_place']} against {entry['keeper_place']}"
    pair = by_id[str(entry["row_id"])], by_id[str(entry["keeper_id"])]
    return [heading(title), marked_columns(_shown(pair[0]), _shown(pair[1]))]


def _shown(row: Row) -> str:
    words = f"{prompt_text(row.conversation)}\n→ {answer_text(row.conversation)}"
    return words if len(words) <= MAX_SHOWN_CHARS else words[:MAX_SHOWN_CHARS] + " …"


# -------------------------------------------------------------------------------------------------- personal data


def _personal_data(facts: Facts) -> list[Markup]:
    account = facts.curated.personal_data
    counts = cast("dict[str, int]", account["counts"])
    samples = cast("dict[str, list[str]]", account["masked_samples"])
    recall = cast("dict[str, float]", account["canary_recall"])
    body: list[list[Cell]] = [
        [kind, Number(f"{counts.get(kind, 0):,}"), Number(_recall(recall.get(kind))), ", ".join(samples.get(kind, []))]
        for kind in sorted({*counts, *recall}, key=lambda kind: (-counts.get(kind, 0), kind))
    ]
    return [
        lead(
            "Recall is measured on made-up values of each type that were planted in copies of these rows, redacted and "
            "thrown away; it says what is found of values written in usual ways."
        ),
        table(["type", "replaced", "canary recall", "masked samples"], body),
    ]


def _recall(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.0%}"


# -------------------------------------------------------------------------------------------------- contamination


def _contamination(facts: Facts) -> list[Markup]:
    found = [action for action in facts.curated.ledger.actions if action.reason == "contaminated"]
    if not found:
        return [text("No training row holds an item of a registered evaluation or of a held-out side.")]
    by_item: dict[tuple[str, str], list[Action]] = defaultdict(list)
    for action in found:
        by_item[action.action, action.detail or ""].append(action)
    # The longest match first: an item of one word is held by many rows and tells little.
    items = sorted(by_item.items(), key=lambda entry: (entry[0][0], -len(entry[0][1]), entry[0][1]))
    body: list[list[Cell]] = [
        [
            detail,
            badge("dropped", Tone.BAD) if kind == "drop" else badge("flagged", Tone.UNSURE),
            Number(f"{len(rows):,}"),
            Number("–" if rows[0].score is None else f"{max(row.score or 0 for row in rows):.2f}"),
            _some_places(rows),
        ]
        for (kind, detail), rows in items[:MAX_MATCHES]
    ]
    parts = [
        lead(
            "One line for each item that was found, the longest match first. Score: share of the item's rare 3-word "
            "sequences that a row holds. A flag is for a person to look at."
        ),
        table(["what rows hold", "", "rows", "score", "which"], body),
    ]
    if len(items) > MAX_MATCHES:
        parts.append(text(f"{len(items) - MAX_MATCHES:,} more items are in lineage.parquet."))
    return parts


def _some_places(actions: Sequence[Action]) -> str:
    shown = ", ".join(f"{action.source}:{action.line}" for action in actions[:MAX_PLACES])
    return shown if len(actions) <= MAX_PLACES else f"{shown} and {len(actions) - MAX_PLACES:,} more"


# ------------------------------------------------------------------------------------------------------- licences


def _licenses(facts: Facts) -> list[Markup]:
    came = Counter(_license_of(row) for row in facts.rows)
    kept = Counter(_license_of(row) for row in facts.curated.rows)
    refused = Counter(
        _license_of(reject.row)
        for reject in facts.curated.ledger.rejects
        if reject.row is not None and reject.reason.startswith("license")
    )
    body: list[list[Cell]] = []
    for key in sorted(came):
        source, name, kind = key
        verdict = badge("refused", Tone.BAD) if refused[key] else badge("used", Tone.GOOD)
        if not refused[key] and not kept[key]:
            verdict = badge("none left", Tone.PLAIN)
        elif name == "unknown" and kept[key]:
            verdict = badge("used, unknown", Tone.UNSURE)
        body.append([source, name, kind, Number(f"{came[key]:,}"), Number(f"{kept[key]:,}"), verdict])
    return [table(["source", "licence", "kind of row", "rows in", "rows kept", ""], body)]


def _license_of(row: Row) -> tuple[str, str, str]:
    origin = row.provenance
    return origin.source, license_name(origin.license), origin.kind.value


# ----------------------------------------------------------------------------------------------- flags and drops


def _flagged(facts: Facts) -> list[Markup]:
    by_reason: dict[str, list[Action]] = defaultdict(list)
    for action in facts.curated.ledger.actions:
        if action.action == "flag" and action.reason != "contaminated":
            by_reason[str(action.reason)].append(action)
    return [
        details(f"{reason}: {len(found):,} rows", _places([(a.path, a.line, a.detail or "") for a in found]))
        for reason, found in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    ]


def _dropped(facts: Facts) -> list[Markup]:
    by_reason: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
    for reject in facts.curated.ledger.rejects:
        by_reason[reject.reason].append((reject.path, reject.line, reject.detail))
    parts = [lead("Texts of dropped rows are in rejects.parquet; they are not shown here, as some had to go for good.")]
    for reason, found in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        parts.append(details(f"{reason}: {len(found):,} rows", _places(sorted(found))))
    return parts if by_reason else [text("No row was dropped.")]


def _places(found: Sequence[tuple[str, int, str]]) -> Markup:
    shown = table(["place", "detail"], [[f"{path}:{line}", detail] for path, line, detail in found[:MAX_SHOWN_ROWS]])
    rest = len(found) - MAX_SHOWN_ROWS
    return shown if rest <= 0 else shown + text(f"{rest:,} more are in lineage.parquet.")


SECTIONS: tuple[tuple[str, Draw], ...] = (
    ("Funnel", _funnel),
    ("Duplicates", _duplicates),
    ("Semantic duplicates", _semantic),
    ("Personal data and secrets", _personal_data),
    ("Contamination", _contamination),
    ("Licences", _licenses),
    ("Coverage and diversity", lambda facts: coverage_parts(facts.coverage)),
    ("Difficulty for the base model", lambda facts: difficulty_parts(facts.curated.scored)),
    ("Flagged rows", _flagged),
    ("Dropped rows", _dropped),
)
"""The page, section by section."""
