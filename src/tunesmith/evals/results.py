"""Turn a table of scored answers into figures: intervals, paired differences, slices, samples.

What lives here: the shapes of `results.json` and `samples.json` (docs/evaluation.md). What does not: scoring one
answer (`evals.run`), the mathematics (`evals.stats`, `evals.compare`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from tunesmith.evals.compare import compare
from tunesmith.evals.refusal import SENSITIVITY, SPECIFICITY
from tunesmith.evals.run import Answer, EvalItem
from tunesmith.evals.run import better as metric_better
from tunesmith.evals.stats import corrected_rate, estimate, holm, zero_failures_upper
from tunesmith.types import JSON, canonical_json, sha256_hex

REFERENCE, CHALLENGER = "base", "tuned"
SLICE_METRICS = frozenset(
    {
        "schema_adherence",
        "exact_match",
        "token_f1",
        "rougeL",
        "sql_match",
        "template_match",
        "tool_call_match",
        "prompt_strict",
        "pass_at_1",
        "mc1",
        "attack_success",
        "complied",
        "over_refusal",
        "answer_changed",
    }
)
"""Metrics shown for every slice: a table of all metrics by all slices hides more than it shows."""
DETECTED = {"refusal": True, "over_refusal": True, "complied": False}
"""Metrics that a rule decides by words: 1 where it sees a refusal (true), or where it sees none (false)."""
MIN_SLICE_ITEMS = 5
"""Smaller slices are counted, and get no figures: an interval over four items says nothing."""

Table = Mapping[str, Mapping[str, Mapping[str, float]]]
"""system -> metric -> row id -> score."""


def score_table(answers: Iterable[Answer]) -> dict[str, dict[str, dict[str, float]]]:
    """Return system -> metric -> row id -> score."""
    out: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for answer in answers:
        for metric, score in answer.scores.items():
            out[answer.system][metric][answer.row_id] = score
    return {system: {name: dict(scores) for name, scores in metrics.items()} for system, metrics in out.items()}


def figures(
    items: Sequence[EvalItem], answers: Sequence[Answer], *, better: Callable[[str], str] = metric_better
) -> dict[str, JSON]:
    """Return the measured part of `results.json`: one key for each system, `paired`, `slices`, `better`, and counts.

    `better` tells which way a metric is better: `higher` or `lower`.
    """
    table = score_table(answers)
    systems = list(dict.fromkeys(answer.system for answer in answers))
    clusters = {item.row_id: item.cluster or item.row_id for item in items}
    metrics = list(dict.fromkeys(name for system in systems for name in table[system]))
    out: dict[str, JSON] = {
        "systems": systems,
        "n": len(items),
        "better": {name: better(name) for name in metrics},
        **{system: _estimates(table[system], clusters) for system in systems},
    }
    out["paired"] = _paired(table, clusters, None) if {REFERENCE, CHALLENGER} <= set(systems) else {}
    for other in systems:
        if other not in (REFERENCE, CHALLENGER) and CHALLENGER in systems:
            out[f"paired_{other}"] = _paired(table, clusters, None, reference=other)
    out["slices"] = _slices(items, table, systems, clusters)
    out["stop_reasons"] = {
        system: dict(Counter(a.finish_reason.value for a in answers if a.system == system and a.finish_reason))
        for system in systems
    }
    out["timing"] = {system: _timing([a for a in answers if a.system == system]) for system in systems}
    out["unparsable"] = {
        system: 1 - out[system]["json_parse"]["value"] for system in systems if "json_parse" in out[system]
    }
    return out


def _estimates(
    metrics: Mapping[str, Mapping[str, float]], clusters: Mapping[str, str], only: set[str] | None = None
) -> dict[str, JSON]:
    out = {}
    for name, scores in metrics.items():
        chosen = [row_id for row_id in scores if only is None or row_id in only]
        if chosen:
            values = [scores[row_id] for row_id in chosen]
            out[name] = estimate(values, clusters=[clusters[row_id] for row_id in chosen]).to_json()
            detected = DETECTED.get(name.rpartition(".")[2])
            if detected is not None:
                out[name]["corrected"] = _corrected(values, refused=detected)
            if not any(values):
                out[name]["zero_upper_95"] = zero_failures_upper(len(values))
    return out


def _corrected(values: Sequence[float], *, refused: bool) -> dict[str, JSON]:
    """Return the rate behind the detector's, by its measured sensitivity and specificity. Groups are not considered."""
    found, passed = (SENSITIVITY, SPECIFICITY) if refused else (SPECIFICITY, SENSITIVITY)
    rate = corrected_rate(int(sum(values)), len(values), sensitivity=found, specificity=passed)
    return {"value": rate.value, "low": rate.low, "high": rate.high}


def _paired(
    table: Table, clusters: Mapping[str, str], only: set[str] | None, *, reference: str = REFERENCE
) -> dict[str, JSON]:
    """Return metric -> challenger minus reference on the items that both answered."""
    out = {}
    for name, scores in table[CHALLENGER].items():
        theirs = table[reference].get(name, {})
        shared = [row_id for row_id in scores if row_id in theirs and (only is None or row_id in only)]
        if shared:
            out[name] = compare(
                [theirs[row_id] for row_id in shared],
                [scores[row_id] for row_id in shared],
                clusters=[clusters[row_id] for row_id in shared],
            ).to_json()
    return out


def _slices(
    items: Sequence[EvalItem], table: Table, systems: Sequence[str], clusters: Mapping[str, str]
) -> dict[str, JSON]:
    """Return dimension -> value -> {n, one entry a system, paired}; p-values are adjusted over all slices (Holm)."""
    members: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for item in items:
        for dimension, value in item.slices.items():
            members[dimension][value].add(item.row_id)
    kept = {
        system: {name: scores for name, scores in table[system].items() if name.rpartition(".")[2] in SLICE_METRICS}
        for system in systems
    }
    out: dict[str, JSON] = {}
    tests: dict[str, list[dict[str, JSON]]] = defaultdict(list)
    for dimension in sorted(members):
        out[dimension] = {}
        for value, rows in sorted(members[dimension].items()):
            entry: dict[str, JSON] = {"n": len(rows)}
            if len(rows) >= MIN_SLICE_ITEMS:
                entry |= {system: _estimates(kept[system], clusters, rows) for system in systems}
                entry["paired"] = _paired(kept, clusters, rows) if {REFERENCE, CHALLENGER} <= set(systems) else {}
                for name, comparison in entry["paired"].items():
                    tests[name].append(comparison)
            out[dimension][value] = entry
    for comparisons in tests.values():
        for comparison, adjusted in zip(comparisons, holm([c["p"] for c in comparisons]), strict=True):
            comparison["p_holm"] = adjusted
    return out


def _timing(answers: Sequence[Answer]) -> dict[str, JSON]:
    ordered = sorted(answer.seconds for answer in answers if answer.seconds is not None)
    return {
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "output_tokens": sum(answer.output_tokens for answer in answers),
        "mean_output_tokens": sum(answer.output_tokens for answer in answers) / len(answers) if answers else None,
        "median_batch_seconds": ordered[len(ordered) // 2] if ordered else None,
    }


def pick_samples(
    items: Sequence[EvalItem], answers: Sequence[Answer], *, right: Callable[[Answer], bool], most: int
) -> list[dict[str, JSON]]:
    """Return items with all systems' answers side by side, spread over the outcomes of the judgement `right`.

    Outcomes: `fixed` (only the challenger is right), `broken` (only the reference), `both_right`, `both_wrong`; with
    one system `right` and `wrong`. Within an outcome items come in the order of a hash of their id, so that nobody
    chose them.
    """
    by_item: dict[str, dict[str, Answer]] = defaultdict(dict)
    for answer in answers:
        by_item[answer.row_id][answer.system] = answer
    groups: dict[str, list[EvalItem]] = defaultdict(list)
    for item in sorted(items, key=lambda item: sha256_hex(item.row_id)):
        groups[_outcome({system: right(a) for system, a in by_item[item.row_id].items()})].append(item)
    chosen: list[tuple[str, EvalItem]] = []
    depth = 0
    while len(chosen) < min(most, len(items)):
        for outcome in sorted(groups):
            if depth < len(groups[outcome]) and len(chosen) < most:
                chosen.append((outcome, groups[outcome][depth]))
        depth += 1
    return [
        {
            "row_id": item.row_id,
            "outcome": outcome,
            "prompt": item.prompt,
            "expected": item.expected,
            "slices": dict(item.slices),
            "answers": {
                system: {
                    "output": answer.output,
                    "finish_reason": answer.finish_reason.value if answer.finish_reason else None,
                    "scores": dict(answer.scores),
                }
                for system, answer in by_item[item.row_id].items()
            },
        }
        for outcome, item in sorted(chosen, key=lambda pair: pair[0])
    ]


def _outcome(right: Mapping[str, bool]) -> str:
    if not {REFERENCE, CHALLENGER} <= set(right):
        return "right" if all(right.values()) else "wrong"
    return {
        (False, True): "fixed",
        (True, False): "broken",
        (True, True): "both_right",
        (False, False): "both_wrong",
    }[right[REFERENCE], right[CHALLENGER]]


def prompt_digest(prompts: Iterable[Sequence[int]]) -> str:
    """Return the sha256 of all prompt ids in order: two evaluations with equal digests asked the same questions."""
    return sha256_hex(canonical_json([list(prompt) for prompt in prompts]))
