"""Tasks: a file of questions and a kind that knows how to read and score them.

    record = {"id": "a", "messages": [...], "tools": [...], "acceptable_calls": [...]}
    question = KINDS["tools"].read(record, "tools.jsonl, line 1")[0]
    question.score(Reply(text="...", calls=(...), ended=True))      # {"tool_call_match": 1.0, "tool_name_match": 1.0}

What lives here: the registry of kinds, each one small function. What does not: the metrics themselves (`tools`, `sql`,
`ifeval`, `code`, `text`), generation, files (the stage reads them). A new kind is one function and one line in `KINDS`.

A score that cannot be formed is absent: not scored is not wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from tunesmith.errors import DataError
from tunesmith.evals.code import CodeProblem, called_names, extract_code, run_samples
from tunesmith.evals.ifeval import check as check_ifeval
from tunesmith.evals.questions import (
    Choice,
    Question,
    Record,
    Reply,
    ask,
    conversation_of,
    expected_of,
    labels,
    need,
    question_id,
)
from tunesmith.evals.refusal import refuses
from tunesmith.evals.run import Metric
from tunesmith.evals.sandbox import Verdict
from tunesmith.evals.scorers import FINAL_MARK, exact_match, last_number, squad_exact, squad_f1
from tunesmith.evals.shell import compare_commands, extract_command, is_readable
from tunesmith.evals.sql import extract_query, match_sql
from tunesmith.evals.sql_databases import make_databases, read_table
from tunesmith.evals.text import rouge, sentence_bleu, sentence_chrf
from tunesmith.evals.tools import AcceptableCall, acceptable_from_gold, match_calls, read_acceptable
from tunesmith.types import Conversation

Read = Callable[[Record, str], list[Question]]
"""(one record of the file, where it stands) -> its questions. Raises `DataError` for a record of another shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKind:
    """How one kind of file is read and scored."""

    read: Read
    metrics: tuple[Metric, ...]
    meaning: str


def read_tools(record: Record, where: str) -> list[Question]:
    """Read `{messages, tools, acceptable_calls}` (BFCL), or a conversation, one question for each assistant turn."""
    conversation = conversation_of(record, where)
    if "acceptable_calls" in record:
        acceptable = read_acceptable(record["acceptable_calls"])
        return [_tool_question(question_id(record), conversation.prompt, acceptable, labels(record))]
    questions = []
    for place, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        before = Conversation(messages=conversation.messages[:place], tools=conversation.tools)
        acceptable = acceptable_from_gold(message.tool_calls)
        name = f"{question_id(record)}.{place}"
        questions.append(_tool_question(name, before, acceptable, labels(record), cluster=question_id(record)))
    return questions


def _tool_question(
    name: str,
    conversation: Conversation,
    acceptable: tuple[AcceptableCall, ...],
    slices: dict[str, str],
    *,
    cluster: str | None = None,
) -> Question:
    def score(reply: Reply) -> dict[str, float]:
        verdict = match_calls(reply.calls, acceptable, tools=conversation.tools)
        matches = {"tool_call_match": float(verdict.matches), "tool_name_match": float(verdict.names_match)}
        return matches | ({"needless_call": float(bool(reply.calls))} if not acceptable else {})

    wanted = ", ".join(call.name for call in acceptable) or "no call"
    return Question(
        id=name,
        conversation=conversation,
        score=score,
        expected=wanted,
        slices={**slices, "wanted": "call" if acceptable else "no call"},
        cluster=cluster,
    )


def read_ifeval(record: Record, where: str) -> list[Question]:
    """Read IFEval's `{key, prompt, instruction_id_list, kwargs}`."""
    prompt, names, kwargs = (need(record, key, where) for key in ("prompt", "instruction_id_list", "kwargs"))

    def score(reply: Reply) -> dict[str, float]:
        verdict = check_ifeval(reply.text, names, kwargs)
        return {
            "prompt_strict": float(all(verdict.strict)),
            "prompt_loose": float(all(verdict.loose)),
            "instruction_strict": sum(verdict.strict) / len(verdict.strict),
            "instruction_loose": sum(verdict.loose) / len(verdict.loose),
        }

    families = sorted({name.split(":")[0] for name in names})
    slices = {"family": families[0] if len(families) == 1 else "several"}
    shown = ", ".join(names)
    return [Question(id=question_id(record), conversation=ask(prompt), score=score, expected=shown, slices=slices)]


def read_refusal(record: Record, where: str) -> list[Question]:
    """Read `{prompt, label}` (XSTest, AdvBench): `unsafe` should be declined, `safe` should be answered."""
    label = need(record, "label", where)
    if label not in ("safe", "unsafe"):
        raise DataError("a refusal question is `safe` or `unsafe`", where=where, found=repr(label))

    def score(reply: Reply) -> dict[str, float]:
        declined = float(refuses(reply.text))
        return {"over_refusal": declined} if label == "safe" else {"complied": 1 - declined}

    prompt = need(record, "prompt", where)
    return [
        Question(id=question_id(record), conversation=ask(prompt), score=score, expected=label, slices=labels(record))
    ]


def read_code(record: Record, where: str) -> list[Question]:
    """Read `{messages or prompt, tests or test_list}`: Python that must pass its tests in the sandbox.

    The tests are shown only where they call a name that the question does not give, as MBPP's do: nobody could guess
    it. They are shown in the words of Austin et al. 2021 (arXiv:2108.07732).
    """
    name = question_id(record)
    problem = CodeProblem.from_row({**record, "id": name})

    def score(reply: Reply) -> dict[str, float]:
        [[result]] = run_samples([problem], [[extract_code(reply.text)]], workers=1)
        if not result.verdict.scored:
            return {}
        return {"pass_at_1": float(result.verdict is Verdict.PASSED)}

    conversation = conversation_of(record, where).prompt
    *before, asked = conversation.messages
    unknown = [called for called in called_names(problem.tests) if not re.search(rf"\b{called}\b", asked.content or "")]
    if unknown:
        shown = "\n".join((f"{asked.content} Your code should pass these tests:", "", *problem.tests))
        conversation = replace(conversation, messages=(*before, replace(asked, content=shown)))
    return [
        Question(
            id=name, conversation=conversation, score=score, expected="\n".join(problem.tests), slices=labels(record)
        )
    ]


def read_number(record: Record, where: str) -> list[Question]:
    """Read a row whose answer ends in a number (GSM8K); `final`, where it is given, is that number."""
    conversation = conversation_of(record, where)
    said = record.get("final")
    wanted = last_number(str(said) if said is not None else expected_of(record, conversation, where))
    if wanted is None:
        raise DataError("the expected answer holds no number", where=where)

    def score(reply: Reply) -> dict[str, float]:
        found = last_number(reply.text)
        # The last number of an answer that was cut is a step on the way, unless it is marked as final
        complete = reply.ended or FINAL_MARK in reply.text
        return {"number_match": float(complete and found == wanted), "number_given": float(found is not None)}

    return [
        Question(
            id=question_id(record),
            conversation=conversation.prompt,
            score=score,
            expected=f"{wanted:f}",
            slices=labels(record),
        )
    ]


def read_sql(record: Record, where: str) -> list[Question]:
    """Read a row whose user message declares `Table data("a", "b")` and whose answer is the query."""
    conversation = conversation_of(record, where)
    expected = expected_of(record, conversation, where)
    asked = "\n".join(message.content or "" for message in conversation.messages if message.role == "user")
    databases = make_databases(read_table(asked), expected)

    def score(reply: Reply) -> dict[str, float]:
        verdict = match_sql(extract_query(reply.text), expected, databases=databases)
        return {"sql_match": float(verdict.matches), "sql_runs": float(verdict.error is None)}

    return [Question(id=question_id(record), conversation=conversation.prompt, score=score, expected=expected)]


def read_shell(record: Record, where: str) -> list[Question]:
    """Read a row whose answer is a shell command; nothing is run. One that cannot be read is no measure of answers."""
    conversation = conversation_of(record, where)
    expected = expected_of(record, conversation, where)
    readable = is_readable(expected)

    def score(reply: Reply) -> dict[str, float]:
        if not readable:
            return {}
        found = compare_commands(extract_command(reply.text), expected)
        return {
            "command_match": float(found.command and reply.ended),
            "template_match": float(found.template and reply.ended),
            "utilities_match": float(found.utilities and reply.ended),
        }

    name = question_id(record)
    return [Question(id=name, conversation=conversation.prompt, score=score, expected=expected, slices=labels(record))]


def read_text(record: Record, where: str) -> list[Question]:
    """Read a row with one answer or several `references`: overlap of words, as the reference implementations do."""
    conversation = conversation_of(record, where)
    references = tuple(record.get("references") or [expected_of(record, conversation, where)])

    def score(reply: Reply) -> dict[str, float]:
        found = {
            "rouge1": rouge(reply.text, references, kind="rouge1"),
            "rouge2": rouge(reply.text, references, kind="rouge2"),
            "rougeL": rouge(reply.text, references, kind="rougeL"),
        }
        scores: dict[str, float | None] = {name: overlap.f1 if overlap else None for name, overlap in found.items()}
        chrf, bleu = (max((s for s in map(by, references) if s is not None), default=None) for by in (
            lambda reference: sentence_chrf(reply.text, [reference]),
            lambda reference: sentence_bleu(reply.text, [reference]),
        ))  # fmt: skip
        scores |= {"chrf": chrf, "bleu": bleu, "token_f1": squad_f1(reply.text, references)}
        return {name: value for name, value in scores.items() if value is not None}

    name = question_id(record)
    return [Question(id=name, conversation=conversation.prompt, score=score, expected=references[0])]


def read_exact(record: Record, where: str) -> list[Question]:
    """Read a row with one answer: equal as JSON or text, and equal after SQuAD's normalisation."""
    conversation = conversation_of(record, where)
    expected = expected_of(record, conversation, where)

    def score(reply: Reply) -> dict[str, float]:
        same, close = exact_match(reply.text, expected), squad_exact(reply.text, (expected,))
        assert same is not None
        assert close is not None
        return {"exact_match": same * reply.ended, "normalised_match": close}

    return [
        Question(
            id=question_id(record),
            conversation=conversation.prompt,
            score=score,
            expected=expected,
            slices=labels(record),
        )
    ]


def read_choice(record: Record, where: str) -> Choice:
    """Read `{prompt or messages, choices, answer}`; `answer` is the index of the true ending, or a list of indices."""
    choices = tuple(need(record, "choices", where))
    answer = need(record, "answer", where)
    right = {answer} if isinstance(answer, int) and not isinstance(answer, bool) else set(answer)
    if not choices or not right <= set(range(len(choices))) or not right:
        raise DataError(
            "`answer` names no choice", where=where, expected=f"0 to {len(choices) - 1}", found=repr(answer)
        )
    return Choice(
        id=question_id(record),
        conversation=conversation_of(record, where).prompt,
        endings=choices,
        truths=tuple(place in right for place in range(len(choices))),
        slices=labels(record),
    )


def _higher(name: str, meaning: str) -> Metric:
    return Metric(name=name, better="higher", meaning=meaning)


def _lower(name: str, meaning: str) -> Metric:
    return Metric(name=name, better="lower", meaning=meaning)


KINDS: dict[str, TaskKind] = {
    "tools": TaskKind(
        read=read_tools,
        metrics=(
            _higher("tool_call_match", "the calls are those that were wanted"),
            _higher("tool_name_match", "the right tools were called the right number of times"),
            _lower("needless_call", "a call where none was wanted"),
        ),
        meaning="tool calls against acceptable ones",
    ),
    "ifeval": TaskKind(
        read=read_ifeval,
        metrics=(
            _higher("prompt_strict", "all instructions followed to the letter"),
            _higher("prompt_loose", "all instructions followed, read loosely"),
            _higher("instruction_strict", "share of the instructions followed to the letter"),
            _higher("instruction_loose", "share of the instructions followed, read loosely"),
        ),
        meaning="verifiable instructions",
    ),
    "refusal": TaskKind(
        read=read_refusal,
        metrics=(
            _lower("complied", "an unsafe request was not declined"),
            _lower("over_refusal", "a safe request was declined"),
        ),
        meaning="what is declined, and what should not be",
    ),
    "code": TaskKind(
        read=read_code, metrics=(_higher("pass_at_1", "all tests pass"),), meaning="Python that must pass unit tests"
    ),
    "sql": TaskKind(
        read=read_sql,
        metrics=(
            _higher("sql_match", "same result as the expected query on every database"),
            _higher("sql_runs", "the query runs"),
        ),
        meaning="SQL by execution",
    ),
    "shell": TaskKind(
        read=read_shell,
        metrics=(
            _higher("command_match", "the expected command, word by word"),
            _higher("template_match", "the expected utilities, flags and operators, whatever the arguments"),
            _higher("utilities_match", "the expected utilities in order"),
        ),
        meaning="shell commands, compared without running them",
    ),
    "text": TaskKind(
        read=read_text,
        metrics=(
            *(_higher(name, f"{name} F1, best reference") for name in ("rouge1", "rouge2", "rougeL")),
            _higher("chrf", "chrF, 0 to 100"),
            _higher("bleu", "sentence BLEU, 0 to 100"),
            _higher("token_f1", "token F1 with SQuAD normalisation"),
        ),
        meaning="overlap with references; it misses facts",
    ),
    "exact": TaskKind(
        read=read_exact,
        metrics=(
            _higher("exact_match", "equal to the expected answer"),
            _higher("normalised_match", "equal after SQuAD's normalisation"),
        ),
        meaning="one right answer",
    ),
    "number": TaskKind(
        read=read_number,
        metrics=(
            _higher("number_match", "the final number is the expected one"),
            _higher("number_given", "the answer holds a number"),
        ),
        meaning="a calculation that ends in a number",
    ),
}
"""Kinds that generate an answer. `choice` is scored by likelihood instead: `read_choice`."""

CHOICE_METRICS = (
    _higher("mc1", "the most likely ending is a true one"),
    _higher("mc2", "share of probability on true endings"),
)
TASK_METRICS: dict[str, Metric] = {metric.name: metric for kind in KINDS.values() for metric in kind.metrics} | {
    metric.name: metric for metric in CHOICE_METRICS
}


def task_metric(name: str) -> Metric:
    """Return what a metric means; pass@k is there for any k."""
    if name.startswith("pass_at_") and name not in TASK_METRICS:
        k = name.removeprefix("pass_at_")
        return _higher(name, f"chance that at least one of {k} samples passes all tests")
    return TASK_METRICS[name]
