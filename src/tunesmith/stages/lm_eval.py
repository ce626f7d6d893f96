"""Stage `lm_eval`: tasks of lm-evaluation-harness on base and tuned model, under the contract.

    lm_eval:
      tasks: [arc_easy, our_task]
      include_path: lm_eval_tasks
      python: /opt/lm-eval/bin/python
      limit: 200

What lives here: a model folder that carries the contract, lm-eval as a program in a Python of its own, its answers in
the files of `evaluate`, and the proof that it asked what the contract renders. What does not: reading its files
(`evals.lm_eval_read`), running a program (`stages.outside`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import ContentPath, Spec
from tunesmith.core.stage import Context, Summary, stage
from tunesmith.errors import ContractError, DataError
from tunesmith.stages.answering import (
    AnsweringInputs,
    DtypeChoice,
    provenance,
    resolve_dtype,
    summarise,
    write_page,
    write_records,
    write_samples,
)
from tunesmith.stages.outside import (
    Program,
    find_program,
    keep_files,
    run_once,
    run_program,
    run_systems,
    told_answer,
)
from tunesmith.types import JSON, Conversation, Message, sha256_hex

if TYPE_CHECKING:
    from tunesmith.chat.contract import Contract
    from tunesmith.evals.lm_eval_read import HarnessRun, HarnessSample
    from tunesmith.evals.run import EvalItem

INSTALL = "lm-eval[hf]==0.4.13"
"""The version whose files were read when this was written."""
_ROLLING = "loglikelihood_rolling"
"""Tasks of this kind score plain text: no prompt is rendered."""


class LmEvalSpec(Spec):
    """Which tasks, and where lm-eval is installed."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of tasks or groups of lm-evaluation-harness, its own or those under `include_path`."""
    include_path: ContentPath | None = None
    """Folder of task files (YAML) of yours; data files that they name count from it."""
    python: str | None = None
    """The Python that has `lm-eval[hf]`, as a path; by default the one that runs tunesmith."""
    num_fewshot: int | None = Field(None, ge=0)
    """Worked examples before each question; the task's own number unless given."""
    limit: int | None = Field(None, gt=0)
    """Ask at most the first so many questions of each task; absent asks all."""
    batch_size: int = Field(8, gt=0)
    """Questions that lm-eval computes at once."""
    dtype: DtypeChoice = "auto"
    """Number format of the model; `auto` takes the fastest that the machine has instructions for."""
    max_minutes: float = Field(120.0, gt=0)
    """Stop lm-eval where one system takes longer."""
    samples: int = Field(24, ge=0)
    """How many answers to show side by side in `samples.json`."""


def check_lm_eval(spec: LmEvalSpec, inputs: Mapping[str, Artifact | None]) -> list[str]:
    """Refuse a Python without lm-eval."""
    find_program("lm_eval", python=spec.python, where="lm_eval.python", install=INSTALL)
    return []


@stage(name="lm_eval", version=1, produces="evaluation", check=check_lm_eval)
def lm_eval(inputs: AnsweringInputs, spec: LmEvalSpec, ctx: Context) -> Summary:
    """Run the tasks on base and tuned model; return every figure of `results.json`."""
    from tunesmith.chat.contract import load_contract
    from tunesmith.evals.results import figures, pick_samples, prompt_digest
    from tunesmith.evals.run import answer_record

    program = find_program("lm_eval", python=spec.python, where="lm_eval.python", install=INSTALL)
    contract = load_contract(inputs.contract.path)
    dtype, dtype_reason = resolve_dtype(spec.dtype, ctx.device)
    ctx.log("lm_eval_start", {"version": program.version, "tasks": list(spec.tasks), "dtype": dtype})
    runs, timing = run_systems(
        lambda name, adapter: _run(name, adapter, inputs, spec, program, contract, dtype=dtype, ctx=ctx),
        adapter=inputs.adapter,
        engine=f"lm-eval {program.version}, hf",
        log=lambda name, took, run: ctx.log("lm_eval_system", {"system": name, **took, "questions": len(run.samples)}),
    )
    check_same_questions(runs)
    items = [_item(sample, contract) for sample in runs["base"].samples]
    answers = [
        told_answer(
            sample.item_id,
            name,
            prompt=sample.prompt,
            output=sample.output,
            scores=sample.scores,
            contract=contract,
        )
        for name, run in runs.items()
        for sample in run.samples
    ]
    results = figures(items, answers, better=runs["base"].better.__getitem__)
    for name, took in timing.items():
        results["timing"][name] |= took
    results |= provenance(
        contract,
        splits=inputs.splits,
        base=inputs.base,
        adapter=inputs.adapter,
        dtype=dtype,
        dtype_reason=dtype_reason,
    )
    results |= {
        "harness": {"name": "lm-evaluation-harness", **runs["base"].facts, "limit": spec.limit},
        "reported": {name: dict(run.reported) for name, run in runs.items()},
        "tasks": _task_facts(runs["base"]),
        "sample_prompt": items[0].prompt,
        "prompts_sha256": prompt_digest(item.prompt_ids for item in items),
    }
    by_id = {item.row_id: item for item in items}
    write_records(ctx.out, [answer_record(by_id[answer.row_id], answer) for answer in answers], results)
    samples = pick_samples(
        items, answers, right=lambda answer: next(iter(answer.scores.values()), 0) == 1, most=spec.samples
    )
    write_samples(ctx.out, samples, judge="the first metric of the task is 1")
    write_page(ctx.out, "lm-evaluation-harness", results, samples)
    return {**summarise(results), "lm_eval_version": program.version}


def _run(
    name: str,
    adapter: Artifact | None,
    inputs: AnsweringInputs,
    spec: LmEvalSpec,
    program: Program,
    contract: Contract,
    *,
    dtype: str,
    ctx: Context,
) -> tuple[HarnessRun, float]:
    """Run lm-eval over one system, or read what an attempt that was cut short already left; keep its files."""
    from tunesmith.evals.lm_eval_read import read_run

    work = ctx.work / name
    done, log = work / "written", work / "lm_eval.log"

    def ask() -> float:
        model_dir = work / "model"
        write_model_folder(model_dir, base=inputs.base, adapter=adapter, contract_dir=inputs.contract.path, dtype=dtype)
        config = work / "config.json"  # JSON is YAML, which is what lm-eval reads
        settings = harness_config(spec, contract, model_dir=model_dir, out=done, dtype=dtype, device=ctx.device)
        config.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        seconds = run_program(
            [program.executable, "-m", "lm_eval", "run", "--config", str(config)],
            name=f"lm-eval on {name}",
            cwd=Path(spec.include_path) if spec.include_path else work,
            log=log,
            max_seconds=60 * spec.max_minutes,
            ctx=ctx,
        )
        shutil.rmtree(model_dir)
        return seconds

    seconds = run_once(work, ask)
    run = read_run(done)
    check_contract_kept(run, contract)
    keep_files([*done.rglob("*.json"), *done.rglob("*.jsonl"), log], ctx.out / "lm_eval" / name)
    return run, seconds


def write_model_folder(
    folder: Path, *, base: Artifact, adapter: Artifact | None, contract_dir: Path, dtype: str
) -> None:
    """Write a model folder whose tokenizer, template and stop ids are the contract's.

    The base's weights are linked. An adapter is merged in float32 and cast last, which is what an export does.
    """
    from tunesmith.model.export import write_merged

    folder.mkdir()
    base_dir = base.path / "model"
    if adapter is None:
        for file in (base_dir / "config.json", *base_dir.glob("*.safetensors*")):
            (folder / file.name).symlink_to(file.resolve())
    else:
        write_merged(base_dir, adapter.path / "adapter", folder, dtype=dtype)  # type: ignore[arg-type]  # a DtypeName
    for file in sorted((contract_dir / "tokenizer").iterdir()):
        shutil.copyfile(file, folder / file.name)


def harness_config(
    spec: LmEvalSpec, contract: Contract, *, model_dir: Path, out: Path, dtype: str, device: str
) -> dict[str, JSON]:
    """Return lm-eval's settings: the contract's system prompt and template arguments, everything seeded."""
    arguments = dict(contract.content["template"]["arguments"])
    model_args = {"pretrained": str(model_dir), "dtype": dtype}
    settings: dict[str, JSON] = {
        "model": "hf",
        "model_args": model_args | ({"chat_template_args": arguments} if arguments else {}),
        "tasks": list(spec.tasks),
        "device": device,
        "batch_size": spec.batch_size,
        "log_samples": True,
        "output_path": str(out),
        "apply_chat_template": True,
        "seed": [0, 0, 0, 0],
    }
    optional = {
        "include_path": spec.include_path,
        "num_fewshot": spec.num_fewshot,
        "limit": spec.limit,
        "system_instruction": contract.system,
    }
    return settings | {name: value for name, value in optional.items() if value is not None}


def check_contract_kept(run: HarnessRun, contract: Contract) -> None:
    """Raise `ContractError` where lm-eval used another template than the contract's, or rendered it otherwise."""
    used, agreed = run.facts["chat_template_sha"], sha256_hex(contract.template.text)
    if used != agreed:
        raise ContractError(
            "lm-eval used another chat template than the contract's", expected=agreed, found=str(used), where="lm_eval"
        )
    begin, end = prompt_frame(contract)
    for sample in run.samples:
        if run.facts["output_types"].get(sample.task) == _ROLLING:
            continue
        if not sample.prompt.startswith(begin) or end not in sample.prompt[len(begin) :]:
            raise ContractError(
                "lm-eval asked another prompt than the contract renders",
                where=sample.item_id,
                expected=f"{begin!r} ... {end!r}",
                found=repr(sample.prompt[: 2 * len(begin) + 80]),
                hint="a template that prints the date or takes other variables renders otherwise inside lm-eval",
            )


def prompt_frame(contract: Contract) -> tuple[str, str]:
    """Return how every prompt of one user message begins, to the end of the system prompt, and how it ends."""
    mark = "tunesmith asks this"
    text = contract.render_prompt(Conversation(messages=(Message(role="user", content=mark),))).text
    before, _, after = text.partition(mark)
    if contract.system and contract.system in before:
        # A task's own description follows the system prompt, in the same turn
        before = before[: before.index(contract.system) + len(contract.system)]
    return before, after


def check_same_questions(runs: Mapping[str, HarnessRun]) -> None:
    """Raise `DataError` where systems were not asked the same: paired differences would compare unlike things."""
    asked = {name: {sample.item_id: sample.prompt for sample in run.samples} for name, run in runs.items()}
    for name, prompts in asked.items():
        if prompts != asked["base"]:
            differ = [item for item in prompts if prompts[item] != asked["base"].get(item)]
            raise DataError(
                "lm-eval did not ask both systems the same questions",
                where=differ[0] if differ else "lm_eval",
                found=f"{len(differ)} of {len(prompts)} questions of {name} differ from the base's",
                hint="a task whose questions are drawn at random needs a seed of its own",
            )


def _item(sample: HarnessSample, contract: Contract) -> EvalItem:
    from tunesmith.evals.run import EvalItem

    return EvalItem(
        row_id=sample.item_id,
        prompt_ids=tuple(contract.tokenizer.encode(sample.prompt).ids),
        prompt=sample.prompt,
        expected=sample.expected,
        slices={"task": sample.task},
    )


def _task_facts(run: HarnessRun) -> dict[str, JSON]:
    """Return what stands beside each task's scores."""
    by_task: dict[str, list[HarnessSample]] = {}
    for sample in run.samples:
        by_task.setdefault(sample.task, []).append(sample)
    return {
        task: {
            "kind": run.facts["output_types"].get(task),
            "n": len(samples),
            "version": run.facts["versions"].get(task),
            "hash": run.facts["hashes"].get(task),
            "n_shot": run.facts["n_shot"].get(task),
            "sample_prompt": samples[0].prompt,
        }
        for task, samples in by_task.items()
    }
