"""report: one page over everything the run made, and what to type next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context, Inputs, Summary, role, stage


class ReportInputs(Inputs):
    """Whatever the recipe has of the road; a missing part leaves its section out."""

    contract: Artifact | None = role("contract", table="contract", optional=True)
    ingested: Artifact | None = role("rows", table="ingest", optional=True)
    curated: Artifact | None = role("rows", table="curate", optional=True)
    splits: Artifact | None = role("splits", table="split", optional=True)
    base: Artifact | None = role("base", table="fetch", optional=True)
    examples: Artifact | None = role("examples", table="encode", optional=True)
    adapter: Artifact | None = role("adapter", table="train", optional=True)
    evaluation: Artifact | None = role("evaluation", table="evaluate", optional=True)
    hardening: Artifact | None = role("evaluation", table="harden", optional=True)
    benchmark: Artifact | None = role("evaluation", table="benchmark", optional=True)
    lm_eval: Artifact | None = role("evaluation", table="lm_eval", optional=True)
    garak: Artifact | None = role("evaluation", table="garak", optional=True)
    bundle: Artifact | None = role("bundle", table="bundle", optional=True)
    traces: Artifact | None = role("traces", table="rehearse", optional=True)
    monitoring: Artifact | None = role("report", table="monitor", optional=True)
    candidates: Artifact | None = role("candidates", table="harvest", optional=True)


class ReportSpec(Spec):
    """Settings of the page."""

    title: str = "tunesmith run"
    """Heading of the page."""
    samples: int = 8
    """How many answers to show side by side."""


@stage(name="report", version=2, produces="report")
def report(inputs: ReportInputs, spec: ReportSpec, ctx: Context) -> Summary:
    """Write `report.html`, self-contained, and `report.json` with its figures."""
    from tunesmith.stages.road import Road, road_page, verdict_of

    road = Road(
        summaries={
            name: artifact.summary
            for name in type(inputs).model_fields
            if (artifact := getattr(inputs, name)) is not None
        },
        results=_read(inputs.evaluation, "results.json"),
        attacks=_read(inputs.hardening, "results.json"),
        tasks={
            title: _read(artifact, "results.json")
            for title, artifact in (
                ("Tasks", inputs.benchmark),
                ("lm-evaluation-harness", inputs.lm_eval),
                ("garak", inputs.garak),
            )
            if artifact is not None
        },
        samples=(_read(inputs.evaluation, "samples.json") or {}).get("samples", [])[: spec.samples],
        gates=_read(inputs.bundle, "gates.json"),
        proof=_read(inputs.splits, "split_proof.json"),
        contract=_read(inputs.contract, "contract.json"),
        metrics=_read_lines(inputs.adapter, "metrics.jsonl"),
        monitoring=_read(inputs.monitoring, "monitor.json"),
    )
    ctx.progress(0, 1, "drawing")
    (ctx.out / "report.html").write_text(road_page(spec.title, road), encoding="utf-8")
    summary = verdict_of(road)
    (ctx.out / "report.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return summary


def _read(artifact: Artifact | None, name: str) -> Any:
    """Return a JSON file of an artifact, or `None` where the recipe has no such stage."""
    if artifact is None:
        return None
    return json.loads((artifact.path / name).read_text(encoding="utf-8"))


def _read_lines(artifact: Artifact | None, name: str) -> list[Mapping[str, Any]]:
    if artifact is None:
        return []
    path: Path = artifact.path / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
