"""Stage `seeds`: evaluations of several training seeds as one, with the noise of seeds apart from that of items.

    train_1: {stage: train, seed: 1}
    train_2: {stage: train, seed: 2}
    train_3: {stage: train, seed: 3}
    evaluate_1: {stage: evaluate, adapter: train_1}
    evaluate_2: {stage: evaluate, adapter: train_2}
    evaluate_3: {stage: evaluate, adapter: train_3}
    seeds: {}

What lives here: reading evaluations of one question set and refusing what cannot be averaged. What does not: the two
kinds of noise and their sum (`evals.seeds`). Where the recipe has this table, `bundle` holds criteria against it first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context, Inputs, Summary, role, stage
from tunesmith.errors import DataError
from tunesmith.stages.answering import summarise, write_page, write_records
from tunesmith.types import JSON

_SAME = ("prompts_sha256", "contract_sha256", "dtype", "better")
"""What evaluations must share for their scores to be of one thing."""


class SeedsInputs(Inputs):
    """Evaluations of adapters that differ in their training seed: two to eight."""

    first: Artifact = role("evaluation", table="evaluate_1")
    second: Artifact = role("evaluation", table="evaluate_2")
    third: Artifact | None = role("evaluation", table="evaluate_3", optional=True)
    fourth: Artifact | None = role("evaluation", table="evaluate_4", optional=True)
    fifth: Artifact | None = role("evaluation", table="evaluate_5", optional=True)
    sixth: Artifact | None = role("evaluation", table="evaluate_6", optional=True)
    seventh: Artifact | None = role("evaluation", table="evaluate_7", optional=True)
    eighth: Artifact | None = role("evaluation", table="evaluate_8", optional=True)


class SeedsSpec(Spec):
    """No settings."""


@stage(name="seeds", version=1, produces="evaluation")
def seeds(inputs: SeedsInputs, spec: SeedsSpec, ctx: Context) -> Summary:
    """Write `results.json`, `items.parquet` and `report.html` of all seeds together."""
    import pyarrow.parquet as pq

    found = [item for name in type(inputs).model_fields if (item := getattr(inputs, name)) is not None]
    reports = [json.loads((one.path / "results.json").read_text(encoding="utf-8")) for one in found]
    check_alike(reports)
    tables = [pq.read_table(one.path / "items.parquet").to_pylist() for one in found]
    results = joined(reports, tables)
    ctx.log("seeds_joined", {"seeds": len(found), "items": results["n"]})
    records = [row for row in tables[0] if row["system"] == "base"]
    for number, table in enumerate(tables, start=1):
        records += [{**row, "system": f"tuned {number}"} for row in table if row["system"] == "tuned"]
    write_records(ctx.out, records, results)
    write_page(ctx.out, f"Evaluation over {len(found)} training seeds", results, [])
    return {**summarise(results), "seeds": len(found)}


def check_alike(reports: Sequence[Mapping[str, Any]]) -> None:
    """Raise `DataError` where evaluations differ in more than the adapter, or where two are of one adapter."""
    first = reports[0]
    for number, report in enumerate(reports, start=1):
        if "tuned" not in report["systems"]:
            raise DataError(
                "an evaluation of the base alone says nothing about training seeds", where=f"evaluation {number}"
            )
        for key in _SAME:
            if report[key] != first[key]:
                raise DataError(
                    "evaluations of several seeds must ask the same questions in the same way",
                    where=f"{key} of evaluation {number}",
                    expected=str(first[key])[:80],
                    found=str(report[key])[:80],
                    hint="give the evaluate tables the same settings, splits, base and contract",
                )
    adapters = [report["fingerprints"]["adapter"] for report in reports]
    if len(set(adapters)) < len(adapters):
        raise DataError(
            "two evaluations are of the same adapter: one training run would count as several seeds",
            where="seeds",
            found=", ".join(adapter[:12] for adapter in adapters),
            hint="wire each evaluate table to a train table with a seed of its own",
        )


def joined(reports: Sequence[Mapping[str, Any]], tables: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, JSON]:
    """Return the results over all seeds, in the shape of `evaluate`; the base is the first evaluation's."""
    from tunesmith.evals.seeds import difference_over_seeds, over_seeds

    first = reports[0]
    clusters = {row["row_id"]: row["cluster"] or row["row_id"] for row in tables[0]}
    base = _scores(tables[0], "base")
    by_seed = [_scores(table, "tuned") for table in tables]
    metrics = [name for name in by_seed[0] if all(name in scores for scores in by_seed)]
    tuned = {name: over_seeds([scores[name] for scores in by_seed], clusters=clusters) for name in metrics}
    paired = {
        name: difference_over_seeds(base[name], [scores[name] for scores in by_seed], clusters=clusters)
        for name in metrics
        if name in base
    }
    kept = ("n", "better", "decoding", "dtype", "dtype_reason", "contract_sha256", "contract_parts", "leakage_proof")
    return {
        **{key: first[key] for key in (*kept, "format", "sample_prompt", "prompts_sha256")},
        "systems": ["base", "tuned"],
        "base": first["base"],
        "tuned": {name: figure.to_json() for name, figure in tuned.items()},
        "paired": {name: figure.to_json() for name, figure in paired.items()},
        "slices": {},
        "stop_reasons": {
            "base": first["stop_reasons"]["base"],
            "tuned": dict(sum((Counter(report["stop_reasons"]["tuned"]) for report in reports), Counter())),
        },
        "unparsable": _mean_unparsable(reports),
        "timing": {"base": first["timing"]["base"], "tuned": _added_timing(reports)},
        "fingerprints": first["fingerprints"],
        "adapters": [report["fingerprints"]["adapter"] for report in reports],
    }


def _scores(table: Sequence[Mapping[str, Any]], system: str) -> dict[str, dict[str, float]]:
    """Return metric -> item -> score of one system; an item without a score is absent."""
    out: dict[str, dict[str, float]] = {}
    for row in table:
        if row["system"] != system:
            continue
        for name, value in row.items():
            if name.startswith("score.") and value is not None:
                out.setdefault(name.removeprefix("score."), {})[row["row_id"]] = value
    return out


def _mean_unparsable(reports: Sequence[Mapping[str, Any]]) -> dict[str, JSON]:
    shares = [report["unparsable"]["tuned"] for report in reports if "tuned" in report["unparsable"]]
    return {**reports[0]["unparsable"], **({"tuned": sum(shares) / len(shares)} if shares else {})}


def _added_timing(reports: Sequence[Mapping[str, Any]]) -> dict[str, JSON]:
    took = [report["timing"]["tuned"] for report in reports]
    return {
        "seconds": round(sum(one["seconds"] for one in took), 3),
        "prompt_tokens": sum(one["prompt_tokens"] for one in took),
        "output_tokens": sum(one["output_tokens"] for one in took),
        "engine": took[0].get("engine"),
    }
