"""Cut a test set into slices: by label, source, length, turns, language, and fields of the expected answer.

What lives here: the value of each slice dimension for a row. What does not: figures per slice (`evals.results`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.errors import RecipeError, nearest
from tunesmith.evals.scorers import parse_json
from tunesmith.types import Row

BUILT_IN = ("length", "source", "turns", "language")
LENGTH_NAMES = ("short", "middle", "long")
_MIN_LANGUAGE_CHARS = 20


def slice_values(rows: Sequence[Row], *, lengths: Sequence[int], dimensions: Sequence[str]) -> list[dict[str, str]]:
    """Return, for each row, its value in every dimension; a row without a value lacks the key.

    `length` cuts at the terciles of `lengths` (prompt tokens). `turns` counts the user's messages. `language` is
    detected (py3langid), `unknown` for texts under 20 characters. Any other name is a label of the rows or a
    top-level field of the expected JSON answer. Raises `RecipeError` for a name that no row has.
    """
    bounds = _terciles(lengths)
    fields = [_expected_fields(row) for row in rows]
    for name in dimensions:
        known = {label for row in rows for label in row.labels} | {key for item in fields for key in item}
        if rows and name not in BUILT_IN and name not in known:
            raise RecipeError(
                f"no row has the slice {name!r}",
                where="evaluate.slices",
                expected=" or ".join(nearest(name, known | set(BUILT_IN))),
                found=name,
            )
    out = []
    for row, length, values in zip(rows, lengths, fields, strict=True):
        item: dict[str, str] = {}
        for name in dimensions:
            value = _value(row, name, length=length, bounds=bounds, fields=values)
            if value is not None:
                item[name] = value
        out.append(item)
    return out


def _value(row: Row, name: str, *, length: int, bounds: tuple[int, int], fields: dict[str, str]) -> str | None:
    if name in row.labels:
        return row.labels[name]
    if name == "length":
        return LENGTH_NAMES[(length > bounds[0]) + (length > bounds[1])]
    if name == "source":
        return row.provenance.source
    if name == "turns":
        return str(sum(message.role == "user" for message in row.conversation.messages))
    if name == "language":
        return _language(row)
    return fields.get(name)


def _terciles(lengths: Sequence[int]) -> tuple[int, int]:
    if not lengths:
        return 0, 0
    ordered = sorted(lengths)
    return ordered[(len(ordered) - 1) // 3], ordered[2 * (len(ordered) - 1) // 3]


def _expected_fields(row: Row) -> dict[str, str]:
    answer = row.conversation.answer
    parsed = parse_json(answer) if answer is not None else None
    if parsed is None or not parsed.ok or not isinstance(parsed.value, dict):
        return {}
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in parsed.value.items()
        if isinstance(value, (str, bool, int))
    }


def _language(row: Row) -> str:
    from py3langid import classify

    text = " ".join(message.content or "" for message in row.conversation.messages if message.role == "user")
    if len(text) < _MIN_LANGUAGE_CHARS:
        return "unknown"
    return str(classify(text)[0])
