"""Items of an evaluation: the prompts of a file, whether or not the file holds answers.

What lives here: one file in, its prompts out. What does not: looking for them in rows (`data.decontam`).

    read_items(Path("exam.jsonl"))  ->  ["Natalia sold clips to 48 of her friends ...", ...]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tunesmith.data.files import parts_of, read_records
from tunesmith.data.records import BadRecord
from tunesmith.data.shapes import RowProblem, convert, detect_shape, names_of
from tunesmith.data.turns import messages_of
from tunesmith.data.words import answer_text, prompt_text
from tunesmith.errors import DataError
from tunesmith.types import JSON, Conversation

PROMPT_FIELDS = ("prompt", "question", "query", "instruction", "problem", "input", "text")
"""Fields that hold a prompt where a record has no answer, most usual first."""


def read_items(path: Path) -> list[str]:
    """Return the prompts of a file, one a record. Raises `DataError` for a record without one: a missed item leaks."""
    out = []
    for part in parts_of(path):
        for record in read_records(part.path):
            place = f"{part.name}:{record.line}"
            if isinstance(record, BadRecord):
                raise DataError(f"{path.name} is no list of items", where=place, found=record.detail)
            try:
                text = _prompt(record.value)
            except RowProblem as problem:
                raise DataError(f"{path.name} is no list of items", where=place, found=problem.detail) from problem
            if not text.strip():
                raise DataError(
                    f"{path.name} holds an item without a prompt",
                    where=place,
                    expected=f"a row of a known shape, or a field out of {', '.join(PROMPT_FIELDS)}",
                    found=f"the fields {names_of(record.value)}",
                )
            out.append(text)
    return out


def _prompt(record: Mapping[str, JSON]) -> str:
    shape = detect_shape(record, {})
    if shape is not None:
        conversation = convert(record, shape, columns={}).conversation
        return prompt_text(conversation) or answer_text(conversation)
    for name in PROMPT_FIELDS:
        value = record.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value:
            return prompt_text(Conversation(messages=messages_of(value, name)))
    return ""
