"""What a record means: the shapes that users bring, told apart and turned into conversations.

What lives here: `detect_shape` and `convert`. What does not: files (`data.read`), provenance (`data.ingest`).

    alpaca      {"instruction", "input"?, "output", "system"?, "history"?}
    messages    {"messages": [{"role", "content", "tool_calls"?, ...}], "tools"?}
    sharegpt    {"conversations": [{"from", "value"}], "system"?, "tools"?}
    completion  {"prompt", "completion"}            also question/answer, query/response, input/output
    preference  {"prompt" | "messages" | ..., "chosen", "rejected"}
    kto         a conversation or prompt/completion with "label": true | false
    text        {"text"}                             one assistant turn without a prompt

A record that does not hold what its shape says raises `RowProblem` with the reason, the field, what was expected and
what was found.
"""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tunesmith.data.read import type_name
from tunesmith.errors import nearest
from tunesmith.types import JSON, ROLES, Conversation, Message, ToolCall


class Shape(enum.StrEnum):
    """The shapes of a record."""

    ALPACA = "alpaca"
    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    COMPLETION = "completion"
    PREFERENCE = "preference"
    KTO = "kto"
    TEXT = "text"


class RowProblem(Exception):
    """One record cannot be a row: `reason` is counted, `detail` is read by people."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What one record says."""

    conversation: Conversation
    rejected: tuple[Message, ...] = ()
    desirable: bool | None = None


PAIRS: tuple[tuple[str, str], ...] = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("instruction", "response"),
    ("input", "output"),
    ("user", "assistant"),
    ("problem", "solution"),
)
"""Names of prompt and answer in records of shape `completion`, most usual first."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "chat", "dialog"),
    "chosen": ("chosen", "chosen_messages", "preferred_output"),
    "rejected": ("rejected", "rejected_messages", "non_preferred_output"),
    "label": ("label", "kto_tag", "desirable"),
}
"""Field of a shape -> the names under which it is found in the field."""

SHAREGPT_ROLES: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "developer",
    "function_call": "function_call",
    "tool_call": "function_call",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool": "tool",
    "function": "tool",
}
"""ShareGPT's `from` -> role; `function_call` is an assistant turn whose value is the call (LLaMA-Factory)."""

_PART_TEXT_KEYS = ("text", "value", "content")


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
    has_pair = _pair(record, columns) is not None
    label = field_of(record, "label", columns)
    if isinstance(label, bool) and (turns is not None or has_pair or record.get("instruction") is not None):
        return Shape.KTO
    if turns is not None:
        return Shape.SHAREGPT if _is_sharegpt(_parsed(turns)) else Shape.MESSAGES
    if field_of(record, "instruction", columns) is not None and field_of(record, "output", columns) is not None:
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
    if shape is Shape.PREFERENCE:
        return _preference(record, columns)
    if shape is Shape.KTO:
        label = field_of(record, "label", columns)
        if not isinstance(label, bool):
            raise RowProblem("wrong_type", f"field 'label': expected true or false, found {type_name(label)}")
        messages = _any_prompt(record, columns)
        return Converted(conversation=_conversation(record, messages, columns), desirable=label)
    if shape is Shape.MESSAGES or shape is Shape.SHAREGPT:
        return Converted(conversation=_conversation(record, _turns(record, columns), columns))
    if shape is Shape.ALPACA:
        return Converted(conversation=_conversation(record, _alpaca(record, columns), columns))
    if shape is Shape.TEXT:
        text = _text(record, "text", columns)
        return Converted(conversation=Conversation(messages=(Message(role="assistant", content=text),)))
    return Converted(conversation=_conversation(record, _completion(record, columns), columns))


def _pair(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[str, str] | None:
    if "prompt" in columns or "completion" in columns:
        names = columns.get("prompt", "prompt"), columns.get("completion", "completion")
        return names if record.get(names[0]) is not None and record.get(names[1]) is not None else None
    return next((pair for pair in PAIRS if all(record.get(name) is not None for name in pair)), None)


def _parsed(value: JSON) -> JSON:
    """Parse JSON text that stands in a cell (CSV, Parquet); anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _parsed_turns(value: JSON) -> JSON:
    """Parse JSON text only where it is a list of messages: an answer that happens to be JSON stays text."""
    parsed = _parsed(value)
    first = parsed[0] if isinstance(parsed, list) and parsed else None
    return parsed if isinstance(first, Mapping) and ("role" in first or "from" in first) else value


def _is_sharegpt(turns: JSON) -> bool:
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, Mapping) and "from" in first and "value" in first


def _text(record: Mapping[str, JSON], name: str, columns: Mapping[str, str]) -> str:
    value = field_of(record, name, columns)
    shown = columns.get(name, name)
    if value is None:
        close = nearest(shown, [str(key) for key in record])
        raise RowProblem(
            "missing_field", f"field {shown!r}: expected text, found nothing; fields here: {', '.join(close)}"
        )
    if not isinstance(value, str):
        raise RowProblem("wrong_type", f"field {shown!r}: expected text, found {type_name(value)}")
    return value


def _optional_text(record: Mapping[str, JSON], name: str, columns: Mapping[str, str]) -> str | None:
    value = field_of(record, name, columns)
    if value is None or value == "":
        return None
    return _text(record, name, columns)


def _system(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Message, ...]:
    text = _optional_text(record, "system", columns)
    return (Message(role="system", content=text),) if text is not None else ()


def _alpaca(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Message, ...]:
    """Instruction and input joined by one line break, as LLaMA-Factory joins them; history before."""
    instruction = _text(record, "instruction", columns)
    extra = _optional_text(record, "input", columns)
    prompt = instruction if extra is None else f"{instruction}\n{extra}"
    messages = [*_system(record, columns)]
    history = field_of(record, "history", columns) or []
    if not isinstance(history, list):
        raise RowProblem("wrong_type", f"field 'history': expected a list of pairs, found {type_name(history)}")
    for index, pair in enumerate(history):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RowProblem("wrong_type", f"field 'history[{index}]': expected [question, answer], found {pair!r:.80}")
        messages += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    messages.append(Message(role="user", content=prompt))
    messages.append(Message(role="assistant", content=_text(record, "output", columns)))
    return tuple(messages)


def _completion(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Message, ...]:
    pair = _pair(record, columns)
    if pair is None:
        shown = columns.get("prompt", "prompt"), columns.get("completion", "completion")
        raise RowProblem(
            "missing_field",
            f"fields {shown[0]!r} and {shown[1]!r}: expected text in both, found the fields {_names(record)}",
        )
    prompt, answer = (_parsed_turns(record[name]) for name in pair)
    left = _message_list(prompt, pair[0]) if isinstance(prompt, list) else _said(prompt, "user", pair[0])
    right = _message_list(answer, pair[1]) if isinstance(answer, list) else _said(answer, "assistant", pair[1])
    return (*_system(record, columns), *left, *right)


def _said(value: JSON, role: str, name: str) -> tuple[Message, ...]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, Mapping) and ("role" in value or "from" in value):
        return (_message(value, name),)
    if not isinstance(value, str):
        raise RowProblem("wrong_type", f"field {name!r}: expected text or messages, found {type_name(value)}")
    return (Message(role="user" if role == "user" else "assistant", content=value),)


def _any_prompt(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Message, ...]:
    if field_of(record, "messages", columns) is not None:
        return _turns(record, columns)
    if field_of(record, "instruction", columns) is not None and field_of(record, "output", columns) is not None:
        return _alpaca(record, columns)
    return _completion(record, columns)


def _turns(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Message, ...]:
    value = _parsed(field_of(record, "messages", columns))
    shown = columns.get("messages", next((name for name in ALIASES["messages"] if name in record), "messages"))
    if value is None:
        raise RowProblem("missing_field", f"field {shown!r}: expected a list of messages, found {_names(record)}")
    return (*_system(record, columns), *_message_list(value, shown))


def _names(record: Mapping[str, JSON]) -> str:
    return ", ".join(repr(str(name)) for name in list(record)[:8]) or "no field"


def _message_list(value: JSON, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise RowProblem("wrong_type", f"field {name!r}: expected a list of messages, found {type_name(value)}")
    return tuple(_message(item, f"{name}[{index}]") for index, item in enumerate(value))


def _preference(record: Mapping[str, JSON], columns: Mapping[str, str]) -> Converted:
    chosen = _side(record, "chosen", columns)
    rejected = _side(record, "rejected", columns)
    shared = 0
    while shared < min(len(chosen), len(rejected)) and _same(chosen[shared], rejected[shared]):
        shared += 1
    prompt = _preference_prompt(record, columns)
    if shared and not prompt:
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif prompt and chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if not chosen or not rejected:
        raise RowProblem("same_answers", "fields 'chosen' and 'rejected': expected two answers, found the same one")
    if not prompt:
        raise RowProblem("missing_field", f"expected a prompt beside 'chosen' and 'rejected', found {_names(record)}")
    return Converted(conversation=_conversation(record, (*prompt, *chosen), columns), rejected=rejected)


def _same(left: Message, right: Message) -> bool:
    return left.role == right.role and left.content == right.content and left.tool_calls == right.tool_calls


def _side(record: Mapping[str, JSON], name: str, columns: Mapping[str, str]) -> tuple[Message, ...]:
    value = _parsed_turns(field_of(record, name, columns))
    if value is None:
        raise RowProblem("missing_field", f"field {name!r}: expected an answer, found {_names(record)}")
    return _message_list(value, name) if isinstance(value, list) else _said(value, "assistant", name)


def _preference_prompt(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Message, ...]:
    given = record.get("input")
    if isinstance(given, Mapping) and isinstance(given.get("messages"), list):
        return _message_list(given["messages"], "input.messages")  # OpenAI's preference fine-tuning
    turns = _parsed(field_of(record, "messages", columns))
    if turns is not None:
        return (*_system(record, columns), *_message_list(turns, "messages"))
    for name in (columns.get("prompt", "prompt"), columns.get("instruction", "instruction"), "question", "query"):
        value = _parsed_turns(record.get(name))
        if value is None:
            continue
        if isinstance(value, list):
            return (*_system(record, columns), *_message_list(value, name))
        extra = record.get("input") if name == "instruction" else None
        text = f"{value}\n{extra}" if isinstance(value, str) and isinstance(extra, str) and extra else value
        return (*_system(record, columns), *_said(text, "user", name))
    return ()


def _message(value: JSON, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise RowProblem("wrong_type", f"field {name!r}: expected an object with a role, found {type_name(value)}")
    if "from" in value and "value" in value:
        return _sharegpt_message(value, name)
    role = value.get("role")
    if role == "function":
        role = "tool"
    elif role in ("human", "gpt", "model", "bot"):
        role = SHAREGPT_ROLES.get(str(role), "assistant")
    if role not in ROLES:
        found = "nothing" if role is None else repr(role)
        raise RowProblem("unknown_role", f"field '{name}.role': expected one of {', '.join(ROLES)}, found {found}")
    content, reasoning, part_calls = _content(value.get("content"), f"{name}.content")
    calls = [*part_calls, *_tool_calls(value, f"{name}.tool_calls")]
    if content is None and not calls:
        if reasoning is None:
            raise RowProblem("missing_field", f"field '{name}.content': expected text, found nothing")
        content = ""
    own_reasoning = value.get("reasoning_content") or value.get("reasoning") or value.get("thinking")
    if own_reasoning is not None and not isinstance(own_reasoning, str):
        raise RowProblem(
            "wrong_type", f"field '{name}.reasoning_content': expected text, found {type_name(own_reasoning)}"
        )
    train, weight = _weighting(value, name)
    return Message(
        role=role,
        content=content,
        reasoning=own_reasoning or reasoning,
        tool_calls=tuple(calls),
        name=_optional(value, "name", name),
        tool_call_id=_optional(value, "tool_call_id", name),
        train=train,
        weight=weight,
    )


def _optional(value: Mapping[str, JSON], key: str, name: str) -> str | None:
    item = value.get(key)
    if item is not None and not isinstance(item, str):
        raise RowProblem("wrong_type", f"field '{name}.{key}': expected text, found {type_name(item)}")
    return item


def _weighting(value: Mapping[str, JSON], name: str) -> tuple[bool | None, float | None]:
    """Per-turn marks: `train`, axolotl's `training`, OpenAI's `weight` 0 or 1, LLaMA-Factory's `loss_weight`."""
    train = value.get("train", value.get("training"))
    if train is not None and not isinstance(train, bool):
        raise RowProblem("wrong_type", f"field '{name}.train': expected true or false, found {type_name(train)}")
    weight = value.get("weight", value.get("loss_weight"))
    if weight is None or value.get("role") != "assistant":
        return train, None
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
        raise RowProblem("wrong_type", f"field '{name}.weight': expected a number from 0 up, found {weight!r}")
    if weight == 0:
        return False, None
    return train, None if weight == 1 else float(weight)


def _content(value: JSON, name: str) -> tuple[str | None, str | None, list[ToolCall]]:
    """Text, reasoning and calls of a content that is text, nothing, or a list of typed parts."""
    if value is None or isinstance(value, str):
        return value, None, []
    if not isinstance(value, list):
        raise RowProblem("wrong_type", f"field {name!r}: expected text or a list of parts, found {type_name(value)}")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for index, part in enumerate(value):
        place = f"{name}[{index}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise RowProblem("wrong_type", f"field {place!r}: expected a part with a type, found {type_name(part)}")
        kind = part.get("type")
        body = next((part[key] for key in (*_PART_TEXT_KEYS, "thinking") if part.get(key) is not None), None)
        if kind in ("text", "input_text", "output_text", "reasoning", "thinking"):
            if not isinstance(body, str):
                raise RowProblem("wrong_type", f"field {place!r}: expected text, found {type_name(body)}")
            (thoughts if kind in ("reasoning", "thinking") else texts).append(body)
        elif kind in ("tool_call", "tool_calls", "function_call"):
            calls += _called(_parsed(body if body is not None else part), place)
        elif kind == "tool_use":
            calls.append(ToolCall(name=str(part.get("name")), arguments=part.get("input") or {}, id=part.get("id")))
        else:
            raise RowProblem("unsupported_part", f"field '{place}.type': expected text, found {kind!r}")
    return (
        "".join(texts) if texts else None,
        "".join(thoughts) if thoughts else None,
        calls,
    )


def _tool_calls(value: Mapping[str, JSON], name: str) -> list[ToolCall]:
    calls = _parsed(value.get("tool_calls"))
    if calls is None and isinstance(value.get("function_call"), Mapping):
        calls = [value["function_call"]]
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise RowProblem("wrong_type", f"field {name!r}: expected a list of calls, found {type_name(calls)}")
    return [call for index, item in enumerate(calls) for call in _called(item, f"{name}[{index}]")]


def _called(value: JSON, name: str) -> list[ToolCall]:
    if isinstance(value, list):
        return [call for index, item in enumerate(value) for call in _called(item, f"{name}[{index}]")]
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowProblem(
            "bad_tool_call", f"field {name!r}: expected an object with name and arguments, found {value!r:.80}"
        )
    arguments = function.get("arguments", {})
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, (str, Mapping)):
        raise RowProblem(
            "bad_tool_call", f"field '{name}.arguments': expected an object or JSON text, found {type_name(arguments)}"
        )
    if isinstance(arguments, str):
        try:
            json.loads(arguments)
        except ValueError as error:
            raise RowProblem("bad_tool_call", f"field '{name}.arguments': expected JSON text, found {error}") from error
    call_id = value.get("id") if isinstance(value, Mapping) else None
    return [ToolCall(name=function["name"], arguments=arguments, id=call_id if isinstance(call_id, str) else None)]


def _sharegpt_message(value: Mapping[str, JSON], name: str) -> Message:
    speaker = value.get("from")
    role = SHAREGPT_ROLES.get(str(speaker))
    text = value.get("value")
    if role is None:
        known = ", ".join(sorted(SHAREGPT_ROLES))
        raise RowProblem("unknown_role", f"field '{name}.from': expected one of {known}, found {speaker!r}")
    if not isinstance(text, str):
        raise RowProblem("wrong_type", f"field '{name}.value': expected text, found {type_name(text)}")
    train, weight = _weighting({**value, "role": "assistant" if role == "function_call" else role}, name)
    if role == "function_call":
        calls = _called(_parsed(text), f"{name}.value")
        return Message(role="assistant", tool_calls=tuple(calls), train=train, weight=weight)
    assert role in ROLES, role
    return Message(role=role, content=text, train=train, weight=weight)


def _tools(record: Mapping[str, JSON], columns: Mapping[str, str]) -> tuple[Mapping[str, JSON], ...]:
    value = field_of(record, "tools", columns)
    if value is None:
        value = record.get("functions")
    if value is None or value == "" or value == []:
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowProblem("bad_tools", f"field 'tools': expected a JSON list of functions, found {error}") from error
    if not isinstance(value, list):
        raise RowProblem("bad_tools", f"field 'tools': expected a list of functions, found {type_name(value)}")
    tools = []
    for index, tool in enumerate(value):
        if not isinstance(tool, Mapping):
            raise RowProblem("bad_tools", f"field 'tools[{index}]': expected an object, found {type_name(tool)}")
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowProblem(
                "bad_tools", f"field 'tools[{index}]': expected a function with a name, found {tool!r:.80}"
            )
        tools.append(tool if "function" in tool else {"type": "function", "function": tool})
    return tuple(tools)


def _conversation(
    record: Mapping[str, JSON], messages: tuple[Message, ...], columns: Mapping[str, str]
) -> Conversation:
    return Conversation(messages=messages, tools=_tools(record, columns))
