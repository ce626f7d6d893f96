"""Datasheet: what is known of a data version, as a page that people keep.

What lives here: facts over curated rows, and the questions that they answer, after "Datasheets for Datasets" (Gebru et
al., 2021). What does not: the same facts for programs (`data.croissant`), the account of each row (`data.lineage`).
What nobody said stays *unknown*, in so many words: a person fills it in under `curate.about`.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunesmith.data.curation import Curated
from tunesmith.data.funnel import Funnel
from tunesmith.data.licenses import PERMISSIVE, normal_license
from tunesmith.types import JSON, Row

UNKNOWN = "*unknown*"
_SPELLED = {name.casefold(): name for name in PERMISSIVE}


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What only people know; `None` where nobody said it."""

    name: str | None = None
    description: str | None = None
    creators: tuple[str, ...] = ()
    url: str | None = None
    purpose: str | None = None
    limitations: str | None = None
    maintenance: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """One source, over the rows that stayed."""

    rows: int
    licenses: Mapping[str, int]
    kinds: Mapping[str, int]
    makers: tuple[str, ...]
    """Generator models and editors."""
    first_date: str | None
    last_date: str | None
    dated_rows: int
    subjects: int
    """Different persons that the rows name by id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """All that is known of a data version."""

    about: About
    sources: Mapping[str, SourceFacts]
    funnel: Funnel
    summary: Mapping[str, JSON]
    turns: Mapping[int, int]
    """Messages in a row -> rows."""
    roles: Mapping[str, int]
    tool_rows: int
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def licenses(self) -> dict[str, int]:
        """Licence -> rows."""
        total: Counter[str] = Counter()
        for source in self.sources.values():
            total.update(source.licenses)
        return dict(sorted(total.items()))

    @property
    def dates(self) -> tuple[str, str] | None:
        """First and last date of collection that any row says."""
        spans = [s for s in self.sources.values() if s.first_date is not None and s.last_date is not None]
        return (min(str(s.first_date) for s in spans), max(str(s.last_date) for s in spans)) if spans else None


def gather(rows: Sequence[Row], *, about: About, curated: Curated, funnel: Funnel) -> DataFacts:
    """Return the facts of the rows that stayed."""
    by_source: dict[str, list[Row]] = defaultdict(list)
    roles: Counter[str] = Counter()
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        by_source[row.provenance.source].append(row)
        roles.update(message.role for message in row.conversation.messages)
        for name, value in row.labels.items():
            labels[name][value] += 1
    return DataFacts(
        about=about,
        sources={name: _source_facts(found) for name, found in by_source.items()},
        funnel=funnel,
        summary=curated.summary(),
        turns=dict(sorted(Counter(len(row.conversation.messages) for row in rows).items())),
        roles=dict(sorted(roles.items())),
        tool_rows=sum(bool(row.conversation.tools) for row in rows),
        labels={name: dict(found.most_common()) for name, found in sorted(labels.items())},
    )


def _source_facts(rows: Sequence[Row]) -> SourceFacts:
    origins = [row.provenance for row in rows]
    dates = sorted(origin.collected_at for origin in origins if origin.collected_at)
    makers = {maker for origin in origins for maker in (origin.generator, origin.editor) if maker}
    return SourceFacts(
        rows=len(rows),
        licenses=dict(sorted(Counter(license_name(origin.license) for origin in origins).items())),
        kinds=dict(sorted(Counter(origin.kind.value for origin in origins).items())),
        makers=tuple(sorted(makers)),
        first_date=dates[0] if dates else None,
        last_date=dates[-1] if dates else None,
        dated_rows=len(dates),
        subjects=len({origin.subject for origin in origins if origin.subject is not None}),
    )


@functools.lru_cache(maxsize=4096)
def license_name(said: str | None) -> str:
    """Return a licence as SPDX spells it where that is known, else as it was said; `unknown` where nothing was."""
    normal = normal_license(said)
    return "unknown" if normal is None else _SPELLED.get(normal, str(said).strip())


def datasheet(facts: DataFacts) -> str:
    """Return the datasheet as Markdown."""
    about, summary = facts.about, facts.summary
    parts = [
        f"# Datasheet: {about.name or 'a data version without a name'}",
        "Written by `tunesmith` from the rows and their account. *unknown* means that neither the rows nor the recipe "
        "say it; say it under `curate.about`.",
        "## Motivation",
        _asked("For what purpose was it made?", about.purpose),
        _asked("Who made it?", ", ".join(about.creators) or None),
        "## Composition",
        _asked("What is a row?", about.description),
        f"**How many are there?** {facts.funnel.rows_kept:,} rows, {facts.funnel.units_kept:,} {facts.funnel.unit}.",
        _table(
            ["messages in a row", "rows"], [[f"{count}", f"{rows:,}"] for count, rows in list(facts.turns.items())[:12]]
        ),
        f"**Who speaks?** {_counts(facts.roles)} messages; {facts.tool_rows:,} rows offer tools.",
        _asked("Are there labels?", "; ".join(f"{name}: {_counts(values)}" for name, values in facts.labels.items())),
        _asked("Is it known to be lopsided, or to lack something?", about.limitations),
        f"**Does it hold personal data?** {_personal(summary)}",
        "## Collection",
        _sources(facts),
        _dates(facts),
        f"**Did people consent, and can they leave?** {_subjects(facts)}",
        "## Preprocessing",
        "**What was done to the rows?** In this order:",
        _table(
            ["rule", "rows taken", facts.funnel.unit],
            [[step.reason, f"{step.rows:,}", f"{step.units:,}"] for step in facts.funnel.steps],
        ),
        f"Changed: {_counts(summary['changed']) or 'nothing'}. Flagged for a person: "
        f"{_counts(summary['flagged']) or 'nothing'}.",
        "**Is the raw data kept?** Dropped rows are in `rejects.parquet` with their reasons; each action on each row "
        "is in `lineage.parquet`.",
        "## Uses",
        f"**Was it held against evaluations?** {_contamination(summary)}",
        "## Distribution and maintenance",
        f"**Under which licences?** {_counts(facts.licenses) or UNKNOWN} (rows).",
        _asked("Where is it?", about.url),
        _asked("Who keeps it up, and how?", about.maintenance),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _asked(question: str, answer: str | None) -> str:
    return f"**{question}** {answer or UNKNOWN}"


def _counts(values: Mapping[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(values.items())[:20]]
    return ", ".join([*shown, f"and {len(values) - 20} more"] if len(values) > 20 else shown)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Nothing."
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _sources(facts: DataFacts) -> str:
    return _table(
        ["source", "rows", "licences", "kinds", "models and editors"],
        [
            [name, f"{part.rows:,}", _counts(part.licenses), _counts(part.kinds), ", ".join(part.makers) or "none said"]
            for name, part in facts.sources.items()
        ],
    )


def _dates(facts: DataFacts) -> str:
    dated = sum(source.dated_rows for source in facts.sources.values())
    span = facts.dates
    answer = UNKNOWN if span is None else f"{span[0]} to {span[1]}, as {dated:,} of {facts.funnel.rows_kept:,} rows say"
    return f"**When was it collected?** {answer}."


def _personal(summary: Mapping[str, JSON]) -> str:
    found: Mapping[str, int] = summary["pii"]
    named = ", ".join(summary.get("pii_names", ()))
    if not found:
        know = f"and by a model of names ({named})" if named else "which know no names of people"
        return f"None was found by the patterns that were used, {know}."
    looked = f"Names ({named}) were looked for by a model" if named else "Names of people are not looked for"
    missed = "; what is missed is not known" if named else " by these patterns; what they miss is not known"
    return (
        f"In {summary['pii_rows']:,} rows values were found and replaced by placeholders: {_counts(found)}. "
        f"{looked}{missed}."
    )


def _subjects(facts: DataFacts) -> str:
    named = sum(source.subjects for source in facts.sources.values())
    out = int(facts.summary["dropped"].get("opt_out", 0))
    told = f"rows name {named:,} persons by id" if named else "rows name no persons by id, so none can leave by name"
    return f"Consent is {UNKNOWN}; {told}; {out:,} rows left by opt-out. `tunesmith takedown` finds what is asked for."


def _contamination(summary: Mapping[str, JSON]) -> str:
    return f"{summary['contaminated']:,} rows hold an item of a registered evaluation or of a held-out side."
