"""What a record means: the shapes that users bring, told apart and turned into conversations.

What lives here: `detect_shape` and `convert`. What does not: one message (`data.turns`), files (`data.read`),
provenance (`data.sources`).

    alpaca       {"instruction", "input"?, "output", "system"?, "history"?}
    messages     {"messages": [{"role", "content", "tool_calls"?, ...}], "tools"?}
    sharegpt     {"conversations": [{"from", "value"}], "system"?, "tools"?}
    completion   {"prompt", "completion"}            also question/answer, query/response, input/output
    preference   {"prompt" | "messages" | ..., "chosen", "rejected"}
    kto          a conversation or prompt/completion with "label": true | false
    request_log  {"request": {"messages"}, "response": {...}} of OpenAI or Anthropic
    text         {"text"}                             one assistant turn without a prompt

A record that does not hold what its shape says raises `RowProblem` with the reason, the field, what was expected and
what was found.
"""

from __future__ import annotations

import difflib
import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tunesmith.data.logs import logged_exchange, looks_logged
from tunesmith.data.records import type_name
from tunesmith.data.turns import RowProblem, content_of, messages_of, parsed, refuse, tools_of, turn_of
from tunesmith.errors import nearest
from tunesmith.types import JSON, Conversation, Message

__all__ = ["Converted", "RowProblem", "Shape", "convert", "detect_common_shape", "detect_shape", "names_of"]


class Shape(enum.StrEnum):
    """The shapes of a record."""

    ALPACA = "alpaca"
    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    COMPLETION = "completion"
    PREFERENCE = "preference"
    KTO = "kto"
    REQUEST_LOG = "request_log"
    TEXT = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What one record says."""

    conversation: Conversation
    rejected: tuple[Message, ...] = ()
    desirable: bool | None = None
    generator: str | None = None
    """Model that answered, where the record itself says so."""
    collected_at: str | None = None


PAIRS: tuple[tuple[str, str], ...] = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("instruction", "response"),
    ("input", "output"),
    ("question", "response"),
    ("text_input", "output"),
    ("user", "assistant"),
    ("problem", "solution"),
)
"""Names of prompt and answer in records of shape `completion`, most usual first."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "chat", "dialog"),
    "chosen": ("chosen", "chosen_messages", "preferred_output"),
    "rejected": ("rejected", "rejected_messages", "non_preferred_output"),
    "label": ("label", "kto_tag", "desirable"),
    "tools": ("tools", "functions"),
    "system": ("system", "system_prompt"),
}
"""Field of a shape -> the names under which it is found in the field."""


REJECTED_ANSWER = "rejected_response"
"""ms-swift's field beside a whole conversation: the answer that was not chosen."""


def field_of(record: Mapping[str, JSON], name: str, columns: Mapping[str, str]) -> JSON:
    """Return the value of a field under its mapped name, or under the first of its usual names that is there."""
    if name in columns:
        return record.get(columns[name])
    for alias in ALIASES.get(name, (name,)):
        if record.get(alias) is not None:
            return record[alias]
    return None


def detect_shape(record: Mapping[str, JSON], columns: Mapping[str, str]) -> Shape | None:
    """Say which shape one record has, or `None`. `columns` maps a field of a shape to the name it has here."""
    turns = field_of(record, "messages", columns)
    if field_of(record, "chosen", columns) is not None and field_of(record, "rejected", columns) is not None:
        return Shape.PREFERENCE
    if record.get(REJECTED_ANSWER) and "rejected" not in columns:
        return Shape.PREFERENCE
    has_pair = _pair(record, columns) is not None
    is_alpaca = field_of(record, "instruction", columns) is not None and field_of(record, "output", columns) is not None
    if isinstance(_kto_flag(record, columns), bool) and (turns is not None or has_pair or is_alpaca):
        return Shape.KTO
    if looks_logged(record):
        return Shape.REQUEST_LOG
    if turns is not None:
        return Shape.SHAREGPT if _is_sharegpt(_rows_of_columns(parsed(turns))) else Shape.MESSAGES
    if is_alpaca:
        return Shape.ALPACA
    if has_pair:
        return Shape.COMPLETION
    if isinstance(field_of(record, "text", columns), str):
        return Shape.TEXT
    return None


def detect_common_shape(records: Iterable[Mapping[str, JSON]], columns: Mapping[str, str]) -> Shape | None:
    """Return the shape that most of some records have, or `None` where most have none. Ties go to the first seen."""
    counts: Counter[Shape | None] = Counter(detect_shape(record, columns) for record in records)
    return counts.most_common(1)[0][0] if counts else None


def convert(record: Mapping[str, JSON], shape: Shape, *, columns: Mapping[str, str]) -> Converted:
    """Turn one record of a known shape into a conversation. Raises `RowProblem`."""
    if shape is Shape.REQUEST_LOG:
        exchange = logged_exchange(record)
        return Converted(
            conversation=exchange.conversation, generator=exchange.generator, collected_at=exchange.collected_at
        )
    if shape is Shape.PREFERENCE:
        return _preference(record, columns)
    if shape is Shape.TEXT:
        text = _text(record, "text", columns)
        return Converted(conversation=Conversation(messages=(Message(role="assistant", content=text),)))
    if shape is Shape.KTO:
        label = _kto_flag(record, columns)
        if not isinstance(label, bool):
            refuse("wrong_type", columns.get("label", "label"), expected="true or false", found=type_name(label))
        return Converted(conversation=_conversation(record, _answered(record, columns), columns), desirable=label)
    if shape is Shape.ALPACA:
        messages = _alpaca(record, columns)
    elif shape is Shape.COMPLETION:
        messages = _completion(record, columns)
    else:
        messages = _turns(record, columns)
    return Converted(conversation=_conversation(record, messages, columns))


def names_of(record: Mapping[str, JSON]) -> str:
    """Return the fields of a record, as an error says them; those that are empty or hold records are marked."""
    said = [repr(str(name)) + _mark(value) for name, value in list(record.items())[:8]]
    return ", ".join(said) + (" ..." if len(record) > 8 else "") if said else "(none)"


def _mark(value: JSON) -> str:
    if value is None:
        return " (nothing)"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return f" (a list of {len(value)} objects)"
    return ""


WANTED: tuple[tuple[str, ...], ...] = (
    ("messages",),
    ("instruction", "output"),
    *PAIRS,
    ("prompt", "chosen", "rejected"),
)
"""Fields that make a shape, for a record that has none of them under its name."""


def near_columns(record: Mapping[str, JSON]) -> dict[str, str]:
    """Return the mapping of columns that would give a record a shape, by the spelling of its fields; often empty."""
    names = {str(name).strip().casefold(): str(name) for name, value in record.items() if value is not None}
    for wanted in WANTED:
        found = {name: difflib.get_close_matches(name, names, n=1, cutoff=0.75) for name in wanted}
        used = [close[0] for close in found.values() if close]
        if len(used) == len(wanted) == len(set(used)):
            if wanted in PAIRS:
                found = dict(zip(("prompt", "completion"), found.values(), strict=True))
            return {name: names[close[0]] for name, close in found.items()}
    return {}


def _flag(value: JSON, *, is_said: bool = False) -> JSON:
    """A flag as CSV has it; 0 and 1 only where it `is_said` that the field is one, for they may be classes."""
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower(), value)
    if is_said and not isinstance(value, bool) and str(value) in ("0", "1", "0.0", "1.0"):
        return float(value) == 1
    return value


def _kto_flag(record: Mapping[str, JSON], columns: Mapping[str, str]) -> JSON:
    is_said = "label" in columns or record.get("label") is None
    return _flag(field_of(record, "label", columns), is_said=is_said)


def _pair(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[str, str] | None:
    if "prompt" in columns or "completion" in columns:
        names = columns.get("prompt", "prompt"), columns.get("completion", "completion")
        return names if record.get(names[0]) is not None and record.get(names[1]) is not None else None
    return next((pair for pair in PAIRS if all(record.get(name) is not None for name in pair)), None)


def _parsed_turns(value: JSON) -> JSON:
    """Parse JSON text only where it is a list of messages: an answer that happens to be JSON stays text."""
    inner = parsed(value)
    first = inner[0] if isinstance(inner, list) and inner else None
    return inner if isinstance(first, Mapping) and ("role" in first or "from" in first) else value


def _is_sharegpt(turns: JSON) -> bool:
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, Mapping) and "from" in first and "role" not in first


def _text(record: Mapping[str, JSON], name: str, columns: Mapping[str, str]) -> str:
    value = field_of(record, name, columns)
    shown = columns.get(name, name)
    if value is None:
        there = ", ".join(nearest(shown, [str(key) for key in record]))
        refuse("missing_field", shown, expected="text", found=f"nothing; fields here: {there}")
    if not isinstance(value, str):
        refuse("wrong_type", shown, expected="text", found=type_name(value))
    return value


def _optional_text(record: Mapping[str, JSON], name: str, columns: Mapping[str, str]) -> str | None:
    value = field_of(record, name, columns)
    return None if value is None or value == "" else _text(record, name, columns)


def _system(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Message, ...]:
    value = field_of(record, "system", columns)
    if isinstance(value, list):
        text, _, _ = content_of(value, columns.get("system", "system"))  # Anthropic's list of text blocks
    else:
        text = _optional_text(record, "system", columns)
    return (Message(role="system", content=text),) if text else ()


def _alpaca(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Message, ...]:
    """Instruction and input joined by one line break, as LLaMA-Factory joins them; history before."""
    asked = Message(role="user", content=_instruction(record, columns))
    answer = Message(role="assistant", content=_text(record, "output", columns))
    return (*_system(record, columns), *_history(record, columns), asked, answer)


def _history(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Message, ...]:
    """Earlier turns as pairs of question and answer (LLaMA-Factory, ms-swift), or as messages."""
    history = parsed(field_of(record, "history", columns)) or []
    if not isinstance(history, list):
        refuse("wrong_type", "history", expected="a list of pairs", found=type_name(history))
    if history and isinstance(history[0], Mapping):
        return messages_of(history, "history")
    messages = []
    for index, pair in enumerate(history):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            refuse("wrong_type", f"history[{index}]", expected="[question, answer]", found=f"{pair!r:.80}")
        messages += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    return tuple(messages)


def _instruction(record: Mapping[str, JSON], columns: Mapping[str, str]) -> str:
    instruction, extra = _text(record, "instruction", columns), _optional_text(record, "input", columns)
    return instruction if extra is None else f"{instruction}\n{extra}"


def _completion(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Message, ...]:
    pair = _pair(record, columns)
    if pair is None:
        shown = " and ".join((columns.get("prompt", "prompt"), columns.get("completion", "completion")))
        refuse("missing_field", shown, expected="text in both", found=names_of(record))
    prompt, answer = (_parsed_turns(record[name]) for name in pair)
    left = messages_of(prompt, pair[0]) if isinstance(prompt, list) else _said(prompt, "user", pair[0])
    right = messages_of(answer, pair[1]) if isinstance(answer, list) else _said(answer, "assistant", pair[1])
    extra = _extra(record, pair, columns)
    if extra is not None and len(left) == 1 and left[0].content is not None:
        left = (replace(left[0], content=f"{left[0].content}\n{extra}"),)
    return (*_system(record, columns), *_history(record, columns), *left, *right)


def _extra(record: Mapping[str, JSON], pair: tuple[str, str], columns: Mapping[str, str]) -> str | None:
    """Text that belongs to the prompt: a mapped `input`, or the context and input of an instruction (Dolly)."""
    if "input" in columns:
        return _optional_text(record, "input", columns)
    names = ("input", "context") if pair[0] == "instruction" else ()
    return next((_text(record, name, {}) for name in names if record.get(name)), None)


def _said(value: JSON, role: str, name: str) -> tuple[Message, ...]:
    if isinstance(value, Mapping) and ("role" in value or "from" in value):
        return turn_of(value, name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        refuse("wrong_type", name, expected="text or messages", found=type_name(value))
    return (Message(role="user" if role == "user" else "assistant", content=value),)


def _answered(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Message, ...]:
    """Prompt and answer, in whichever shape they are."""
    if field_of(record, "messages", columns) is not None:
        return _turns(record, columns)
    if field_of(record, "instruction", columns) is not None and field_of(record, "output", columns) is not None:
        return _alpaca(record, columns)
    return _completion(record, columns)


def _turns(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Message, ...]:
    value = parsed(field_of(record, "messages", columns))
    shown = columns.get("messages", next((name for name in ALIASES["messages"] if name in record), "messages"))
    if value is None:
        refuse("missing_field", shown, expected="a list of messages", found=f"the fields {names_of(record)}")
    return (*_system(record, columns), *messages_of(_rows_of_columns(value), shown))


def _rows_of_columns(value: JSON) -> JSON:
    """Messages that stand as lists of equal length, one a field (a `Sequence` of `datasets`), as a list of messages."""
    if not isinstance(value, Mapping) or not ("role" in value or "from" in value):
        return value
    lengths = {len(column) if isinstance(column, list) else -1 for column in value.values()}
    if len(lengths) != 1 or -1 in lengths:
        return value
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _preference(record: Mapping[str, JSON], columns: Mapping[str, str]) -> Converted:
    if record.get(REJECTED_ANSWER) and field_of(record, "rejected", columns) is None:
        *asked, answer = _answered(record, columns)
        other = _side(record, "rejected", {**columns, "rejected": REJECTED_ANSWER})
        return Converted(conversation=_conversation(record, (*asked, answer), columns), rejected=other)
    chosen, rejected = _side(record, "chosen", columns), _side(record, "rejected", columns)
    shared = 0
    while shared < min(len(chosen), len(rejected)) and _same(chosen[shared], rejected[shared]):
        shared += 1
    prompt = _preference_prompt(record, columns)
    if shared and not prompt:
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif prompt and shared >= len(prompt) and all(map(_same, prompt, chosen)):
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if not chosen or not rejected or chosen == rejected:
        refuse("same_answers", "chosen and rejected", expected="two answers", found="the same one twice")
    if not prompt:
        refuse("missing_field", "prompt", expected="a prompt beside chosen and rejected", found=names_of(record))
    return Converted(conversation=_conversation(record, (*prompt, *chosen), columns), rejected=rejected)


def _same(left: Message, right: Message) -> bool:
    return left.role == right.role and left.content == right.content and left.tool_calls == right.tool_calls


def _side(record: Mapping[str, JSON], name: str, columns: Mapping[str, str]) -> tuple[Message, ...]:
    value = _parsed_turns(field_of(record, name, columns))
    shown = columns.get(name, name)
    if value is None:
        refuse("missing_field", shown, expected="an answer", found=f"the fields {names_of(record)}")
    return messages_of(value, shown) if isinstance(value, list) else _said(value, "assistant", shown)


def _preference_prompt(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Message, ...]:
    given = record.get("input")
    if isinstance(given, Mapping) and isinstance(given.get("messages"), list):
        return messages_of(given["messages"], "input.messages")  # OpenAI's preference fine-tuning
    if field_of(record, "messages", columns) is not None:
        return _turns(record, columns)
    system = _system(record, columns)
    if field_of(record, "instruction", columns) is not None:
        return (*system, Message(role="user", content=_instruction(record, columns)))
    for name in (columns.get("prompt", "prompt"), "question", "query"):
        value = _parsed_turns(record.get(name))
        if value is not None:
            said = messages_of(value, name) if isinstance(value, list) else _said(value, "user", name)
            return (*system, *said)
    return ()


def _conversation(
    record: Mapping[str, JSON], messages: tuple[Message, ...], columns: Mapping[str, str]
) -> Conversation:
    return Conversation(messages=messages, tools=tools_of(field_of(record, "tools", columns)))
