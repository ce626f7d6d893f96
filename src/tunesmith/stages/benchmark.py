"""Stage `benchmark`: base and tuned model on task files: tool calls, instructions, refusals, code, SQL, choices.

    benchmark:
      tasks:
        - {name: bfcl, kind: tools, data: tools_bfcl.jsonl, max_items: 200}
        - {name: xstest, kind: refusal, data: safety_xstest.jsonl, system: none}
        - {name: ours, kind: exact, data: questions.csv, columns: {prompt: question, answer: label}}

What lives here: asking, and names of metrics such as `bfcl.tool_call_match`, which acceptance criteria may use. What
does not: reading the files (`stages.task_files`), what a kind scores (`evals.tasks`). Writes the files of `evaluate`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import ContentPath, Spec
from tunesmith.core.stage import Context, Summary, stage
from tunesmith.errors import DataError, PlanError
from tunesmith.stages.answering import (
    BATCH_TOKENS,
    AnsweringInputs,
    DtypeChoice,
    System,
    provenance,
    resolve_dtype,
    summarise,
    together,
    write_page,
    write_records,
    write_samples,
)
from tunesmith.stages.task_files import TaskItems, prepare, read_questions, seen_in_training
from tunesmith.types import JSON, FinishReason

if TYPE_CHECKING:
    from tunesmith.chat.contract import Contract
    from tunesmith.evals.questions import Choice
    from tunesmith.evals.run import Answer, EvalItem

CHECKED_RECORDS = 20
"""Records of each file that `plan` reads: enough to tell a file of another shape before anything runs."""


class TaskSpec(Spec):
    """One file of questions."""

    name: str = Field(pattern=r"^[A-Za-z_]\w*$")
    """Name in metrics: `NAME.metric`."""
    kind: Literal["tools", "ifeval", "refusal", "code", "sql", "shell", "text", "exact", "number", "choice"]
    """How the file is read and scored (docs/evaluation.md)."""
    data: ContentPath
    """The file: JSON lines, a JSON array, CSV, TSV or Parquet, gzipped or not."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Key that the kind reads -> the name it has in the file."""
    max_items: int | None = Field(None, gt=0)
    """Ask at most this many, chosen by a hash of their ids; absent asks all."""
    system: Literal["contract", "none", "own"] = "contract"
    """System prompt of each question: the contract's, none, or the one in the question's own `messages`."""
    max_new_tokens: int | None = Field(None, gt=0)
    """Longest answer; the contract's unless given."""
    answers: int = Field(1, ge=1, le=200)
    """Answers to each question; each is a row, and those of one question are one group of items."""
    temperature: float | None = Field(None, ge=0, le=5)
    """Temperature of sampling; the contract's unless given. Several answers need one above 0."""
    pass_at: tuple[int, ...] = ()
    """Kind `code`: pass@k for these k, estimated without bias from `answers` samples (Chen et al. 2021)."""

    @model_validator(mode="after")
    def _samples_suffice(self) -> TaskSpec:
        if self.pass_at and self.kind != "code":
            raise ValueError("pass_at is for tasks of kind code")
        if any(not 1 <= k <= self.answers for k in self.pass_at):
            raise ValueError(f"pass@k needs at least k answers: answers is {self.answers}")
        if self.answers > 1 and self.kind == "choice":
            raise ValueError("a choice is scored by likelihood: more answers would be the same one")
        return self


class BenchmarkSpec(Spec):
    """Which tasks."""

    tasks: tuple[TaskSpec, ...] = Field(min_length=1)
    """The task files."""
    dtype: DtypeChoice = "auto"
    """Number format of the model; `auto` takes the fastest that the machine has instructions for."""
    batch_tokens: int = Field(BATCH_TOKENS, gt=0)
    """Bound on rows x tokens of one batch: lower it where memory is tight."""
    samples: int = Field(24, ge=0)
    """How many answers to show side by side in `samples.json`."""

    @model_validator(mode="after")
    def _names_differ(self) -> BenchmarkSpec:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"two tasks have one name: {', '.join(names)}")
        return self


def check_tasks(spec: BenchmarkSpec, inputs: Mapping[str, Artifact | None]) -> list[str]:
    """Refuse a file that is not there, or whose first records the kind cannot read, and equal answers as samples."""
    contract = inputs.get("contract")
    for task in spec.tasks:
        if task.answers > 1 and contract is not None and _temperature(task, contract) == 0:
            raise PlanError(
                f"the task {task.name!r} wants {task.answers} answers, and at temperature 0 they are all the same",
                where=f"benchmark.tasks.{task.name}.temperature",
                expected="above 0",
                hint="set the task's temperature, such as 0.8",
            )
        path = Path(task.data)
        try:
            read_questions(path, task.kind, columns=task.columns, first=CHECKED_RECORDS)
        except DataError as error:
            raise PlanError(
                f"the task {task.name!r} cannot be asked: {error.what}",
                where=error.where,
                expected=error.expected,
                found=error.found,
                hint=error.hint or f"docs/evaluation.md shows what a record of kind {task.kind!r} holds",
            ) from error
    return []


def _temperature(task: TaskSpec, contract: Artifact) -> float:
    from tunesmith.chat.contract import load_contract

    return load_contract(contract.path).decoding.temperature if task.temperature is None else task.temperature


@stage(name="benchmark", version=2, produces="evaluation", check=check_tasks)
def benchmark(inputs: AnsweringInputs, spec: BenchmarkSpec, ctx: Context) -> Summary:
    """Measure base and tuned model on every task; return every figure of `results.json`."""
    from tunesmith.chat.contract import load_contract
    from tunesmith.evals.results import figures, pick_samples, prompt_digest
    from tunesmith.evals.run import answer_record
    from tunesmith.evals.tasks import task_metric

    contract = load_contract(inputs.contract.path)
    asked = [_ask(task, contract) for task in spec.tasks]
    items = [item for task in asked for item in task.items]
    excluded = {name: reason for task in asked for name, reason in task.excluded.items()}
    seen = _seen(asked, inputs.splits)
    dtype, dtype_reason = resolve_dtype(spec.dtype, ctx.device)
    ctx.log("benchmark_start", {"items": len(items), "excluded": len(excluded), "seen": len(seen), "dtype": dtype})
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
    results = figures(items, answers, better=lambda metric: task_metric(metric.partition(".")[2]).better)
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
        "tasks": {task.spec.name: task.facts(answers, seen=seen) for task in asked},
        "excluded": excluded,
        "seen_in_training": seen,
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
    return {**summarise(results), "excluded": len(excluded), "seen_in_training": len(seen)}


def _ask(task: TaskSpec, contract: Contract) -> Asked:
    found = prepare(
        task.name,
        Path(task.data),
        task.kind,
        contract,
        columns=task.columns,
        most=task.max_items,
        system=task.system,
    )
    return Asked(task, found)


def _seen(asked: Sequence[Asked], splits: Artifact) -> dict[str, str]:
    """Return the questions that stand in training rows, by item, with the row."""
    from tunesmith.data.write import read_rows

    texts = {
        item.row_id: question.conversation.messages[-1].content or ""
        for task in asked
        for item, question in zip(task.items, task.questions, strict=True)
    }
    return seen_in_training(texts, list(read_rows(splits.path / "train.parquet")))


def _right(answer: Answer) -> bool:
    """Whether an answer is right by its task's first metric."""
    from tunesmith.evals.tasks import task_metric

    if not answer.scores:
        return False
    name, score = next(iter(answer.scores.items()))
    return score == (1 if task_metric(name.partition(".")[2]).better == "higher" else 0)


def _samples_of(item: EvalItem, answers: int) -> list[EvalItem]:
    """Return an item once for each answer to it; several are one group, since they share the question."""
    from dataclasses import replace

    if answers == 1:
        return [item]
    cluster = item.cluster or item.row_id
    return [replace(item, row_id=f"{item.row_id}#{number}", cluster=cluster) for number in range(1, answers + 1)]


class Asked:
    """One task's questions, rendered, and how they are answered."""

    def __init__(self, spec: TaskSpec, found: TaskItems) -> None:
        self.spec, self.excluded, self.num_questions = spec, found.excluded, len(found.items)
        self.questions = tuple(question for question in found.questions for _ in range(spec.answers))
        self.items = tuple(one for item in found.items for one in _samples_of(item, spec.answers))

    def facts(self, answers: Sequence[Answer], *, seen: Mapping[str, str]) -> dict[str, JSON]:
        """Return what stands beside the task's scores."""
        ids = {item.row_id for item in self.items}
        stops: dict[str, Counter[str]] = {}
        for answer in answers:
            if answer.row_id in ids and answer.finish_reason:
                stops.setdefault(answer.system, Counter())[answer.finish_reason.value] += 1
        return {
            "kind": self.spec.kind,
            "n": self.num_questions,
            "answers": self.spec.answers,
            "excluded": len(self.excluded),
            "seen_in_training": len(ids & set(seen)),
            "system": self.spec.system,
            "stop_reasons": {name: dict(counts) for name, counts in stops.items()},
            "sample_prompt": self.items[0].prompt,
        }

    def answer(self, system: System, contract: Contract, *, batch_tokens: int) -> tuple[list[Answer], dict[str, JSON]]:
        """Return one system's scored answers and what they took."""
        from tunesmith.evals.questions import Choice

        if self.spec.kind == "choice":
            choices = [question for question in self.questions if isinstance(question, Choice)]
            return self._choose(choices, system, contract)
        return self._generate(system, contract, batch_tokens=batch_tokens)

    def _generate(
        self, system: System, contract: Contract, *, batch_tokens: int
    ) -> tuple[list[Answer], dict[str, JSON]]:
        from tunesmith.evals.questions import Question, Reply
        from tunesmith.evals.run import Answer

        draws = [
            system.answer(
                [item.prompt_ids for item in self.items[:: self.spec.answers]],
                batch_tokens=batch_tokens,
                max_new_tokens=self.spec.max_new_tokens,
                temperature=self.spec.temperature,
                draw=draw,
            )
            for draw in range(self.spec.answers)
        ]
        # One question's answers stand together, as its items do
        completions = [one for drawn in zip(*(draw.completions for draw in draws), strict=True) for one in drawn]
        answers = []
        for question, item, completion in zip(self.questions, self.items, completions, strict=True):
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
        return self._with_pass_at_k(answers), together(draws).to_json()

    def _with_pass_at_k(self, answers: list[Answer]) -> list[Answer]:
        """Add pass@k of each question to its first answer; a question whose tests could not be run has none."""
        from dataclasses import replace

        from tunesmith.evals.code import pass_at_k

        name, per = f"{self.spec.name}.pass_at_1", self.spec.answers
        for begin in range(0, len(answers), per) if self.spec.pass_at else ():
            passed = [answer.scores[name] for answer in answers[begin : begin + per] if name in answer.scores]
            found = {
                f"{self.spec.name}.pass_at_{k}": pass_at_k(len(passed), int(sum(passed)), k=k)
                for k in self.spec.pass_at
                if 1 < k <= len(passed)
            }
            answers[begin] = replace(answers[begin], scores={**answers[begin].scores, **found})
        return answers

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
