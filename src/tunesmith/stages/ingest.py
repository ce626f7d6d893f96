"""ingest: files that users bring become rows with their provenance; what cannot be a row is kept with its reason.

ingest:
  sources:
    - path: tickets.jsonl
      license: CC-BY-4.0
      labels: {intent: answer.intent}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import ContentPath, Spec
from tunesmith.core.stage import Context, Inputs, Summary, stage
from tunesmith.errors import DataError, PlanError, nearest
from tunesmith.types import JSON, RowKind

SideName = Literal["train", "val", "test"]


class Source(Spec):
    """One file of rows. A bare path is a source whose every setting is the default."""

    path: ContentPath
    """JSON lines, JSON, CSV, TSV, Parquet, Arrow or text file."""
    name: str
    """What opt-outs, reports and lineage call it; the file's name without its ending unless given."""
    shape: Literal["auto", "alpaca", "messages", "sharegpt", "completion", "preference", "kto", "text"] = "auto"
    """Shape of a record; `auto` looks at the first records and says what it found."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field that a shape or the provenance wants -> its name in this file, such as {prompt: question}."""
    encoding: str = "utf-8"
    """Text encoding of the file; nothing but UTF-8 is ever guessed."""
    license: str | None = None
    """SPDX identifier of all rows, or of those whose `license_field` says nothing."""
    license_field: str | None = None
    """Field of a record that holds the row's own licence."""
    kind: RowKind = RowKind.HUMAN
    """Where the answers come from: human, edited_synthetic, synthetic or log."""
    generator: str | None = None
    """Model that wrote the answers, where they are synthetic."""
    editor: str | None = None
    """Who edited synthetic answers."""
    collected_at: str | None = None
    """Date of collection, as ISO 8601."""
    subject_field: str | None = None
    """Field that holds the id of the person a row is about, for opt-out."""
    group_field: str | None = None
    """Field whose equal values must stay on one side of the split (ticket, customer, document)."""
    split: SideName | None = None
    """Side that all rows of this file belong to, where the split comes from outside."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Label name -> field of the record, or `answer.<field>` of an answer that is a JSON object."""

    @model_validator(mode="before")
    @classmethod
    def _name_from_path(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"path": value}
        if isinstance(value, Mapping) and "name" not in value and isinstance(value.get("path"), str):
            value = {**value, "name": Path(value["path"]).stem}
        return value


class IngestInputs(Inputs):
    """None: ingest is where data enters."""


class IngestSpec(Spec):
    """Settings of ingest."""

    sources: list[Source] = Field(min_length=1)
    """Files to read, in order: where two rows are duplicates, the one of the earlier source is kept."""
    max_bad_share: float = Field(0.05, ge=0, le=1)
    """The run stops where a larger share of one source's records cannot be rows."""

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: list[Source]) -> list[Source]:
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}: give each its own name")
        return sources


def check_ingest(spec: IngestSpec, inputs: Mapping[str, Artifact | None]) -> list[str]:
    """Refuse a file that is not there or that cannot be read; warn of rows without a licence."""
    warnings = []
    for source in spec.sources:
        path = Path(source.path)
        if not path.exists():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            close = nearest(path.name, siblings) if siblings else []
            raise PlanError(
                f"the source {source.name!r} is not there",
                where=source.path,
                expected="a file",
                found=f"nothing; near it: {', '.join(close)}" if close else "nothing",
            )
        if source.license is None and source.license_field is None and "license" not in source.columns:
            warnings.append(f"source {source.name!r} says no licence: curate refuses its rows unless told otherwise")
    return warnings


@stage(name="ingest", version=1, produces="rows", check=check_ingest)
def ingest(inputs: IngestInputs, spec: IngestSpec, ctx: Context) -> Summary:
    """Read all sources into `rows.parquet` and `rejects.parquet`; every record is in exactly one of them."""
    from tunesmith.data.shapes import Shape
    from tunesmith.data.sources import Origin, detected_shape, rows_of
    from tunesmith.data.write import Reject, RejectWriter, RowWriter

    per_source: dict[str, JSON] = {}
    dropped: Counter[str] = Counter()
    records = kept = 0
    with RowWriter(ctx.out / "rows.parquet") as rows, RejectWriter(ctx.out / "rejects.parquet") as rejects:
        for source in spec.sources:
            settings = source.model_dump(exclude={"path", "shape"})
            origin = Origin(
                path=Path(source.path), shape=None if source.shape == "auto" else Shape(source.shape), **settings
            )
            shape = detected_shape(origin)
            reasons: Counter[str] = Counter()
            labelled: Counter[str] = Counter()
            first: Reject | None = None
            num_rows = 0
            for item in rows_of(origin):
                records += 1
                if isinstance(item, Reject):
                    rejects.write(item)
                    reasons[item.reason] += 1
                    first = first or item
                else:
                    rows.write(item)
                    num_rows += 1
                    labelled.update(item.labels.keys())
                if records % 10_000 == 0:
                    ctx.progress(records, None, f"{records:,} records")
            _refuse_bad_source(source, reasons, first, num_rows, spec.max_bad_share)
            kept += num_rows
            dropped.update(reasons)
            per_source[source.name] = {
                "file": Path(source.path).name,
                "shape": shape.value,
                "records": num_rows + sum(reasons.values()),
                "rows": num_rows,
                "dropped": dict(reasons),
                "without_label": {name: num_rows - labelled[name] for name in source.labels},
            }
            ctx.log("source_read", {"source": source.name, **per_source[source.name]})
    return {
        "records_in": records,
        "rows_kept": kept,
        "rows_dropped": records - kept,
        "dropped": dict(sorted(dropped.items())),
        "sources": per_source,
    }


def _refuse_bad_source(source: Source, reasons: Counter[str], first: Any, num_rows: int, max_bad_share: float) -> None:
    bad = sum(reasons.values())
    if bad == 0 or (num_rows and bad / (num_rows + bad) <= max_bad_share):
        return
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(4))
    raise DataError(
        f"{bad} of {num_rows + bad} records of {Path(source.path).name} cannot be rows ({counts})",
        where=f"{source.path}:{first.line}",
        expected=f"at most {max_bad_share:.0%} bad records (ingest.max_bad_share)",
        found=f"{first.reason}: {first.detail}",
        hint="mend the file, map its fields with columns, or raise ingest.max_bad_share",
    )
