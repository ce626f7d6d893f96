"""Tool calls as text: the formats that models write, read and written.

What lives here: one reader per format, writers for the formats that have no template of their own. What does not: the
declaration of tools in a prompt (`tooltext`), which format a template uses (`parse`).

    read_calls('<tool_call>\\n{"name": "f", "arguments": {"a": 1}}\\n</tool_call>', ToolFormat.HERMES)
    -> CallsRead(content="", calls=(ToolCall(name="f", arguments={"a": 1}),), broken=None)
"""

from __future__ import annotations

import ast
import enum
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.types import JSON, ToolCall


class ToolFormat(enum.StrEnum):
    """How a model writes a tool call."""

    HERMES = "hermes"
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes, Qwen 2.5, Qwen 3)."""
    FUNCTION_XML = "function_xml"
    """`<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>` (Qwen 3.5, Nemotron 3)."""
    ARG_XML = "arg_xml"
    """`<tool_call>NAME<arg_key>K</arg_key><arg_value>V</arg_value></tool_call>` (GLM 4.5)."""
    LLAMA = "llama"
    """`{"name": ..., "parameters": {...}}` as the whole answer, or a list of them (Llama 3.x)."""
    MISTRAL = "mistral"
    """`[TOOL_CALLS] [{"name": ..., "arguments": {...}}]`, or `[TOOL_CALLS]NAME[ARGS]{...}`."""
    DEEPSEEK = "deepseek"
    """`function<｜tool▁sep｜>NAME`, then a fenced JSON block (DeepSeek V3, R1)."""
    HARMONY = "harmony"
    """`to=functions.NAME<|channel|>commentary json<|message|>{...}<|call|>` (gpt-oss)."""
    PYTHONIC = "pythonic"
    """`<|tool_call_start|>[NAME(key=value)]<|tool_call_end|>` (LFM2)."""
    NAME_LINE = "name_line"
    """The name on one line, JSON arguments on the next (GLM 4)."""
    REACT = "react"
    """`Action: NAME`, then `Action Input: {...}` (the default of LLaMA-Factory)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsRead:
    """What was read from an answer."""

    content: str
    """The text before the calls."""
    calls: tuple[ToolCall, ...] = ()
    broken: str | None = None
    """Why a call that was begun cannot be read."""


class _Broken(ValueError):
    """A call was begun and cannot be read."""


def read_calls(text: str, form: ToolFormat) -> CallsRead:
    """Return content and calls of an answer. A broken call leaves the whole text as content."""
    try:
        content, calls = _READERS[form](text)
    except (_Broken, json.JSONDecodeError, KeyError, TypeError, SyntaxError) as error:
        return CallsRead(content=text, broken=str(error) or type(error).__name__)
    return CallsRead(content=content, calls=tuple(calls))


def detect_format(target: str) -> ToolFormat | None:
    """Return the format of a rendered turn with a tool call, or `None` where it is none that can be read."""
    for mark, form in _SIGNS:
        if mark in target:
            return form
    return None


_SIGNS: tuple[tuple[str, ToolFormat], ...] = (
    ("<|channel|>", ToolFormat.HARMONY),
    ("<function=", ToolFormat.FUNCTION_XML),
    ("<arg_key>", ToolFormat.ARG_XML),
    ("<tool_call>", ToolFormat.HERMES),
    ("[TOOL_CALLS]", ToolFormat.MISTRAL),
    ("<｜tool▁sep｜>", ToolFormat.DEEPSEEK),
    ("<|tool_call_start|>", ToolFormat.PYTHONIC),
    ('"parameters":', ToolFormat.LLAMA),
)


def _object(value: JSON, key: str = "arguments") -> ToolCall:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise _Broken("a call must be an object with a name")
    arguments = value[key]
    if not isinstance(arguments, (Mapping, str)):
        raise _Broken(f"{key} must be an object")
    call_id = value.get("id")
    return ToolCall(name=value["name"], arguments=arguments, id=call_id if isinstance(call_id, str) else None)


def _read_hermes(text: str) -> tuple[str, list[ToolCall]]:
    head, found, rest = text.partition("<tool_call>")
    calls: list[ToolCall] = []
    while found:
        value, end = _decode(rest)
        calls.append(_object(value))
        tail = rest[end:].lstrip()
        if not tail.startswith("</tool_call>"):
            raise _Broken("a tool call is not closed")
        _, found, rest = tail.partition("<tool_call>")
    return (head.rstrip("\n") if calls else head), calls


_FUNCTION = re.compile(r"<function=([^>\n]+)>\n?(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


def _read_function_xml(text: str) -> tuple[str, list[ToolCall]]:
    head, found, rest = text.partition("<tool_call>")
    if not found:
        return text, []
    calls = [
        ToolCall(name=name.strip(), arguments={key: _loose(value) for key, value in _PARAMETER.findall(body)})
        for name, body in _FUNCTION.findall(rest)
    ]
    if len(calls) != rest.count("<function="):
        raise _Broken("a function is not closed")
    return head.rstrip("\n"), calls


_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def _read_arg_xml(text: str) -> tuple[str, list[ToolCall]]:
    head, *blocks = text.split("<tool_call>")
    calls = []
    for block in blocks:
        body, closed, _ = block.partition("</tool_call>")
        if not closed:
            raise _Broken("a tool call is not closed")
        name = body.partition("<arg_key>")[0].strip()
        calls.append(ToolCall(name=name, arguments={key: _loose(value) for key, value in _ARGUMENT.findall(body)}))
    return (head.rstrip("\n") if calls else head), calls


def _loose(text: str) -> JSON:
    """Read a bare value: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _read_llama(text: str) -> tuple[str, list[ToolCall]]:
    bare = text.strip().removeprefix("<|python_tag|>").strip()
    if not bare.startswith(("{", "[")):
        return text, []
    try:
        value = json.loads(bare)
    except json.JSONDecodeError:
        if '"name"' in bare[:20] and '"parameters"' in bare:
            raise
        return text, []
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, Mapping) and {"name", "parameters"} <= set(item) for item in items):
        return text, []
    return "", [_object(item, "parameters") for item in items]


_NAMED = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\]([\w-]+))?\[ARGS\]")


def _read_mistral(text: str) -> tuple[str, list[ToolCall]]:
    head, found, rest = text.partition("[TOOL_CALLS]")
    if not found:
        return (text, []) if not _is_call_list(text) else ("", _objects(json.loads(text)))
    calls: list[ToolCall] = []
    if rest.lstrip().startswith(("[", "{")):
        value, _ = _decode(rest)
        return head, _objects(value)
    for piece in rest.split("[TOOL_CALLS]"):
        match = _NAMED.match(piece)
        if match is None:
            raise _Broken("a tool call has no [ARGS]")
        value, _ = _decode(piece[match.end() :])
        calls.append(ToolCall(name=match[1], arguments=value, id=match[2]))
    return head, calls


def _is_call_list(text: str) -> bool:
    """Whether an answer is a bare JSON call or list of calls, which some engines give without the control token."""
    if not text.lstrip().startswith(("{", "[{")):
        return False
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return False
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, Mapping) and {"name", "arguments"} <= set(item) for item in items)


def _objects(value: JSON) -> list[ToolCall]:
    return [_object(item) for item in (value if isinstance(value, list) else [value])]


_DEEPSEEK = re.compile(
    r"<｜tool▁call▁begin｜>\w+<｜tool▁sep｜>(.+?)\n```json\n(.*?)\n```<｜tool▁call▁end｜>", re.DOTALL
)


def _read_deepseek(text: str) -> tuple[str, list[ToolCall]]:
    head, found, rest = text.partition("<｜tool▁calls▁begin｜>")
    if not found:
        return text, []
    calls = [ToolCall(name=name, arguments=_mapping(json.loads(body))) for name, body in _DEEPSEEK.findall(rest)]
    if len(calls) != rest.count("<｜tool▁call▁begin｜>") or not calls:
        raise _Broken("a tool call is not closed")
    return head, calls


_HARMONY = re.compile(
    r"(?: to=functions\.(?P<before>[\w.-]+))?<\|channel\|>(?P<channel>\w+)(?: to=functions\.(?P<after>[\w.-]+))?"
    r"(?P<rest>[^<]*)(?:<\|constrain\|>\w+)?<\|message\|>(?P<body>.*?)(?:<\|end\|>|<\|call\|>|<\|return\|>|\Z)",
    re.DOTALL,
)


def _read_harmony(text: str) -> tuple[str, list[ToolCall]]:
    content: list[str] = []
    calls: list[ToolCall] = []
    if "<|channel|>" not in text:
        return text, []
    for match in _HARMONY.finditer(text):
        name = match["before"] or match["after"]
        if name:
            calls.append(ToolCall(name=name, arguments=_mapping(json.loads(match["body"]))))
        elif match["channel"] != "analysis":
            content.append(match["body"])
    return "".join(content), calls


def read_harmony_reasoning(text: str) -> str | None:
    """Return the analysis channel of a harmony answer, or `None`."""
    found = [match["body"] for match in _HARMONY.finditer(text) if match["channel"] == "analysis"]
    return "".join(found) if found else None


def _read_pythonic(text: str) -> tuple[str, list[ToolCall]]:
    head, found, rest = text.partition("<|tool_call_start|>")
    if not found:
        return text, []
    body, closed, _ = rest.partition("<|tool_call_end|>")
    if not closed:
        raise _Broken("a tool call is not closed")
    tree = ast.parse(body.strip(), mode="eval").body
    calls = []
    for node in tree.elts if isinstance(tree, ast.List) else [tree]:
        if not isinstance(node, ast.Call) or node.args:
            raise _Broken("a tool call must be NAME(key=value, ...)")
        arguments = {str(keyword.arg): ast.literal_eval(_constants(keyword.value)) for keyword in node.keywords}
        calls.append(ToolCall(name=ast.unparse(node.func), arguments=arguments))
    return head.rstrip("\n"), calls


def _constants(node: ast.expr) -> ast.expr:
    """Read JSON's `true`, `false` and `null` beside Python's own constants."""
    names = {"true": True, "false": False, "null": None}

    class Swap(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.AST:
            return ast.copy_location(ast.Constant(names[name.id]), name) if name.id in names else name

    swapped = Swap().visit(node)
    assert isinstance(swapped, ast.expr)
    return swapped


_NAME_LINE = re.compile(r"\s*([\w.-]+)\s*\n\s*(\{.*\})\s*\Z", re.DOTALL)


def _read_name_line(text: str) -> tuple[str, list[ToolCall]]:
    match = _NAME_LINE.match(text)
    if match is None:
        return text, []
    return "", [ToolCall(name=match[1], arguments=_mapping(json.loads(match[2])))]


_ACTION = re.compile(r"Action:\s*([^\n]+?)\s*\nAction Input:\s*(.+?)(?=\n\s*Action:|\Z)", re.DOTALL)


def _read_react(text: str) -> tuple[str, list[ToolCall]]:
    found = list(_ACTION.finditer(text))
    if not found:
        return text, []
    calls = [ToolCall(name=match[1], arguments=_mapping(json.loads(match[2]))) for match in found]
    return text[: found[0].start()].rstrip("\n"), calls


def _mapping(value: JSON) -> Mapping[str, JSON]:
    if not isinstance(value, Mapping):
        raise _Broken("arguments must be an object")
    return value


def _decode(text: str) -> tuple[JSON, int]:
    """Read one JSON value at the start of a text; return it and where it ends."""
    start = len(text) - len(text.lstrip())
    value, end = json.JSONDecoder().raw_decode(text, start)
    return value, end


_READERS: Mapping[ToolFormat, Callable[[str], tuple[str, list[ToolCall]]]] = {
    ToolFormat.HERMES: _read_hermes,
    ToolFormat.FUNCTION_XML: _read_function_xml,
    ToolFormat.ARG_XML: _read_arg_xml,
    ToolFormat.LLAMA: _read_llama,
    ToolFormat.MISTRAL: _read_mistral,
    ToolFormat.DEEPSEEK: _read_deepseek,
    ToolFormat.HARMONY: _read_harmony,
    ToolFormat.PYTHONIC: _read_pythonic,
    ToolFormat.NAME_LINE: _read_name_line,
    ToolFormat.REACT: _read_react,
}


def write_calls(calls: Sequence[ToolCall], form: ToolFormat) -> str:
    """Return the text of calls in a format that has no template of its own, for rows whose template drops calls.

    Raises `ValueError` for a format that only templates write.
    """
    items = [(call.name, _arguments_text(call)) for call in calls]
    if form is ToolFormat.REACT:
        return "\n".join(f"Action: {name}\nAction Input: {arguments}" for name, arguments in items)
    if form is ToolFormat.NAME_LINE:
        if len(items) != 1:
            raise ValueError("this format holds one call per turn")
        return f"{items[0][0]}\n{items[0][1]}"
    if form is ToolFormat.LLAMA:
        texts = [f'{{"name": {json.dumps(name)}, "parameters": {arguments}}}' for name, arguments in items]
        return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    if form is ToolFormat.MISTRAL:
        texts = [f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}' for name, arguments in items]
        return f"[{', '.join(texts)}]"
    if form is ToolFormat.HERMES:
        return "\n".join(
            f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>'
            for name, arguments in items
        )
    if form is ToolFormat.PYTHONIC:
        written = [f"{call.name}({_keywords(call)})" for call in calls]
        return f"<|tool_call_start|>[{', '.join(written)}]<|tool_call_end|>"
    raise ValueError(f"{form.value} is written by chat templates only")


def _arguments_text(call: ToolCall) -> str:
    if isinstance(call.arguments, str):
        return call.arguments
    return json.dumps(dict(call.arguments), ensure_ascii=False)


def _keywords(call: ToolCall) -> str:
    arguments = json.loads(call.arguments) if isinstance(call.arguments, str) else call.arguments
    return ", ".join(f"{key}={_python(value)}" for key, value in arguments.items())


def _python(value: JSON) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
