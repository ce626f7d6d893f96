"""The monitor's page: one report as self-contained HTML.

What lives here: which figure stands where. What does not: the figures (`monitor.report`), the style (`tunesmith.page`).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tunesmith.charts import Line, lines
from tunesmith.page import Cell, Number, Section, Tone, badge, cards, figure, heading, lead, page, table, text

_STATUS_TONES = {"ok": Tone.GOOD, "watch": Tone.UNSURE, "firing": Tone.BAD, "unknown": Tone.PLAIN}
_DRIFT_TONES = {"none": Tone.GOOD, "small": Tone.UNSURE, "drift": Tone.BAD, "not_resolvable": Tone.PLAIN}
_GROUPS = {
    "Quality": ("schema_adherence", "parse_rate", "feedback_win_rate", "correction_rate", "cut_rate", "retry_rate"),
    "Safety": ("flagged_rate", "input_flagged_rate", "output_flagged_rate", "pii_rate", "refusal_rate"),
    "Service": (
        *("latency_p50_ms", "latency_p95_ms", "ttft_p50_ms", "ttft_p95_ms"),
        *("client_error_rate", "server_error_rate", "deviation_rate", "completion_tokens_p50", "completion_tokens_p95"),
    ),
}
_MIN_WINDOWS = 2
"""A line through fewer windows shows nothing."""


def monitor_page(report: Mapping[str, Any]) -> str:
    """Return the HTML document."""
    span = report["span"]
    subtitle = f"{span['traces']:,} requests"
    if span["first"] is not None:
        subtitle += f", {_moment(span['first'])} to {_moment(span['last'])}"
    sections = [
        Section("Alerts", _alerts(report)),
        *(Section(title, [_figures(report, names)]) for title, names in _GROUPS.items()),
        Section("Drift", _drift(report)),
        Section("Segments", _segments(report)),
        Section("Over time", _over_time(report)),
        Section("Counts", _counts(report)),
    ]
    return page("Monitor", sections, subtitle=subtitle)


def _alerts(report: Mapping[str, Any]) -> list[Markup]:
    counts = {status: sum(alert["status"] == status for alert in report["alerts"]) for status in _STATUS_TONES}
    rows: list[list[Cell]] = [
        [alert["name"], badge(alert["status"], _STATUS_TONES[alert["status"]]), alert["explanation"]]
        for alert in sorted(
            report["alerts"], key=lambda alert: ("firing", "watch", "unknown", "ok").index(alert["status"])
        )
    ]
    return [
        cards([(str(count), status) for status, count in counts.items()]),
        table(["rule", "status", "why"], rows),
        lead("firing: the whole 95% interval misses the bound. watch: the interval holds it, so nothing is decided."),
    ]


def _figures(report: Mapping[str, Any], names: Sequence[str]) -> Markup:
    rows: list[list[Cell]] = [
        [name.replace("_", " "), Number(_value(name, report["kpis"][name])), Number(str(report["kpis"][name]["n"]))]
        for name in names
    ]
    return table(["figure", "value and 95% interval", "n"], rows)


def _value(name: str, figure_: Mapping[str, Any]) -> str:
    if figure_["value"] is None:
        return "not measured"
    is_share = name.endswith("rate") or name == "schema_adherence"

    def shown(value: float | None) -> str:
        if value is None:
            return "unbounded"
        return f"{100 * value:.1f}%" if is_share else f"{value:,.0f}"

    return f"{shown(figure_['value'])}  ({shown(figure_['low'])} to {shown(figure_['high'])})"


def _drift(report: Mapping[str, Any]) -> list[Markup]:
    reference = report["reference"]
    rows: list[list[Cell]] = []
    for test in report["drift"]:
        psi = "–" if test["psi"] is None else f"{test['psi']:.3f} (chance: below {test['psi_by_chance']:.3f})"
        verdict = badge(test["verdict"].replace("_", " "), _DRIFT_TONES[test["verdict"]])
        rows.append([test["name"], verdict, test["method"], Number(psi), test["explanation"]])
    words = f"Against {reference['name']}: {reference['prompts']} prompts, {reference['answers']} answers."
    return [text(words), table(["what", "verdict", "test", "PSI", "why"], rows)]


def _segments(report: Mapping[str, Any]) -> list[Markup]:
    parts: list[Markup] = []
    for dimension, values in report["segments"].items():
        rows: list[list[Cell]] = [[value, *_brief_cells(entry)] for value, entry in values.items()]
        parts += [heading(dimension.replace("_", " ")), table(_BRIEF_HEAD, rows)]
    return parts or [text("No answers.")]


_BRIEF_HEAD = ["value", "n", "schema adherence", "win rate", "flagged", "latency p50 (ms)"]


def _brief_cells(entry: Mapping[str, Any]) -> list[Cell]:
    names = ("schema_adherence", "feedback_win_rate", "flagged_rate", "latency_p50_ms")
    return [Number(str(entry["n"])), *(Number(_value(name, entry[name])) for name in names)]


def _over_time(report: Mapping[str, Any]) -> list[Markup]:
    windows = report["over_time"]
    if not windows:
        return [text("No requests.")]
    rows: list[list[Cell]] = [[window["start"], *_brief_cells(window)] for window in windows]
    parts = [table(["start", *_BRIEF_HEAD[1:]], rows)]
    points = [
        (number, window["schema_adherence"]["value"])
        for number, window in enumerate(windows)
        if window["schema_adherence"]["value"] is not None
    ]
    if len(points) >= _MIN_WINDOWS:
        line = Line(name="schema adherence", x=[p[0] for p in points], y=[p[1] for p in points], marker=True)
        caption = f"Schema adherence by window of {windows[0]['seconds']:g} s."
        parts.insert(0, figure(lines([line], x_label="window", y_label="schema adherence"), caption=caption))
    return parts


def _counts(report: Mapping[str, Any]) -> list[Markup]:
    rows: list[list[Cell]] = []
    for name, value in report["totals"].items():
        shown = ", ".join(f"{key}: {count}" for key, count in value.items()) if isinstance(value, dict) else str(value)
        rows.append([name.replace("_", " "), shown or "none"])
    return [table(["count", ""], rows)]


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
