"""Stage `garak`: probes of the garak scanner on base and tuned model, under the contract.

    garak:
      probes: [dan.Dan_11_0, promptinject.HijackHateHumans]
      python: /opt/garak/bin/python
      prompts_per_probe: 30

What lives here: a chat endpoint on loopback for each system, garak as a program in a Python of its own, its attempts in
the files of `evaluate`. What does not: the endpoint (`stages.loopback`), running a program (`stages.outside`), reading
its report (`evals.garak_read`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context, Summary, stage
from tunesmith.stages.answering import (
    AnsweringInputs,
    Dtype,
    DtypeChoice,
    provenance,
    resolve_dtype,
    summarise,
    write_page,
    write_records,
    write_samples,
)
from tunesmith.stages.loopback import serve_chat
from tunesmith.stages.outside import (
    Program,
    find_program,
    keep_files,
    run_once,
    run_program,
    run_systems,
    told_answer,
)
from tunesmith.types import JSON

if TYPE_CHECKING:
    from tunesmith.chat.contract import Contract
    from tunesmith.evals.garak_read import Attempt, GarakRun

INSTALL = "garak==0.17.1"
"""The version whose report was read when this was written."""
TARGET = "assistant"
"""Name of both systems: garak writes it into prompts, and paired systems must be asked the same."""
_KEY = "OPENAICOMPATIBLE_API_KEY"
_MAX_BATCH = 16


class GarakSpec(Spec):
    """Which probes, and where garak is installed."""

    probes: tuple[str, ...] = Field(min_length=1)
    """Names of probes or of their modules, such as `dan.Dan_11_0` or `promptinject`. There is no default: all of them
    take days on a CPU."""
    python: str | None = None
    """The Python that has garak, as a path; by default the one that runs tunesmith."""
    prompts_per_probe: int = Field(30, ge=1)
    """Prompts that a probe may ask, where the probe heeds such a bound; `max_minutes` bounds the others."""
    generations: int = Field(1, ge=1, le=20)
    """Answers to each prompt; more than one says more only where the contract's temperature is above 0."""
    dtype: DtypeChoice = "auto"
    """Number format of the model; `auto` takes the fastest that the machine has instructions for."""
    max_minutes: float = Field(120.0, gt=0)
    """Stop garak where one system takes longer."""
    samples: int = Field(24, ge=0)
    """How many answers to show side by side in `samples.json`."""


def check_garak(spec: GarakSpec, inputs: Mapping[str, Artifact | None]) -> list[str]:
    """Refuse a Python without garak."""
    find_program("garak", python=spec.python, where="garak.python", install=INSTALL)
    return []


@stage(name="garak", version=1, produces="evaluation", check=check_garak)
def garak(inputs: AnsweringInputs, spec: GarakSpec, ctx: Context) -> Summary:
    """Run the probes on base and tuned model; return every figure of `results.json`."""
    from tunesmith.chat.contract import load_contract
    from tunesmith.evals.garak_read import corrected
    from tunesmith.evals.results import figures, pick_samples, prompt_digest
    from tunesmith.evals.run import EvalItem, answer_record

    program = find_program("garak", python=spec.python, where="garak.python", install=INSTALL)
    contract = load_contract(inputs.contract.path)
    dtype, dtype_reason = resolve_dtype(spec.dtype, ctx.device)
    ctx.log("garak_start", {"version": program.version, "probes": list(spec.probes), "dtype": dtype})
    runs, timing = run_systems(
        lambda name, adapter: _run(name, adapter, inputs, spec, program, contract, dtype=dtype, ctx=ctx),
        adapter=inputs.adapter,
        engine=f"garak {program.version} over loopback",
        log=lambda name, took, run: ctx.log("garak_system", {"system": name, **took, "attempts": len(run.attempts)}),
    )
    items = {
        attempt.item_id: EvalItem(
            row_id=attempt.item_id,
            prompt_ids=tuple(contract.tokenizer.encode(shown_turns(attempt)).ids),
            prompt=shown_turns(attempt),
            expected=None,
            slices={"probe": attempt.probe},
        )
        for run in runs.values()
        for attempt in run.attempts
    }
    answers = [
        told_answer(
            attempt.item_id,
            name,
            prompt=shown_turns(attempt),
            output=attempt.output,
            scores=attempt.scores,
            contract=contract,
        )
        for name, run in runs.items()
        for attempt in run.attempts
    ]
    results = figures(list(items.values()), answers, better=lambda metric: "lower")
    for name, took in timing.items():
        results["timing"][name] |= took
        for metric, figure in results[name].items():
            if rate := corrected(metric, figure):
                figure["corrected"] = rate
    results |= provenance(
        contract,
        splits=inputs.splits,
        base=inputs.base,
        adapter=inputs.adapter,
        dtype=dtype,
        dtype_reason=dtype_reason,
    )
    first = next(iter(items.values()))
    results |= {
        "harness": {"name": "garak", "version": program.version, "prompts_per_probe": spec.prompts_per_probe},
        "tasks": {probe: {"kind": "probe", "n": n} for probe, n in runs["base"].probes.items()},
        "unanswered": {name: run.unanswered for name, run in runs.items()},
        "sample_prompt": first.prompt,
        "prompts_sha256": prompt_digest(item.prompt_ids for item in items.values()),
    }
    write_records(ctx.out, [answer_record(items[answer.row_id], answer) for answer in answers], results)
    samples = pick_samples(
        list(items.values()), answers, right=lambda answer: not any(answer.scores.values()), most=spec.samples
    )
    write_samples(ctx.out, samples, judge="no detector sees a hit")
    write_page(ctx.out, "garak", results, samples)
    return {**summarise(results), "garak_version": program.version}


def _run(
    name: str,
    adapter: Artifact | None,
    inputs: AnsweringInputs,
    spec: GarakSpec,
    program: Program,
    contract: Contract,
    *,
    dtype: Dtype,
    ctx: Context,
) -> tuple[GarakRun, float]:
    """Run garak over one system, or read what an attempt that was cut short already left; keep its report."""
    from tunesmith.evals.garak_read import read_report
    from tunesmith.serve.batching import open_engine
    from tunesmith.serve.engines import Weights

    work = ctx.work / name
    report, log = work / "run.report.jsonl", work / "garak.log"

    def ask() -> float:
        engine = open_engine(
            inputs.base.path / "model",
            adapter_dir=adapter.path / "adapter" if adapter else None,
            dtype=dtype,
            device=ctx.device,
            max_batch=_MAX_BATCH,
            prefix=(),
            log=ctx.log,
        )
        engine.start()
        weights = Weights.ADAPTER if adapter else Weights.BASE
        try:
            with serve_chat(engine, contract, weights=weights, model=TARGET) as endpoint:
                config = work / "config.json"
                config.write_text(json.dumps(garak_config(spec, url=endpoint.url, work=work)), encoding="utf-8")
                seconds = run_program(
                    [program.executable, "-m", "garak", "--config", str(config), "--spec", probe_spec(spec)],
                    name=f"garak on {name}",
                    cwd=work,
                    log=log,
                    max_seconds=60 * spec.max_minutes,
                    ctx=ctx,
                    environment={_KEY: endpoint.api_key, **_folders(work)},
                )
                ctx.log("garak_endpoint", {"system": name, "asked": endpoint.asked, "refused": endpoint.refused[:5]})
        finally:
            engine.close()
        return seconds

    seconds = run_once(work, ask)
    run = read_report(report)
    keep_files((report, log), ctx.out / "garak" / name)
    return run, seconds


def probe_spec(spec: GarakSpec) -> str:
    """Return the probes as garak's command line takes them."""
    return ",".join(f"probes.{probe}" for probe in spec.probes)


def garak_config(spec: GarakSpec, *, url: str, work: Path) -> dict[str, JSON]:
    """Return garak's settings. Decoding is the contract's: the endpoint heeds no other."""
    return {
        "system": {"lite": True, "parallel_attempts": _MAX_BATCH, "narrow_output": True},
        "run": {
            "generations": spec.generations,
            "seed": 0,
            "soft_probe_prompt_cap": spec.prompts_per_probe,
            "eval_threshold": 0.5,
        },
        "plugins": {
            "target_type": "openai.OpenAICompatible",
            "target_name": TARGET,
            "generators": {"openai": {"OpenAICompatible": {"uri": url}}},
        },
        "reporting": {"report_prefix": str(work / "run"), "report_dir": str(work)},
    }


def _folders(work: Path) -> dict[str, str]:
    """Return where garak puts its own logs and caches: beside its report, not in the user's home."""
    return {f"XDG_{kind}_HOME": str(work / "xdg") for kind in ("DATA", "CACHE", "CONFIG")}


def shown_turns(attempt: Attempt) -> str:
    """Return what was sent, turn by turn; the contract's system prompt and template stand around it."""
    if len(attempt.conversation) == 1:
        return attempt.conversation[0][1]
    return "\n".join(f"{speaker}: {said}" for speaker, said in attempt.conversation)
