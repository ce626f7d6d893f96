"""Ask base and tuned model under one contract: what the stages `evaluate` and `harden` share.

What lives here: a model that is loaded when first needed, answers kept while a stage is unfinished, and the facts that
stand beside every score. What does not: what is asked, and how answers are scored.

    with_adapter = System("tuned", base=..., adapter=..., contract=..., dtype="bfloat16", ctx=ctx)
    answered = with_adapter.answer(prompts, batch_tokens=8192)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunesmith.core.artifact import Artifact
from tunesmith.core.stage import Context, Inputs, role
from tunesmith.errors import ContractError
from tunesmith.types import JSON, Completion, canonical_json, sha256_hex

if TYPE_CHECKING:
    import torch

    from tunesmith.chat.contract import Contract
    from tunesmith.model.decoder import Decoder
    from tunesmith.model.likelihood import Likelihood
    from tunesmith.model.rows import Constraint

Dtype = Literal["float32", "bfloat16", "float16"]
Constrain = Literal["no", "schema"]
DtypeChoice = Literal["auto", "float32", "bfloat16", "float16"]
BATCH_TOKENS = 32_768
"""Default of the stages' `batch_tokens`, that of `model.generate`, which is not imported before a stage runs."""
RESULTS_FORMAT = 1
"""Version of the shapes that docs/evaluation.md describes."""


class AnsweringInputs(Inputs):
    """What it takes to measure a model. Without an adapter only the base model is measured."""

    splits: Artifact = role("splits", table="split")
    base: Artifact = role("base", table="fetch")
    contract: Artifact = role("contract", table="contract")
    adapter: Artifact | None = role("adapter", table="train", optional=True)


def resolve_dtype(wanted: DtypeChoice, device: str) -> tuple[Dtype, str]:
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
    engine: str | None

    def to_json(self) -> dict[str, JSON]:
        """Return the fields of `timing` in `results.json`."""
        return {
            "seconds": round(self.seconds, 3),
            "load_seconds": round(self.load_seconds, 3),
            "generated": self.generated,
            "engine": self.engine,
            "tokens_per_second": round(self.new_tokens / self.seconds, 2) if self.seconds > 0 else None,
        }


def together(draws: Sequence[Answered]) -> Answered:
    """Return several draws of answers as one: what they took is added."""
    return Answered(
        completions=[completion for draw in draws for completion in draw.completions],
        generated=sum(draw.generated for draw in draws),
        new_tokens=sum(draw.new_tokens for draw in draws),
        seconds=sum(draw.seconds for draw in draws),
        load_seconds=sum(draw.load_seconds for draw in draws),
        engine=draws[-1].engine,
    )


class System:
    """The base model, or the adapter on it, under one contract. The weights are loaded when first needed."""

    def __init__(
        self,
        name: str,
        *,
        base: Artifact,
        adapter: Artifact | None,
        contract: Contract,
        dtype: Dtype,
        ctx: Context,
        constrain: Constrain = "no",
    ) -> None:
        self.name = name
        self._constrain: Constrain = constrain
        self.load_seconds = 0.0
        self._base, self._adapter, self._contract, self._dtype, self._ctx = base, adapter, contract, dtype, ctx
        self._model: torch.nn.Module | None = None
        self._decoder: Decoder | None = None
        self.engine: str | None = None
        """Which engine answered and why; `None` before the first answer, or where all answers were kept."""

    @property
    def model(self) -> torch.nn.Module:
        """The loaded model, in evaluation mode on the context's device."""
        if self._model is None:
            from tunesmith.model.load import load_model

            started = time.perf_counter()
            adapter_dir = self._adapter.path / "adapter" if self._adapter else None
            model = load_model(self._base.path / "model", dtype=self._dtype, adapter_dir=adapter_dir)
            self._model = model.to(self._ctx.device)
            self.load_seconds += time.perf_counter() - started
        return self._model

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        batch_tokens: int,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        draw: int = 0,
    ) -> Answered:
        """Answer prompts under the contract's decoding. Answers are kept in `ctx.work` as they come.

        `max_new_tokens` and `temperature` replace the contract's, for questions that are not its task. `draw` numbers
        independent answers to the same prompts: each has a seed of its own.
        """
        from tunesmith.evals.completions import generate_cached
        from tunesmith.model.generate import choose_engine, generate, make_decoder

        decoding = self._contract.decoding
        longest = decoding.max_new_tokens if max_new_tokens is None else max_new_tokens
        heat = decoding.temperature if temperature is None else temperature
        make_constraint = self._make_constraint()
        loaded_before = self.load_seconds
        generated, new_tokens, seconds = 0, 0, 0.0

        def run(missing: Sequence[Sequence[int]]) -> list[Completion]:
            nonlocal generated, new_tokens, seconds
            model, before = self.model, generated
            if self.engine is None:
                chosen = choose_engine(model)
                self.engine = f"{chosen.engine}: {chosen.reason}"
                started = time.perf_counter()
                self._decoder = make_decoder(model, sample=missing[0])
                self.load_seconds += time.perf_counter() - started
            started = time.perf_counter()
            completions = generate(
                model,
                missing,
                stop_ids=self._contract.stop_ids,
                max_new_tokens=longest,
                temperature=heat,
                top_p=decoding.top_p,
                seed=decoding.seed + draw,
                batch_tokens=batch_tokens,
                make_constraint=make_constraint,
                decoder=self._decoder,
                progress=lambda done, _: self._ctx.progress(
                    before + done, len(prompts), f"{self.name}: {before + done} of {len(prompts)} answers"
                ),
            )
            seconds += time.perf_counter() - started
            generated += len(completions)
            new_tokens += sum(len(completion.ids) for completion in completions)
            return completions

        completions = generate_cached(
            run, prompts, cache=self._ctx.work / f"completions-{self._identity(longest, heat, draw)}.jsonl"
        )
        return Answered(
            completions=completions,
            generated=generated,
            new_tokens=new_tokens,
            seconds=seconds,
            load_seconds=self.load_seconds - loaded_before,
            engine=self.engine,
        )

    def likelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Likelihood]:
        """Return the likelihood of each (prefix, continuation)."""
        from tunesmith.model.likelihood import log_likelihood

        return log_likelihood(self.model, pairs)

    def _make_constraint(self) -> Callable[[], Constraint] | None:
        """Return a maker of constraints to the output schema. Raises `ServeError` for a schema it cannot enforce."""
        if self._constrain == "no":
            return None
        from tunesmith.serve.constrain import JsonGrammar

        schema = self._contract.output_schema
        if schema is None:
            raise ContractError(
                "answers cannot be constrained to a schema that the contract does not have",
                hint="set contract.output_schema, or leave out `constrain`",
            )
        tokenizer_json = (self._base.path / "model" / "tokenizer.json").read_text(encoding="utf-8")
        config = json.loads((self._base.path / "model" / "config.json").read_text(encoding="utf-8"))
        return JsonGrammar(tokenizer_json, vocab_size=config["vocab_size"], stop_ids=self._contract.stop_ids).compile(
            schema
        )

    def _identity(self, longest: int, temperature: float, draw: int) -> str:
        made_of = {
            "base": self._base.fingerprint,
            "adapter": self._adapter.fingerprint if self._adapter else None,
            "contract": self._contract.sha256,
            "dtype": self._dtype,
            "constrain": self._constrain,
            "max_new_tokens": longest,
            "temperature": temperature,
            "draw": draw,
        }
        return f"{self.name}-{sha256_hex(canonical_json(made_of))[:16]}"


def provenance(
    contract: Contract, *, splits: Artifact, base: Artifact, adapter: Artifact | None, dtype: str, dtype_reason: str
) -> dict[str, JSON]:
    """Return what stands beside every score: contract, decoding, number format, the leakage proof, the inputs."""
    proof = splits.path / "split_proof.json"
    return {
        "format": RESULTS_FORMAT,
        "contract_sha256": contract.sha256,
        "contract_parts": dict(contract.parts),
        "decoding": asdict(contract.decoding),
        "dtype": dtype,
        "dtype_reason": dtype_reason,
        "leakage_proof": json.loads(proof.read_text(encoding="utf-8")) if proof.exists() else None,
        "fingerprints": {
            "base": base.fingerprint,
            "adapter": adapter.fingerprint if adapter else None,
            "splits": splits.fingerprint,
        },
    }


def write_records(out: Path, records: Sequence[dict[str, JSON]], results: dict[str, JSON]) -> None:
    """Write `items.parquet` and `results.json`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(name: str) -> JSON:
        values = [record.get(name) for record in records]
        if name.startswith("score.") or name == "seconds":
            return pa.array(values, pa.float64())
        if name in ("prompt_tokens", "output_tokens"):
            return pa.array(values, pa.int64())
        return pa.array(values, pa.string())

    names = list(dict.fromkeys(name for record in records for name in record))
    pq.write_table(pa.table({name: column(name) for name in names}), out / "items.parquet")
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "results.json").write_text(text, encoding="utf-8")


def write_samples(out: Path, samples: Sequence[dict[str, JSON]], *, judge: str) -> None:
    """Write `samples.json`."""
    text = json.dumps({"judge": judge, "samples": list(samples)}, indent=1, ensure_ascii=False)
    (out / "samples.json").write_text(text, encoding="utf-8")


def write_lm_eval(
    out: Path, records: Sequence[dict[str, JSON]], results: dict[str, JSON], *, task: str, contract: Contract
) -> None:
    """Write `lm_eval/SYSTEM/results.json` and `samples.jsonl` in the shape of lm-evaluation-harness."""
    from tunesmith.evals.lm_eval_shape import lm_eval_results, lm_eval_samples

    for system in results["systems"]:
        folder = out / "lm_eval" / system
        folder.mkdir(parents=True)
        mine = [record for record in records if record["system"] == system]
        shaped = lm_eval_results(
            results, system, mine, task=task, chat_template=contract.template.text, system_prompt=contract.system
        )
        (folder / "results.json").write_text(json.dumps(shaped, indent=2, ensure_ascii=False), encoding="utf-8")
        lines = lm_eval_samples(mine, generation=shaped["configs"][task]["generation_kwargs"])
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"samples_{task}.jsonl").write_text(text, encoding="utf-8")


def write_page(out: Path, title: str, results: dict[str, JSON], samples: Sequence[dict[str, JSON]]) -> None:
    """Write `report.html`."""
    from tunesmith.evals.report import evaluation_page

    (out / "report.html").write_text(evaluation_page(title, results, samples), encoding="utf-8")


def summarise(results: dict[str, JSON]) -> dict[str, JSON]:
    """Return the figures of the manifest: every metric with its 95% interval, paired differences, counts and times."""
    keys = ("value", "low", "high", "n")
    pair_keys = ("difference", "low", "high", "p", "n", "resolved", "minimum_detectable")
    summary: dict[str, JSON] = {"items": results["n"], "dtype": results["dtype"]}
    for system in results["systems"]:
        summary[system] = {name: {key: figure[key] for key in keys} for name, figure in results[system].items()}
    for pairs in ("paired", *(name for name in results if name.startswith("paired_"))):
        summary[pairs] = {name: {key: figure[key] for key in pair_keys} for name, figure in results[pairs].items()}
    for key in ("stop_reasons", "unparsable", "timing"):
        summary[key] = results[key]
    return summary
