"""curate: of all rows those that may and should be trained on, each change and each loss with its reason.

    opt-out -> licence -> quality -> contract -> personal data -> contamination -> duplicates and leaks -> rows

Every row that comes in is in `rows.parquet` or, with its reason, in `rejects.parquet`; `lineage.parquet` holds what was
done to each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import ContentPath, Spec
from tunesmith.core.stage import Context, Inputs, Summary, role, stage
from tunesmith.data.licenses import PERMISSIVE
from tunesmith.types import JSON, Row, RowRole

PersonalData = Literal[
    "EMAIL",
    "PHONE",
    "IBAN",
    "CARD",
    "BANK_ACCOUNT",
    "CRYPTO_WALLET",
    "NATIONAL_ID",
    "IP_ADDRESS",
    "ADDRESS",
    "DATE_OF_BIRTH",
    "API_KEY",
    "SECRET",
    "PASSWORD",
    "URL_PASSWORD",
    "PRIVATE_KEY",
    "JWT",
]


class OptOutSpec(Spec):
    """Who and what asked to leave."""

    sources: list[str] = Field(default_factory=list)
    """Names of sources."""
    subjects: list[str] = Field(default_factory=list)
    """Ids of persons, as the rows' subject field holds them."""
    content_hashes: list[str] = Field(default_factory=list)
    """sha256 of contents, as lineage shows them."""


class CurateInputs(Inputs):
    """Rows, and the contract that their answers must keep."""

    rows: Artifact = role("rows", table="ingest")
    contract: Artifact | None = role("contract", table="contract", optional=True)


class CurateSpec(Spec):
    """Settings of curate."""

    licenses: list[str] = Field(default_factory=lambda: list(PERMISSIVE))
    """SPDX identifiers that may be trained on."""
    allow_unknown: bool = False
    """Whether rows that say no licence may be trained on."""
    opt_out: OptOutSpec = OptOutSpec()
    """Sources, persons and contents that must not be trained on."""
    max_chars: int = Field(200_000, gt=0)
    """Longest row, in characters over all turns."""
    redact: list[PersonalData] | None = None
    """Types of personal data and secrets to replace by placeholders; all where nothing is said, none for []."""
    near_duplicates: float = Field(0.6, gt=0, le=1)
    """IDF-weighted overlap of words from which two long texts are near-duplicates; short texts need more."""
    evaluations: dict[str, ContentPath] = Field(default_factory=dict)
    """Evaluation -> file of its items (any shape that ingest reads): training rows that hold one are contaminated."""
    contaminated: Literal["flag", "drop"] = "flag"
    """What is done with contaminated rows; a flag is for a person to look at."""


def check_curate(spec: CurateSpec, inputs: Mapping[str, Artifact | None]) -> list[str]:
    """Warn of settings that weaken the data's standing."""
    warnings = []
    if spec.allow_unknown:
        warnings.append("curate.allow_unknown: rows without a licence are trained on")
    if spec.redact == []:
        warnings.append("curate.redact is empty: personal data and secrets stay in the data")
    return warnings


@stage(name="curate", version=3, produces="rows", check=check_curate)
def curate(inputs: CurateInputs, spec: CurateSpec, ctx: Context) -> Summary:
    """Keep, change, flag or drop each row, and say why."""
    from tunesmith.data.curation import Lint, Rules, curate_rows
    from tunesmith.data.curation_report import write_report
    from tunesmith.data.items import read_items
    from tunesmith.data.lineage import write_lineage
    from tunesmith.data.policy import OptOut
    from tunesmith.data.write import read_rows, write_rejects, write_rows

    lint: Lint | None = None
    if inputs.contract is not None:
        from tunesmith.chat.contract import load_contract

        contract = load_contract(inputs.contract.path)

        held_to = {RowRole.TASK: contract, RowRole.GENERAL: contract.for_general_rows()}

        def lint(row: Row) -> list[tuple[str, str]]:
            found = held_to[row.role].lint(row.conversation)
            return [(violation.kind, violation.message) for violation in found]

    rows = read_rows(inputs.rows.path / "rows.parquet")
    rules = Rules(
        licenses=tuple(spec.licenses),
        unknown_license="keep" if spec.allow_unknown else "refuse",
        opt_out=OptOut(
            sources=frozenset(spec.opt_out.sources),
            subjects=frozenset(spec.opt_out.subjects),
            content_hashes=frozenset(spec.opt_out.content_hashes),
        ),
        max_chars=spec.max_chars,
        redact=None if spec.redact is None else frozenset(spec.redact),
        near_threshold=spec.near_duplicates,
        evaluations={name: read_items(Path(path)) for name, path in spec.evaluations.items()},
        contaminated=spec.contaminated,
    )
    curated = curate_rows(rows, rules, lint=lint, progress=ctx.progress)
    write_rows(ctx.out / "rows.parquet", curated.rows)
    write_rejects(ctx.out / "rejects.parquet", curated.ledger.rejects)
    write_lineage(ctx.out / "lineage.parquet", curated.ledger.actions)
    (ctx.out / "duplicates.json").write_text(_json(curated.duplicates), encoding="utf-8")
    (ctx.out / "pii.json").write_text(_json(curated.personal_data), encoding="utf-8")
    summary = curated.summary()
    write_report(ctx.out / "report.html", rows=rows, curated=curated, summary=summary)
    return summary


def _json(value: JSON) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
