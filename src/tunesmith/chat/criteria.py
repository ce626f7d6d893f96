"""Acceptance criteria: one sentence each, written in the recipe before the data is.

What lives here: the grammar. What does not: metrics and intervals (`evals`), the decision (gates).

    schema_adherence >= 0.97 with 95% confidence
    exact_match >= base + 0.40 with 95% confidence
    attack_success <= base
    latency_p95_ms < 800

`base` is the untuned model on the same items, `production` the bundle that serves now. With a confidence, the bound of
the one-sided interval must hold (for `base + x`, of the paired difference); without one, the point estimate.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from tunesmith.errors import RecipeError

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_GRAMMAR = re.compile(
    r"\s*(?P<metric>[a-z][a-z0-9_./@]*)\s*(?P<comparison>>=|<=|>|<|==)\s*"
    rf"(?:(?P<reference>base|production)\s*(?:(?P<sign>[+-])\s*(?P<margin>{_NUMBER})(?P<margin_percent>%)?)?"
    rf"|(?P<value>{_NUMBER})(?P<percent>%)?)"
    rf"(?:\s+with\s+(?P<confidence>{_NUMBER})%\s+confidence)?\s*"
)


class Comparison(enum.StrEnum):
    """How a metric is compared."""

    AT_LEAST = ">="
    AT_MOST = "<="
    ABOVE = ">"
    BELOW = "<"
    EQUAL = "=="


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One acceptance criterion."""

    text: str
    """As the recipe has it."""
    metric: str
    comparison: Comparison
    value: float
    """The threshold, or the margin over `reference`."""
    reference: str | None
    """`base`, `production`, or `None` for an absolute threshold."""
    confidence: float | None
    """Between 0.5 and 1, or `None` for the point estimate."""


def parse_criterion(text: str) -> Criterion:
    """Read one criterion. Raises `RecipeError` with the grammar where it is not one."""
    match = _GRAMMAR.fullmatch(text)
    confidence = None if match is None or match["confidence"] is None else float(match["confidence"]) / 100
    if match is None or (confidence is not None and not 0.5 <= confidence < 1):
        raise RecipeError(
            "an acceptance criterion cannot be read",
            where="contract.criteria",
            expected="METRIC >= NUMBER [with 95% confidence], or METRIC >= base + NUMBER [with 95% confidence]",
            found=repr(text),
            hint="for example: schema_adherence >= 0.97 with 95% confidence",
        )
    if match["reference"]:
        value = float((match["sign"] or "") + match["margin"]) if match["margin"] else 0.0
        percent = match["margin_percent"]
    else:
        value, percent = float(match["value"]), match["percent"]
    return Criterion(
        text=text.strip(),
        metric=match["metric"],
        comparison=Comparison(match["comparison"]),
        value=value / 100 if percent else value,
        reference=match["reference"],
        confidence=confidence,
    )
