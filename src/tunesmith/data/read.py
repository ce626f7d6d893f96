"""Reading: what users bring becomes rows with their provenance, group, side and labels.

What lives here: records (`data.files`, `data.tables`) turned into rows (`data.shapes`). What does not: a look at a file
that nobody has described yet (`data.inspection`), writing (`data.write`), the recipe (`stages.ingest`).

    shape, items = rows_of(read_records(path), Origin(name="tickets", license="CC0-1.0"), name=path.name)
    for item in items:
        ...    # a Row, or a Reject that says why this record is none
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.data.files import SIDES
from tunesmith.data.logs import iso_time
from tunesmith.data.overlooked import FOREIGN, refuse_class, refuse_columns, refuse_numbered_labels, unread_field
from tunesmith.data.records import BadRecord, Record, type_name
from tunesmith.data.shapes import (
    Converted,
    RowProblem,
    Shape,
    convert,
    detect_common_shape,
    detect_shape,
    names_of,
    near_columns,
)
from tunesmith.data.turns import refuse
from tunesmith.data.write import Reject, row_id
from tunesmith.errors import DataError, nearest
from tunesmith.types import JSON, Conversation, Provenance, Row, RowKind, RowRole

STAGE = "ingest"
_PROBE_RECORDS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What is said of a source. A `..._field` names the field of a record that says it row by row."""

    name: str
    shape: Shape | None = None
    """`None`: detected."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field of a shape or of provenance -> the name that it has in the file."""
    license: str | None = None
    license_field: str | None = None
    role: RowRole = RowRole.TASK
    kind: RowKind | None = None
    """`None`: a log where the shape is a request log, else human."""
    generator: str | None = None
    editor: str | None = None
    collected_at: str | None = None
    subject_field: str | None = None
    group_field: str | None = None
    consent_field: str | None = None
    split: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Label name -> field of the record, or `answer.<field>` of an answer that is a JSON object."""
    prepare: Callable[[Mapping[str, JSON]], Mapping[str, JSON]] | None = None
    """Applied to each record before anything else."""


def rows_of(
    records: Iterator[Record | BadRecord], origin: Origin, *, name: str, side: str | None = None
) -> tuple[Shape, Iterator[Row | Reject]]:
    """Return the shape of some records, and each of them as a row or as a reject with its reason.

    `name` is the file that rows and errors name, `side` the side that its folder says. Raises `DataError` where the
    records have no known shape.
    """
    records = _watched(records, origin, name)
    probe = list(itertools.islice(records, _PROBE_RECORDS))
    if not probe:
        raise DataError(f"{name} gives no records", where=name, expected="at least one record", found="none")
    if origin.prepare is not None:
        prepare = origin.prepare
        probe = [_prepared(record, prepare) for record in probe]
        records = (_prepared(record, prepare) for record in records)
    if len(probe) == 1:
        refuse_columns(probe[0], name)
    shape = origin.shape or _shape_of(probe, origin, name)
    items = (_row_or_reject(record, origin, shape, name, side) for record in itertools.chain(probe, records))
    return shape, items


def _prepared(
    record: Record | BadRecord, prepare: Callable[[Mapping[str, JSON]], Mapping[str, JSON]]
) -> Record | BadRecord:
    return Record(line=record.line, value=prepare(record.value)) if isinstance(record, Record) else record


def _shape_of(probe: list[Record | BadRecord], origin: Origin, name: str) -> Shape:
    readable = [record for record in probe if isinstance(record, Record)]
    if not readable:
        first = probe[0]
        assert isinstance(first, BadRecord)
        raise DataError(
            f"no record of {name} can be read",
            where=f"{name}:{first.line}",
            expected="one object a record",
            found=first.detail,
        )
    shape = detect_common_shape((record.value for record in readable), origin.columns)
    if shape is None:
        raise DataError(
            f"{name} has no known shape",
            where=f"{name}:{readable[0].line}",
            expected="instruction/output, messages, conversations, prompt/completion, chosen/rejected, "
            "request/response or text",
            found=f"the fields {names_of(readable[0].value)}",
            hint=_misspelt(readable[0].value, origin) or _shape_hint(readable[0].value, name, is_alone=len(probe) == 1),
        )
    if shape is Shape.TEXT:
        refuse_class(readable[0], name)
    elif shape is not Shape.KTO and "label" not in origin.columns.values():
        refuse_numbered_labels(readable, name)
    return shape


def _misspelt(record: Mapping[str, JSON], origin: Origin) -> str | None:
    """Say which mapped column is not there."""
    for wanted, said in origin.columns.items():
        if said not in record and record:
            return f"columns: {wanted} is said to be {said!r}; near it there is {', '.join(nearest(said, record))}"
    return None


_OWN_FIELDS = ("license", "kind", "generator", "editor", "collected_at", "subject", "group", "split")


def _said_fields(origin: Origin) -> dict[str, str]:
    """Fields of a record that were named for its provenance -> what for. One that is nowhere is misspelt."""
    named = {origin.columns[name]: f"columns.{name}" for name in _OWN_FIELDS if name in origin.columns}
    named |= {
        field: said
        for field, said in (
            (origin.subject_field, "subject_field"),
            (origin.group_field, "group_field"),
            (origin.consent_field, "consent_field"),
            (origin.license_field, "license_field"),
        )
        if field is not None
    }
    return {field: said for field, said in named.items() if "license" not in said or origin.license is None}


def _watched(records: Iterator[Record | BadRecord], origin: Origin, name: str) -> Iterator[Record | BadRecord]:
    """Pass records on; raise `DataError` at their end where a named field was in none of them."""
    unseen = _said_fields(origin)
    fields: set[str] = set()
    for record in records:
        if unseen and isinstance(record, Record):
            if not fields:
                fields.update(map(str, record.value))
            for seen in [field for field in unseen if field in record.value]:
                del unseen[seen]
        yield record
    if unseen and fields:
        field, said = next(iter(unseen.items()))
        raise DataError(
            f"no record of {name} has the field {field!r}",
            where=f"{name}, {said}",
            expected=f"a field that records have, such as {', '.join(nearest(field, fields))}",
            found=f"{field!r}, which is in none of them",
            hint="without it rows would lose their licence, their group or their right to opt out unnoticed",
        )


_NO_ANSWERS = ("id", "label", "type", "category", "source", "split")
"""Fields beside a prompt that say something of it."""


def _shape_hint(record: Mapping[str, JSON], name: str, *, is_alone: bool) -> str:
    """What to do with a file whose records have no known shape."""
    if name == "dataset_info.json":
        return "name one of its data sets: {path: dataset_info.json, dataset: NAME}"
    inner = [
        key for key, value in record.items() if isinstance(value, list) and value and isinstance(value[0], Mapping)
    ]
    if inner and is_alone and name.endswith(".json"):
        return f"if its rows stand under {inner[0]!r}, take them out: jq -c '.{inner[0]}[]' {name} > rows.jsonl"
    if (foreign := next((key for key in FOREIGN if key in record), None)) is not None:
        return FOREIGN[foreign]
    near = near_columns(record)
    if near:
        return "map the fields: columns: {" + ", ".join(f"{wanted}: {said}" for wanted, said in near.items()) + "}"
    if record.get("prompt") and set(record) <= {"prompt", *_NO_ANSWERS}:
        return "prompts alone train nothing: add the answers; evaluate and harden have sources of their own"
    texts = [str(key) for key, value in record.items() if isinstance(value, str)]
    pair = texts if len(texts) == 2 else ("question", "reply")
    hint = f"map the fields, for example columns: {{prompt: {pair[0]}, completion: {pair[1]}}}"
    if Path(name).suffix in (".csv", ".tsv"):
        return f"the first line must name the columns; {hint}"
    return hint


def _row_or_reject(
    record: Record | BadRecord, origin: Origin, shape: Shape, name: str, side: str | None
) -> Row | Reject:
    if isinstance(record, BadRecord):
        return _reject(origin, name, record.line, record.reason, record.detail, record.raw)
    try:
        return _row(record, origin, shape, name, side)
    except RowProblem as problem:
        problem = _other_shape(problem, record.value, origin, shape)
        raw = json.dumps(record.value, ensure_ascii=True, default=str)
        return _reject(origin, name, record.line, problem.reason, problem.detail, raw)


def _other_shape(problem: RowProblem, record: Mapping[str, JSON], origin: Origin, shape: Shape) -> RowProblem:
    """Say that a record is of another shape than its file, where that is why it cannot be read."""
    if origin.shape is not None or problem.reason != "missing_field":
        return problem
    other = detect_shape(record, origin.columns)
    if other is None or other is shape:
        return problem
    found = f"the shape {other} (the fields {names_of(record)}): one file, one shape"
    return RowProblem("other_shape", f"expected the shape {shape}, as most of the file has it, found {found}")


def _reject(origin: Origin, name: str, line: int, reason: str, detail: str, raw: str) -> Reject:
    shown = raw.encode("utf-8", "backslashreplace").decode()
    detail = detail.encode("utf-8", "backslashreplace").decode()
    return Reject(stage=STAGE, reason=reason, detail=detail, source=origin.name, path=name, line=line, raw=shown)


def _row(record: Record, origin: Origin, shape: Shape, name: str, side: str | None) -> Row:
    values = record.value
    converted = convert(values, shape, columns=origin.columns)
    problem = unread_field(values, shape, origin.columns) if origin.shape is None else None
    if problem is not None:
        raise problem
    _check(converted)
    if origin.consent_field is not None:
        _check_consent(values.get(origin.consent_field), origin.consent_field)
    conversation = converted.conversation
    columns = origin.columns
    provenance = Provenance(
        source=origin.name,
        path=name,
        line=record.line,
        license=_said(values, origin.license_field or columns.get("license"), origin.license),
        kind=_kind(values, origin, shape),
        generator=_said(values, columns.get("generator"), origin.generator or converted.generator),
        editor=_said(values, columns.get("editor"), origin.editor),
        collected_at=_collected_at(values, origin, converted.collected_at),
        subject=_said(values, origin.subject_field or columns.get("subject"), None),
    )
    return Row(
        id=row_id(conversation, source=origin.name, path=name, line=record.line, rejected=converted.rejected),
        conversation=conversation,
        provenance=provenance,
        role=origin.role,
        labels=_labels(values, conversation, origin.labels),
        group=_said(values, origin.group_field or columns.get("group"), None),
        split=_side(values, origin, side),
        rejected=converted.rejected,
        desirable=converted.desirable,
    )


def _check(converted: Converted) -> None:
    """Refuse what no later stage could use: nothing to train on, or text that cannot be written."""
    messages = converted.conversation.messages
    if not messages:
        raise RowProblem("empty_conversation", "expected at least one message, found an empty list")
    if not any(message.role == "assistant" for message in messages):
        roles = ", ".join(dict.fromkeys(message.role for message in messages))
        raise RowProblem("no_assistant_turn", f"expected a message of role assistant, found only {roles}")
    texts = [converted.conversation.to_json(), [message.to_json() for message in converted.rejected]]
    try:
        json.dumps(texts, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise RowProblem("broken_text", f"expected text, found half a surrogate pair ({half})") from error
    except ValueError as error:
        raise RowProblem(
            "not_json", f"expected numbers that JSON has, found one that is not finite ({error})"
        ) from error
    except RecursionError as error:
        raise RowProblem("too_deep", "expected fewer levels of lists and objects in a call or a tool") from error


def _check_consent(said: JSON, name: str) -> None:
    if said is not True and not (isinstance(said, (str, int)) and str(said).lower() in ("true", "yes", "1", "granted")):
        refuse("no_consent", name, expected="true", found=f"{said!r:.40}")


def _said(values: Mapping[str, JSON], name: str | None, default: str | None) -> str | None:
    """What a row says in a field, as text; the source's own word where the row says nothing."""
    value = values.get(name) if name is not None else None
    if value is None or value == "":
        return default
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        refuse("wrong_type", name or "", expected="text or a number", found=type_name(value))
    return str(value)


def _collected_at(values: Mapping[str, JSON], origin: Origin, logged: str | None) -> str | None:
    """When a row was collected, as ISO 8601; Unix seconds and milliseconds are converted."""
    name = origin.columns.get("collected_at")
    value = values.get(name) if name is not None else None
    if value is None or value == "":
        return origin.collected_at or logged
    when = iso_time(value)
    if when is None:
        refuse("bad_date", name or "", expected="ISO 8601 such as 2026-01-31, or Unix seconds", found=f"{value!r:.40}")
    return when


def _kind(values: Mapping[str, JSON], origin: Origin, shape: Shape) -> RowKind:
    said = _said(values, origin.columns.get("kind"), None)
    if said is None:
        return origin.kind or (RowKind.LOG if shape is Shape.REQUEST_LOG else RowKind.HUMAN)
    if said not in list(RowKind):
        refuse("unknown_kind", origin.columns["kind"], expected=f"one of {', '.join(RowKind)}", found=repr(said))
    return RowKind(said)


def _side(values: Mapping[str, JSON], origin: Origin, side: str | None) -> str | None:
    said = _said(values, origin.columns.get("split"), origin.split or side)
    if said is None:
        return None
    if said.lower() not in SIDES:
        refuse("unknown_split", origin.columns.get("split", "split"), expected=", ".join(SIDES), found=repr(said))
    named = SIDES[said.lower()]
    if origin.role is RowRole.GENERAL and named != "train":
        detail = f"the row names the side {named}, and general rows only train: they do not measure the task"
        raise RowProblem("general_held_out", detail)
    return named


def _labels(values: Mapping[str, JSON], conversation: Conversation, wanted: Mapping[str, str]) -> dict[str, str]:
    """Labels of a row. A field that is absent leaves its label out; an answer that is no JSON object has none."""
    out = {}
    answer = answer_object(conversation) if any(place.startswith("answer.") for place in wanted.values()) else None
    for label, place in wanted.items():
        at: JSON = answer if place.startswith("answer.") else values
        for key in place.removeprefix("answer.").split("."):
            at = at.get(key) if isinstance(at, Mapping) else None
        if at is not None and not isinstance(at, (list, dict)):
            out[label] = at if isinstance(at, str) else json.dumps(at)
    return out


def answer_object(conversation: Conversation) -> dict[str, JSON] | None:
    """Return the answer of a conversation where it is a JSON object."""
    answer = conversation.answer or ""
    if not answer.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(answer)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
