"""bundle: adapter, contract, golden vectors, card, gates and checksums become one folder that can be served.

bundle:
  name: desk-triage
  intended_use: Routing of support messages to a team.
  limits: [English messages alone]

A gate that fails does not fail the stage: the bundle is made, can be looked at and tried, and may not be promoted.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context, Estimate, Inputs, Summary, role, stage
from tunesmith.errors import GateError, ServeError
from tunesmith.types import JSON, Row

if TYPE_CHECKING:
    import torch

    from tunesmith.chat.contract import Contract
    from tunesmith.serve.bundle import Golden

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")
_TOP = 5
"""Most likely next tokens that are recorded for a golden prompt."""
_INERT_NATS = 1e-3
"""An adapter that changes the golden log-probabilities by less than this on average changes nothing."""


class BundleInputs(Inputs):
    """What a bundle is made of, and what was measured of it."""

    adapter: Artifact = role("adapter", table="train")
    base: Artifact = role("base", table="fetch")
    contract: Artifact = role("contract", table="contract")
    splits: Artifact = role("splits", table="split")
    evaluation: Artifact = role("evaluation", table="evaluate")
    seeds: Artifact | None = role("evaluation", table="seeds", optional=True)
    hardening: Artifact | None = role("evaluation", table="harden", optional=True)
    benchmark: Artifact | None = role("evaluation", table="benchmark", optional=True)
    lm_eval: Artifact | None = role("evaluation", table="lm_eval", optional=True)
    garak: Artifact | None = role("evaluation", table="garak", optional=True)


class BundleSpec(Spec):
    """How the bundle is named and described."""

    name: str | None = None
    """Model id under which it is served; by default the base's name and eight digits of the adapter's sha256."""
    intended_use: str = ""
    """What the model is for, in the card."""
    limits: tuple[str, ...] = ()
    """What it is not for, or is known to do badly, in the card."""
    golden_rows: int = Field(8, ge=0, le=200)
    """Prompts of the validation side that join the contract's golden vectors."""
    golden_probabilities: int = Field(8, ge=1, le=64)
    """Golden prompts whose next-token probabilities are recorded, for servers to reproduce."""

    @field_validator("name")
    @classmethod
    def _name_is_an_id(cls, value: str | None) -> str | None:
        if value is not None and not _NAME.match(value):
            raise ValueError("a model id holds letters, digits, dots, dashes and underscores, at most 96")
        return value


LOAD_BYTES_PER_SECOND = 5e7
"""Measured at 4e7 to 9e7: loading a base of 270 MB in bfloat16, hashing it, and eight golden prompts."""


def estimate(spec: BundleSpec, inputs: Mapping[str, Artifact | None], device: str) -> Estimate:
    """Predict from the size of the base, which is loaded once."""
    base = inputs.get("base")
    if base is None:
        return Estimate(seconds=None, memory_bytes=None, basis="unknown until fetch has run")
    num_bytes = sum(path.stat().st_size for path in (base.path / "model").glob("*.safetensors"))
    seconds = 4 + num_bytes / LOAD_BYTES_PER_SECOND
    return Estimate(seconds=seconds, memory_bytes=3 * num_bytes, basis="size of the base")


@stage(name="bundle", version=1, produces="bundle", estimate=estimate)
def bundle(inputs: BundleInputs, spec: BundleSpec, ctx: Context) -> Summary:
    """Write the bundle and judge it by the contract's acceptance criteria."""
    from tunesmith.chat.contract import load_contract
    from tunesmith.data.write import read_rows
    from tunesmith.evals.gates import check_criteria
    from tunesmith.serve.bundle import (
        BUNDLE_FORMAT,
        base_sums,
        file_sums,
        folder_sha256,
        load_bundle,
        write_checksums,
        write_golden,
    )
    from tunesmith.serve.card import model_card

    contract = load_contract(inputs.contract.path)
    results = _results(inputs.evaluation)
    hardening = None if inputs.hardening is None else _results(inputs.hardening)
    # Criteria look through reports in order: where several seeds were trained, their mean decides and not one of them
    over_seeds = None if inputs.seeds is None else _results(inputs.seeds)
    every = (over_seeds, results, hardening, *_task_results(inputs).values())
    reports = [report for report in every if report is not None]
    for report in reports:
        _check_same(report, inputs, contract)
    verdicts = check_criteria(contract.criteria, reports)
    shutil.copytree(inputs.adapter.path / "adapter", ctx.out / "adapter")
    shutil.copytree(inputs.contract.path, ctx.out / "contract")
    adapter_sha256 = folder_sha256(file_sums(ctx.out / "adapter"))
    source = json.loads((inputs.base.path / "source.json").read_text(encoding="utf-8"))
    name = spec.name or f"{str(source['id']).rsplit('/', 1)[-1]}-{adapter_sha256[:8]}"

    ctx.progress(1, 4, "recording golden probabilities")
    golden = _golden(inputs, spec, contract, dtype=results["dtype"], device=ctx.device)
    write_golden(ctx.out / "golden.jsonl", golden)

    ctx.progress(2, 4, "hashing the base")
    base = {"id": source["id"], "fingerprint": inputs.base.fingerprint, "files": base_sums(inputs.base.path / "model")}
    promotable = bool(verdicts) and all(verdict.verdict == "pass" for verdict in verdicts)
    gates: dict[str, JSON] = {
        "promotable": promotable,
        "reason": _reason([verdict.verdict for verdict in verdicts]),
        "verdicts": [verdict.to_json() for verdict in verdicts],
    }
    _write(ctx, "base.json", base)
    _write(ctx, "gates.json", gates)
    meta = {
        "format": BUNDLE_FORMAT,
        "name": name,
        "adapter_sha256": adapter_sha256,
        "contract_sha256": contract.sha256,
        "dtype": results["dtype"],
    }
    _write(ctx, "bundle.json", meta)
    rows = read_rows(inputs.splits.path / "train.parquet")
    facts = _card_facts(ctx.out, inputs, spec, contract, meta=meta, source=source, gates=gates, rows=rows)
    (ctx.out / "README.md").write_text(model_card(facts), encoding="utf-8")
    sums = write_checksums(ctx.out)

    ctx.progress(3, 4, "reading the bundle back")
    load_bundle(ctx.out)
    ctx.progress(4, 4, gates["reason"])
    return {
        "name": name,
        "promotable": promotable,
        "reason": gates["reason"],
        "gates": {verdict.criterion: verdict.verdict for verdict in verdicts},
        "contract_sha256": contract.sha256,
        "adapter_sha256": adapter_sha256,
        "golden_vectors": len(golden),
        "golden_probabilities": sum(bool(item.next_tokens) for item in golden),
        "files": len(sums) + 1,
        "num_bytes": sum(path.stat().st_size for path in ctx.out.rglob("*") if path.is_file()),
    }


def _results(evaluation: Artifact) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((evaluation.path / "results.json").read_text(encoding="utf-8"))
    return results


def _task_results(inputs: BundleInputs) -> dict[str, dict[str, Any]]:
    """Return heading -> results of what was asked besides the held-out rows and the attacks."""
    found = {
        "Tasks": inputs.benchmark,
        "Tasks of lm-evaluation-harness": inputs.lm_eval,
        "Probes of garak": inputs.garak,
    }
    return {title: _results(artifact) for title, artifact in found.items() if artifact is not None}


def _check_same(report: Mapping[str, Any], inputs: BundleInputs, contract: Contract) -> None:
    """Refuse figures that were measured of something else than what is bundled."""
    measured = report["fingerprints"]
    adapters = report.get("adapters", [measured["adapter"]])
    one = inputs.adapter.fingerprint if inputs.adapter.fingerprint in adapters else adapters[0]
    for what, found, bundled in (
        ("adapter", one, inputs.adapter.fingerprint),
        ("base", measured["base"], inputs.base.fingerprint),
        ("contract", report["contract_sha256"], contract.sha256),
    ):
        if found != bundled:
            raise GateError(
                f"the evaluation measured another {what} than the one that is bundled",
                expected=f"{what} {bundled[:12]}",
                found=f"{what} {str(found)[:12]}" if found else f"no {what}: the base alone was measured",
                hint="wire evaluate, harden, benchmark, lm_eval, garak and bundle to the same tables in the recipe",
            )


def _reason(verdicts: Sequence[str]) -> str:
    if not verdicts:
        return "Not promotable: the contract has no acceptance criteria."
    failed, open_ = verdicts.count("fail"), verdicts.count("not_resolvable")
    if not failed and not open_:
        return f"Promotable: all {len(verdicts)} acceptance criteria hold."
    return f"Not promotable: of {len(verdicts)} criteria {failed} fail and {open_} cannot be resolved."


def _golden(inputs: BundleInputs, spec: BundleSpec, contract: Contract, *, dtype: Any, device: str) -> list[Golden]:
    """Return the contract's vectors and some validation prompts, the first of both with next-token probabilities."""
    from tunesmith.chat.refusal import Refused
    from tunesmith.data.write import read_rows
    from tunesmith.model.load import is_whole_model, load_model
    from tunesmith.serve.bundle import Golden

    vectors = [Golden(conversation=vector.conversation, ids=tuple(vector.ids)) for vector in contract.golden]
    own: list[Golden] = []
    for row in read_rows(inputs.splits.path / "val.parquet"):
        if len(own) == spec.golden_rows:
            break
        try:
            own.append(
                Golden(
                    conversation=row.conversation.prompt,
                    ids=tuple(contract.render_prompt(row.conversation.prompt).ids),
                )
            )
        except Refused:
            continue  # encode counts and keeps the rows that the contract refuses
    # Real prompts first: there the adapter shows what it learnt
    chosen = {id(item) for item in (*own, *vectors)[: spec.golden_probabilities]}
    tuned_dir, base_dir = inputs.adapter.path / "adapter", inputs.base.path / "model"
    model = load_model(base_dir, dtype=dtype, adapter_dir=tuned_dir).to(device)
    bare = load_model(base_dir, dtype=dtype).to(device) if is_whole_model(tuned_dir) else None
    recorded = [_with_probabilities(item, model, bare) if id(item) in chosen else item for item in (*vectors, *own)]
    apart = [abs(a - b) for item in recorded for a, b in zip(item.tuned_logprobs, item.base_logprobs, strict=True)]
    if sum(apart) / len(apart) < _INERT_NATS:
        raise ServeError(
            "the adapter changes nothing: with and without it the model says the same",
            where=str(inputs.adapter.path / "adapter"),
            expected=f"golden log-probabilities that differ by {_INERT_NATS} nats or more",
            found=f"{sum(apart) / len(apart):.2e} nats",
            hint="look at the loss curve: tunesmith show train",
        )
    return recorded


def _with_probabilities(golden: Golden, model: torch.nn.Module, bare_model: torch.nn.Module | None) -> Golden:
    """Record what the model says next, and what the base says: the model without its adapter, or `bare_model`."""
    from contextlib import nullcontext
    from dataclasses import replace

    import torch

    peft_model: Any = model
    ids = torch.tensor([list(golden.ids)], device=next(model.parameters()).device)
    with torch.inference_mode():
        tuned = torch.log_softmax(peft_model(input_ids=ids, logits_to_keep=1).logits[0, -1].float(), dim=-1)
        base_model: Any = bare_model or peft_model
        with nullcontext() if bare_model is not None else peft_model.disable_adapter():
            bare = torch.log_softmax(base_model(input_ids=ids, logits_to_keep=1).logits[0, -1].float(), dim=-1)
    best = tuned.topk(_TOP)
    return replace(
        golden,
        next_tokens=tuple(best.indices.tolist()),
        tuned_logprobs=tuple(round(value, 5) for value in best.values.tolist()),
        base_logprobs=tuple(round(value, 5) for value in bare[best.indices].tolist()),
    )


def _card_facts(
    bundle_dir: Path,
    inputs: BundleInputs,
    spec: BundleSpec,
    contract: Contract,
    *,
    meta: Mapping[str, Any],
    source: Mapping[str, JSON],
    gates: Mapping[str, Any],
    rows: Sequence[Row],
) -> Any:
    from tunesmith.model.quantised import read_record
    from tunesmith.serve.bundle import holds_whole_model
    from tunesmith.serve.card import CardFacts

    sources: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = sources.setdefault(row.provenance.source, {"rows": 0, "licenses": set(), "kinds": set()})
        entry["rows"] += 1
        entry["licenses"].add(row.provenance.license or "unknown")
        entry["kinds"].add(row.provenance.kind.value)
    return CardFacts(
        name=meta["name"],
        base=source,
        contract_sha256=contract.sha256,
        adapter_sha256=meta["adapter_sha256"],
        trained="whole model" if holds_whole_model(bundle_dir) else "adapter",
        base_stored_in=None if (stored := read_record(bundle_dir / "adapter")) is None else str(stored),
        system_prompt=contract.system,
        output_schema=contract.output_schema,
        evaluation=_results(inputs.evaluation),
        hardening=None if inputs.hardening is None else _results(inputs.hardening),
        tasks=_task_results(inputs),
        verdicts=gates["verdicts"],
        promotable=gates["promotable"],
        reason=gates["reason"],
        split_proof=json.loads((inputs.splits.path / "split_proof.json").read_text(encoding="utf-8")),
        sources={
            name: {"rows": entry["rows"], "licenses": sorted(entry["licenses"]), "kinds": sorted(entry["kinds"])}
            for name, entry in sources.items()
        },
        training=dict(inputs.adapter.manifest.spec),
        fingerprints={
            name: artifact.fingerprint
            for name in type(inputs).model_fields
            if (artifact := getattr(inputs, name)) is not None
        },
        intended_use=spec.intended_use,
        limits=spec.limits,
    )


def _write(ctx: Context, name: str, value: Mapping[str, JSON]) -> None:
    (ctx.out / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
