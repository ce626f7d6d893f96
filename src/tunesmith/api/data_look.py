"""Data look: what the files of a user say about the recipe they need.

    look(paths) -> Look(files=(FileLook(rows=1200, shape="alpaca", ...),), system="...", schema={...}, ...)

Reads every row once. What lives here: facts about the data. What does not: choosing settings from them (`new_recipe`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.data.files import FORMATS, NO_DATA, SIDES, has_known_ending, parts_of, read_records, side_named
from tunesmith.data.inspection import SourceReport, inspect_source
from tunesmith.data.read import Origin, rows_of
from tunesmith.errors import DataError
from tunesmith.types import JSON, Row

MIN_JSON_SHARE = 0.95
"""Answers are taken for JSON where at least this share are JSON objects: a few broken ones are what curate finds."""
MAX_ENUM_VALUES = 100
MIN_ROWS_PER_VALUE = 3
_LICENSE_FIELDS = ("license", "licence")
_GROUP_FIELDS = (
    "group",
    "ticket_id",
    "conversation_id",
    "thread_id",
    "customer",
    "customer_id",
    "user_id",
    "document_id",
)
_SUBJECT_FIELDS = ("subject", "subject_id", "user_id", "customer_id", "author_id")
_SPLIT_FIELDS = ("split", "partition", "subset")
_PROSE = (".txt", ".md")
_MAX_ANSWERS = 50_000
"""Answers that are kept to infer a schema; of more, evenly spaced ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLook:
    """One file or folder of rows."""

    path: Path
    report: SourceReport
    side: str | None
    """`val` or `test` where the file's name says so."""
    license_field: str | None
    group_field: str | None
    subject_field: str | None = None
    split_field: str | None = None
    """Field whose values are sides of a split."""
    foreign_splits: tuple[str, ...] = ()
    """Values of a field that looks like a split, and name no side."""
    encoding: str = "utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What all files together say."""

    files: tuple[FileLook, ...]
    rows: int
    longest_chars: int
    """Of the 99% of rows that are shortest, all turns together."""
    longest_answer_chars: int
    """Likewise, the last answer alone."""
    system: str | None
    """The one system prompt that all rows have."""
    num_systems: int
    schema: dict[str, JSON] | None
    """JSON Schema of the answers, where they are JSON objects."""
    label: str | None
    """Field to stratify and slice by, such as `answer.intent`."""
    has_tools: bool = False
    """Whether a row declares tools or calls one."""
    has_reasoning: bool = False
    held_out_only: str | None = None
    """Side that all files are named after: nothing would be left to train on, so their names are not followed."""


def find_data(folder: Path) -> list[Path]:
    """Return the data files in a folder and in its `data/`. Raises `DataError` where there are none."""
    found = [
        path
        for place in (folder, folder / "data")
        if place.is_dir()
        for path in sorted(place.iterdir())
        if path.is_file() and has_known_ending(path) and path.name not in NO_DATA and path.suffix not in _PROSE
    ]
    if not found:
        raise DataError(
            "no data was found",
            where=str(folder),
            expected=f"files that end in {', '.join(FORMATS)}",
            hint="name them: tunesmith init DIR --data FILE",
        )
    return found


def look(paths: Sequence[Path], *, encoding: str = "utf-8") -> Look:
    """Read all files twice. Raises `DataError` where one cannot be used as a whole."""
    files = tuple(_look_at(path, encoding) for path in paths)
    held_out_only = None
    if all(file.side is not None for file in files):
        held_out_only = files[0].side
        files = tuple(replace(file, side=None) for file in files)
    lengths: list[int] = []
    answers: list[str] = []
    answer_lengths: list[int] = []
    every = 1
    has_tools = has_reasoning = False
    systems: Counter[str] = Counter()
    for number, row in enumerate(_rows(paths, encoding)):
        messages = row.conversation.messages
        lengths.append(sum(len(message.content or "") for message in messages))
        answer = row.conversation.answer or ""
        answer_lengths.append(len(answer))
        if number % every == 0:
            answers.append(answer)
        if len(answers) == _MAX_ANSWERS:
            answers, every = answers[::2], 2 * every
        has_tools = has_tools or bool(row.conversation.tools) or any(message.tool_calls for message in messages)
        has_reasoning = has_reasoning or any(message.reasoning for message in messages)
        systems.update([next((m.content or "" for m in messages if m.role == "system"), "")])
    if not lengths:
        raise DataError(
            "no file holds a row that can be read",
            where=", ".join(str(path) for path in paths),
            found=next((file.report.first_problem for file in files if file.report.first_problem), None),
        )
    schema = infer_schema(answers)
    return Look(
        files=files,
        rows=len(lengths),
        longest_chars=_share(lengths, 0.99),
        longest_answer_chars=_share(answer_lengths, 0.99),
        system=next(iter(systems)) or None if len(systems) == 1 else None,
        num_systems=len(systems),
        schema=schema,
        label=_label(files),
        has_tools=has_tools,
        has_reasoning=has_reasoning,
        held_out_only=held_out_only,
    )


def _look_at(path: Path, encoding: str) -> FileLook:
    report = inspect_source(path, encoding=encoding)
    side = side_named(path.name)
    splits = {name: report.labels[name] for name in _SPLIT_FIELDS if name in report.labels}
    foreign = {name: [value for value in values if value.lower() not in SIDES] for name, values in splits.items()}
    known = [name for name, values in foreign.items() if len(values) < len(splits[name])]
    return FileLook(
        path=path,
        report=report,
        side=side if side != "train" else None,  # its rows are dealt between train and val
        license_field=next((name for name in _LICENSE_FIELDS if name in report.fields), None),
        group_field=next((name for name in _GROUP_FIELDS if name in report.fields), None),
        subject_field=next((name for name in _SUBJECT_FIELDS if name in report.fields), None),
        split_field=next((name for name in known if not foreign[name]), None),
        foreign_splits=next((tuple(foreign[name]) for name in known if foreign[name]), ()),
        encoding=encoding,
    )


def _rows(paths: Sequence[Path], encoding: str) -> Iterator[Row]:
    for path in paths:
        for part in parts_of(path):
            _, items = rows_of(read_records(part.path, encoding=encoding), Origin(name=path.stem), name=part.name)
            yield from (item for item in items if isinstance(item, Row))


def _share(values: list[int], share: float) -> int:
    return sorted(values)[int(share * (len(values) - 1))]


def _label(files: Sequence[FileLook]) -> str | None:
    """Return the field with few values that every file has, one of the answer before one of the record."""
    shared = [name for name in files[0].report.labels if all(name in file.report.labels for file in files)]
    taken = {*_LICENSE_FIELDS, *_SPLIT_FIELDS, *_SUBJECT_FIELDS}
    if any(file.report.shape == "kto" for file in files):
        taken |= {"label", "kto_tag", "desirable"}
    shared = [name for name in shared if name not in taken]
    of_answer = [name for name in shared if name.startswith("answer.")]

    def num_values(name: str) -> int:
        return len(files[0].report.labels[name])

    return max(of_answer or shared, key=num_values, default=None)


def infer_schema(answers: Sequence[str]) -> dict[str, JSON] | None:
    """Return a JSON Schema that the answers keep, or None where they are no JSON objects.

    A key that every answer has is required; a text with few values becomes an enum of the values met. Keys that were
    never met are refused, so a schema from a small sample wants a look by its user.
    """
    objects = [value for value in map(_object, answers) if value is not None]
    if not objects or len(objects) < MIN_JSON_SHARE * len(answers):
        return None
    keys = Counter(key for value in objects for key in value)
    common = [key for key, count in keys.items() if count >= len(objects) * (1 - MIN_JSON_SHARE)]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {key: _property([value[key] for value in objects if key in value]) for key in common},
        "required": [key for key in common if keys[key] >= MIN_JSON_SHARE * len(objects)],
        "additionalProperties": False,
    }


def _object(answer: str) -> dict[str, JSON] | None:
    try:
        value = json.loads(answer)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _property(values: list[JSON]) -> dict[str, JSON]:
    types = Counter(_type_of(value) for value in values)
    if types.keys() == {"integer", "number"}:
        types = Counter({"number": len(values)})
    common = [name for name, count in types.items() if count >= len(values) * (1 - MIN_JSON_SHARE)]
    if common == ["string"]:
        counts = Counter(value for value in values if isinstance(value, str))
        met = sorted(
            value for value, count in counts.items() if count >= min(MIN_ROWS_PER_VALUE, len(values) // 20 + 1)
        )
        if 1 < len(counts) <= MAX_ENUM_VALUES and len(values) >= MIN_ROWS_PER_VALUE * len(counts):
            return {"type": "string", "enum": met}
    return {"type": common[0] if len(common) == 1 else sorted(common)}


def _type_of(value: JSON) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
    return names[type(value)]
