"""Reading: what users bring becomes rows with their provenance, group, side and labels.

What lives here: records (`data.files`, `data.tables`) turned into rows (`data.shapes`), and `inspect_source`, which
looks at a file that nobody has described yet. What does not: writing (`data.write`), the recipe (`stages.ingest`).

    shape, items = rows_of(read_records(path), Origin(name="tickets", license="CC0-1.0"), name=path.name)
    for item in items:
        ...    # a Row, or a Reject that says why this record is none
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.data.files import SIDES, parts_of, read_records
from tunesmith.data.records import BadRecord, Record, type_name
from tunesmith.data.shapes import Converted, RowProblem, Shape, convert, detect_common_shape, names_of
from tunesmith.data.turns import refuse
from tunesmith.data.write import Reject, row_id
from tunesmith.errors import DataError
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
    kind: RowKind = RowKind.HUMAN
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """What one look at a file says."""

    shape: str
    rows: int
    fields: tuple[str, ...]
    median_chars: int
    """Of all turns of a row together, over all readable rows."""
    p95_chars: int
    labels: Mapping[str, Mapping[str, int]]
    """Field with few different values -> value -> rows: what one may slice and stratify by."""
    problems: Mapping[str, int]
    """Reason -> records that cannot be rows."""
    first_problem: str | None = None


def rows_of(
    records: Iterator[Record | BadRecord], origin: Origin, *, name: str, side: str | None = None
) -> tuple[Shape, Iterator[Row | Reject]]:
    """Return the shape of some records, and each of them as a row or as a reject with its reason.

    `name` is the file that rows and errors name, `side` the side that its folder says. Raises `DataError` where the
    records have no known shape.
    """
    probe = list(itertools.islice(records, _PROBE_RECORDS))
    if origin.prepare is not None:
        prepare = origin.prepare
        probe = [_prepared(record, prepare) for record in probe]
        records = (_prepared(record, prepare) for record in records)
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
            hint="map the fields, for example columns: {prompt: question, completion: reply}",
        )
    return shape


def _row_or_reject(
    record: Record | BadRecord, origin: Origin, shape: Shape, name: str, side: str | None
) -> Row | Reject:
    if isinstance(record, BadRecord):
        return _reject(origin, name, record.line, record.reason, record.detail, record.raw)
    try:
        return _row(record, origin, shape, name, side)
    except RowProblem as problem:
        raw = json.dumps(record.value, ensure_ascii=True, default=str)
        return _reject(origin, name, record.line, problem.reason, problem.detail, raw)


def _reject(origin: Origin, name: str, line: int, reason: str, detail: str, raw: str) -> Reject:
    shown = raw.encode("utf-8", "backslashreplace").decode()
    detail = detail.encode("utf-8", "backslashreplace").decode()
    return Reject(stage=STAGE, reason=reason, detail=detail, source=origin.name, path=name, line=line, raw=shown)


def _row(record: Record, origin: Origin, shape: Shape, name: str, side: str | None) -> Row:
    values = record.value
    converted = convert(values, shape, columns=origin.columns)
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
        kind=_kind(values, origin),
        generator=_said(values, columns.get("generator"), origin.generator or converted.generator),
        editor=_said(values, columns.get("editor"), origin.editor),
        collected_at=_said(values, columns.get("collected_at"), origin.collected_at or converted.collected_at),
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
        json.dumps(texts, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise RowProblem("broken_text", f"expected text, found half a surrogate pair ({half})") from error


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


def _kind(values: Mapping[str, JSON], origin: Origin) -> RowKind:
    said = _said(values, origin.columns.get("kind"), None)
    if said is None:
        return origin.kind
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
    answer = _answer_object(conversation) if any(place.startswith("answer.") for place in wanted.values()) else None
    for label, place in wanted.items():
        at: JSON = answer if place.startswith("answer.") else values
        for key in place.removeprefix("answer.").split("."):
            at = at.get(key) if isinstance(at, Mapping) else None
        if at is not None and not isinstance(at, (list, dict)):
            out[label] = at if isinstance(at, str) else json.dumps(at)
    return out


def _answer_object(conversation: Conversation) -> dict[str, JSON] | None:
    answer = conversation.answer or ""
    if not answer.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(answer)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def inspect_source(path: Path, *, encoding: str = "utf-8") -> SourceReport:
    """Read a file or folder once and say what it holds: shape, rows, fields, lengths, possible labels, problems.

    Raises `DataError` where a file as a whole cannot be used.
    """
    look = _Look()
    for part in parts_of(path):
        records = look.watched(read_records(part.path, encoding=encoding))
        shape, items = rows_of(records, Origin(name=path.stem), name=part.name)
        look.shapes.append(shape.value)
        for item in items:
            look.count(item)
    return look.report()


_MAX_LABEL_VALUES = 200
_MAX_LABEL_CHARS = 60


class _Look:
    """What is counted while a file streams by."""

    def __init__(self) -> None:
        self.shapes: list[str] = []
        self._fields: dict[str, None] = {}
        self._values: dict[str, Counter[str]] = {}
        self._lengths: list[int] = []
        self._problems: Counter[str] = Counter()
        self._first_problem: str | None = None

    def watched(self, records: Iterator[Record | BadRecord]) -> Iterator[Record | BadRecord]:
        for record in records:
            if isinstance(record, Record):
                self._fields.update(dict.fromkeys(record.value))
                self._count_values(record.value.items())
            yield record

    def count(self, item: Row | Reject) -> None:
        if isinstance(item, Reject):
            self._problems[item.reason] += 1
            self._first_problem = self._first_problem or f"{item.path}:{item.line} {item.detail}"
            return
        self._lengths.append(sum(len(message.content or "") for message in item.conversation.messages))
        answer = _answer_object(item.conversation) or {}
        self._count_values((f"answer.{key}", value) for key, value in answer.items())

    def _count_values(self, places: Iterable[tuple[str, JSON]]) -> None:
        for name, value in places:
            if isinstance(value, (str, bool)) and len(str(value)) <= _MAX_LABEL_CHARS:
                counts = self._values.setdefault(name, Counter())
                if len(counts) <= _MAX_LABEL_VALUES:
                    counts[value if isinstance(value, str) else json.dumps(value)] += 1

    def report(self) -> SourceReport:
        lengths = sorted(self._lengths)
        return SourceReport(
            shape=", ".join(dict.fromkeys(self.shapes)),
            rows=len(lengths),
            fields=tuple(self._fields),
            median_chars=round(statistics.median(lengths)) if lengths else 0,
            p95_chars=lengths[int(0.95 * (len(lengths) - 1))] if lengths else 0,
            labels={
                name: dict(counts.most_common()) for name, counts in self._values.items() if self._is_label(counts)
            },
            problems=dict(self._problems),
            first_problem=self._first_problem,
        )

    def _is_label(self, counts: Counter[str]) -> bool:
        """Few values, each met several times on average, in nearly all rows."""
        rows = len(self._lengths)
        most = min(_MAX_LABEL_VALUES, max(2, rows // 5))
        return sum(counts.values()) >= 0.9 * rows and 2 <= len(counts) <= most
