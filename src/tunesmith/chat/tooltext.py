"""Tools as text: declarations, calls and results for bases whose template leaves tools out.

What lives here: the declaration of tools in the formats that models and other projects use, and conversations whose
tools are written into their messages. What does not: reading calls back (`toolcalls`).

    write_into_text([{"role": "user", ...}, {"role": "assistant", "tool_calls": [...]}], tools, ToolFormat.HERMES)
    -> [{"role": "system", "content": "...# Tools..."}, {"role": "user", ...}, {"role": "assistant", "content": "..."}]

Sources of the texts: the chat templates of Qwen 2.5, Llama 3.1, Mistral v3, GLM 4 and LFM 2 as published with the
models; the ReAct form is LLaMA-Factory's `default` (`data/tool_utils.py`), which models tuned there expect.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.chat.template import RawMessage
from tunesmith.chat.toolcalls import ToolFormat, write_calls
from tunesmith.types import JSON, ToolCall

WRITTEN_FORMATS = (
    ToolFormat.HERMES,
    ToolFormat.LLAMA,
    ToolFormat.MISTRAL,
    ToolFormat.NAME_LINE,
    ToolFormat.PYTHONIC,
    ToolFormat.REACT,
)
"""Formats that can be written without a template."""

_HERMES_HEAD = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_HERMES_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)
_LLAMA_HEAD = (
    "Cutting Knowledge Date: December 2023\nToday Date: {date}\n\nYou have access to the following functions. To call "
    "a function, please respond with JSON for a function call. Respond in the format "
    '{{"name": function name, "parameters": dictionary of argument name and its value}}. Do not use variables.\n\n'
)
_GLM_HEAD = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
_GLM_EACH = "\n\n## {name}\n\n{declaration}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
_REACT = (
    "You have access to the following tools:\n{tools}\nUse the following format if using a tool:\n```\n"
    "Action: tool name (one of [{names}])\n"
    "Action Input: the input to the tool, in a JSON format representing the kwargs "
    '(e.g. ```{{"input": "hello world", "num_beams": 5}}```)\n```\n'
)
DEFAULT_DATE = "26 Jul 2024"
"""What Llama 3.1's template prints as today where it is not told."""


def write_tools(tools: Sequence[Mapping[str, JSON]], form: ToolFormat, *, date: str = DEFAULT_DATE) -> str:
    """Return the text that declares tools. Raises `ValueError` for a format that only templates write."""
    functions = [tool.get("function", tool) for tool in tools]
    wrapped = [{"type": "function", "function": function} for function in functions]
    if form is ToolFormat.HERMES:
        return _HERMES_HEAD + "".join("\n" + _dump(tool) for tool in wrapped) + _HERMES_TAIL
    if form is ToolFormat.LLAMA:
        listed = "".join(json.dumps(tool, indent=4, ensure_ascii=False) + "\n\n" for tool in wrapped)
        return _LLAMA_HEAD.format(date=date) + listed
    if form is ToolFormat.MISTRAL:
        return f"[AVAILABLE_TOOLS] {_dump(wrapped)}[/AVAILABLE_TOOLS]"
    if form is ToolFormat.NAME_LINE:
        parts = [
            _GLM_EACH.format(name=function["name"], declaration=json.dumps(function, indent=4, ensure_ascii=False))
            for function in functions
        ]
        return _GLM_HEAD + "".join(parts)
    if form is ToolFormat.PYTHONIC:
        return f"List of tools: <|tool_list_start|>{_dump(functions)}<|tool_list_end|>"
    if form is ToolFormat.REACT:
        names = ", ".join(str(function["name"]) for function in functions)
        return _REACT.format(tools="".join(_react_tool(function) for function in functions), names=names)
    raise ValueError(f"{form.value} is declared by chat templates only")


def write_into_text(
    messages: Sequence[RawMessage], tools: Sequence[Mapping[str, JSON]], form: ToolFormat, *, date: str = DEFAULT_DATE
) -> list[dict[str, JSON]]:
    """Return a conversation that says in words what its tools and tool calls say in fields.

    The declaration joins the system prompt, calls the content of their turn; results become user turns. Raises
    `Refused` where a call is not one.
    """
    out: list[dict[str, JSON]] = []
    rest = list(messages)
    if tools:
        declaration = write_tools(tools, form, date=date)
        system = rest.pop(0)["content"] if rest and rest[0].get("role") == "system" else ""
        join = "" if declaration.startswith("\n") or not system else "\n\n"
        out.append({"role": "system", "content": (str(system) + join + declaration).strip("\n")})
    for message in rest:
        if message.get("role") == "tool":
            out.append(_result(message, form))
            continue
        calls = message.get("tool_calls")
        if not calls:
            out.append(dict(message))
            continue
        text = write_calls([_call(call) for call in calls], form)
        content = message.get("content")
        kept = {key: value for key, value in message.items() if key != "tool_calls"}
        out.append({**kept, "content": f"{content}\n{text}" if content else text})
    return _joined_results(out)


def _result(message: RawMessage, form: ToolFormat) -> dict[str, JSON]:
    content = str(message.get("content") or "")
    if form is ToolFormat.HERMES:
        content = f"<tool_response>\n{content}\n</tool_response>"
    elif form is ToolFormat.REACT:
        content = f"Observation: {content}"
    return {"role": "user", "content": content, "_result": True}


def _joined_results(messages: Sequence[dict[str, JSON]]) -> list[dict[str, JSON]]:
    """Join results in a row into one user turn, so that turns alternate."""
    out: list[dict[str, JSON]] = []
    joined = False
    for message in messages:
        is_result = message.pop("_result", False)
        if is_result and joined:
            out[-1]["content"] += "\n" + message["content"]
        else:
            out.append(message)
        joined = bool(is_result)
    return out


def _call(call: Mapping[str, JSON]) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    if "name" not in function or "arguments" not in function:
        raise Refused(
            RefusalKind.BAD_INPUT,
            "a tool call must be an object with a name and arguments",
            found=repr(call)[:80],
        )
    return ToolCall(name=function["name"], arguments=function["arguments"], id=call.get("id"))


def _dump(value: JSON) -> str:
    return json.dumps(value, ensure_ascii=False)


def _react_tool(function: Mapping[str, JSON]) -> str:
    parameters = function.get("parameters") or {}
    required = set(parameters.get("required") or ())
    lines = []
    for name, spec in (parameters.get("properties") or {}).items():
        need = ", required" if name in required else ""
        choices = f", should be one of [{', '.join(map(str, spec['enum']))}]" if spec.get("enum") else ""
        lines.append(f"  - {name} ({spec.get('type', '')}{need}): {spec.get('description', '')}{choices}\n")
    description = function.get("description", "")
    return f"> Tool Name: {function['name']}\nTool Description: {description}\nTool Args:\n{''.join(lines)}"
