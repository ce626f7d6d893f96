"""A source: one file, what the recipe says about it, and the rows that come out of it.

What lives here: records of a file (`data.read`) turned into rows (`data.shapes`) with their provenance, group, side and
labels, and `inspect_source`, which looks at a file nobody has described yet. What does not: writing (`data.write`).

    for item in rows_of(Origin(name="tickets", path=Path("tickets.jsonl"), license="CC0-1.0")):
        ...    # a Row, or a Reject that says why this record is none
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.data.read import BadRecord, Record, read_records, type_name
from tunesmith.data.shapes import Converted, RowProblem, Shape, convert, detect_common_shape
from tunesmith.data.write import Reject, row_id
from tunesmith.errors import DataError
from tunesmith.types import JSON, Conversation, Provenance, Row, RowKind

SIDES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
    "heldout": "test",
}
"""Names of a side of a split, as files have them -> ours."""

STAGE = "ingest"
_PROBE_RECORDS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What is known of a file before it is read. A `..._field` names the field of a record that says it row by row."""

    name: str
    path: Path
    shape: Shape | None = None
    """`None`: detected."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field of a shape or of provenance -> the name that it has in the file."""
    encoding: str = "utf-8"
    license: str | None = None
    license_field: str | None = None
    kind: RowKind = RowKind.HUMAN
    generator: str | None = None
    editor: str | None = None
    collected_at: str | None = None
    subject_field: str | None = None
    group_field: str | None = None
    split: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Label name -> field of the record, or `answer.<field>` of an answer that is a JSON object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """What one look at a file says."""

    shape: str
    rows: int
    fields: tuple[str, ...]
    median_chars: int
    """Of prompt and answer together, over all readable rows."""
    p95_chars: int
    labels: Mapping[str, Mapping[str, int]]
    """Field with few different values -> value -> rows: what one may slice and stratify by."""
    problems: Mapping[str, int]
    """Reason -> records that cannot be rows."""
    first_problem: str | None = None


def rows_of(origin: Origin) -> Iterator[Row | Reject]:
    """Yield each record of a source in order, as a row or as a reject with its reason.

    Raises `DataError` where the file as a whole cannot be used (see `read_records`), or has no known shape.
    """
    records = read_records(origin.path, encoding=origin.encoding)
    probe = list(itertools.islice(records, _PROBE_RECORDS))
    shape = origin.shape or _shape_of(probe, origin)
    for record in itertools.chain(probe, records):
        yield _row_or_reject(record, origin, shape)


def detected_shape(origin: Origin) -> Shape:
    """Return the shape of a source: as the recipe says, or as its first records have it."""
    if origin.shape is not None:
        return origin.shape
    records = read_records(origin.path, encoding=origin.encoding)
    return _shape_of(list(itertools.islice(records, _PROBE_RECORDS)), origin)


def _shape_of(probe: list[Record | BadRecord], origin: Origin) -> Shape:
    readable = [record.value for record in probe if isinstance(record, Record)]
    if not readable:
        first = probe[0]
        assert isinstance(first, BadRecord)
        raise DataError(
            f"no record of {origin.path.name} can be read",
            where=f"{origin.path}:{first.line}",
            expected="one object a record",
            found=first.detail,
        )
    shape = detect_common_shape(readable, origin.columns)
    if shape is None:
        line = next(record.line for record in probe if isinstance(record, Record))
        raise DataError(
            f"{origin.path.name} has no known shape",
            where=f"{origin.path}:{line}",
            expected="instruction/output, messages, conversations, prompt/completion, chosen/rejected or text",
            found=f"the fields {', '.join(repr(name) for name in readable[0])}",
            hint="map the fields, for example columns: {prompt: question, completion: reply}",
        )
    return shape


def _row_or_reject(record: Record | BadRecord, origin: Origin, shape: Shape) -> Row | Reject:
    if isinstance(record, BadRecord):
        return _reject(origin, record.line, record.reason, record.detail, record.raw)
    try:
        return _row(record, origin, shape)
    except RowProblem as problem:
        raw = json.dumps(record.value, ensure_ascii=True, default=str)
        return _reject(origin, record.line, problem.reason, problem.detail, raw)


def _reject(origin: Origin, line: int, reason: str, detail: str, raw: str) -> Reject:
    shown = raw.encode("utf-8", "backslashreplace").decode()
    detail = detail.encode("utf-8", "backslashreplace").decode()
    return Reject(
        stage=STAGE, reason=reason, detail=detail, source=origin.name, path=origin.path.name, line=line, raw=shown
    )


def _row(record: Record, origin: Origin, shape: Shape) -> Row:
    converted = convert(record.value, shape, columns=origin.columns)
    conversation = converted.conversation
    _check_conversation(converted)
    values = record.value
    provenance = Provenance(
        source=origin.name,
        path=origin.path.name,
        line=record.line,
        license=_said(values, origin.license_field or origin.columns.get("license"), origin.license),
        kind=_kind(values, origin),
        generator=_said(values, origin.columns.get("generator"), origin.generator),
        editor=_said(values, origin.columns.get("editor"), origin.editor),
        collected_at=_said(values, origin.columns.get("collected_at"), origin.collected_at),
        subject=_said(values, origin.subject_field or origin.columns.get("subject"), None),
    )
    return Row(
        id=row_id(
            conversation,
            source=origin.name,
            path=origin.path.name,
            line=record.line,
            rejected=converted.rejected,
        ),
        conversation=conversation,
        provenance=provenance,
        labels=_labels(values, conversation, origin.labels),
        group=_said(values, origin.group_field or origin.columns.get("group"), None),
        split=_side(values, origin),
        rejected=converted.rejected,
        desirable=converted.desirable,
    )


def _check_conversation(converted: Converted) -> None:
    messages = converted.conversation.messages
    if not messages:
        raise RowProblem("empty_conversation", "expected at least one message, found an empty list")
    if not any(message.role == "assistant" for message in messages):
        roles = ", ".join(message.role for message in messages)
        raise RowProblem("no_assistant_turn", f"expected a message of role assistant, found only {roles}")
    try:
        json.dumps(
            [converted.conversation.to_json(), [message.to_json() for message in converted.rejected]],
            ensure_ascii=False,
            allow_nan=False,
        ).encode()
    except UnicodeEncodeError as error:
        raise RowProblem(
            "broken_text", f"expected text, found half a surrogate pair (U+{ord(error.object[error.start]):04X})"
        ) from error


def _said(values: Mapping[str, JSON], name: str | None, default: str | None) -> str | None:
    """What a row says in a field, as text; the source's own word where the row says nothing."""
    value = values.get(name) if name is not None else None
    if value is None or value == "":
        return default
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise RowProblem("wrong_type", f"field {name!r}: expected text or a number, found {type_name(value)}")
    return str(value)


def _kind(values: Mapping[str, JSON], origin: Origin) -> RowKind:
    said = _said(values, origin.columns.get("kind"), None)
    if said is None:
        return origin.kind
    try:
        return RowKind(said)
    except ValueError:
        known = ", ".join(RowKind)
        name = origin.columns["kind"]
        raise RowProblem("unknown_kind", f"field {name!r}: expected one of {known}, found {said!r}") from None


def _side(values: Mapping[str, JSON], origin: Origin) -> str | None:
    said = _said(values, origin.columns.get("split"), origin.split)
    if said is None:
        return None
    side = SIDES.get(said.lower())
    if side is None:
        known = ", ".join(SIDES)
        raise RowProblem(
            "unknown_split", f"field {origin.columns.get('split')!r}: expected one of {known}, found {said!r}"
        )
    return side


def _labels(values: Mapping[str, JSON], conversation: Conversation, wanted: Mapping[str, str]) -> dict[str, str]:
    """Labels of a row. A field that is absent leaves its label out; an answer that is no JSON object has none."""
    out = {}
    answer: JSON = None
    if any(place.startswith("answer.") for place in wanted.values()):
        answer = _answer_object(conversation)
    for label, place in wanted.items():
        at: JSON = answer if place.startswith("answer.") else values
        for key in place.removeprefix("answer.").split("."):
            at = at.get(key) if isinstance(at, Mapping) else None
        if at is not None and not isinstance(at, (list, dict)):
            out[label] = at if isinstance(at, str) else json.dumps(at)
    return out


def _answer_object(conversation: Conversation) -> JSON:
    try:
        value = json.loads(conversation.answer or "")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def inspect_source(path: Path, *, encoding: str = "utf-8") -> SourceReport:
    """Read a file once and say what it holds: shape, rows, fields, lengths, possible labels, problems.

    Raises `DataError` where the file as a whole cannot be used.
    """
    origin = Origin(name=path.stem, path=path, encoding=encoding)
    shape = detected_shape(origin)
    lengths: list[int] = []
    problems: Counter[str] = Counter()
    values_of: dict[str, Counter[str]] = {}
    fields: dict[str, None] = {}
    first_problem: str | None = None
    for record in read_records(path, encoding=encoding):
        item = _row_or_reject(record, origin, shape)
        if isinstance(item, Reject):
            problems[item.reason] += 1
            first_problem = first_problem or f"{item.path}:{item.line} {item.detail}"
            continue
        assert isinstance(record, Record)
        fields.update(dict.fromkeys(record.value))
        lengths.append(sum(len(message.content or "") for message in item.conversation.messages))
        _count_values(values_of, record.value, _answer_object(item.conversation))
    return SourceReport(
        shape=shape.value,
        rows=len(lengths),
        fields=tuple(fields),
        median_chars=round(statistics.median(lengths)) if lengths else 0,
        p95_chars=sorted(lengths)[int(0.95 * (len(lengths) - 1))] if lengths else 0,
        labels={name: dict(counts.most_common()) for name, counts in values_of.items() if _is_label(counts, lengths)},
        problems=dict(problems),
        first_problem=first_problem,
    )


_MAX_LABEL_VALUES = 200
_MAX_LABEL_CHARS = 60


def _count_values(values_of: dict[str, Counter[str]], record: Mapping[str, JSON], answer: JSON) -> None:
    places = [*record.items(), *((f"answer.{key}", value) for key, value in (answer or {}).items())]
    for name, value in places:
        if isinstance(value, (str, bool)) and len(str(value)) <= _MAX_LABEL_CHARS:
            counts = values_of.setdefault(name, Counter())
            if len(counts) <= _MAX_LABEL_VALUES:
                counts[value if isinstance(value, str) else json.dumps(value)] += 1


def _is_label(counts: Counter[str], lengths: list[int]) -> bool:
    """Few values, each met several times on average, in nearly all rows."""
    enough = sum(counts.values()) >= 0.9 * len(lengths)
    return enough and 2 <= len(counts) <= min(_MAX_LABEL_VALUES, max(2, len(lengths) // 5))
