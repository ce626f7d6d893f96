"""report.html of curation: what came in, what stayed, what went and why.

What lives here: tables and drawings over an account that is complete already. What does not: any decision.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from markupsafe import Markup

from tunesmith.data.curation import Curated
from tunesmith.data.words import answer_text, prompt_text
from tunesmith.page import Cell, Number, Section, cards, code, columns, heading, lead, page, table, text
from tunesmith.types import JSON, Row

MAX_PAIRS = 60
MAX_SHOWN_CHARS = 700


def write_report(path: Path, *, rows: Sequence[Row], curated: Curated, summary: Mapping[str, JSON]) -> None:
    """Write the page. `rows` are the rows that came in."""
    sections = [
        Section(
            "Funnel",
            [
                cards(
                    [
                        (f"{summary['rows_in']:,}", "rows in"),
                        (f"{summary['rows_kept']:,}", "rows kept"),
                        (f"{summary['pii_rows']:,}", "rows with personal data or secrets replaced"),
                        (f"{summary['duplicates_exact'] + summary['duplicates_near']:,}", "duplicates dropped"),
                        (f"{summary['leaks']:,}", "leaks into held-out sides dropped"),
                    ]
                ),
                _funnel(rows, curated),
            ],
        ),
        Section("Duplicates", _duplicates(rows, curated)),
        Section("Personal data and secrets", _personal_data(curated)),
        Section("Licences", [_licenses(curated)]),
        Section("Dropped rows", _dropped(curated)),
    ]
    path.write_text(page("Curation", sections, subtitle="Every row that came in is accounted for."), encoding="utf-8")


def _funnel(rows: Sequence[Row], curated: Curated) -> Markup:
    came = Counter(row.provenance.source for row in rows)
    role_of = {row.provenance.source: row.role.value for row in rows}
    stayed = Counter(row.provenance.source for row in curated.rows)
    gone: dict[str, Counter[str]] = defaultdict(Counter)
    for reject in curated.ledger.rejects:
        gone[reject.source][reject.reason] += 1
    reasons = [reason for reason, _ in curated.ledger.dropped.most_common()]
    body: list[list[Cell]] = [
        [
            source,
            role_of[source],
            Number(f"{came[source]:,}"),
            Number(f"{stayed[source]:,}"),
            *(Number(f"{gone[source][reason]:,}") for reason in reasons),
        ]
        for source in came
    ]
    return table(["source", "role", "in", "kept", *reasons], body)


def _shown(row: Row) -> str:
    words = f"{prompt_text(row.conversation)}\n→ {answer_text(row.conversation)}"
    return words if len(words) <= MAX_SHOWN_CHARS else words[:MAX_SHOWN_CHARS] + " …"


def _duplicates(rows: Sequence[Row], curated: Curated) -> list[Markup]:
    by_id = {row.id: row for row in curated.rows}
    by_id.update({reject.row.id: reject.row for reject in curated.ledger.rejects if reject.row is not None})
    entries = sorted(curated.duplicates, key=lambda entry: (cast(float, entry["score"]), str(entry["row_id"])))
    parts: list[Markup] = [
        lead("Borderline pairs first. Left the row that went (or is flagged), right the one that stays.")
    ]
    for entry in entries[:MAX_PAIRS]:
        title = f"{entry['kind']} {entry['score']:.3f}: {entry['row_place']} and {entry['keeper_place']}"
        pair = by_id[str(entry["row_id"])], by_id[str(entry["keeper_id"])]
        parts += [heading(title), columns(code(_shown(pair[0])), code(_shown(pair[1])))]
    if len(entries) > MAX_PAIRS:
        parts.append(text(f"{len(entries) - MAX_PAIRS:,} more are in duplicates.json."))
    return parts


def _personal_data(curated: Curated) -> list[Markup]:
    counts = cast("dict[str, int]", curated.personal_data["counts"])
    samples = cast("dict[str, list[str]]", curated.personal_data["masked_samples"])
    recall = cast("dict[str, float]", curated.personal_data["canary_recall"])
    body: list[list[Cell]] = [
        [kind, Number(f"{counts.get(kind, 0):,}"), Number(_percent(recall.get(kind))), ", ".join(samples.get(kind, []))]
        for kind in sorted({*counts, *recall})
    ]
    return [
        lead(
            "Recall is measured on made-up values of each type that were planted in copies of these rows, redacted and "
            "thrown away; it says what is found of values written in usual ways."
        ),
        table(["type", "replaced", "canary recall", "masked samples"], body),
    ]


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.0%}"


def _licenses(curated: Curated) -> Markup:
    kept = Counter((row.provenance.source, row.provenance.license or "unknown") for row in curated.rows)
    return table(
        ["source", "licence", "rows kept"],
        [[source, name, Number(f"{count:,}")] for (source, name), count in sorted(kept.items())],
    )


def _dropped(curated: Curated) -> list[Markup]:
    body = [
        [reject.reason, f"{reject.path}:{reject.line}", reject.detail]
        for reject in sorted(curated.ledger.rejects, key=lambda reject: (reject.reason, reject.path, reject.line))
    ]
    parts: list[Markup] = [table(["reason", "place", "detail"], body[:300])]
    if len(body) > 300:
        parts.append(text(f"{len(body) - 300:,} more are in rejects.parquet."))
    return parts
