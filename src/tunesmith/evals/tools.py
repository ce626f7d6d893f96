"""Tool calls against what was acceptable: names, arguments, parallel calls in any order, no call where none was wanted.

    wanted = read_acceptable([{"area": {"base": [10], "unit": ["cm", ""]}}])     # BFCL's shape; "" may be left out
    match_calls([ToolCall(name="area", arguments={"base": 10})], wanted, tools=tools).matches

What lives here: what counts as the same call. What does not: reading calls out of a model's text (`chat.parse`).

The rules are those of the Berkeley leaderboard (Patil et al. 2025, `ast_checker.py`), which its users compare with:
 - The number of calls must be right. Every argument made must be declared, listed as acceptable, and have one of its
   values; every listed argument that may not be left out must be there.
 - `5` is a float where the schema says float; `5.0` is no integer; `true` is no number; `"5"` is not `5`.
 - Strings agree without case, spaces and `, . / - _ * ^`, and with single for double quotes, unless asked to be exact.
 - Lists agree in order and length; a dictionary agrees key by key, each key with its own acceptable values.

Three differences, where the leaderboard refuses right answers: parallel calls are paired so that as many as possible
match (it pairs greedily, in order); whole numbers are taken in an array of floats as they are alone; and an argument
with no acceptable value at all (two of its rows have some) may be an empty list or left out, not nothing.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunesmith.errors import DataError
from tunesmith.types import JSON, ToolCall


class Strings(enum.StrEnum):
    """When two strings are the same."""

    BFCL = "bfcl"
    """Case, spaces and some punctuation do not count."""
    EXACT = "exact"
    """Character by character."""


class CallError(enum.StrEnum):
    """What is wrong with a set of calls. The first that applies, from the outside in."""

    CALL_NOT_WANTED = "call_not_wanted"
    NO_CALL = "no_call"
    WRONG_COUNT = "wrong_count"
    UNREADABLE_ARGUMENTS = "unreadable_arguments"
    WRONG_NAME = "wrong_name"
    MISSING_ARGUMENT = "missing_argument"
    UNEXPECTED_ARGUMENT = "unexpected_argument"
    WRONG_TYPE = "wrong_type"
    WRONG_VALUE = "wrong_value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What one argument may be."""

    values: tuple[JSON, ...]
    """Alternatives: plain values, or `Fields`, or lists that may hold `Fields`."""
    optional: bool = False
    """Whether it may be left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """A dictionary each of whose keys has its own choices."""

    choices: Mapping[str, Choices]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptableCall:
    """One call that was wanted."""

    name: str
    arguments: Mapping[str, Choices]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallVerdict:
    """Whether the calls are what was wanted, and if not, why not."""

    error: CallError | None
    detail: str = ""
    names_match: bool = field(default=False)
    """Whether the right tools were called the right number of times, whatever the arguments."""

    @property
    def matches(self) -> bool:
        """Whether everything agrees."""
        return self.error is None


# ------------------------------------------------------------------------------------------ what was acceptable


def read_acceptable(value: JSON) -> tuple[AcceptableCall, ...]:
    """Read BFCL's possible answers: a list of `{name: {argument: [acceptable values]}}`, empty where no call is wanted.

    An empty string among the values means that the argument may be left out (or be an empty string). Raises `DataError`
    for any other shape.
    """
    if not isinstance(value, (list, tuple)):
        raise DataError(
            "acceptable calls are not a list", expected="[{name: {argument: [values]}}]", found=repr(value)[:80]
        )
    out = []
    for place, call in enumerate(value):
        if not isinstance(call, Mapping) or len(call) != 1:
            raise DataError(
                "an acceptable call is not one name with its arguments",
                where=f"acceptable call {place}",
                expected="{name: {argument: [values]}}",
                found=repr(call)[:80],
            )
        ((name, arguments),) = call.items()
        if not isinstance(arguments, Mapping) or not all(isinstance(v, (list, tuple)) for v in arguments.values()):
            raise DataError(
                "an acceptable call's argument has no list of acceptable values",
                where=f"acceptable call {place}, {name}",
                found=repr(arguments)[:80],
            )
        out.append(AcceptableCall(name=name, arguments={key: _choices(values) for key, values in arguments.items()}))
    return tuple(out)


def _choices(values: Sequence[JSON]) -> Choices:
    if not values:
        return Choices(values=([],), optional=True)
    return Choices(values=tuple(_alternative(value) for value in values), optional="" in values)


def _alternative(value: JSON) -> JSON:
    """Read one alternative; a dictionary in it, or in a list in it, lists acceptable values for each key."""
    if isinstance(value, Mapping) and all(isinstance(item, (list, tuple)) and item for item in value.values()):
        return Fields(choices={key: _choices_of_literals(item) for key, item in value.items()})
    if isinstance(value, list):
        return [_alternative(item) if isinstance(item, Mapping) else item for item in value]
    return value


def _choices_of_literals(values: Sequence[JSON]) -> Choices:
    return Choices(values=tuple(values), optional="" in values)


def acceptable_from_gold(calls: Sequence[ToolCall]) -> tuple[AcceptableCall, ...]:
    """Return what is acceptable where exactly these calls are: each argument has one value and none may be left out.

    Raises `DataError` where a gold call's arguments are no JSON object.
    """
    out = []
    for call in calls:
        arguments = read_arguments(call)
        if arguments is None:
            raise DataError(
                "a gold call's arguments are no JSON object", where=call.name, found=repr(call.arguments)[:80]
            )
        out.append(
            AcceptableCall(
                name=call.name, arguments={key: Choices(values=(value,)) for key, value in arguments.items()}
            )
        )
    return tuple(out)


def read_arguments(call: ToolCall) -> Mapping[str, JSON] | None:
    """Return a call's arguments as a mapping, or `None` where they are no JSON object. Empty text is no arguments."""
    if isinstance(call.arguments, Mapping):
        return call.arguments
    if not call.arguments.strip():
        return {}
    try:
        value = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# ----------------------------------------------------------------------------------------------------- matching


def match_calls(
    made: Sequence[ToolCall],
    acceptable: Sequence[AcceptableCall],
    *,
    tools: Sequence[Mapping[str, JSON]],
    strings: Strings = Strings.BFCL,
) -> CallVerdict:
    """Compare the calls that a model made, in any order, with those that were acceptable.

    `tools` are the declarations that the model saw (OpenAI's shape, or the bare function); their parameter types are
    checked. A `.` in a declared name also matches `_`, since some servers do not allow a `.` in names.
    """
    if not acceptable:
        names = ", ".join(call.name for call in made)
        return CallVerdict(error=CallError.CALL_NOT_WANTED if made else None, detail=names, names_match=not made)
    if not made:
        return CallVerdict(error=CallError.NO_CALL, detail="expected " + ", ".join(call.name for call in acceptable))
    wanted_names = sorted(_served(call.name) for call in acceptable)
    names_match = sorted(_served(call.name) for call in made) == wanted_names
    if len(made) != len(acceptable):
        detail = f"{len(made)} calls, expected {len(acceptable)}"
        return CallVerdict(error=CallError.WRONG_COUNT, detail=detail, names_match=names_match)
    schemas = {_served(function["name"]): function.get("parameters") or {} for function in map(_function, tools)}
    verdicts = [
        [
            _match_one(call, wanted, schema=schemas.get(_served(wanted.name), {}), strings=strings)
            for wanted in acceptable
        ]
        for call in made
    ]
    paired = _pair([[verdict is None for verdict in row] for row in verdicts])
    for call, partner, row in zip(made, paired, verdicts, strict=True):
        if partner is None:
            # Explain against the wanted call that got furthest and is not somebody else's.
            free = [error for place, error in enumerate(row) if place not in paired and error is not None]
            error, detail = max(free, key=lambda found: list(CallError).index(found[0]))
            return CallVerdict(error=error, detail=f"{call.name}: {detail}", names_match=names_match)
    return CallVerdict(error=None, names_match=names_match)


def _function(tool: Mapping[str, JSON]) -> Mapping[str, JSON]:
    function: Mapping[str, JSON] = tool.get("function", tool)
    return function


def _served(name: str) -> str:
    return name.replace(".", "_")


def _pair(fits: Sequence[Sequence[bool]]) -> list[int | None]:
    """Give each row a column that fits, no column twice, as many as possible (augmenting paths)."""
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in tried:
                tried.add(column)
                if column not in owner or place(owner[column], tried):
                    owner[column] = row
                    return True
        return False

    for row in range(len(fits)):
        place(row, set())
    partner: list[int | None] = [None] * len(fits)
    for column, row in owner.items():
        partner[row] = column
    return partner


def _match_one(
    call: ToolCall, wanted: AcceptableCall, *, schema: Mapping[str, JSON], strings: Strings
) -> tuple[CallError, str] | None:
    """Return what separates a call from a wanted one, or `None`."""
    if _served(call.name) != _served(wanted.name):
        return CallError.WRONG_NAME, f"expected {wanted.name}"
    arguments = read_arguments(call)
    if arguments is None:
        return CallError.UNREADABLE_ARGUMENTS, repr(call.arguments)[:80]
    properties = schema.get("properties") or {}
    required = {*(schema.get("required") or ()), *(k for k, c in wanted.arguments.items() if not c.optional)}
    for name in sorted(required - arguments.keys()):
        return CallError.MISSING_ARGUMENT, name
    for name, value in arguments.items():
        if name not in wanted.arguments or (properties and name not in properties):
            return CallError.UNEXPECTED_ARGUMENT, name
        choices = wanted.arguments[name]
        declared = (properties.get(name) or {}).get("type")
        if not _has_type(value, declared) and not any(type(value) is type(option) for option in choices.values):
            return CallError.WRONG_TYPE, f"{name} is {type(value).__name__}, declared {declared}"
        if not any(_same(value, option, strings=strings) for option in choices.values):
            return CallError.WRONG_VALUE, f"{name} = {value!r}"[:200]
    return None


def _has_type(value: JSON, declared: JSON) -> bool:
    if declared in ("integer", "float", "number"):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (declared != "integer" and isinstance(value, float))
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "boolean": (bool,),
        "array": (list, tuple),
        "tuple": (list, tuple),
        "dict": (Mapping,),
        "object": (Mapping,),
        "null": (type(None),),
    }
    return not isinstance(declared, str) or declared not in kinds or isinstance(value, kinds[declared])


def _same(value: JSON, option: JSON, *, strings: Strings) -> bool:
    if isinstance(option, Fields):
        return isinstance(value, Mapping) and _same_fields(value, option, strings=strings)
    if isinstance(value, bool) or isinstance(option, bool):
        return value is option
    if isinstance(value, str) and isinstance(option, str):
        return value == option or (strings is Strings.BFCL and _standard(value) == _standard(option))
    if isinstance(value, (list, tuple)) and isinstance(option, (list, tuple)):
        pairs = zip(value, option, strict=False)
        return len(value) == len(option) and all(_same(a, b, strings=strings) for a, b in pairs)
    if isinstance(value, Mapping) and isinstance(option, Mapping):
        return value.keys() == option.keys() and all(_same(value[key], option[key], strings=strings) for key in value)
    if isinstance(value, (int, float)) and isinstance(option, (int, float)):
        return value == option
    return value is None and option is None


def _same_fields(value: Mapping[str, JSON], option: Fields, *, strings: Strings) -> bool:
    if any(key not in value for key, choices in option.choices.items() if not choices.optional):
        return False
    return all(
        key in option.choices and any(_same(item, other, strings=strings) for other in option.choices[key].values)
        for key, item in value.items()
    )


def _standard(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')
