"""monitor: a closed span of traces becomes figures with intervals, drift against the evaluation, and alerts.

monitor:
  prices: {prompt: 0.10, completion: 0.40}
  alerts:
    - {kpi: schema_adherence, at_least: 0.97}
    - {kpi: latency_p95_ms, at_most: 3000}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, field_validator, model_validator

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context, Inputs, Summary, role, stage

if TYPE_CHECKING:
    from tunesmith.monitor.alerts import Rule
    from tunesmith.monitor.report import Reference


class MonitorInputs(Inputs):
    """Traces, and what they are compared with."""

    traces: Artifact = role("traces", table="rehearse")
    evaluation: Artifact = role("evaluation", table="evaluate")
    splits: Artifact = role("splits", table="split")


class PricesSpec(Spec):
    """What tokens cost, per million, in one currency."""

    prompt: float = Field(ge=0)
    """Tokens of the prompt."""
    completion: float = Field(ge=0)
    """Tokens of the answer, failed attempts included."""


class AlertSpec(Spec):
    """A bound on one figure."""

    kpi: str
    """A figure of `monitor.json`, such as `schema_adherence` or `latency_p95_ms`."""
    at_least: float | None = None
    """Smallest good value."""
    at_most: float | None = None
    """Largest good value."""

    @field_validator("kpi")
    @classmethod
    def _kpi_exists(cls, value: str) -> str:
        from tunesmith.errors import nearest
        from tunesmith.monitor.kpis import KPI_NAMES

        if value not in KPI_NAMES:
            raise ValueError(f"no figure is called {value!r}; close: {', '.join(nearest(value, KPI_NAMES))}")
        return value

    @model_validator(mode="after")
    def _one_bound(self) -> AlertSpec:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give either at_least or at_most")
        return self


class MonitorSpec(Spec):
    """How the span is judged."""

    prices: PricesSpec | None = None
    """Prices for an estimate of cost; without them there is none."""
    alerts: tuple[AlertSpec, ...] | None = None
    """Bounds on figures; by default schema adherence, errors of the server, flagged answers and the win rate."""
    fields: tuple[str, ...] = ()
    """Fields of JSON answers to segment by and to watch for drift; by default those that look like labels."""


@stage(name="monitor", version=1, produces="report")
def monitor(inputs: MonitorInputs, spec: MonitorSpec, ctx: Context) -> Summary:
    """Write `monitor.json` and `monitor.html`."""
    from tunesmith.monitor.kpis import Prices
    from tunesmith.monitor.report import DEFAULT_RULES, build_report
    from tunesmith.monitor.view import monitor_page
    from tunesmith.serve.traces import open_closed_span

    traces, feedback = open_closed_span(inputs.traces.path / "traces.sqlite")
    report = build_report(
        traces,
        feedback,
        reference=read_reference(inputs.evaluation.path, inputs.splits.path),
        rules=DEFAULT_RULES if spec.alerts is None else [rule_of(alert) for alert in spec.alerts],
        prices=None if spec.prices is None else Prices(**spec.prices.model_dump()),
        fields=spec.fields,
    )
    (ctx.out / "monitor.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (ctx.out / "monitor.html").write_text(monitor_page(report), encoding="utf-8")
    statuses = [alert["status"] for alert in report["alerts"]]
    ctx.progress(1, 1, f"{len(traces)} traces, {statuses.count('firing')} alerts firing")
    shown = ("schema_adherence", "feedback_win_rate", "flagged_rate", "latency_p50_ms", "latency_p95_ms")
    return {
        "requests": report["totals"]["requests"],
        "answers": report["totals"]["answers"],
        **{name: report["kpis"][name] for name in shown},
        "alerts": {status: statuses.count(status) for status in ("firing", "watch", "unknown", "ok")},
        "firing": [alert["name"] for alert in report["alerts"] if alert["status"] == "firing"],
        "drift": {test["name"]: test["verdict"] for test in report["drift"]},
    }


def read_reference(evaluation: Path, splits: Path) -> Reference:
    """Return what the tuned model was asked and answered in its evaluation."""
    import pyarrow.parquet as pq

    from tunesmith.data.write import read_rows
    from tunesmith.monitor.report import Reference

    items = pq.read_table(evaluation / "items.parquet", columns=["system", "row_id", "output"]).to_pylist()
    tuned = {item["row_id"]: item["output"] for item in items if item["system"] == "tuned"}
    side = json.loads((evaluation / "results.json").read_text(encoding="utf-8"))["side"]
    rows = [row for row in read_rows(splits / f"{side}.parquet") if row.id in tuned]
    prompts = tuple(
        "\n".join(message.content or "" for message in row.conversation.prompt.messages if message.role == "user")
        for row in rows
    )
    answers = tuple(tuned[row.id] for row in rows if tuned[row.id] is not None)
    return Reference(name=f"the evaluation on the {side} rows", prompts=prompts, answers=answers)


def rule_of(alert: AlertSpec) -> Rule:
    """Return the rule of one alert."""
    from tunesmith.monitor.alerts import Rule

    return Rule(kpi=alert.kpi, at_least=alert.at_least, at_most=alert.at_most)
