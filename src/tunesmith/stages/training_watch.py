"""What a run measures of itself besides its loss: the task's metric by answering, and what it costs general ability.

    train:
      task_metric: {metric: exact_match, max_rows: 64}
      metric_for_best_model: task_metric
      general_watch: {max_rise: 0.1}

What lives here: settings, checks, and the functions that measure, which the engine is handed. What does not: when they
are due and what follows (`train.validation`), scores (`evals.run`), answering (`model.generate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import Spec
from tunesmith.errors import PlanError, TrainingError
from tunesmith.types import JSON, sha256_hex

if TYPE_CHECKING:
    import torch

    from tunesmith.chat.contract import Contract
    from tunesmith.evals.run import EvalItem
    from tunesmith.train.examples import ExampleTable

GENERAL_LOSS = "general_loss"
_NEEDS_SCHEMA = ("schema_adherence",)


class TaskMetric(Spec):
    """The task's own metric while the model trains."""

    metric: Literal["exact_match", "field_accuracy", "schema_adherence", "json_parse", "token_f1"] = "exact_match"
    """Score of the answers, as `evaluate` counts it; higher is better."""
    evals_per_epoch: float = Field(1.0, gt=0)
    """Measurements in each epoch, besides one before the first step and one after the last; each falls on a
    validation."""
    max_rows: int = Field(64, ge=1)
    """Validation rows that are answered, chosen by a hash of their ids so that nobody chose them."""


class GeneralWatch(Spec):
    """The loss on bundled passages of general text at each validation."""

    max_rise: float = Field(0.1, gt=0)
    """Warn where the loss of the weights that are kept is this many nats a token above the base's."""


def check_watches(
    task_metric: TaskMetric | None,
    *,
    best_by: Literal["val_loss", "task_metric"],
    contract: Artifact | None,
    num_val: int,
) -> None:
    """Raise `PlanError` for a metric that cannot be measured, or that decides and is not measured."""
    if best_by == "task_metric" and task_metric is None:
        raise PlanError(
            "the task's metric decides which weights are kept, and is not measured",
            where="train.metric_for_best_model",
            hint="set train.task_metric, such as {metric: exact_match}",
        )
    if task_metric is None:
        return
    if num_val == 0:
        raise PlanError(
            "the task's metric needs validation rows, and there are none",
            where="train.task_metric",
            hint="give the split stage a share for val, or leave the key out",
        )
    if contract is None or task_metric.metric not in _NEEDS_SCHEMA:
        return
    from tunesmith.chat.contract import load_contract

    if load_contract(contract.path).output_schema is None:
        raise PlanError(
            f"{task_metric.metric} needs an output schema, and the contract has none",
            where="train.task_metric.metric",
            hint="set contract.output_schema, or take exact_match",
        )


def general_table(model_dir: Path) -> ExampleTable:
    """Return the bundled passages as examples, under the base's tokenizer."""
    from tunesmith.chat.tokenizer import Tokenizer
    from tunesmith.evals.general import general_passages, passage_pairs
    from tunesmith.train.examples import table_of
    from tunesmith.types import Example

    tokenizer = Tokenizer.load(model_dir)
    passages = general_passages()
    pairs = passage_pairs(passages, lambda text: tokenizer.encode(text).ids)
    return table_of(
        Example(row_id=passage.id, ids=(*given, *scored), weights=(0.0,) * len(given) + (1.0,) * len(scored))
        for passage, (given, scored) in zip(passages, pairs, strict=True)
    )


def metric_of(spec: TaskMetric, model: torch.nn.Module, contract: Contract, val: ExampleTable) -> Callable[[], float]:
    """Return a function that answers some validation rows with `model` as it is then, and scores the answers.

    It draws no random numbers from the run. It raises `TrainingError` where the metric applies to none of the rows.
    """
    from tunesmith.evals.run import score_answer

    items = items_of(val, contract, most=spec.max_rows)
    check = (lambda text: bool(contract.check_answer(text).adheres)) if contract.output_schema is not None else None

    def measure() -> float:
        completions = answers_of(model, contract, [item.prompt_ids for item in items])
        scores = [
            score_answer(item, "tuned", completion, contract.decode(completion.ids), check_answer=check).scores
            for item, completion in zip(items, completions, strict=True)
        ]
        values = [found[spec.metric] for found in scores if spec.metric in found]
        if not values:
            raise TrainingError(
                f"{spec.metric} applies to none of the validation rows",
                where="train.task_metric.metric",
                expected=f"one of {', '.join(sorted({name for found in scores for name in found}))}",
            )
        return sum(values) / len(values)

    return measure


def items_of(val: ExampleTable, contract: Contract, *, most: int) -> list[EvalItem]:
    """Return the questions of validation examples: what precedes the last answer, and that answer up to its stop.

    Training sees the very ids that the server sends, so the ids before an answer are its prompt.
    """
    import numpy as np

    from tunesmith.evals.run import EvalItem

    chosen = sorted(range(len(val)), key=lambda index: sha256_hex(val.row_ids[index]))[:most]
    items = []
    for index in sorted(chosen):
        ids, weights = val.example(index)
        supervised = np.flatnonzero(weights)
        begin = int(supervised[np.flatnonzero(np.diff(supervised, prepend=-2) > 1)[-1]])
        answer = ids[begin : int(supervised[-1]) + 1].tolist()
        stop = next((at for at, token in enumerate(answer) if token in contract.stop_ids), len(answer))
        prompt = tuple(ids[:begin].tolist())
        expected = contract.decode(answer[:stop])
        items.append(EvalItem(row_id=val.row_ids[index], prompt_ids=prompt, prompt="", expected=expected))
    return items


def answers_of(model: torch.nn.Module, contract: Contract, prompts: Sequence[Sequence[int]]) -> list[Any]:
    """Answer prompts with the model as it is now, under the contract's decoding."""
    import torch

    from tunesmith.model.generate import generate
    from tunesmith.train.passes import base_of

    decoding = contract.decoding
    base: Any = base_of(model)
    base.set_attn_implementation("sdpa")  # A pass of training sets its own again.
    with torch.random.fork_rng():
        return generate(
            model,
            prompts,
            stop_ids=contract.stop_ids,
            max_new_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=decoding.seed,
        )


def general_warnings(watch: GeneralWatch | None, first: Mapping[str, float], kept: Mapping[str, JSON]) -> list[str]:
    """Return what to say of general ability after a run: the loss of the base against that of the kept weights."""
    if watch is None or GENERAL_LOSS not in first or GENERAL_LOSS not in kept:
        return []
    rise = kept[GENERAL_LOSS] - first[GENERAL_LOSS]
    if rise <= watch.max_rise:
        return []
    return [
        f"the loss on general text rose by {rise:.3f} nats a token, from {first[GENERAL_LOSS]:.3f}, more than "
        f"general_watch.max_rise {watch.max_rise:g}: mix general rows in (train.mix), train shorter or at a lower rate"
    ]
