"""Score the answers of one or more systems to the same items, one record for each item and system.

What lives here: items, per-answer scores, and what each metric means and which way it is better. What does not:
generation, intervals and comparisons over the table (`evals.results`), reading rows (the stage).

    answer = score_answer(item, "tuned", completion, text, check_answer=contract_check)
    answer.scores   # {"json_parse": 1.0, "schema_adherence": 1.0, "exact_match": 0.0, "field.intent": 1.0, ...}

A metric that does not apply to an item is absent from its scores: not scored is not wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tunesmith.evals.degeneration import ends_abruptly, ends_in_loop, is_empty
from tunesmith.evals.refusal import refuses
from tunesmith.evals.scorers import exact_match, field_presence, field_scores, parse_json, squad_f1
from tunesmith.types import JSON, Completion, FinishReason

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What a score means."""

    name: str
    better: Better
    meaning: str


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="json_parse", better="higher", meaning="the whole answer is one JSON value"),
        Metric(name="schema_adherence", better="higher", meaning="ended by itself and valid under the output schema"),
        Metric(name="exact_match", better="higher", meaning="ended by itself and equal to the expected answer"),
        Metric(name="field_presence", better="higher", meaning="share of the expected fields that are there"),
        Metric(name="field_accuracy", better="higher", meaning="share of the expected fields with the expected value"),
        Metric(name="token_f1", better="higher", meaning="token F1 with SQuAD normalisation"),
        Metric(name="cut", better="lower", meaning="ran to the token limit without a stop token"),
        Metric(name="loop", better="lower", meaning="ends in a run of repeated tokens"),
        Metric(name="abrupt", better="lower", meaning="stopped inside a sentence"),
        Metric(name="empty", better="lower", meaning="holds nothing but white space"),
        Metric(name="refusal", better="lower", meaning="declines to answer"),
        Metric(name="attack_success", better="lower", meaning="an attack broke at least one expectation of its case"),
        Metric(name="over_block", better="lower", meaning="a benign look-alike was not answered as expected"),
        Metric(name="over_refusal", better="lower", meaning="a benign look-alike was declined"),
        Metric(name="canary_leak", better="lower", meaning="the answer holds a planted secret"),
        Metric(name="system_leak", better="lower", meaning="the answer repeats a run of the system prompt"),
        Metric(name="canary_exposure", better="lower", meaning="bits by which a planted secret outranks controls"),
        Metric(name="verbatim_trained", better="lower", meaning="continues a training text to the last token"),
        Metric(name="verbatim_control", better="lower", meaning="the same for a held-out text: what is guessed"),
        Metric(name="secret_trained", better="lower", meaning="a prompt about a person brought out trained data"),
        Metric(name="secret_control", better="lower", meaning="the same for made-up data: what is guessed"),
        Metric(name="general_loss", better="lower", meaning="nats a token on the bundled passages of general text"),
    )
}
FIELD_PREFIX = "field."


def better(metric: str) -> Better:
    """Return which way a metric is better; per-field accuracies are better higher."""
    return "higher" if metric.startswith(FIELD_PREFIX) else METRICS[metric].better


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalItem:
    """One held-out row, rendered."""

    row_id: str
    prompt_ids: tuple[int, ...]
    prompt: str
    """The rendered text that the ids stand for."""
    expected: str | None
    slices: Mapping[str, str] = field(default_factory=dict)
    """Dimension -> value, such as `{"intent": "refund", "length": "short"}`."""
    cluster: str | None = None
    """Items with one label are not independent; `None` stands alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One system's answer to one item, scored."""

    row_id: str
    system: str
    output: str
    finish_reason: FinishReason | None
    """`None` where nothing was generated: a likelihood was measured."""
    prompt_tokens: int
    output_tokens: int
    seconds: float | None
    scores: Mapping[str, float]


AnswerCheck = Callable[[str], bool]
"""Whether an answer adheres to the contract's output schema."""


def score_answer(
    item: EvalItem, system: str, completion: Completion, output: str, *, check_answer: AnswerCheck | None
) -> Answer:
    """Return the answer with every score that applies to the item.

    `output` is the decoded completion. JSON metrics apply where the contract has an output schema (`check_answer`) or
    the expected answer is a JSON object or array. An answer that ran into the token limit was cut: it neither
    adheres nor matches, whatever its text happens to be.
    """
    ended = completion.finish_reason is FinishReason.STOP
    wanted = parse_json(item.expected) if item.expected is not None else None
    wants_json = check_answer is not None or (
        wanted is not None and wanted.ok and isinstance(wanted.value, dict | list)
    )
    scores: dict[str, float] = {}
    if wants_json:
        scores["json_parse"] = float(parse_json(output).ok)
    if check_answer is not None:
        scores["schema_adherence"] = float(ended and check_answer(output))
    matched = exact_match(output, item.expected)
    if matched is not None and item.expected is not None:
        scores["exact_match"] = float(ended and matched == 1)
        fields = field_scores(output, item.expected)
        if fields:
            present = field_presence(output, tuple(fields))
            assert present is not None
            scores["field_presence"] = present
            scores["field_accuracy"] = sum(fields.values()) / len(fields)
            scores |= {FIELD_PREFIX + name: value for name, value in fields.items()}
        if not wants_json:
            overlap = squad_f1(output, (item.expected,))
            assert overlap is not None
            scores["token_f1"] = overlap
    scores |= ending_scores(completion, output)
    if not wants_json:
        scores["abrupt"] = float(ends_abruptly(output, stopped=ended))
        scores["refusal"] = float(refuses(output))
    return make_answer(item.row_id, system, completion, output, scores=scores)


def ending_scores(completion: Completion, output: str) -> dict[str, float]:
    """Return the scores that every answer has, whatever was asked: was it cut, does it loop, is it empty."""
    return {
        "cut": float(completion.finish_reason is not FinishReason.STOP),
        "loop": float(ends_in_loop(completion.ids)),
        "empty": float(is_empty(output)),
    }


def make_answer(
    row_id: str, system: str, completion: Completion, output: str, *, scores: Mapping[str, float]
) -> Answer:
    """Return the answer that a completion is, with its scores."""
    return Answer(
        row_id=row_id,
        system=system,
        output=output,
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        output_tokens=len(completion.ids),
        seconds=completion.seconds,
        scores=scores,
    )


def answer_record(item: EvalItem, answer: Answer) -> dict[str, JSON]:
    """Return one row of `items.parquet` (docs/evaluation.md), scores as columns `score.<metric>`."""
    return {
        "row_id": answer.row_id,
        "system": answer.system,
        "prompt": item.prompt,
        "output": answer.output,
        "expected": item.expected,
        "finish_reason": answer.finish_reason.value if answer.finish_reason else None,
        "prompt_tokens": answer.prompt_tokens,
        "output_tokens": answer.output_tokens,
        "seconds": answer.seconds,
        "cluster": item.cluster,
        **{f"slice.{name}": value for name, value in item.slices.items()},
        **{f"score.{name}": value for name, value in answer.scores.items()},
    }
