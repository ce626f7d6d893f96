"""What a record holds that its shape would leave out, and formats of other tools that are not read.

What lives here: fields whose loss a user would not see: a context, a picture, a class, a table turned on its side. What
does not: what shapes read (`data.shapes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.data.records import BadRecord, Record, type_name
from tunesmith.data.shapes import RowProblem, Shape, field_of, names_of
from tunesmith.errors import DataError
from tunesmith.types import JSON

_MEDIA = ("images", "videos", "audios")
_PART_OF_A_PROMPT = ("context", "passage", "documents", "choices", "options")
_CLASSES = ("label", "labels", "category", "class", "intent", "sentiment", "target")
_ONE_PROMPT = (Shape.COMPLETION, Shape.ALPACA, Shape.KTO, Shape.PREFERENCE)

FOREIGN: Mapping[str, str] = {
    "custom_id": "a batch file holds requests or answers alone: join them by custom_id into {request, response}",
    "contents": "Gemini's contents: write each as {messages: [{role, content}]}, model as assistant",
    "segments": "these texts hold a template: write messages instead, each with train: true or false",
    "input_output": "these texts hold a template: write messages instead, each with train: true or false",
    "translation": "write each pair as {prompt, completion}",
    "answers": "write the first answer as text: {prompt, completion}",
    "completions": "steps with labels of their own train a reward model, not a fine-tuned one",
}
"""Field of another tool's format -> what to do with such records."""


def unread_field(record: Mapping[str, JSON], shape: Shape, columns: Mapping[str, str]) -> RowProblem | None:
    """Return the problem of a field that belongs to the row and that its shape does not read, or `None`."""
    for name in _MEDIA:
        if record.get(name):
            detail = f"field {name!r}: expected text only, found {type_name(record[name])}: nothing else is trained on"
            return RowProblem("unsupported_media", detail)
    if shape not in _ONE_PROMPT or field_of(record, "messages", columns):
        return None
    is_read = {"context", *columns.values()} if record.get("instruction") is not None else set(columns.values())
    for name in _PART_OF_A_PROMPT:
        if record.get(name) and name not in is_read:
            is_text = isinstance(record[name], str)
            adds = f"columns: {{input: {name}}} adds it" if is_text else "write it into the prompt"
            detail = (
                f"field {name!r}: expected the whole prompt in one field, found more of it here, which would be left "
                f"out: {adds}; to leave it out, name the shape: shape: {shape}"
            )
            return RowProblem("unread_field", detail)
    return None


def refuse_columns(record: Record | BadRecord, name: str) -> None:
    """Raise `DataError` for a file that holds one list a column (pandas' `to_json`) instead of one object a row."""
    values = list(record.value.values()) if isinstance(record, Record) else []
    are_lists = len(values) > 1 and all(isinstance(value, list) and value for value in values)
    are_numbered = len(values) > 1 and all(isinstance(value, Mapping) and "0" in value for value in values)
    if not are_numbered and not (are_lists and all(isinstance(cell, str) for value in values for cell in value)):
        return
    raise DataError(
        f"{name} holds columns, not rows",
        where=f"{name}:{record.line}",
        expected="one object for each row",
        found=f"{type_name(values[0])} for each column",
        hint="write rows: DataFrame.to_json(FILE, orient='records', lines=True)",
    )


def refuse_numbered_labels(records: Sequence[Record], name: str) -> None:
    """Raise `DataError` for answers labelled 0 and 1: those of KTO that are not wanted would be trained on."""
    labels = [record.value.get("label") for record in records]
    if not labels or not all(label in (0, 1) and isinstance(label, int) for label in labels):
        return
    raise DataError(
        f"{name} labels its answers by numbers",
        where=f"{name}:{records[0].line}",
        expected="true or false, where labels say whether an answer is wanted (KTO)",
        found="0 or 1, which may be classes as well",
        hint="columns: {label: label} reads them as KTO's; naming the shape (shape: completion) leaves them out",
    )


def refuse_class(record: Record, name: str) -> None:
    """Raise `DataError` for texts that have a class beside them: as plain texts they would lose it."""
    values = record.value
    found = (key for key in _CLASSES if isinstance(values.get(key), (str, int)) and values[key] != "")
    beside = next(found, None)
    if beside is None:
        return
    raise DataError(
        f"{name} has the field {beside!r} beside its texts, which would be left out",
        where=f"{name}:{record.line}",
        expected="a prompt and an answer, or texts alone",
        found=f"the fields {names_of(values)}",
        hint=f"columns: {{prompt: text, completion: {beside}}} teaches the class; shape: text leaves it out",
    )
