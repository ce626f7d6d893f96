"""Questions: one prompt, how an answer to it is scored, and what is read out of a record of a task file.

What lives here: the types that every kind of task makes, and the keys that all kinds share. What does not: the kinds
(`evals.tasks`), files (`stages.benchmark`).

    {"id": "a", "prompt": "..."}                       one message of the user
    {"id": "a", "messages": [...], "tools": [...]}     a conversation; its last assistant turn is the expected answer

A record without `id` or `key` is named after its content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tunesmith.errors import DataError
from tunesmith.evals.text import multiple_choice
from tunesmith.types import JSON, Conversation, Message, ToolCall, canonical_json, sha256_hex

Record = Mapping[str, JSON]
LABEL_KEYS = ("category", "type", "difficulty", "language", "source", "level", "subject")
"""Keys of a record that become slices where they hold a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model answered, read by the contract."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    ended: bool = True
    """It ended by itself, not by the token limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One prompt and how an answer to it is scored."""

    id: str
    conversation: Conversation
    score: Callable[[Reply], dict[str, float]]
    expected: str | None = None
    """Shown beside the answer."""
    slices: Mapping[str, str] = field(default_factory=dict)
    cluster: str | None = None
    """Questions with one label are not independent: turns of one conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A question that is answered by likelihood: which of some endings the model finds most likely."""

    id: str
    conversation: Conversation
    endings: tuple[str, ...]
    truths: tuple[bool, ...]
    slices: Mapping[str, str] = field(default_factory=dict)

    def score(self, log_likelihoods: tuple[float, ...]) -> dict[str, float]:
        """Score by the total log-likelihood of each ending."""
        found = multiple_choice(log_likelihoods, truths=self.truths)
        return {"mc1": found.mc1, "mc2": found.mc2}


def question_id(record: Record) -> str:
    """Return the name of a record's question: its `id`, `key` or `task_id`, or a hash of its content."""
    for key in ("id", "key", "task_id"):
        if record.get(key) is not None:
            return str(record[key])
    return sha256_hex(canonical_json(dict(record)))[:12]


def need(record: Record, key: str, where: str) -> JSON:
    """Return a value that a record must have. Raises `DataError` that lists the keys it has."""
    if record.get(key) is None:
        raise DataError(
            f"a question lacks {key!r}",
            where=where,
            expected=f'"{key}"',
            found=", ".join(sorted(record)),
            hint=f"if the file calls it otherwise: columns: {{{key}: NAME}}",
        )
    return record[key]


def ask(prompt: JSON) -> Conversation:
    """Return a conversation of one message of the user."""
    return Conversation(messages=(Message(role="user", content=str(prompt)),))


def conversation_of(record: Record, where: str) -> Conversation:
    """Return a record's `messages`, or its `prompt` as one message. Raises `DataError` for neither."""
    if "messages" not in record:
        return ask(need(record, "prompt", where))
    try:
        return Conversation.from_json(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError("'messages' is not a conversation", where=where, found=repr(error)) from error


def expected_of(record: Record, conversation: Conversation, where: str) -> str:
    """Return the expected answer: `answer`, or the last turn of the conversation. Raises `DataError` for neither."""
    answer = record.get("answer")
    if answer is not None:
        return answer if isinstance(answer, str) else canonical_json(answer)
    if conversation.answer is None:
        raise DataError(
            "a row has no answer to compare with",
            where=where,
            expected='"answer", or a last message of the assistant',
            found=", ".join(sorted(record)),
        )
    return conversation.answer


def labels(record: Record) -> dict[str, str]:
    """Return what a question is sliced by."""
    return {key: str(record[key]) for key in LABEL_KEYS if isinstance(record.get(key), str)}
