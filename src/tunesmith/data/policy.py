"""Policy: which rows may be used at all, by licence and by opt-out.

What lives here: licence and opt-out rules over rows. What does not: which licences there are (`data.licenses`), quality
(`data.filters`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.licenses import license_allowed, normal_license, spdx_expression
from tunesmith.data.lineage import Ledger
from tunesmith.data.write import content_hash
from tunesmith.types import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class OptOut:
    """What was asked to leave."""

    sources: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()
    content_hashes: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """Number of things that were asked to leave."""
        return len(self.sources) + len(self.subjects) + len(self.content_hashes)

    def __or__(self, other: OptOut) -> OptOut:
        """Return what either asks for."""
        return OptOut(
            sources=self.sources | other.sources,
            subjects=self.subjects | other.subjects,
            content_hashes=self.content_hashes | other.content_hashes,
        )


def unmatched(rows: Sequence[Row], opt_out: OptOut) -> list[str]:
    """Return the opt-outs that no row meets, with their kind: left already, or misspelt."""
    sources = {row.provenance.source for row in rows}
    subjects = {row.provenance.subject for row in rows}
    hashes = {content_hash(row.conversation) for row in rows} if opt_out.content_hashes else set()
    return [
        *(f"source {name}" for name in sorted(opt_out.sources - sources)),
        *(f"subject {name}" for name in sorted(opt_out.subjects - subjects)),
        *(f"content {name}" for name in sorted(opt_out.content_hashes - hashes)),
    ]


def drop_opted_out(rows: Sequence[Row], ledger: Ledger, opt_out: OptOut) -> list[Row]:
    """Drop the rows of a source, a person or a content that opted out."""
    kept = []
    for row in rows:
        origin = row.provenance
        if origin.source in opt_out.sources:
            ledger.drop(row, reason="opt_out", detail=f"the source {origin.source!r} opted out")
        elif origin.subject is not None and origin.subject in opt_out.subjects:
            ledger.drop(row, reason="opt_out", detail=f"the subject {origin.subject!r} opted out")
        elif opt_out.content_hashes and content_hash(row.conversation) in opt_out.content_hashes:
            ledger.drop(row, reason="opt_out", detail="this content opted out by its hash")
        else:
            kept.append(row)
    return kept


def drop_unlicensed(
    rows: Sequence[Row], ledger: Ledger, *, allowed: Sequence[str], unknown: str = "refuse"
) -> list[Row]:
    """Drop rows whose licence is not allowed, and rows that say none unless `unknown` is `keep`."""
    kept = []
    complaints: dict[str | None, tuple[str, str] | None] = {}
    for row in rows:
        said = row.provenance.license
        if said not in complaints:
            complaints[said] = _complaint(said, allowed, unknown)
        complaint = complaints[said]
        if complaint is None:
            kept.append(row)
        else:
            ledger.drop(row, reason=complaint[0], detail=complaint[1])
    return kept


def _complaint(said: str | None, allowed: Sequence[str], unknown: str) -> tuple[str, str] | None:
    """Reason and detail against a licence; `None` where it may be used."""
    if normal_license(said) is None:
        return None if unknown == "keep" else ("license_unknown", f"expected a licence, found {said or 'nothing'}")
    if license_allowed(said or "", allowed):
        return None
    return "license_refused", f"expected one of {', '.join(allowed)}, found {_told(said or '')}"


def _told(said: str) -> str:
    """A licence as it stands, and what is wrong with it where it is no SPDX expression."""
    try:
        spdx_expression(said)
    except ValueError as error:
        return str(error)
    return said
