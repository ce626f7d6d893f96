"""Acceptance criteria: what they may say, and whether a result meets them.

    schema_adherence >= 0.97 with 95% confidence
    exact_match - base >= 0.40 with 95% confidence
    attack_success <= base
    general_loss not worse than base by 0.05

What lives here: reading one criterion, holding results against it. What does not: computing results (`evals.run`),
acting on a verdict (the stage that promotes).

How a verdict comes about. With a confidence, the one-sided bound at that confidence decides: `pass` where it clears
the limit, `fail` where the bound on the other side shows that the limit is missed, and `not_resolvable` where the
items cannot tell. Without a confidence the observed figure decides alone, and the explanation says so. "Not worse by"
is a non-inferiority test at 95% unless it says otherwise. A metric is the tuned system's; `- base` is its paired
difference to the base on the same items. A criterion whose metric was not measured is an error, never a pass.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.errors import RecipeError, nearest
from tunesmith.types import JSON

Verdict = Literal["pass", "fail", "not_resolvable"]
CONFIDENCES = (0.9, 0.95, 0.975, 0.99, 0.995)
"""Confidences a criterion may ask for: those whose one-sided bounds `results.json` holds."""
JUDGED_SYSTEM = "tuned"

_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?\s*%?"
_METRIC = r"[A-Za-z_][\w./]*"
_CONFIDENCE = r"(?:\s+with\s+(?P<confidence>\d+(?:\.\d+)?)\s*%\s+confidence)?"
_LIMIT_FORM = re.compile(
    rf"^(?P<metric>{_METRIC})(?:\s+-\s+(?P<minus>[A-Za-z_]\w*))?\s*(?P<operator>>=|<=|>|<)\s*"
    rf"(?:(?P<limit>{_NUMBER})|(?P<system>[A-Za-z_]\w*)){_CONFIDENCE}$"
)
_MARGIN_FORM = re.compile(
    rf"^(?P<metric>{_METRIC})\s+not\s+worse\s+than\s+(?P<system>[A-Za-z_]\w*)\s+by\s+(?P<margin>{_NUMBER}){_CONFIDENCE}$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One acceptance criterion, read."""

    text: str
    metric: str
    against: str | None
    """System that the figure is compared with, such as `base`; `None` where it stands alone."""
    operator: Literal[">=", "<=", ">", "<", "not worse"]
    limit: float
    """Bound on the figure, or on its difference to `against`; the margin of "not worse"."""
    confidence: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """How one criterion fared."""

    criterion: str
    verdict: Verdict
    observed: float
    low: float | None
    """Two-sided 95% interval of the observed figure, or difference."""
    high: float | None
    explanation: str

    def to_json(self) -> dict[str, JSON]:
        """Return the fields as plain JSON."""
        return {
            "criterion": self.criterion,
            "verdict": self.verdict,
            "observed": self.observed,
            "low": self.low,
            "high": self.high,
            "explanation": self.explanation,
        }


def parse_criterion(text: str) -> Criterion:
    """Read one criterion. Raises `RecipeError` that shows the accepted forms."""
    plain = " ".join(text.split())
    if match := _MARGIN_FORM.match(plain):
        margin = _number(match["margin"])
        if margin < 0:
            raise RecipeError("the margin of an acceptance criterion is negative", where=text, found=match["margin"])
        return Criterion(
            text=plain,
            metric=match["metric"],
            against=match["system"],
            operator="not worse",
            limit=margin,
            confidence=_confidence(match["confidence"], text) or 0.95,
        )
    match = _LIMIT_FORM.match(plain)
    if not match or (match["minus"] and match["system"]):
        raise RecipeError(
            "cannot read an acceptance criterion",
            where=text,
            expected="METRIC >= NUMBER | METRIC - base >= NUMBER | METRIC <= base, each with an optional "
            "'with 95% confidence', or METRIC not worse than base by NUMBER",
            found=plain,
        )
    return Criterion(
        text=plain,
        metric=match["metric"],
        against=match["minus"] or match["system"],
        operator=match["operator"],  # type: ignore[arg-type]  # the pattern admits only these four
        limit=_number(match["limit"]) if match["limit"] else 0.0,
        confidence=_confidence(match["confidence"], text),
    )


def _number(text: str) -> float:
    bare = text.strip()
    return float(bare.removesuffix("%")) / 100 if bare.endswith("%") else float(bare)


def _confidence(text: str | None, criterion: str) -> float | None:
    if text is None:
        return None
    value = float(text) / 100
    for known in CONFIDENCES:
        if abs(value - known) < 1e-9:
            return known
    raise RecipeError(
        "an acceptance criterion asks for a confidence that is not kept",
        where=criterion,
        expected=", ".join(f"{known * 100:g}%" for known in CONFIDENCES),
        found=f"{text}%",
    )


def check_criteria(
    criteria: Sequence[str], results: Mapping[str, JSON] | Sequence[Mapping[str, JSON]]
) -> tuple[GateVerdict, ...]:
    """Hold results against every criterion, in order.

    `results` is the content of one `results.json`, or of several (evaluation, hardening); a metric is looked up in
    each. Raises `RecipeError` for a criterion that cannot be read, or whose metric or system nothing measured, and
    names the nearest ones.
    """
    reports = (results,) if isinstance(results, Mapping) else tuple(results)
    return tuple(_check(parse_criterion(text), reports) for text in criteria)


def _check(criterion: Criterion, reports: Sequence[Mapping[str, JSON]]) -> GateVerdict:
    figure, better = _figure(criterion, reports)
    observed = float(figure["value"] if criterion.against is None else figure["difference"])
    name = criterion.metric if criterion.against is None else f"{criterion.metric} - {criterion.against}"
    rule, limit = criterion.operator, criterion.limit
    if rule == "not worse":
        # A loss of at most the margin: for "higher is better" the difference must stay above -margin
        rule, limit = (">", -limit) if better == "higher" else ("<", limit)
    shown = f"{name} is {observed:.4g} (n = {figure['n']}, 95% interval {_interval(figure)})"
    if criterion.confidence is None:
        holds = _COMPARE[rule](observed, limit)
        verdict: Verdict = "pass" if holds else "fail"
        explanation = f"{shown}; the criterion asks for no confidence, so the observed figure decides"
    else:
        bounds = figure["intervals"].get(f"{round(2 * criterion.confidence - 1, 6):g}")
        verdict, reason = _decide(rule, limit, bounds, criterion.confidence)
        explanation = f"{shown}; {reason}"
        if verdict == "not_resolvable":
            explanation += f": {_what_it_would_take(criterion, figure, observed, limit)}"
    return GateVerdict(
        criterion=criterion.text,
        verdict=verdict,
        observed=observed,
        low=figure["low"],
        high=figure["high"],
        explanation=explanation,
    )


def _decide(rule: str, limit: float, bounds: Sequence[float] | None, confidence: float) -> tuple[Verdict, str]:
    percent = f"{confidence * 100:g}%"
    if bounds is None:
        return "not_resolvable", "there are too few items for an interval"
    low, high = bounds
    holds = _COMPARE[rule]
    near, far = (low, high) if rule in (">=", ">") else (high, low)
    side = ("lower", "upper") if rule in (">=", ">") else ("upper", "lower")
    if holds(near, limit):
        return "pass", f"the {percent} {side[0]} bound {near:.4g} is {rule} {limit:g}"
    if not holds(far, limit):
        return "fail", f"even the {percent} {side[1]} bound {far:.4g} is not {rule} {limit:g}"
    return "not_resolvable", f"the {percent} bounds {low:.4g} and {high:.4g} lie on both sides of {limit:g}"


def _what_it_would_take(criterion: Criterion, figure: Mapping[str, JSON], observed: float, limit: float) -> str:
    """Say how many items would resolve the criterion if the observed figure were the true one."""
    gap = abs(observed - limit)
    low, high = figure["low"], figure["high"]
    if low is None or high is None or high <= low or gap == 0:
        return f"{figure['n']} items cannot tell"
    # The width of an interval shrinks with the square root of the number of items
    needed = int(figure["n"] * ((high - low) / 2 / gap) ** 2) + 1
    if needed <= figure["n"]:
        return f"{figure['n']} items cannot tell"
    return f"{figure['n']} items cannot tell; about {needed} would, if the observed figure is the true one"


def _interval(figure: Mapping[str, JSON]) -> str:
    if figure["low"] is None:
        return "not available"
    return f"{figure['low']:.4g} to {figure['high']:.4g}"


def _figure(criterion: Criterion, reports: Sequence[Mapping[str, JSON]]) -> tuple[Mapping[str, JSON], str]:
    """Return the estimate or comparison that a criterion speaks of, and which way its metric is better."""
    known: set[str] = set()
    for report in reports:
        metrics = report.get(JUDGED_SYSTEM, {})
        known |= set(metrics)
        if criterion.metric not in metrics:
            continue
        better = str(report["better"][criterion.metric])
        if criterion.against is None:
            return metrics[criterion.metric], better
        pairs = report["paired"] if criterion.against == "base" else report.get(f"paired_{criterion.against}", {})
        if criterion.metric not in pairs:
            systems = [name for name in report.get("systems", ()) if name != JUDGED_SYSTEM]
            raise RecipeError(
                f"an acceptance criterion compares with {criterion.against!r}, which {criterion.metric} was not "
                "measured against",
                where=criterion.text,
                expected=" or ".join(systems) or "no other system was evaluated",
                found=criterion.against,
            )
        return pairs[criterion.metric], better
    raise RecipeError(
        f"an acceptance criterion names {criterion.metric!r}, which nothing measured",
        where=criterion.text,
        expected=" or ".join(nearest(criterion.metric, known)) if known else "a metric of the evaluation",
        found=criterion.metric,
        hint="the metrics stand under `tuned` in results.json",
    )
