"""Read files of questions and render them under a contract: what `benchmark` asks.

What lives here: records of any file format that `ingest` reads, named columns, chosen items, rendered prompts, and
which questions stand in the training rows. What does not: what a kind reads and how it scores (`evals.tasks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunesmith.errors import ContractError, DataError
from tunesmith.types import JSON, Conversation, Row, sha256_hex

if TYPE_CHECKING:
    from tunesmith.chat.contract import Contract
    from tunesmith.chat.render import Rendered
    from tunesmith.evals.questions import Choice, Question
    from tunesmith.evals.run import EvalItem

SystemPrompt = Literal["contract", "none", "own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskItems:
    """One task's questions and their rendered prompts, in one order."""

    questions: tuple[Question | Choice, ...]
    items: tuple[EvalItem, ...]
    excluded: Mapping[str, str]
    """Item -> why the contract refuses to render it."""


def read_questions(
    path: Path, kind: str, *, columns: Mapping[str, str], first: int | None = None
) -> list[Question | Choice]:
    """Return the questions of a file; `first` reads no more than so many records.

    Raises `DataError`, with the line, for a record of another shape, and for two questions of one name.
    """
    from tunesmith.evals.tasks import KINDS, read_choice

    out: list[Question | Choice] = []
    seen: dict[str, str] = {}
    for number, (where, record) in enumerate(task_records(path, columns)):
        if first is not None and number >= first:
            break
        found = [read_choice(record, where)] if kind == "choice" else KINDS[kind].read(record, where)
        for question in found:
            if question.id in seen:
                raise DataError(
                    "two questions of a task have one id",
                    where=where,
                    found=f"{question.id}, also at {seen[question.id]}",
                    hint="give each record its own id, or none: it is then named after its content",
                )
            seen[question.id] = where
        out += found
    return out


def task_records(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, JSON]]]:
    """Yield (place, record) of a file of any format, its columns renamed. Raises `DataError` for a bad record."""
    from tunesmith.data.files import read_records
    from tunesmith.data.records import BadRecord

    for record in read_records(path):
        where = f"{path.name}, line {record.line}"
        if isinstance(record, BadRecord):
            raise DataError(f"a task file cannot be read: {record.reason}", where=where, found=record.detail)
        value = {key: item for key, item in record.value.items() if item is not None}
        for name, column in columns.items():
            if column not in value:
                raise DataError(
                    f"a question lacks {column!r}", where=where, expected=f'"{column}"', found=", ".join(sorted(value))
                )
            value[name] = value[column]
        yield where, value


def prepare(
    name: str,
    path: Path,
    kind: str,
    contract: Contract,
    *,
    columns: Mapping[str, str],
    most: int | None,
    system: SystemPrompt,
) -> TaskItems:
    """Read and render one task. Raises `DataError` for a record of another shape, or where every one is refused."""
    from tunesmith.evals.run import EvalItem

    questions = read_questions(path, kind, columns=columns)
    if most is not None and len(questions) > most:
        kept = set(sorted(sha256_hex(question.id) for question in questions)[:most])
        questions = [question for question in questions if sha256_hex(question.id) in kept]
    asked, items = [], []
    excluded: dict[str, str] = {}
    for question in questions:
        item_id = f"{name}/{question.id}"
        try:
            prompt = render(question.conversation, contract, system=system)
        except ContractError as error:
            excluded[item_id] = error.what
            continue
        asked.append(question)
        items.append(
            EvalItem(
                row_id=item_id,
                prompt_ids=tuple(prompt.ids),
                prompt=prompt.text,
                expected=getattr(question, "expected", None),
                slices={f"{name}.{key}": value for key, value in question.slices.items()},
                cluster=getattr(question, "cluster", None),
            )
        )
    if not items:
        reason = next(iter(excluded.values()), "the file is empty")
        raise DataError("no question of a task can be asked", where=f"benchmark.tasks.{name}", found=reason)
    return TaskItems(questions=tuple(asked), items=tuple(items), excluded=excluded)


def render(conversation: Conversation, contract: Contract, *, system: SystemPrompt) -> Rendered:
    """Render a question under the contract's template, with its system prompt, the question's own, or none."""
    turns = tuple(message for message in conversation.messages if message.role not in ("system", "developer"))
    if system == "contract":
        return contract.render_prompt(replace(conversation, messages=turns))
    own = "\n\n".join(m.content or "" for m in conversation.messages if m.role in ("system", "developer"))
    asking = with_system(contract, own if system == "own" else "")
    return asking.render_prompt(replace(conversation, messages=turns))


def with_system(contract: Contract, text: str) -> Contract:
    """Return the contract's template and tools under another system prompt, or under none where `text` is empty."""
    from tunesmith.chat.parts import SystemRule

    rule = SystemRule.TEXT if text else SystemRule.NONE
    return replace(contract, content={**contract.content, "system": {"rule": rule.value, "text": text or None}})


def seen_in_training(questions: Mapping[str, str], rows: Sequence[Row]) -> dict[str, str]:
    """Return question -> id of a training row that holds it, found as `curate` finds test items (`data.decontam`)."""
    from tunesmith.data.decontam import Index
    from tunesmith.data.words import prompt_text

    names, index = list(questions), Index({"questions": list(questions.values())})
    texts = ["\n".join(message.content or "" for message in row.conversation.messages) for row in rows]
    prompts = [prompt_text(row.conversation) for row in rows]
    return {names[match.item - 1]: rows[match.row].id for match in index.matches(texts, prompts=prompts)}
