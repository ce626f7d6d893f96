"""Macro F1 where answers are labels: a figure of all answers together, which no single one has.

    label_figures(items, answers)     # {"base": {"macro_f1.intent": {...}}, "tuned": {...}}

What lives here: which fields, or whole answers, are labels; macro F1 with its interval. What does not: accuracy, which
each answer has (`field.NAME`, `exact_match`), the plain function (`scorers.macro_f1`).

The mean of the F1 of each label that was expected or given, as scikit-learn's `f1_score(average="macro",
zero_division=0)`. An answer that is no label at all counts against recall and makes no label of its own. The interval
resamples groups of items (BCa); a label that a resample lacks is no part of its mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tunesmith.evals.run import Answer, EvalItem
from tunesmith.evals.scorers import parse_json
from tunesmith.evals.stats import Estimate, Floats, bca, cluster_indices
from tunesmith.types import JSON, FinishReason

PREFIX = "macro_f1"
FEWEST_EACH = 2
"""Items for each label, on average: below, expected answers are texts and no labels."""
MOST_LABELS = 500

Given = Mapping[str, str]
"""Label field (or "" for the whole answer) -> the label."""


def label_figures(items: Sequence[EvalItem], answers: Sequence[Answer]) -> dict[str, dict[str, JSON]]:
    """Return system -> `macro_f1` or `macro_f1.FIELD` -> figure; empty where the expected answers are no labels."""
    expected = {item.row_id: _labels_of(item.expected) for item in items if item.expected is not None}
    fields = _label_fields(list(expected.values()))
    clusters = {item.row_id: item.cluster or item.row_id for item in items}
    out: dict[str, dict[str, JSON]] = {}
    for system in dict.fromkeys(answer.system for answer in answers):
        mine = [answer for answer in answers if answer.system == system and answer.row_id in expected]
        groups = [clusters[answer.row_id] for answer in mine]
        for field in fields:
            given = [
                _labels_of(answer.output).get(field) if answer.finish_reason is FinishReason.STOP else None
                for answer in mine
            ]
            wanted = [expected[answer.row_id][field] for answer in mine]
            name = f"{PREFIX}.{field}" if field else PREFIX
            out.setdefault(system, {})[name] = macro_f1_estimate(given, wanted, clusters=groups).to_json()
    return out


def _labels_of(text: str | None) -> Given:
    """Return the label fields of a JSON object, or the whole text as one label."""
    if text is None:
        return {}
    parsed = parse_json(text)
    if parsed.ok and isinstance(parsed.value, dict):
        return {name: str(value) for name, value in parsed.value.items() if isinstance(value, str | bool) and name}
    return {"": text.strip()}


def _label_fields(expected: Sequence[Given]) -> list[str]:
    """Return the fields that every expected answer has, and whose values recur."""
    if not expected:
        return []
    shared = [name for name in expected[0] if all(name in labels for labels in expected)]
    counts = {name: len({labels[name] for labels in expected}) for name in shared}
    return [name for name in shared if 2 <= counts[name] <= min(MOST_LABELS, len(expected) / FEWEST_EACH)]


def macro_f1_estimate(given: Sequence[str | None], wanted: Sequence[str], *, clusters: Sequence[str]) -> Estimate:
    """Return macro F1 with its interval; `None` is an answer that is no label."""
    names = sorted({*wanted, *(label for label in given if label is not None)})
    place = {name: index for index, name in enumerate(names)}
    labels = cluster_indices(clusters, len(wanted))
    groups = int(labels.max()) + 1
    hits, answered, expected = (np.zeros((groups, len(names))) for _ in range(3))
    for group, said, truth in zip(labels, given, wanted, strict=True):
        expected[group, place[truth]] += 1
        if said is not None:
            answered[group, place[said]] += 1
            hits[group, place[said]] += said == truth

    def statistic(weights: Floats) -> Floats:
        counted = weights @ (answered + expected)
        f1 = np.divide(2 * (weights @ hits), counted, out=np.zeros_like(counted), where=counted > 0)
        return np.asarray(f1.sum(axis=1) / np.maximum(1, (counted > 0).sum(axis=1)), dtype=float)

    point = float(statistic(np.ones((1, groups)))[0])
    return Estimate(
        value=point,
        n=len(wanted),
        intervals=bca(statistic, groups, point=point) if groups > 1 else {},
        method="bca bootstrap of macro F1",
        clusters=groups if groups < len(wanted) else None,
    )
