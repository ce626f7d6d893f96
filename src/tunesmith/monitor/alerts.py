"""Alerts: thresholds on figures, and whether the figures can tell.

    rule: schema_adherence at least 0.95
    ok        the whole interval is on the good side         watch     the interval holds the threshold
    firing    the whole interval is on the bad side          unknown   nothing was measured

What lives here: the verdicts. What does not: figures (`monitor.kpis`), who is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.monitor.drift import DriftTest
from tunesmith.monitor.intervals import Figure
from tunesmith.types import JSON

Status = Literal["ok", "watch", "firing", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A bound on one figure: `at_least` or `at_most`, exactly one of them."""

    kpi: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        assert (self.at_least is None) != (self.at_most is None), self


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """How one rule fares."""

    name: str
    status: Status
    explanation: str

    def to_json(self) -> dict[str, JSON]:
        """Return the fields."""
        return {"name": self.name, "status": self.status, "explanation": self.explanation}


def check_rules(rules: Sequence[Rule], figures: Mapping[str, Figure]) -> list[Alert]:
    """Return one alert for each rule. A rule's figure must exist: whoever reads rules from a user checks the name."""
    return [_check(rule, figures[rule.kpi]) for rule in rules]


def drift_alerts(tests: Sequence[DriftTest]) -> list[Alert]:
    """Return one alert for each drift test."""
    statuses: dict[str, Status] = {"drift": "firing", "small": "watch", "none": "ok", "not_resolvable": "unknown"}
    return [
        Alert(name=f"drift of {test.name}", status=statuses[test.verdict], explanation=test.explanation)
        for test in tests
    ]


def _check(rule: Rule, figure: Figure) -> Alert:
    bound = rule.at_least if rule.at_least is not None else rule.at_most
    assert bound is not None
    words = "at least" if rule.at_least is not None else "at most"
    name = f"{rule.kpi} {words} {bound:g}"
    if figure.value is None:
        return Alert(name=name, status="unknown", explanation="nothing was measured")
    sign = 1 if rule.at_least is not None else -1
    good_end, bad_end = (figure.high, figure.low) if sign > 0 else (figure.low, figure.high)
    if good_end is not None and sign * good_end < sign * bound:
        status: Status = "firing"
        why = "the whole interval misses it"
    elif bad_end is not None and sign * bad_end >= sign * bound:
        status, why = "ok", "the whole interval meets it"
    else:
        status, why = "watch", "the interval holds the bound, so this many observations cannot tell"
    shown = f"{figure.value:.4g} (95% interval {_end(figure.low)} to {_end(figure.high)}, n = {figure.n})"
    return Alert(name=name, status=status, explanation=f"{shown}: {why}")


def _end(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.4g}"
