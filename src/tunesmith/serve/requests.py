"""The OpenAI chat-completions wire format, inwards: requests become checked values, or are refused.

What lives here: types and ranges. What does not: what the contract allows (`serve.admission`), the bodies of answers
(`serve.replies`). Nothing that a client asks for is silently ignored: a parameter is honoured, or the
request is refused with a status of the 4xx family that names it.

    request = read_request({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    RequestError -> {"error": {"message", "type", "param", "code"}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tunesmith.errors import ServeError, nearest
from tunesmith.serve.replies import error_body
from tunesmith.types import JSON, ROLES, Conversation, Message, ToolCall

MAX_STOP_STRINGS = 4
"""As the OpenAI API."""
MAX_TAGS = 16
MAX_TAG_CHARS = 512
"""Limits of `metadata` in the OpenAI API."""

TEMPLATE_OVERRIDES = ("chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
"""Parameters by which other servers let a client change the rendering: always refused here."""

_UNSUPPORTED = {
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "n": (None, 1),
    "parallel_tool_calls": (None, True),
    "service_tier": (None, "auto", "default"),
    "modalities": (None, ["text"]),
}
"""Parameter -> the values of it that change nothing, and are therefore accepted."""

_KNOWN = (
    *("model", "messages", "stream", "stream_options", "stop", "seed", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "response_format", "tools", "tool_choice", "user", "metadata", "store"),
)


class RequestError(ServeError):
    """A request is refused; carries the HTTP status and the fields of an OpenAI error body."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        self.status = status
        self.code = code
        self.param = param
        super().__init__(message)

    @property
    def body(self) -> dict[str, JSON]:
        """The JSON body that the client gets."""
        return error_body(self.status, self.what, code=self.code, param=self.param)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFormat:
    """What shape the client asks the answer to have."""

    kind: Literal["text", "json_object", "json_schema"]
    schema: Mapping[str, JSON] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A chat-completions request whose types are right. `None` leaves a parameter to the contract."""

    model: str | None
    conversation: Conversation
    stream: bool = False
    include_usage: bool = False
    stop: tuple[str, ...] = ()
    seed: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    response_format: ResponseFormat | None = None
    tools: tuple[Mapping[str, JSON], ...] | None = None
    tool_choice: str | None = None
    store: bool | None = None
    """Consent to keep and learn from the content: `True` yes, `False` do not even keep it, `None` not said."""
    tags: Mapping[str, str] = field(default_factory=dict)


def read_request(body: JSON) -> ChatRequest:
    """Read a request body. Raises `RequestError` (400, or 422 for a template override) that names the parameter."""
    if not isinstance(body, dict):
        raise RequestError(400, f"the body must be a JSON object, not {_kind(body)}", code="invalid_type")
    _refuse_unsupported(body)
    limit = _number(body, "max_completion_tokens", low=1, integer=True)
    old_limit = _number(body, "max_tokens", low=1, integer=True)
    if limit is not None and old_limit is not None and limit != old_limit:
        raise RequestError(
            400,
            "max_tokens and max_completion_tokens differ; give one of them",
            code="invalid_value",
            param="max_tokens",
        )
    stream = _flag(body, "stream") or False
    tools = body.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RequestError(400, "tools must be a list of objects", code="invalid_type", param="tools")
    seed = _number(body, "seed", low=None, integer=True)
    max_tokens = limit if limit is not None else old_limit
    return ChatRequest(
        model=_text(body, "model"),
        conversation=Conversation(messages=_messages(body.get("messages"))),
        stream=stream,
        include_usage=_include_usage(body.get("stream_options"), stream=stream),
        stop=_stop(body.get("stop")),
        seed=None if seed is None else int(seed),
        max_tokens=None if max_tokens is None else int(max_tokens),
        temperature=_number(body, "temperature", low=0, high=2),
        top_p=_number(body, "top_p", low=0, high=1, above=True),
        response_format=_response_format(body.get("response_format")),
        tools=None if tools is None else tuple(tools),
        tool_choice=_tool_choice(body.get("tool_choice")),
        store=_flag(body, "store"),
        tags={**_user_tag(body), **_tags(body.get("metadata"), "metadata")},
    )


def _user_tag(body: Mapping[str, JSON]) -> dict[str, str]:
    """Return `user` as a tag of that name; an own tag `user` has precedence."""
    user = _text(body, "user")
    return {} if user is None else _tags({"user": user}, "user")


def _refuse_unsupported(body: Mapping[str, JSON]) -> None:
    for name, value in body.items():
        if name in TEMPLATE_OVERRIDES:
            raise RequestError(
                422,
                f"{name} is fixed by the contract that this model was trained with",
                code="contract_override",
                param=name,
            )
        if name in _UNSUPPORTED:
            if value not in _UNSUPPORTED[name]:
                raise RequestError(
                    400, f"{name}={json.dumps(value)} is not supported", code="unsupported_parameter", param=name
                )
        elif name not in _KNOWN:
            close = ", ".join(nearest(name, [*_KNOWN, *_UNSUPPORTED]))
            raise RequestError(400, f"unknown parameter {name!r}; close: {close}", code="unknown_parameter", param=name)


def _messages(value: JSON) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RequestError(
            400, "messages must be a list of at least one message", code="invalid_type", param="messages"
        )
    messages = tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))
    if messages[-1].role not in ("user", "tool"):
        raise RequestError(
            400,
            f"the last message must be of role user or tool, not {messages[-1].role}",
            code="invalid_value",
            param=f"messages[{len(messages) - 1}].role",
        )
    return messages


def _message(value: JSON, where: str) -> Message:
    if not isinstance(value, dict):
        raise RequestError(400, f"{where} must be an object, not {_kind(value)}", code="invalid_type", param=where)
    role = value.get("role")
    if role not in ROLES:
        raise RequestError(
            400, f"{where}.role must be one of {', '.join(ROLES)}", code="invalid_value", param=f"{where}.role"
        )
    allowed = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "refusal"}
    for name in value:
        if name not in allowed:
            raise RequestError(
                400, f"unknown key {name!r} in {where}", code="unknown_parameter", param=f"{where}.{name}"
            )
    for name in ("name", "tool_call_id", "reasoning_content", "refusal"):
        if value.get(name) is not None and not isinstance(value[name], str):
            raise RequestError(400, f"{where}.{name} must be a string", code="invalid_type", param=f"{where}.{name}")
    content = _content(value.get("content"), f"{where}.content")
    calls = _tool_calls(value.get("tool_calls"), f"{where}.tool_calls")
    if calls and role != "assistant":
        raise RequestError(400, "only assistant messages call tools", code="invalid_value", param=f"{where}.tool_calls")
    if content is None and not calls:
        raise RequestError(400, f"{where} has no content", code="invalid_value", param=f"{where}.content")
    return Message(
        role=role,
        content=content,
        reasoning=value.get("reasoning_content"),
        tool_calls=calls,
        name=value.get("name"),
        tool_call_id=value.get("tool_call_id"),
    )


def _content(value: JSON, where: str) -> str | None:
    if value is None or isinstance(value, str):
        text = value
    elif isinstance(value, list):
        texts = []
        for index, part in enumerate(value):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise RequestError(
                    400,
                    f"{where}[{index}] is of type {kind!r}; this model reads text alone",
                    code="unsupported_content",
                    param=f"{where}[{index}]",
                )
            texts.append(part["text"])
        text = "".join(texts)
    else:
        raise RequestError(400, f"{where} must be a string, not {_kind(value)}", code="invalid_type", param=where)
    if text is not None and any(0xD800 <= ord(char) <= 0xDFFF for char in text):
        raise RequestError(
            400, f"{where} holds half of a surrogate pair, which is no text", code="invalid_value", param=where
        )
    return text


def _tool_calls(value: JSON, where: str) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RequestError(400, f"{where} must be a list", code="invalid_type", param=where)
    calls = []
    for index, item in enumerate(value):
        function = item.get("function") if isinstance(item, dict) else None
        if (
            not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
            or not isinstance(function.get("arguments"), (str, dict))
        ):
            raise RequestError(
                400,
                f"{where}[{index}] must hold function.name and function.arguments",
                code="invalid_type",
                param=f"{where}[{index}]",
            )
        calls.append(ToolCall(name=function["name"], arguments=function["arguments"], id=item.get("id")))
    return tuple(calls)


def _stop(value: JSON) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(item, str) and item for item in stops):
        raise RequestError(400, "stop must be a string or a list of strings", code="invalid_type", param="stop")
    if len(stops) > MAX_STOP_STRINGS:
        raise RequestError(
            400, f"{len(stops)} stop strings; at most {MAX_STOP_STRINGS}", code="invalid_value", param="stop"
        )
    return tuple(stops)


def _include_usage(value: JSON, *, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise RequestError(400, "stream_options needs stream: true", code="invalid_value", param="stream_options")
    if not isinstance(value, dict) or set(value) - {"include_usage", "include_obfuscation"}:
        raise RequestError(
            400, "stream_options holds include_usage alone", code="unknown_parameter", param="stream_options"
        )
    return bool(value.get("include_usage"))


def _response_format(value: JSON) -> ResponseFormat | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return ResponseFormat(kind="text")
    if kind == "json_object":
        return ResponseFormat(kind="json_object")
    if kind == "json_schema":
        inner = value.get("json_schema")
        if isinstance(inner, dict) and isinstance(inner.get("schema"), dict):
            return ResponseFormat(kind="json_schema", schema=inner["schema"])
        raise RequestError(
            400, "response_format.json_schema must hold a schema", code="invalid_value", param="response_format"
        )
    raise RequestError(
        400,
        "response_format.type must be text, json_object or json_schema",
        code="invalid_value",
        param="response_format",
    )


def _tool_choice(value: JSON) -> str | None:
    if value is None or value in ("auto", "none"):
        return value if value is None else str(value)
    raise RequestError(
        400,
        f"tool_choice={json.dumps(value)} is not supported; auto or none",
        code="unsupported_parameter",
        param="tool_choice",
    )


def _tags(value: JSON, where: str) -> dict[str, str]:
    if value is None:
        return {}
    good = isinstance(value, dict) and all(
        isinstance(item, str) and len(item) <= MAX_TAG_CHARS and len(name) <= MAX_TAG_CHARS
        for name, item in value.items()
    )
    if not good or len(value) > MAX_TAGS:
        raise RequestError(
            400,
            f"{where} must be at most {MAX_TAGS} strings by name, each of at most {MAX_TAG_CHARS} characters",
            code="invalid_value",
            param=where,
        )
    return dict(value)


def _text(body: Mapping[str, JSON], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise RequestError(400, f"{name} must be a string, not {_kind(value)}", code="invalid_type", param=name)
    return value


def _flag(body: Mapping[str, JSON], name: str) -> bool | None:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(400, f"{name} must be true or false, not {_kind(value)}", code="invalid_type", param=name)
    return value


def _number(
    body: Mapping[str, JSON],
    name: str,
    *,
    low: float | None,
    high: float | None = None,
    above: bool = False,
    integer: bool = False,
) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int,) if integer else (int, float)):
        kind = "an integer" if integer else "a number"
        raise RequestError(400, f"{name} must be {kind}, not {_kind(value)}", code="invalid_type", param=name)
    number = float(value) if not integer else value
    if (low is not None and (number < low or (above and number == low))) or (high is not None and number > high):
        span = f"{'above' if above else 'at least'} {low}" + ("" if high is None else f" and at most {high}")
        raise RequestError(400, f"{name} must be {span}, not {value}", code="invalid_value", param=name)
    return number


def _kind(value: JSON) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRequest:
    """A body of `POST /v1/feedback`."""

    completion_id: str
    rating: float | None
    comment: str | None
    correction: str | None
    tags: Mapping[str, str]


def read_feedback(body: JSON) -> FeedbackRequest:
    """Read a feedback body. Raises `RequestError` (400); a body that says nothing is refused too."""
    if not isinstance(body, dict):
        raise RequestError(400, f"the body must be a JSON object, not {_kind(body)}", code="invalid_type")
    known = ("completion_id", "rating", "comment", "correction", "tags")
    for name in body:
        if name not in known:
            close = ", ".join(nearest(name, known))
            raise RequestError(400, f"unknown key {name!r}; close: {close}", code="unknown_parameter", param=name)
    completion_id = _text(body, "completion_id")
    if not completion_id:
        raise RequestError(400, "completion_id is missing", code="invalid_value", param="completion_id")
    rating = _number(body, "rating", low=-1, high=1)
    comment, correction = _text(body, "comment"), _text(body, "correction")
    if rating is None and comment is None and correction is None:
        raise RequestError(400, "give a rating, a comment or a correction", code="invalid_value", param="rating")
    return FeedbackRequest(
        completion_id=completion_id,
        rating=rating,
        comment=comment,
        correction=correction,
        tags=_tags(body.get("tags"), "tags"),
    )
