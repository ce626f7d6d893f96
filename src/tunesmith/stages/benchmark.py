"""Stage `benchmark`: base and tuned model on task files: tool calls, instructions, refusals, code, SQL, choices.

    benchmark:
      tasks:
        - {name: bfcl, kind: tools, data: tools_bfcl.jsonl, max_items: 200}
        - {name: xstest, kind: refusal, data: safety_xstest.jsonl, system: none}

What lives here: reading the files, asking, and names of metrics such as `bfcl.tool_call_match`, which acceptance
criteria may use. What does not: what a kind reads and how it scores (`evals.tasks`). Writes the files of `evaluate`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import ContentPath, Spec
from tunesmith.core.stage import Context, Inputs, Summary, role, stage
from tunesmith.errors import ContractError, DataError
from tunesmith.stages.answering import (
    DtypeChoice,
    System,
    provenance,
    resolve_dtype,
    summarise,
    write_page,
    write_records,
    write_samples,
)
from tunesmith.types import JSON, Conversation, FinishReason, sha256_hex

if TYPE_CHECKING:
    from tunesmith.chat.contract import Contract
    from tunesmith.chat.render import Rendered
    from tunesmith.evals.run import Answer, EvalItem
    from tunesmith.evals.tasks import Choice, Question


class TaskSpec(Spec):
    """One file of questions."""

    name: str = Field(pattern=r"^[A-Za-z_]\w*$")
    """Name in metrics: `NAME.metric`."""
    kind: Literal["tools", "ifeval", "refusal", "code", "sql", "text", "exact", "choice"]
    """How the file is read and scored (docs/evaluation.md)."""
    data: ContentPath
    """JSON lines."""
    max_items: int | None = Field(None, gt=0)
    """Ask at most this many, chosen by a hash of their ids; absent asks all."""
    system: Literal["contract", "none"] = "contract"
    """Whether the contract's system prompt stands before each question. General abilities are asked without it."""
    max_new_tokens: int | None = Field(None, gt=0)
    """Longest answer; the contract's unless given."""


class BenchmarkInputs(Inputs):
    """What a benchmark needs. Without an adapter only the base model is measured."""

    splits: Artifact = role("splits", table="split")
    base: Artifact = role("base", table="fetch")
    contract: Artifact = role("contract", table="contract")
    adapter: Artifact | None = role("adapter", table="train", optional=True)


class BenchmarkSpec(Spec):
    """Which tasks."""

    tasks: tuple[TaskSpec, ...] = Field(min_length=1)
    """The task files."""
    dtype: DtypeChoice = "auto"
    """Number format of the model; `auto` takes the fastest that the machine has instructions for."""
    batch_tokens: int = Field(24_576, gt=0)
    """Bound on rows x tokens of one batch: lower it where memory is tight."""
    samples: int = Field(24, ge=0)
    """How many answers to show side by side in `samples.json`."""

    @model_validator(mode="after")
    def _names_differ(self) -> BenchmarkSpec:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"two tasks have one name: {', '.join(names)}")
        return self


@stage(name="benchmark", version=1, produces="evaluation")
def benchmark(inputs: BenchmarkInputs, spec: BenchmarkSpec, ctx: Context) -> Summary:
    """Measure base and tuned model on every task; return every figure of `results.json`."""
    from tunesmith.chat.contract import load_contract
    from tunesmith.evals.results import figures, pick_samples, prompt_digest
    from tunesmith.evals.run import answer_record
    from tunesmith.evals.tasks import TASK_METRICS

    contract = load_contract(inputs.contract.path)
    asked = [prepare(task, contract) for task in spec.tasks]
    items = [item for task in asked for item in task.items]
    excluded = {name: reason for task in asked for name, reason in task.excluded.items()}
    dtype, dtype_reason = resolve_dtype(spec.dtype, ctx.device)
    ctx.log("benchmark_start", {"items": len(items), "excluded": len(excluded), "dtype": dtype})
    answers: list[Answer] = []
    timing: dict[str, dict[str, JSON]] = {}
    for name, adapter in (("base", None), ("tuned", inputs.adapter)):
        if name == "tuned" and adapter is None:
            continue
        system = System(name, base=inputs.base, adapter=adapter, contract=contract, dtype=dtype, ctx=ctx)
        timing[name] = {}
        for task in asked:
            found, took = task.answer(system, contract, batch_tokens=spec.batch_tokens)
            answers += found
            timing[name][task.spec.name] = took
            ctx.log("benchmark_task", {"system": name, "task": task.spec.name, **took})
    results = figures(items, answers, better=lambda metric: TASK_METRICS[metric.partition(".")[2]].better)
    for name, took in timing.items():
        results["timing"][name]["tasks"] = took
        results["timing"][name]["seconds"] = sum(part["seconds"] for part in took.values())
    results |= provenance(
        contract,
        splits=inputs.splits,
        base=inputs.base,
        adapter=inputs.adapter,
        dtype=dtype,
        dtype_reason=dtype_reason,
    )
    results |= {
        "tasks": {task.spec.name: {"kind": task.spec.kind, "n": len(task.items)} for task in asked},
        "excluded": excluded,
        "sample_prompt": items[0].prompt,
        "prompts_sha256": prompt_digest(item.prompt_ids for item in items),
    }
    by_id = {item.row_id: item for item in items}
    write_records(ctx.out, [answer_record(by_id[answer.row_id], answer) for answer in answers], results)
    generated = [answer for answer in answers if answer.finish_reason]
    shown_ids = {answer.row_id for answer in generated}
    samples = pick_samples(
        [item for item in items if item.row_id in shown_ids], generated, right=_right, most=spec.samples
    )
    write_samples(ctx.out, samples, judge="the first metric of the task")
    write_page(ctx.out, "Tasks", results, samples)
    return {**summarise(results), "excluded": len(excluded), "tasks": results["tasks"]}


def _right(answer: Answer) -> bool:
    """Whether an answer is right by its task's first metric."""
    from tunesmith.evals.tasks import TASK_METRICS

    if not answer.scores:
        return False
    name, score = next(iter(answer.scores.items()))
    return score == (1 if TASK_METRICS[name.partition(".")[2]].better == "higher" else 0)


class Asked:
    """One task's questions, rendered."""

    def __init__(
        self,
        spec: TaskSpec,
        *,
        questions: Sequence[Question | Choice],
        items: Sequence[EvalItem],
        excluded: Mapping[str, str],
    ) -> None:
        self.spec, self.questions, self.items, self.excluded = spec, questions, items, excluded

    def answer(self, system: System, contract: Contract, *, batch_tokens: int) -> tuple[list[Answer], dict[str, JSON]]:
        """Return one system's scored answers and what they took."""
        from tunesmith.evals.tasks import Choice

        if self.spec.kind == "choice":
            choices = [question for question in self.questions if isinstance(question, Choice)]
            return self._choose(choices, system, contract)
        return self._generate(system, contract, batch_tokens=batch_tokens)

    def _generate(
        self, system: System, contract: Contract, *, batch_tokens: int
    ) -> tuple[list[Answer], dict[str, JSON]]:
        from tunesmith.evals.run import Answer
        from tunesmith.evals.tasks import Question, Reply

        answered = system.answer(
            [item.prompt_ids for item in self.items],
            batch_tokens=batch_tokens,
            max_new_tokens=self.spec.max_new_tokens,
        )
        answers = []
        for question, item, completion in zip(self.questions, self.items, answered.completions, strict=True):
            assert isinstance(question, Question)
            ended = completion.finish_reason is FinishReason.STOP
            parsed = contract.parse((*completion.ids, contract.stop_ids[0]) if ended else completion.ids)
            scores = question.score(Reply(text=parsed.content, calls=parsed.tool_calls, ended=ended))
            answers.append(
                Answer(
                    row_id=item.row_id,
                    system=system.name,
                    output=contract.decode(completion.ids),
                    finish_reason=completion.finish_reason,
                    prompt_tokens=completion.prompt_tokens,
                    output_tokens=len(completion.ids),
                    seconds=completion.seconds,
                    scores={f"{self.spec.name}.{metric}": score for metric, score in scores.items()},
                )
            )
        return answers, answered.to_json()

    def _choose(
        self, choices: Sequence[Choice], system: System, contract: Contract
    ) -> tuple[list[Answer], dict[str, JSON]]:
        import time

        from tunesmith.evals.attacks import likelihood_answer

        pairs = [
            (item.prompt_ids, tuple(contract.tokenizer.encode(ending).ids))
            for item, choice in zip(self.items, choices, strict=True)
            for ending in choice.endings
        ]
        started = time.perf_counter()
        totals = [likelihood.total for likelihood in system.likelihoods(pairs)]
        seconds = time.perf_counter() - started
        answers, place = [], 0
        for item, choice in zip(self.items, choices, strict=True):
            scores = choice.score(tuple(totals[place : place + len(choice.endings)]))
            place += len(choice.endings)
            named = {f"{self.spec.name}.{metric}": score for metric, score in scores.items()}
            answers.append(likelihood_answer(item.row_id, system.name, tokens=len(item.prompt_ids), scores=named))
        return answers, {"seconds": round(seconds, 3), "load_seconds": round(system.load_seconds, 3)}


def prepare(task: TaskSpec, contract: Contract) -> Asked:
    """Read and render one task. Raises `DataError` for a record of another shape, or where every one is refused."""
    from tunesmith.evals.run import EvalItem
    from tunesmith.evals.tasks import KINDS, read_choice

    questions: list[Question | Choice] = []
    for where, record in read_records(Path(task.data)):
        questions += [read_choice(record, where)] if task.kind == "choice" else KINDS[task.kind].read(record, where)
    if task.max_items is not None and len(questions) > task.max_items:
        kept = set(sorted(sha256_hex(question.id) for question in questions)[: task.max_items])
        questions = [question for question in questions if sha256_hex(question.id) in kept]
    asking = contract if task.system == "contract" else without_system(contract)
    asked, items = [], []
    excluded: dict[str, str] = {}
    for question in questions:
        name = f"{task.name}/{question.id}"
        try:
            prompt = render(question.conversation, asking)
        except ContractError as error:
            excluded[name] = error.what
            continue
        asked.append(question)
        items.append(
            EvalItem(
                row_id=name,
                prompt_ids=tuple(prompt.ids),
                prompt=prompt.text,
                expected=getattr(question, "expected", None),
                slices={f"{task.name}.{key}": value for key, value in question.slices.items()},
                cluster=getattr(question, "cluster", None),
            )
        )
    if not items:
        reason = next(iter(excluded.values()), "the file is empty")
        raise DataError("no question of a task can be asked", where=f"benchmark.tasks.{task.name}", found=reason)
    return Asked(task, questions=asked, items=items, excluded=excluded)


def render(conversation: Conversation, contract: Contract) -> Rendered:
    """Render a question; a system message of its own is dropped, since the contract decides about it."""
    own = tuple(message for message in conversation.messages if message.role not in ("system", "developer"))
    return contract.render_prompt(replace(conversation, messages=own))


def without_system(contract: Contract) -> Contract:
    """Return the contract's template and tools without its system prompt, for questions that are not its task."""
    from tunesmith.chat.parts import SystemRule

    return replace(contract, content={**contract.content, "system": {"rule": SystemRule.NONE.value, "text": None}})


def read_records(path: Path) -> list[tuple[str, Mapping[str, JSON]]]:
    """Return (place, record) of a JSON-lines file. Raises `DataError` with the line for anything else."""
    out: list[tuple[str, Mapping[str, JSON]]] = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("cannot read a task file", where=str(path), found=str(error)) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError("a line of a task file is not JSON", where=where, found=str(error)) from error
        if not isinstance(record, dict):
            raise DataError("a line of a task file is not an object", where=where, found=type(record).__name__)
        out.append((where, record))
    return out
