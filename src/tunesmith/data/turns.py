"""Turns: one message as users write it becomes one `Message`, or says why it cannot.

What lives here: OpenAI, Anthropic and ShareGPT messages, typed parts, tool calls, tools, per-turn training marks. What
does not: how a record holds its messages (`data.shapes`).

    messages_of([{"from": "human", "value": "hi"}], "conversations")  ->  (Message(role="user", content="hi"),)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn, cast

from tunesmith.data.records import excerpt, type_name
from tunesmith.types import JSON, ROLES, Message, Role, ToolCall


class RowProblem(Exception):
    """One record cannot be a row: `reason` is counted, `detail` is read by people."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


def refuse(reason: str, field: str, *, expected: str, found: str) -> NoReturn:
    """Raise the problem of one field of one record."""
    raise RowProblem(reason, f"field {field!r}: expected {expected}, found {found}")


SPEAKERS: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "prompter": "user",
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
"""Names of a speaker in the field -> role; `function_call` is an assistant turn that is a call (LLaMA-Factory)."""

TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
THOUGHT_PARTS = ("reasoning", "thinking", "thought", "reasoning.text")
UNREADABLE_THOUGHTS = ("redacted_thinking",)
"""Encrypted reasoning (Anthropic): the turn is whole without it."""
CALL_PARTS = ("tool_call", "tool_calls", "function_call")
_BODY_KEYS = ("text", "value", "content", "thinking", "refusal")


def messages_of(value: JSON, name: str) -> tuple[Message, ...]:
    """Read a list of messages. `name` is the field it stands in. Raises `RowProblem`."""
    if not isinstance(value, list):
        refuse("wrong_type", name, expected="a list of messages", found=_noted(value))
    return tuple(message for index, item in enumerate(value) for message in turn_of(item, f"{name}[{index}]"))


def _noted(value: JSON) -> str:
    """The type of a value, and that a list was written as Python shows it, which no reader of JSON takes."""
    if isinstance(value, str) and value.lstrip().startswith(("[{'", "{'", "[array", "array(")):
        return f"text in Python's notation ({excerpt(value)}): write each cell with json.dumps"
    return type_name(value)


def turn_of(value: JSON, name: str) -> tuple[Message, ...]:
    """Read one turn: one message, or several where it holds tool results beside text (Anthropic)."""
    if not isinstance(value, Mapping):
        refuse("wrong_type", name, expected="an object with a role", found=type_name(value))
    if "from" in value and "role" not in value:
        return (_sharegpt(value, name),)
    if value.get("type") in ("function_call", "function_call_output", "reasoning") and "role" not in value:
        return (_responses_item(value, name),)
    if str(value.get("type")).endswith("_call") and "role" not in value:
        expected = "messages, function calls and their outputs"
        refuse(
            "unsupported_part", f"{name}.type", expected=expected, found=f"a call of a hosted tool, {value['type']!r}"
        )
    results = _tool_results(value, name)
    if results:
        rest = [part for part in value["content"] if part.get("type") != "tool_result"]
        return (*results, *(turn_of({**value, "content": rest}, name) if rest else ()))
    return (_message(value, name),)


def parsed(value: JSON) -> JSON:
    """Parse JSON text that stands in a cell (CSV, Parquet); anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _role(value: Mapping[str, JSON], name: str) -> Role:
    said = value.get("role")
    role = SPEAKERS.get(said.strip().lower()) if isinstance(said, str) else None
    if role not in ROLES:
        found = "nothing" if said is None else repr(said)
        refuse("unknown_role", f"{name}.role", expected=f"one of {', '.join(ROLES)}", found=found)
    return role


def _message(value: Mapping[str, JSON], name: str) -> Message:
    role = _role(value, name)
    key = next((key for key in ("content", "value", "text") if value.get(key) is not None), "content")
    said = value.get(key)
    if role == "tool" and isinstance(said, Mapping) and "type" not in said:
        said = json.dumps(said, ensure_ascii=False)  # a result as an object is its JSON text
    content, thought, part_calls = content_of(said, f"{name}.{key}")
    calls = (*part_calls, *_tool_calls(value, f"{name}.tool_calls"))
    if content is None and not calls:
        if isinstance(value.get("refusal"), str):
            content = value["refusal"]
        elif thought is None:
            refuse("missing_field", f"{name}.content", expected="text", found="nothing")
        else:
            content = ""
    own_thought = value.get("reasoning_content") or value.get("reasoning") or value.get("thinking")
    if own_thought is not None and not isinstance(own_thought, str):
        refuse("wrong_type", f"{name}.reasoning_content", expected="text", found=type_name(own_thought))
    if own_thought is None and isinstance(value.get("reasoning_details"), list):
        own_thought = _detailed_thought(value["reasoning_details"])
    train, weight = _marks(value, role, name)
    return Message(
        role=role,
        content=content,
        reasoning=own_thought or thought,
        tool_calls=calls,
        name=_text(value, "name", name),
        tool_call_id=_text(value, "tool_call_id", name),
        train=train,
        weight=weight,
        spans=_weighted_parts(value.get("spans"), content or "", f"{name}.spans"),
    )


def _detailed_thought(details: list[JSON]) -> str | None:
    """The readable parts of OpenRouter's `reasoning_details`; encrypted ones and summaries are none."""
    texts = [part["text"] for part in details if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    return "".join(texts) or None


def _weighted_parts(value: JSON, content: str, name: str) -> tuple[tuple[int, int, float], ...]:
    """Loss weights of parts of the content: a list of [start, end, factor], in characters."""
    parts = []
    for index, item in enumerate(value if isinstance(value, list) else [] if value is None else [value]):
        fits = isinstance(item, list) and len(item) == 3 and not any(isinstance(number, bool) for number in item)
        if not (fits and isinstance(item[0], int) and isinstance(item[1], int) and isinstance(item[2], (int, float))):
            refuse("bad_spans", f"{name}[{index}]", expected="[start, end, factor]", found=f"{item!r:.60}")
        start, end, factor = item
        if not (0 <= start < end <= len(content) and factor >= 0):
            expected = f"characters within 0 and {len(content)} and a factor from 0 up"
            refuse("bad_spans", f"{name}[{index}]", expected=expected, found=repr(item))
        parts.append((start, end, float(factor)))
    return tuple(parts)


def _text(value: Mapping[str, JSON], key: str, name: str) -> str | None:
    item = value.get(key)
    if item is not None and not isinstance(item, str):
        refuse("wrong_type", f"{name}.{key}", expected="text", found=type_name(item))
    return item


def _marks(value: Mapping[str, JSON], role: str, name: str) -> tuple[bool | None, float | None]:
    """Per-turn marks: `train`, axolotl's `training`, OpenAI's `weight` 0 or 1, LLaMA-Factory's `loss_weight`."""
    train = value.get("train", value.get("training"))
    if train is not None and not isinstance(train, bool):
        refuse("wrong_type", f"{name}.train", expected="true or false", found=type_name(train))
    weight = value.get("weight", value.get("loss_weight"))
    if weight is None or role != "assistant":
        return train, None
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
        refuse("wrong_type", f"{name}.weight", expected="a number from 0 up", found=repr(weight))
    if weight == 0:
        return False, None
    return train, None if weight == 1 else float(weight)


def content_of(value: JSON, name: str) -> tuple[str | None, str | None, tuple[ToolCall, ...]]:
    """Return text, reasoning and calls of a content: text, nothing, or a list of typed parts. Raises `RowProblem`."""
    if value is None or isinstance(value, str):
        return value, None, ()
    if isinstance(value, Mapping) and "type" in value:
        value = [value]
    if not isinstance(value, list):
        refuse("wrong_type", name, expected="text or a list of parts", found=type_name(value))
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for index, part in enumerate(value):
        place = f"{name}[{index}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            refuse("wrong_type", place, expected="a part with a type", found=type_name(part))
        kind = part.get("type")
        body = next((part[key] for key in _BODY_KEYS if part.get(key) is not None), None)
        if kind in TEXT_PARTS or kind in THOUGHT_PARTS:
            if not isinstance(body, str):
                refuse("wrong_type", place, expected="text", found=type_name(body))
            (thoughts if kind in THOUGHT_PARTS else texts).append(body)
        elif kind in CALL_PARTS:
            calls += calls_of(parsed(body if body is not None else part), place)
        elif kind == "tool_use":
            call = {"name": part.get("name"), "arguments": part.get("input"), "id": part.get("id")}
            calls += calls_of(call, place)
        elif kind in UNREADABLE_THOUGHTS:
            continue
        else:
            refuse("unsupported_part", f"{place}.type", expected="text, reasoning or a tool call", found=repr(kind))
    return ("".join(texts) if texts else None, "".join(thoughts) if thoughts else None, tuple(calls))


def _tool_results(value: Mapping[str, JSON], name: str) -> tuple[Message, ...]:
    """Anthropic puts results of tools into a user turn: each is a tool message of its own here."""
    content = value.get("content")
    if not isinstance(content, list):
        return ()
    results = []
    for index, part in enumerate(content):
        if isinstance(part, Mapping) and part.get("type") == "tool_result":
            said = part.get("content", part.get("result"))  # `result` and `id` are TensorZero's
            text, _, _ = content_of(said, f"{name}.content[{index}].content")
            call_id = _text(part, "tool_use_id" if "tool_use_id" in part else "id", f"{name}.content[{index}]")
            results.append(Message(role="tool", content=text or "", tool_call_id=call_id))
    return tuple(results)


def _tool_calls(value: Mapping[str, JSON], name: str) -> tuple[ToolCall, ...]:
    calls = parsed(value.get("tool_calls"))
    legacy = parsed(value.get("function_call"))
    if not calls and isinstance(legacy, Mapping):
        calls = [legacy]
    if calls is None or calls == "":
        return ()
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list):
        refuse("wrong_type", name, expected="a list of calls", found=type_name(calls))
    return calls_of(calls, name)


def calls_of(value: JSON, name: str) -> tuple[ToolCall, ...]:
    """Read one call or a list of calls, each an object with name and arguments. Raises `RowProblem`."""
    if isinstance(value, list):
        return tuple(call for index, item in enumerate(value) for call in calls_of(item, f"{name}[{index}]"))
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        refuse("bad_tool_call", name, expected="an object with name and arguments", found=f"{value!r:.80}")
    arguments = function.get("arguments", function.get("parameters"))
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, (str, Mapping)):
        refuse("bad_tool_call", f"{name}.arguments", expected="an object or its JSON text", found=type_name(arguments))
    if isinstance(arguments, str):
        arguments = arguments or "{}"
        try:
            written = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            refuse("bad_tool_call", f"{name}.arguments", expected="JSON text", found=f"{error}: {arguments!r:.60}")
        if not isinstance(written, Mapping):
            found = type_name(written)
            refuse("bad_tool_call", f"{name}.arguments", expected="the JSON text of an object", found=found)
    call_id = next((value[key] for key in ("id", "call_id") if isinstance(value.get(key), str)), None)
    return (ToolCall(name=function["name"], arguments=arguments, id=call_id),)


def _sharegpt(value: Mapping[str, JSON], name: str) -> Message:
    key = next((key for key in ("value", "content", "text") if value.get(key) is not None), "value")
    speaker, said = value.get("from"), value.get(key)
    role = SPEAKERS.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        expected = "one of human, gpt, system, function_call, observation"
        refuse("unknown_role", f"{name}.from", expected=expected, found=repr(speaker))
    if not isinstance(said, str):
        refuse("wrong_type", f"{name}.{key}", expected="text", found=type_name(said))
    train, weight = _marks(value, "assistant" if role == "function_call" else role, name)
    if role == "function_call":
        return Message(role="assistant", tool_calls=calls_of(parsed(said), f"{name}.value"), train=train, weight=weight)
    return Message(role=cast(Role, role), content=said, train=train, weight=weight)


def _responses_item(value: Mapping[str, JSON], name: str) -> Message:
    """An item of OpenAI's Responses API that is no message."""
    if value["type"] == "function_call":
        return Message(role="assistant", tool_calls=calls_of({**value, "id": value.get("call_id")}, name))
    if value["type"] == "function_call_output":
        output = value.get("output")
        text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
        return Message(role="tool", content=text, tool_call_id=_text(value, "call_id", name))
    thought = "".join(str(part.get("text", "")) for part in value.get("summary") or () if isinstance(part, Mapping))
    return Message(role="assistant", content="", reasoning=thought or None)


def tools_of(value: JSON, name: str = "tools") -> tuple[Mapping[str, JSON], ...]:
    """Read tools as OpenAI function declarations; bare functions and Anthropic's `input_schema` are put in that shape.

    Raises `RowProblem`.
    """
    if value is None or value == "" or value == []:
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            refuse("bad_tools", name, expected="a JSON list of functions", found=f"{error}: {value!r:.60}")
    if value is None:
        return ()
    if isinstance(value, Mapping) and ("name" in value or "function" in value):
        value = [value]
    if not isinstance(value, list):
        refuse("bad_tools", name, expected="a list of functions", found=type_name(value))
    return tuple(_tool(tool, f"{name}[{index}]") for index, tool in enumerate(value))


def _tool(tool: JSON, name: str) -> Mapping[str, JSON]:
    if isinstance(tool, str):
        tool = parsed(tool)
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        refuse("bad_tools", name, expected="a function with a name", found=f"{tool!r:.80}")
    if "function" in tool:
        return cast(Mapping[str, JSON], tool)
    function = {key: item for key, item in function.items() if key != "type"}
    if "input_schema" in function:
        function["parameters"] = function.pop("input_schema")
    return {"type": "function", "function": function}
