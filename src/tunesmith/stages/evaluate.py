"""Stage `evaluate`: base and tuned model on the held-out rows, under the contract's own template and decoding.

What lives here: wiring of rows, contract, models and scores. What does not: scoring and statistics (`evals`),
generation (`model.generate`). Writes `items.parquet`, `results.json`, `samples.json`, `report.html` and
`lm_eval/` (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context, Summary, stage
from tunesmith.errors import ContractError, DataError
from tunesmith.stages.answering import (
    BATCH_TOKENS,
    AnsweringInputs,
    Constrain,
    DtypeChoice,
    System,
    provenance,
    resolve_dtype,
    summarise,
    write_lm_eval,
    write_page,
    write_records,
    write_samples,
)
from tunesmith.stages.endpoint import Endpoint, ask_endpoint
from tunesmith.types import JSON, Completion, FinishReason, Row, sha256_hex

if TYPE_CHECKING:
    from tunesmith.chat.contract import Contract
    from tunesmith.evals.questions import Question, Reply
    from tunesmith.evals.run import Answer, EvalItem


class EvaluateSpec(Spec):
    """How to evaluate."""

    side: Literal["test", "val"] = "test"
    """Side of the split whose rows are asked."""
    max_items: int | None = Field(None, gt=0)
    """Ask at most this many rows, chosen by a hash of their ids so that nobody chose them; absent asks all."""
    slices: tuple[str, ...] = ("length",)
    """Slice dimensions: `length`, `source`, `turns`, `language`, a label of the rows, or a field of the answer."""
    scorers: tuple[Literal["shell", "sql", "text", "tools"], ...] = ()
    """Further ways to score: shell commands by parts, SQL by execution, overlap of words (ROUGE, chrF, BLEU), tools."""
    dtype: DtypeChoice = "auto"
    """Number format of the model; `auto` takes the fastest that the machine has instructions for."""
    batch_tokens: int = Field(BATCH_TOKENS, gt=0)
    """Bound on rows x tokens of one batch: lower it where memory is tight."""
    constrain: Constrain = "no"
    """`schema` lets only tokens come that keep an answer inside the output schema; answers are checked all the same."""
    endpoints: tuple[Endpoint, ...] = ()
    """Further systems at OpenAI-compatible URLs, asked the same rows: the bundle in production, or another model."""
    samples: int = Field(24, ge=0)
    """How many answers to show side by side in `samples.json`, spread over fixed, broken, right and wrong ones."""


@stage(name="evaluate", version=3, produces="evaluation")
def evaluate(inputs: AnsweringInputs, spec: EvaluateSpec, ctx: Context) -> Summary:
    """Measure base and tuned model on one side of the split; return every figure of `results.json`."""
    from tunesmith.chat.contract import load_contract
    from tunesmith.data.write import read_rows
    from tunesmith.evals.failures import group_failures
    from tunesmith.evals.labels import label_figures
    from tunesmith.evals.results import figures, pick_samples, prompt_digest
    from tunesmith.evals.run import answer_record

    contract = load_contract(inputs.contract.path)
    rows = [row for row in read_rows(inputs.splits.path / f"{spec.side}.parquet") if row.desirable is not False]
    rows = choose_rows(rows, most=spec.max_items)
    if not rows:
        hint = "give the side a larger share in the split"
        raise DataError("there is nothing to evaluate on", where=f"splits, side {spec.side}", hint=hint)
    items, excluded = build_items(rows, contract, dimensions=spec.slices)
    dtype, dtype_reason = resolve_dtype(spec.dtype, ctx.device)
    started = {"items": len(items), "excluded": len(excluded), "dtype": dtype, "dtype_reason": dtype_reason}
    ctx.log("evaluate_start", started)
    further = further_questions(items, rows, scorers=spec.scorers)
    answers: list[Answer] = []
    timing: dict[str, dict[str, JSON]] = {}
    unanswered: dict[str, list[str]] = {}
    for endpoint in spec.endpoints:
        found, unanswered[endpoint.name] = ask_elsewhere(endpoint, items, rows, contract, ctx, further=further)
        answers += found
    for name, adapter in (("base", None), ("tuned", inputs.adapter)):
        if name == "tuned" and adapter is None:
            continue
        system = System(
            name,
            base=inputs.base,
            adapter=adapter,
            contract=contract,
            dtype=dtype,
            ctx=ctx,
            constrain=spec.constrain,
        )
        answered = system.answer([item.prompt_ids for item in items], batch_tokens=spec.batch_tokens)
        timing[name] = answered.to_json()
        answers += score_all(items, name, answered.completions, contract, further=further)
        ctx.log("evaluate_system", {"system": name, **timing[name]})
    results = figures(items, answers, better=direction)
    for name, labelled in label_figures(items, answers).items():
        results[name] |= labelled
        results["better"] |= dict.fromkeys(labelled, "higher")
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
        "side": spec.side,
        "endpoints": {
            one.name: {"url": one.url, "model": one.model, "snapshot": one.snapshot, "unanswered": unanswered[one.name]}
            for one in spec.endpoints
        },
        "constrained": spec.constrain,
        "excluded": excluded,
        "sample_prompt": items[0].prompt,
        "prompts_sha256": prompt_digest(item.prompt_ids for item in items),
    }
    results["failures"] = {
        name: [group.to_json() for group in groups] for name, groups in group_failures(answers).items()
    }
    by_id = {item.row_id: item for item in items}
    records = [answer_record(by_id[answer.row_id], answer) for answer in answers]
    write_records(ctx.out, records, results)
    write_lm_eval(ctx.out, records, results, task="held_out", contract=contract)
    judge = "exact_match" if "exact_match" in results["base"] else "schema_adherence"
    samples = pick_samples(items, answers, right=lambda answer: answer.scores.get(judge) == 1, most=spec.samples)
    write_samples(ctx.out, samples, judge=judge)
    write_page(ctx.out, f"Evaluation on the {spec.side} rows", results, samples)
    return {**summarise(results), "excluded": len(excluded)}


def ask_elsewhere(
    endpoint: Endpoint,
    items: Sequence[EvalItem],
    rows: Sequence[Row],
    contract: Contract,
    ctx: Context,
    *,
    further: Mapping[str, Sequence[Question]],
) -> tuple[list[Answer], list[str]]:
    """Return an endpoint's scored answers, and the ids of the rows that it did not answer."""
    from tunesmith.evals.questions import Reply

    by_id = {row.id: row for row in rows}
    said = ask_endpoint(endpoint, [by_id[item.row_id].conversation.prompt for item in items], contract, ctx)
    pairs = [(item, answer) for item, answer in zip(items, said, strict=True) if answer is not None]
    answers = score_all(
        [item for item, _ in pairs],
        endpoint.name,
        [answer.completion for _, answer in pairs],
        contract,
        further=further,
        replies=[
            Reply(text=a.text, calls=a.calls, ended=a.completion.finish_reason is FinishReason.STOP) for _, a in pairs
        ],
    )
    missing = [item.row_id for item, answer in zip(items, said, strict=True) if answer is None]
    ctx.log("evaluate_endpoint", {"system": endpoint.name, "answered": len(pairs), "unanswered": len(missing)})
    return answers, missing


def choose_rows(rows: Sequence[Row], *, most: int | None) -> list[Row]:
    """Return the rows to ask: all, or the `most` with the smallest hash of their id, in their own order."""
    if most is None or len(rows) <= most:
        return list(rows)
    chosen = set(sorted(sha256_hex(row.id) for row in rows)[:most])
    return [row for row in rows if sha256_hex(row.id) in chosen]


def build_items(
    rows: Sequence[Row], contract: Contract, *, dimensions: Sequence[str]
) -> tuple[list[EvalItem], dict[str, str]]:
    """Render each row's prompt and note its slices and group; also return row id -> reason for rows it refuses.

    Raises `DataError` where the contract refuses every row.
    """
    from tunesmith.evals.run import EvalItem
    from tunesmith.evals.slices import slice_values

    rendered, asked, excluded = [], [], {}
    for row in rows:
        try:
            rendered.append(contract.render_prompt(row.conversation.prompt))
            asked.append(row)
        except ContractError as error:
            excluded[row.id] = error.what
    if not asked:
        reason = next(iter(excluded.values()))
        raise DataError("the contract refuses every held-out row", where="evaluate", found=reason)
    slices = slice_values(asked, lengths=[len(prompt.ids) for prompt in rendered], dimensions=dimensions)
    items = [
        EvalItem(
            row_id=row.id,
            prompt_ids=tuple(prompt.ids),
            prompt=prompt.text,
            expected=row.conversation.answer,
            slices=values,
            cluster=row.group,
        )
        for row, prompt, values in zip(asked, rendered, slices, strict=True)
    ]
    return items, excluded


def further_questions(
    items: Sequence[EvalItem], rows: Sequence[Row], *, scorers: Sequence[str]
) -> dict[str, list[Question]]:
    """Return row id -> what else scores its answer. Raises `DataError` for a row that a scorer cannot read."""
    from tunesmith.evals.tasks import KINDS

    by_id = {row.id: row for row in rows}
    out: dict[str, list[Question]] = {}
    for item in items:
        row = by_id[item.row_id]
        record = {"id": row.id, **row.conversation.to_json()}
        # A conversation gives one question for each of its turns: the held-out answer is the last
        out[row.id] = [KINDS[name].read(record, f"row {row.id}")[-1] for name in scorers]
    return out


def direction(metric: str) -> str:
    """Return which way a metric is better, be it of `evals.run` or of a further scorer."""
    from tunesmith.evals.run import better
    from tunesmith.evals.tasks import TASK_METRICS

    return TASK_METRICS[metric].better if metric in TASK_METRICS else better(metric)


def score_all(
    items: Sequence[EvalItem],
    system: str,
    completions: Sequence[Completion],
    contract: Contract,
    *,
    further: Mapping[str, Sequence[Question]],
    replies: Sequence[Reply] | None = None,
) -> list[Answer]:
    """Decode and score one system's completions; `replies` are what a server made of them, where one did."""
    from tunesmith.evals.run import score_answer

    def adheres(text: str) -> bool:
        return bool(contract.check_answer(text).adheres)

    check = adheres if contract.output_schema is not None else None
    answers = []
    for place, (item, completion) in enumerate(zip(items, completions, strict=True)):
        output = contract.decode(completion.ids) if replies is None else replies[place].text
        answer = score_answer(item, system, completion, output, check_answer=check)
        questions = further.get(item.row_id, ())
        if questions:
            reply = replies[place] if replies is not None else _reply(completion, contract)
            scores = dict(answer.scores)
            for question in questions:
                scores |= question.score(reply)
            answer = replace(answer, scores=scores)
        answers.append(answer)
    return answers


def _reply(completion: Completion, contract: Contract) -> Reply:
    from tunesmith.evals.questions import Reply

    ended = completion.finish_reason is FinishReason.STOP
    parsed = contract.parse((*completion.ids, contract.stop_ids[0]) if ended else completion.ids)
    return Reply(text=parsed.content, calls=parsed.tool_calls, ended=ended)
