"""ingest: files, queries and hub data sets become rows with their provenance; what cannot be a row keeps its reason.

ingest:
  sources:
    - path: tickets.jsonl
      license: CC-BY-4.0
      labels: {intent: answer.intent}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import ContentPath, Spec
from tunesmith.core.stage import Context, Inputs, Summary, stage
from tunesmith.errors import DataError, PlanError
from tunesmith.types import JSON, RowKind, RowRole

if TYPE_CHECKING:
    from tunesmith.data.read import Origin
    from tunesmith.data.records import BadRecord, Record
    from tunesmith.data.write import Reject, RejectWriter, RowWriter

ShapeName = Literal["auto", "alpaca", "messages", "sharegpt", "completion", "preference", "kto", "request_log", "text"]


class Provided(Spec):
    """What is said of the rows of a source, wherever it lies."""

    name: str
    """What opt-outs, reports and lineage call it; a file's name without its ending unless given."""
    shape: ShapeName = "auto"
    """Shape of a record; `auto` looks at the first records and says what it found."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field that a shape or the provenance wants -> its name here, such as {prompt: question, split: part}."""
    license: str | None = None
    """SPDX expression of all rows, or of those whose `license_field` says nothing."""
    license_field: str | None = None
    """Field of a record that holds the row's own licence."""
    role: RowRole = RowRole.TASK
    """`task` rows keep the contract; `general` rows bring their own system prompt or none, and only ever train."""
    kind: RowKind | None = None
    """Where the answers come from: human, edited_synthetic, synthetic or log; a log for request logs, else human."""
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
    consent_field: str | None = None
    """Field that must say yes, true or granted: rows without consent are no rows."""
    split: Literal["train", "val", "test"] | None = None
    """Side that all rows belong to, where the split comes from outside."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Label name -> field of the record, or `answer.<field>` of an answer that is a JSON object."""

    @model_validator(mode="after")
    def _general_rows_train(self) -> Provided:
        if self.role is RowRole.GENERAL and self.split not in (None, "train"):
            raise ValueError(f"general rows only train, and the source {self.name!r} names the side {self.split}")
        return self

    @field_validator("license")
    @classmethod
    def _is_spdx(cls, license: str | None) -> str | None:
        from tunesmith.data.licenses import spdx_expression

        return None if license is None else spdx_expression(license)

    @field_validator("collected_at")
    @classmethod
    def _is_a_date(cls, collected_at: str | None) -> str | None:
        from tunesmith.data.logs import iso_time

        if collected_at is not None and iso_time(collected_at) is None:
            raise ValueError(f"{collected_at!r} is no date: write it as ISO 8601, such as 2026-01-31")
        return collected_at


class Source(Provided):
    """A file or a folder of files. A bare path is a source whose every setting is the default."""

    path: ContentPath
    """JSON lines, JSON, CSV, Parquet, Arrow or text file, a folder of them, or LLaMA-Factory's dataset_info.json."""
    dataset: str | None = None
    """Data set of a dataset_info.json: its file, shape, columns and tags are read from there."""
    encoding: str = "utf-8"
    """Text encoding of the files; nothing but UTF-8 is ever guessed."""

    @model_validator(mode="before")
    @classmethod
    def _name_from_path(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"path": value}
        if not (isinstance(value, Mapping) and isinstance(value.get("path"), str)):
            return value
        value = dict(value)
        path = Path(value["path"])
        if value.get("dataset") is not None and path.name == "dataset_info.json":
            value["path"] = str(path.parent)  # so that the data beside it is part of the identity
        value.setdefault("name", value.get("dataset") or path.stem)
        return value


class SqlSource(Provided):
    """Rows of a query."""

    url: str
    """URL of the database as SQLAlchemy writes it; `${NAME}` is taken from the environment and never stored."""
    query: str
    """One SELECT, with an ORDER BY that makes the order of rows certain."""
    snapshot: str
    """What you call the state of the database, such as a date: a new name reads it again, the same name never does."""


class HubSource(Provided):
    """A data set of the Hugging Face hub, at one commit."""

    id: str
    """Name on the hub, such as `org/name`."""
    revision: str
    """Commit or tag of the data set: a branch would change under the same name."""
    part: str = "train"
    """Split to read, as the hub calls it."""
    subset: str | None = None
    """Configuration of the data set, where it has several."""

    @field_validator("revision")
    @classmethod
    def _no_branch(cls, revision: str) -> str:
        if revision in ("", "main", "master", "latest", "HEAD"):
            raise ValueError(f"{revision!r} moves: name the commit, as the data set's page shows it")
        return revision


AnySource = Source | SqlSource | HubSource


class IngestInputs(Inputs):
    """None: ingest is where data enters."""


class IngestSpec(Spec):
    """Settings of ingest."""

    sources: list[Source] = Field(default_factory=list)
    """Files to read, in order: where two rows are duplicates, the one of the earlier source is kept."""
    sql: list[SqlSource] = Field(default_factory=list)
    """Queries to read, after the files."""
    hub: list[HubSource] = Field(default_factory=list)
    """Hugging Face data sets to read, after the queries; needs `tunesmith[hub]` and the network."""
    max_bad_share: float = Field(0.05, ge=0, le=1)
    """The run stops where a larger share of one source's records cannot be rows."""

    @model_validator(mode="after")
    def _names_differ(self) -> IngestSpec:
        names = [source.name for source in (*self.sources, *self.sql, *self.hub)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}: give each its own name")
        return self

    @field_validator("sources", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


def check_ingest(spec: IngestSpec, inputs: Mapping[str, Artifact | None]) -> list[str]:
    """Refuse a file that is not there or a hub that must not be reached; warn of rows without a licence."""
    import os

    from tunesmith.data.files import nearest_files

    if not (spec.sources or spec.sql or spec.hub):
        raise PlanError(
            "no source of rows is named",
            where="ingest",
            expected="at least one entry in sources, sql or hub",
            found="none",
            hint="ingest: {sources: [{path: rows.jsonl, license: CC0-1.0}]}",
        )
    for source in spec.sources:
        path = Path(source.path)
        if not path.exists():
            raise PlanError(
                f"the source {source.name!r} is not there",
                where=source.path,
                expected="a file or folder",
                found=nearest_files(path),
                hint="a path is no pattern: name the folder, or each file" if set("*?[") & set(path.name) else None,
            )
    offline = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if os.environ.get(name, "0") not in ("", "0")]
    if spec.hub and offline:
        raise PlanError(
            f"the source {spec.hub[0].name!r} lies on a hub, and {offline[0]} forbids to reach it",
            where="ingest.hub",
            hint=f"unset {offline[0]}, or download the data set and name its folder in ingest.sources",
        )
    return [
        f"source {source.name!r} says no licence: curate refuses its rows unless told otherwise"
        for source in (*spec.sources, *spec.sql, *spec.hub)
        if source.license is None and source.license_field is None and "license" not in source.columns
    ]


@stage(name="ingest", version=5, produces="rows", check=check_ingest)
def ingest(inputs: IngestInputs, spec: IngestSpec, ctx: Context) -> Summary:
    """Read all sources into `rows.parquet` and `rejects.parquet`; every record is in exactly one of them."""
    from tunesmith.data.write import RejectWriter, RowWriter

    accounts: dict[str, _Account] = {}
    sources: list[AnySource] = [*spec.sources, *spec.sql, *spec.hub]
    with RowWriter(ctx.out / "rows.parquet") as rows, RejectWriter(ctx.out / "rejects.parquet") as rejects:
        for source in sources:
            account = accounts[source.name] = _Account(source.name)
            for records, origin, name, side in _streams(source):
                account.read(records, origin, name, side, rows, rejects, ctx)
            account.refuse_bad(spec.max_bad_share)
            ctx.log("source_read", {"source": source.name, **account.to_json()})
    dropped: Counter[str] = Counter()
    for account in accounts.values():
        dropped.update(account.reasons)
    kept = sum(account.num_rows for account in accounts.values())
    return {
        "records_in": kept + sum(dropped.values()),
        "rows_kept": kept,
        "rows_dropped": sum(dropped.values()),
        "dropped": dict(sorted(dropped.items())),
        "sources": {name: account.to_json() for name, account in accounts.items()},
    }


Stream = tuple["Iterator[Record | BadRecord]", "Origin", str, "str | None"]
"""Records, what is said of them, the name of their file, and the side that their folder says."""


def _streams(source: AnySource) -> Iterator[Stream]:
    from tunesmith.data.files import parts_of, read_records
    from tunesmith.data.hub import read_hub
    from tunesmith.data.tables import read_query

    if isinstance(source, SqlSource):
        yield read_query(_with_secrets(source), source.query), _origin(source), source.name, None
    elif isinstance(source, HubSource):
        records = read_hub(source.id, subset=source.subset, part=source.part, revision=source.revision)
        yield records, _origin(source), f"{source.id}@{source.revision[:12]}", None
    elif source.dataset is not None:
        yield _llamafactory(source)
    else:
        for part in parts_of(Path(source.path)):
            yield read_records(part.path, encoding=source.encoding), _origin(source), part.name, part.side


def _origin(source: Provided) -> Origin:
    from tunesmith.data.read import Origin
    from tunesmith.data.shapes import Shape

    said = source.model_dump(include=set(Provided.model_fields) - {"shape"})
    return Origin(shape=None if source.shape == "auto" else Shape(source.shape), **said)


def _llamafactory(source: Source) -> Stream:
    from dataclasses import replace

    from tunesmith.data.files import read_records
    from tunesmith.data.llamafactory import entry_of
    from tunesmith.data.shapes import Shape

    assert source.dataset is not None
    entry = entry_of(Path(source.path), source.dataset)
    origin = _origin(source)
    columns = {**entry.columns, **origin.columns}
    shape = origin.shape or (Shape.TEXT if entry.is_plain_text(source.encoding) else None)
    origin = replace(origin, shape=shape, columns=columns, prepare=entry.prepare())
    return read_records(entry.path, encoding=source.encoding), origin, entry.path.name, None


def _with_secrets(source: SqlSource) -> str:
    import os
    import re

    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise DataError(
                f"the SQL source {source.name!r} needs the environment variable {name}",
                where="ingest.sql",
                found="not set",
            )
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", value_of, source.url)


class _Account:
    """What came of one source."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.num_rows = 0
        self.reasons: Counter[str] = Counter()
        self._shapes: list[str] = []
        self._files: list[str] = []
        self._unlabelled: Counter[str] = Counter()
        self._first: Reject | None = None

    def read(
        self,
        records: Iterator[Record | BadRecord],
        origin: Origin,
        name: str,
        side: str | None,
        rows: RowWriter,
        rejects: RejectWriter,
        ctx: Context,
    ) -> None:
        """Write each record of one file to the rows or to the rejects."""
        from tunesmith.data.read import rows_of
        from tunesmith.data.write import Reject

        shape, items = rows_of(records, origin, name=name, side=side)
        self._shapes.append(shape.value)
        self._files.append(name)
        self._unlabelled.update(dict.fromkeys(origin.labels, 0))
        for count, item in enumerate(items, start=1):
            if isinstance(item, Reject):
                rejects.write(item)
                self.reasons[item.reason] += 1
                self._first = self._first or item
            else:
                rows.write(item)
                self.num_rows += 1
                self._unlabelled.update(label for label in origin.labels if label not in item.labels)
            if count % 10_000 == 0:
                ctx.progress(count, None, f"{name}: {count:,} records")

    def refuse_bad(self, max_bad_share: float) -> None:
        """Raise `DataError` where too many records are no rows."""
        bad = sum(self.reasons.values())
        if self._first is None or (self.num_rows and bad / (self.num_rows + bad) <= max_bad_share):
            return
        counts = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common(4))
        raise DataError(
            f"{bad} of {self.num_rows + bad} records of {self.name} cannot be rows ({counts})",
            where=f"{self._first.path}:{self._first.line}",
            expected=f"at most {max_bad_share:.0%} bad records (ingest.max_bad_share)",
            found=f"{self._first.reason}: {self._first.detail}",
            hint="mend the file, map its fields with columns, or raise ingest.max_bad_share",
        )

    def to_json(self) -> dict[str, JSON]:
        """Return the figures of the source."""
        return {
            "files": self._files,
            "shape": ", ".join(dict.fromkeys(self._shapes)),
            "records": self.num_rows + sum(self.reasons.values()),
            "rows": self.num_rows,
            "dropped": dict(sorted(self.reasons.items())),
            "without_label": dict(self._unlabelled),
        }
