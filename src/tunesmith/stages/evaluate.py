"""Stage `evaluate`: base and tuned model on the held-out rows, under the contract's own template and decoding.

What lives here: wiring of rows, contract, models and scores. What does not: scoring and statistics (`evals`),
generation (`model.generate`). Writes `items.parquet`, `results.json` and `samples.json` (docs/evaluation.md).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context, Inputs, Summary, role, stage
from tunesmith.errors import DataError
from tunesmith.types import JSON, Completion, Row, canonical_json, sha256_hex

if TYPE_CHECKING:
    from tunesmith.chat.contract import Contract
    from tunesmith.evals.run import Answer, EvalItem

Dtype = Literal["float32", "bfloat16", "float16"]
RESULTS_FORMAT = 1
"""Version of the shapes that docs/evaluation.md describes."""


class EvaluateInputs(Inputs):
    """What evaluation needs. Without an adapter only the base model is measured."""

    splits: Artifact = role("splits", table="split")
    base: Artifact = role("base", table="fetch")
    contract: Artifact = role("contract", table="contract")
    adapter: Artifact | None = role("adapter", table="train", optional=True)


class EvaluateSpec(Spec):
    """How to evaluate."""

    side: Literal["test", "val"] = "test"
    """Side of the split whose rows are asked."""
    max_items: int | None = Field(None, gt=0)
    """Ask at most this many rows, chosen by a hash of their ids so that nobody chose them; absent asks all."""
    slices: tuple[str, ...] = ("length",)
    """Slice dimensions: `length`, `source`, `turns`, `language`, a label of the rows, or a field of the answer."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; `auto` takes the fastest that the machine has instructions for."""
    batch_tokens: int = Field(8192, gt=0)
    """Bound on rows x tokens of one batch: lower it where memory is tight."""
    samples: int = Field(24, ge=0)
    """How many answers to show side by side in `samples.json`, spread over fixed, broken, right and wrong ones."""


@stage(name="evaluate", version=1, produces="evaluation")
def evaluate(inputs: EvaluateInputs, spec: EvaluateSpec, ctx: Context) -> Summary:
    """Measure base and tuned model on one side of the split; return every figure of `results.json`."""
    from tunesmith.chat.contract import load_contract
    from tunesmith.data.write import read_rows
    from tunesmith.evals.results import figures, pick_samples, prompt_digest

    contract = load_contract(inputs.contract.path)
    rows = choose_rows(read_rows(inputs.splits.path / f"{spec.side}.parquet"), most=spec.max_items)
    if not rows:
        raise DataError(
            "there is nothing to evaluate on", where=f"splits, side {spec.side}", hint="raise the share of split"
        )
    items = build_items(rows, contract, dimensions=spec.slices)
    dtype, dtype_reason = resolve_dtype(spec.dtype, ctx.device)
    ctx.log("evaluate_start", {"items": len(items), "dtype": dtype, "dtype_reason": dtype_reason})
    answers: list[Answer] = []
    timing: dict[str, JSON] = {}
    for system, adapter in (("base", None), ("tuned", inputs.adapter)):
        if system == "tuned" and adapter is None:
            continue
        answered = generate_answers(
            [item.prompt_ids for item in items],
            system=system,
            base=inputs.base,
            adapter=adapter,
            contract=contract,
            dtype=dtype,
            batch_tokens=spec.batch_tokens,
            ctx=ctx,
        )
        timing[system] = answered.to_json()
        answers += score_all(items, system, answered.completions, contract)
        ctx.log("evaluate_system", {"system": system, **timing[system]})
    results = figures(items, answers)
    for system, figures_of_speed in timing.items():
        results["timing"][system] |= figures_of_speed
    results |= provenance(contract, inputs, items, dtype=dtype, dtype_reason=dtype_reason)
    results |= {"side": spec.side, "prompts_sha256": prompt_digest(item.prompt_ids for item in items)}
    judge = "exact_match" if "exact_match" in results["base"] else "schema_adherence"
    samples = pick_samples(items, answers, judge=judge, most=spec.samples)
    write_evaluation(ctx.out, items, answers, results)
    (ctx.out / "samples.json").write_text(
        json.dumps({"judge": judge, "samples": samples}, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    return summarise(results)


def choose_rows(rows: Sequence[Row], *, most: int | None) -> list[Row]:
    """Return the rows to ask: all, or the `most` with the smallest hash of their id, in their own order."""
    if most is None or len(rows) <= most:
        return list(rows)
    chosen = set(sorted(sha256_hex(row.id) for row in rows)[:most])
    return [row for row in rows if sha256_hex(row.id) in chosen]


def build_items(rows: Sequence[Row], contract: Contract, *, dimensions: Sequence[str]) -> list[EvalItem]:
    """Render each row's prompt with the contract and note its slices and its group."""
    from tunesmith.evals.run import EvalItem
    from tunesmith.evals.slices import slice_values

    rendered = [contract.render_prompt(row.conversation.prompt) for row in rows]
    slices = slice_values(rows, lengths=[len(prompt.ids) for prompt in rendered], dimensions=dimensions)
    return [
        EvalItem(
            row_id=row.id,
            prompt_ids=tuple(prompt.ids),
            prompt=prompt.text,
            expected=row.conversation.answer,
            slices=values,
            cluster=row.group,
        )
        for row, prompt, values in zip(rows, rendered, slices, strict=True)
    ]


def resolve_dtype(wanted: Literal["auto", "float32", "bfloat16", "float16"], device: str) -> tuple[Dtype, str]:
    """Return the number format to load in, and why."""
    if wanted != "auto":
        return wanted, "the recipe asks for it"
    from tunesmith.model.precision import fast_dtype

    return fast_dtype(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The completions of one system and what making them took."""

    completions: list[Completion]
    generated: int
    """How many were made now; the others were kept by an attempt that was cut short."""
    new_tokens: int
    seconds: float
    """Generation alone, without loading the model."""
    load_seconds: float

    def to_json(self) -> dict[str, JSON]:
        """Return the fields of `timing` in `results.json`."""
        return {
            "seconds": round(self.seconds, 3),
            "load_seconds": round(self.load_seconds, 3),
            "generated": self.generated,
            "tokens_per_second": round(self.new_tokens / self.seconds, 2) if self.seconds > 0 else None,
        }


def generate_answers(
    prompts: Sequence[Sequence[int]],
    *,
    system: str,
    base: Artifact,
    adapter: Artifact | None,
    contract: Contract,
    dtype: Dtype,
    batch_tokens: int,
    ctx: Context,
) -> Answered:
    """Answer prompts with the base model, or with the adapter on it, under the contract's decoding.

    Answers are kept in `ctx.work` as they come; the model is loaded only where one is missing.
    """
    import torch

    from tunesmith.evals.completions import generate_cached
    from tunesmith.model.generate import generate
    from tunesmith.model.load import load_model

    decoding = contract.decoding
    identity = {
        "base": base.fingerprint,
        "adapter": adapter.fingerprint if adapter else None,
        "contract": contract.sha256,
        "dtype": dtype,
    }
    cache = ctx.work / f"completions-{system}-{sha256_hex(canonical_json(identity))[:16]}.jsonl"
    model: torch.nn.Module | None = None
    generated, new_tokens, seconds, load_seconds = 0, 0, 0.0, 0.0

    def run(missing: Sequence[Sequence[int]]) -> list[Completion]:
        nonlocal model, generated, new_tokens, seconds, load_seconds
        if model is None:
            started = time.perf_counter()
            model = load_model(
                base.path / "model", dtype=dtype, adapter_dir=adapter.path / "adapter" if adapter else None
            ).to(ctx.device)
            load_seconds = time.perf_counter() - started
        started = time.perf_counter()
        before = generated
        completions = generate(
            model,
            missing,
            stop_ids=contract.stop_ids,
            max_new_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=decoding.seed,
            batch_tokens=batch_tokens,
            progress=lambda done, _: ctx.progress(
                before + done, len(prompts), f"{system}: {before + done} of {len(prompts)} answers"
            ),
        )
        seconds += time.perf_counter() - started
        generated += len(completions)
        new_tokens += sum(len(completion.ids) for completion in completions)
        return completions

    completions = generate_cached(run, prompts, cache=cache)
    return Answered(
        completions=completions,
        generated=generated,
        new_tokens=new_tokens,
        seconds=seconds,
        load_seconds=load_seconds,
    )


def score_all(
    items: Sequence[EvalItem], system: str, completions: Sequence[Completion], contract: Contract
) -> list[Answer]:
    """Decode and score one system's completions."""
    from tunesmith.evals.run import score_answer

    def adheres(text: str) -> bool:
        return bool(contract.check_answer(text).adheres)

    check = adheres if contract.output_schema is not None else None
    return [
        score_answer(item, system, completion, contract.decode(completion.ids), check_answer=check)
        for item, completion in zip(items, completions, strict=True)
    ]


def provenance(
    contract: Contract, inputs: EvaluateInputs, items: Sequence[EvalItem], *, dtype: str, dtype_reason: str
) -> dict[str, JSON]:
    """Return what stands beside every score: contract, decoding, number format, a sample prompt, the leakage proof."""
    proof = inputs.splits.path / "split_proof.json"
    return {
        "format": RESULTS_FORMAT,
        "contract_sha256": contract.sha256,
        "contract_parts": dict(contract.parts),
        "decoding": asdict(contract.decoding),
        "dtype": dtype,
        "dtype_reason": dtype_reason,
        "sample_prompt": items[0].prompt,
        "leakage_proof": json.loads(proof.read_text(encoding="utf-8")) if proof.exists() else None,
        "fingerprints": {
            "base": inputs.base.fingerprint,
            "adapter": inputs.adapter.fingerprint if inputs.adapter else None,
            "splits": inputs.splits.fingerprint,
        },
    }


def write_evaluation(
    out: Path, items: Sequence[EvalItem], answers: Sequence[Answer], results: Mapping[str, JSON]
) -> None:
    """Write `items.parquet` and `results.json`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tunesmith.evals.run import answer_record

    by_id = {item.row_id: item for item in items}
    records = [answer_record(by_id[answer.row_id], answer) for answer in answers]
    names = list(dict.fromkeys(name for record in records for name in record))
    table = pa.table({name: _column([record.get(name) for record in records], name) for name in names})
    pq.write_table(table, out / "items.parquet")
    (out / "results.json").write_text(
        json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8"
    )


def _column(values: list[JSON], name: str) -> JSON:
    import pyarrow as pa

    if name.startswith("score.") or name == "seconds":
        return pa.array(values, pa.float64())
    if name in ("prompt_tokens", "output_tokens"):
        return pa.array(values, pa.int64())
    return pa.array(values, pa.string())


def summarise(results: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return the figures of the manifest: every metric with its 95% interval, paired differences, counts and times."""
    keys = ("value", "low", "high", "n")
    pair_keys = ("difference", "low", "high", "p", "n", "resolved", "minimum_detectable")
    summary: dict[str, JSON] = {"items": results["n"], "dtype": results["dtype"]}
    for system in results["systems"]:
        summary[system] = {name: {key: figure[key] for key in keys} for name, figure in results[system].items()}
    summary["paired"] = {name: {key: figure[key] for key in pair_keys} for name, figure in results["paired"].items()}
    summary["stop_reasons"] = results["stop_reasons"]
    summary["unparsable"] = results["unparsable"]
    summary["timing"] = results["timing"]
    return summary
