"""The monitor's report: figures, segments, time, drift and alerts of one span of traces, as plain JSON.

What lives here: putting the parts together. What does not: reading databases and Parquet (`stages.monitor`, `api`), the
page (`monitor.view`).

    report = build_report(traces, feedback, reference=Reference(...), rules=DEFAULT_RULES, prices=None, fields=())
    report["kpis"]["schema_adherence"]     # {"value": 0.94, "low": 0.88, "high": 0.97, "n": 120}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tunesmith.monitor.alerts import Alert, Rule, check_rules, drift_alerts
from tunesmith.monitor.drift import DriftTest, categorical_drift, judge, numeric_drift, word_drift
from tunesmith.monitor.kpis import Prices, View, answer_fields, kpis, over_time, segments, totals, user_text
from tunesmith.types import JSON, Feedback, Trace

REPORT_FORMAT = 1
MAX_FIELD_VALUES = 30
"""A field of the answers with more different values in the reference is free text, not a label."""
DEFAULT_RULES = (
    Rule(kpi="schema_adherence", at_least=0.95),
    Rule(kpi="server_error_rate", at_most=0.01),
    Rule(kpi="output_flagged_rate", at_most=0.05),
    Rule(kpi="feedback_win_rate", at_least=0.5),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What the traces are compared with: the prompts and answers that the model was evaluated on."""

    name: str
    prompts: tuple[str, ...]
    """What users wrote."""
    answers: tuple[str, ...]
    """What the tuned model answered in the evaluation."""


def build_report(
    traces: Iterable[Trace],
    feedback: Iterable[Feedback],
    *,
    reference: Reference,
    rules: Sequence[Rule] = DEFAULT_RULES,
    prices: Prices | None = None,
    fields: Sequence[str] = (),
) -> dict[str, JSON]:
    """Return the report. Without `fields`, the label-like fields of the reference's answers are taken."""
    view = View.of(traces, feedback)
    chosen = list(fields) or label_fields(reference.answers)
    figures = kpis(view)
    tests = judge(drift_tests(view, reference, chosen))
    alerts: list[Alert] = [*check_rules(rules, figures), *drift_alerts(tests)]
    return {
        "format": REPORT_FORMAT,
        "span": _span(view),
        "reference": {"name": reference.name, "prompts": len(reference.prompts), "answers": len(reference.answers)},
        "totals": totals(view, prices),
        "kpis": {name: figure.to_json() for name, figure in figures.items()},
        "alerts": [alert.to_json() for alert in alerts],
        "drift": [test.to_json() for test in tests],
        "segments": segments(view, fields=chosen),
        "over_time": over_time(view),
    }


def label_fields(answers: Sequence[str]) -> list[str]:
    """Return the fields of JSON answers that look like labels: few values, and not one for each answer."""
    values: dict[str, list[str]] = {}
    for answer in answers:
        for name, value in answer_fields(answer).items():
            values.setdefault(name, []).append(value)
    return sorted(
        name
        for name, found in values.items()
        if len(set(found)) <= MAX_FIELD_VALUES and len(set(found)) <= max(2, len(found) // 3)
    )


def drift_tests(view: View, reference: Reference, fields: Sequence[str]) -> list[DriftTest]:
    """Return the comparisons, not yet judged: prompt length, prompt words, answer length, and each label field."""
    kept = [trace for trace in view.answers if trace.messages is not None]
    prompts = [text for trace in kept if (text := user_text(trace)) is not None]
    answers = [trace.completion for trace in kept if trace.completion is not None]
    tests = [
        numeric_drift(
            "prompt_chars",
            reference=[float(len(text)) for text in reference.prompts],
            current=[float(len(text)) for text in prompts],
        ),
        word_drift("prompt_words", reference=reference.prompts, current=prompts),
        numeric_drift(
            "answer_chars",
            reference=[float(len(text)) for text in reference.answers],
            current=[float(len(text)) for text in answers],
        ),
    ]
    for name in fields:
        tests.append(
            categorical_drift(
                f"answer.{name}",
                reference=[_field(text, name) for text in reference.answers],
                current=[_field(text, name) for text in answers],
            )
        )
    return tests


def _field(answer: str, name: str) -> str:
    return answer_fields(answer).get(name, "(absent)")


def _span(view: View) -> dict[str, JSON]:
    times = [trace.time for trace in view.traces]
    return {"first": min(times, default=None), "last": max(times, default=None), "traces": len(times)}
