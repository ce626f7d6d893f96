"""Traffic: the figures and the candidates of a live trace database, outside of any run.

What lives here: `monitor` and `harvest` over a database and the evaluation and splits of a run. What does not: the
figures (`monitor`), the same over a closed span (`stages.monitor`, `stages.harvest`).

    report = monitor("traces.sqlite", run="quickstart", since=time.time() - 7 * 86400)
    harvest("traces.sqlite", Path("new.jsonl"), run="quickstart", license="Apache-2.0")
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.api.deployment import PathLike, traces_url
from tunesmith.core.artifact import Artifact
from tunesmith.core.runs import artifact_of, find_run
from tunesmith.core.store import Store
from tunesmith.errors import DataError, PlanError, ServeError, StoreError
from tunesmith.types import JSON, Feedback, Row, Trace

if TYPE_CHECKING:
    from tunesmith.data.write import Reject

_AGE = re.compile(r"^(\d+(?:\.\d+)?)([smhdw])$")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
ROW_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Harvest:
    """What a harvest wrote."""

    account: dict[str, JSON]
    files: tuple[Path, ...]


def read_age(text: str, *, now: float | None = None) -> float:
    """Return the moment `7d`, `12h`, `30m`, `45s` or `2w` ago, in seconds since 1970. Raises `PlanError`."""
    match = _AGE.match(text.strip())
    if match is None:
        raise PlanError("cannot read a span of time", expected="a number and s, m, h, d or w, such as 7d", found=text)
    return (time.time() if now is None else now) - float(match[1]) * _SECONDS[match[2]]


def monitor(
    traces: str | None = None,
    *,
    run: str | None = None,
    since: float = 0.0,
    until: float | None = None,
    store: PathLike | None = None,
) -> dict[str, Any]:
    """Return the monitor's report over a trace database, against the evaluation of a run (the newest by default).

    The alerts are those of the run's `monitor` stage where it has one. Raises `StoreError` or `ServeError`.
    """
    from tunesmith.monitor.kpis import Prices
    from tunesmith.monitor.report import DEFAULT_RULES, build_report
    from tunesmith.stages.monitor import MonitorSpec, read_reference, rule_of

    place = _store(store)
    evaluation, splits = _made(place, run, "evaluate"), _made(place, run, "split")
    spec = _settings(place, run, "monitor", MonitorSpec)
    found, feedback = _read(traces, since=since, until=until, store=store)
    return build_report(
        found,
        feedback,
        reference=read_reference(evaluation.path, splits.path),
        rules=DEFAULT_RULES if spec.alerts is None else [rule_of(alert) for alert in spec.alerts],
        prices=None if spec.prices is None else Prices(**spec.prices.model_dump()),
        fields=spec.fields,
    )


def harvest(
    traces: str | None,
    out: Path,
    *,
    run: str | None = None,
    since: float = 0.0,
    until: float | None = None,
    license: str | None = None,
    store: PathLike | None = None,
) -> Harvest:
    """Write candidate rows to `out` (.jsonl or .parquet), and beside it those to label and those that stay out.

    The held-out rows that stay apart are those of a run (the newest by default), whose `harvest` stage also says the
    source's name, tags and, unless `license` does, its licence. Raises `StoreError`, `ServeError` or `DataError`.
    """
    from tunesmith.stages.harvest import HarvestSpec, collect, make_rows, summarise

    if out.suffix not in ROW_SUFFIXES:
        raise DataError("cannot tell the format of the file", expected=" or ".join(ROW_SUFFIXES), found=out.name)
    place = _store(store)
    splits = _made(place, run, "split")
    spec = _settings(place, run, "harvest", HarvestSpec)
    if license is not None:
        spec = spec.model_copy(update={"license": license})
    found, feedback = _read(traces, since=since, until=until, store=store)
    candidates = collect(found, feedback, splits=splits.path)
    rows, review, excluded = make_rows(candidates, spec, path=out.name)
    files = (
        out,
        out.with_name(f"{out.stem}.review{out.suffix}"),
        out.with_name(f"{out.stem}.excluded{out.suffix}"),
    )
    _write_rows(files[0], rows)
    _write_rejects(files[1], review)
    _write_rejects(files[2], excluded)
    return Harvest(account=summarise(candidates, num_traces=len(found)), files=files)


def _read(
    traces: str | None, *, since: float, until: float | None, store: PathLike | None
) -> tuple[list[Trace], list[Feedback]]:
    from tunesmith.serve.traces import TraceStore

    url = traces_url(traces, store=store)
    path = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and not path.is_file():
        raise ServeError("there is no trace database", where=str(path), hint="tunesmith serve writes one; see --traces")
    database = TraceStore(url)
    try:
        return list(database.traces(since=since, until=until)), list(database.feedback(since=since, until=until))
    finally:
        database.close()


def _made(store: Store, run: str | None, table: str) -> Artifact:
    record = find_run(store, run)
    artifact = artifact_of(store, record.stages[table]) if table in record.stages else None
    if artifact is None:
        raise StoreError(
            f"the run {record.run} has no finished {table}",
            where=str(store.runs / record.run),
            hint=f"tunesmith run {record.recipe_path} --until {table}",
        )
    return artifact


def _settings(store: Store, run: str | None, table: str, spec_type: Any) -> Any:
    """Return the settings that a run has for a stage, or the defaults."""
    record = find_run(store, run)
    return spec_type.model_validate(dict(record.stages[table].spec)) if table in record.stages else spec_type()


def _store(store: PathLike | None) -> Store:
    from tunesmith.api import open_store

    return open_store(store)


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    from tunesmith.data.write import write_rows

    if path.suffix == ".parquet":
        write_rows(path, rows)
        return
    _write_lines(path, (_line(row) for row in rows))


def _write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    from tunesmith.data.write import write_rejects

    if path.suffix == ".parquet":
        write_rejects(path, rejects)
        return
    _write_lines(
        path,
        (
            {
                **({} if reject.row is None else _line(reject.row)),
                "reason": reject.reason,
                "why": reject.detail,
                "matched_id": reject.matched_id,
            }
            for reject in rejects
        ),
    )


def _line(row: Row) -> dict[str, JSON]:
    """Return a row as a line of chat messages that `ingest` reads, its provenance beside it."""
    origin = row.provenance
    facts = {
        "license": origin.license,
        "collected_at": origin.collected_at,
        "editor": origin.editor,
        "subject": origin.subject,
        "group": row.group,
        "trace": row.labels.get("trace"),
        "why": row.labels.get("why"),
        "model_answer": row.rejected[0].content if row.rejected else None,
    }
    return {**row.conversation.to_json(), **{name: value for name, value in facts.items() if value is not None}}


def _write_lines(path: Path, lines: Iterable[dict[str, JSON]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
