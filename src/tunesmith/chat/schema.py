"""Output schema: does an answer parse as JSON, and does it keep to the schema?

What lives here: strict JSON reading and validation under JSON Schema draft 2020-12. What does not: what follows from a
broken answer (guardrails, evaluation, lint).

    AnswerSchema({"type": "object", ...}).check('{"intent": "refund"}').adheres
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jsonschema
from jsonschema import Draft202012Validator

from tunesmith.errors import ContractError, RecipeError
from tunesmith.types import JSON

MAX_ERRORS = 8
"""Errors listed per answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerVerdict:
    """What a schema says about one answer."""

    parses: bool
    """The whole text is one JSON value; no code fence, no text around it, no NaN, no repeated key."""
    adheres: bool
    """It parses and the schema holds."""
    value: JSON = None
    errors: tuple[str, ...] = ()


class AnswerSchema:
    """A JSON Schema for answers."""

    def __init__(self, schema: Mapping[str, JSON]) -> None:
        """Take a schema. Raises `RecipeError` where it is not valid under draft 2020-12."""
        self.schema = dict(schema)
        try:
            Draft202012Validator.check_schema(self.schema)
        except jsonschema.SchemaError as error:
            place = "/".join(str(step) for step in error.absolute_path)
            raise RecipeError(
                f"the output schema is not a valid JSON Schema: {error.message}",
                where=f"output_schema/{place}" if place else "output_schema",
                hint="see JSON Schema draft 2020-12",
            ) from error
        self._validator = Draft202012Validator(self.schema)

    def check(self, text: str) -> AnswerVerdict:
        """Judge one answer."""
        try:
            value = strict_json(text)
        except ValueError as error:
            return AnswerVerdict(parses=False, adheres=False, errors=(f"not JSON: {error}",))
        found = sorted(self._validator.iter_errors(value), key=lambda error: list(map(str, error.absolute_path)))
        errors = tuple(f"{_place(error.absolute_path)}: {error.message}" for error in found[:MAX_ERRORS])
        return AnswerVerdict(parses=True, adheres=not errors, value=value, errors=errors)


def strict_json(text: str) -> JSON:
    """Read one JSON value. Raises `ValueError` on anything around it, NaN, infinities and repeated keys."""
    if not text.strip():
        raise ValueError("the answer is empty")
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_repeats)


def read_schema(value: Mapping[str, JSON] | None) -> AnswerSchema | None:
    """Return the schema of a contract part, or `None` where the contract has none."""
    return None if value is None else AnswerSchema(value)


def require_schema(schema: AnswerSchema | None) -> AnswerSchema:
    """Return the schema. Raises `ContractError` where the contract has none: there is nothing to judge by."""
    if schema is None:
        raise ContractError(
            "this contract has no output schema, so an answer cannot be checked against it",
            hint="set output_schema in the recipe's contract, or do not ask for schema adherence",
        )
    return schema


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _no_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key {key!r} is repeated")
        out[key] = value
    return out


def _place(path: Sequence[str | int]) -> str:
    return "/" + "/".join(str(step) for step in path)
