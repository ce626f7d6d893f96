"""Request logs: one logged call of a chat API, request and response, is one conversation.

What lives here: OpenAI's Chat Completions and Responses APIs and Anthropic's Messages API, as proxies and batch jobs
log them. What does not: single messages (`data.turns`), streams of events (`data.streamed`).

    {"request": {"messages": [...]}, "response": {"choices": [{"message": {...}, "finish_reason": "stop"}]}}

An answer that was cut off by its token limit, a failed request and a request without an answer are refused: each would
teach what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from tunesmith.data.records import type_name
from tunesmith.data.streamed import whole_response
from tunesmith.data.turns import RowProblem, content_of, messages_of, parsed, refuse, tools_of, turn_of
from tunesmith.types import JSON, Conversation, Message

REQUEST_KEYS = ("request", "request_body", "body", "input", "kwargs")
RESPONSE_KEYS = ("response", "response_body", "output", "completion")
TIME_KEYS = ("created_at", "created", "timestamp", "time", "date", "start_time")
_CUT = ("length", "max_tokens", "max_output_tokens", "content_filter", "model_context_window_exceeded")


_MIN_MILLISECONDS = 1e11
"""As seconds this is the year 5138: larger numbers are milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What one logged call says."""

    conversation: Conversation
    generator: str | None
    collected_at: str | None


def looks_logged(record: Mapping[str, JSON]) -> bool:
    """Whether a record holds a request with messages and a response."""
    request, response = _request(record), _response(record)
    if request is None or response is None:
        return False
    asks = isinstance(request.get("messages"), list) or isinstance(request.get("input"), (str, list))
    return asks and any(key in response for key in ("choices", "content", "output", "error"))


def logged_exchange(record: Mapping[str, JSON]) -> Exchange:
    """Read one logged call. Raises `RowProblem`."""
    request, response = _request(record), _response(record)
    if request is None or response is None:
        raise RowProblem("missing_field", "expected a request and a response, found " + ", ".join(map(repr, record)))
    error = response.get("error") or record.get("error")
    if error:
        refuse("failed_request", "response.error", expected="an answer", found=f"{error!r:.120}")
    asked = _asked(request)
    answered = _answered(response)
    return Exchange(
        conversation=Conversation(messages=(*asked, *answered), tools=tools_of(request.get("tools"), "request.tools")),
        generator=next((m for m in (response.get("model"), request.get("model")) if isinstance(m, str)), None),
        collected_at=_time(record, response),
    )


def _request(record: Mapping[str, JSON]) -> Mapping[str, JSON] | None:
    """The request; some proxies write its fields and the response's side by side."""
    if isinstance(record.get("messages"), list) and (_response(record) is not None or "choices" in record):
        return record
    return _unwrapped(record, REQUEST_KEYS)


def _response(record: Mapping[str, JSON]) -> Mapping[str, JSON] | None:
    for key in RESPONSE_KEYS:
        streamed = whole_response(parsed(record.get(key)))
        if streamed is not None:
            return streamed
    return record if isinstance(record.get("choices"), list) else _unwrapped(record, RESPONSE_KEYS)


def _unwrapped(record: Mapping[str, JSON], keys: tuple[str, ...]) -> Mapping[str, JSON] | None:
    """The body of a request or a response; batch results wrap it in `body` once more."""
    for key in keys:
        value = parsed(record.get(key))
        if _is_content(value):
            return {"content": value}  # TensorZero's output: the parts of one answer
        if isinstance(value, Mapping):
            inner = parsed(value.get("body"))
            return inner if isinstance(inner, Mapping) else value
    return None


def _is_content(value: JSON) -> bool:
    """Whether a value is a list of typed parts that are no messages."""
    parts = value if isinstance(value, list) else []
    return bool(parts) and all(isinstance(part, Mapping) and "type" in part and "role" not in part for part in parts)


def _asked(request: Mapping[str, JSON]) -> tuple[Message, ...]:
    system = request.get("system", request.get("instructions"))
    before: tuple[Message, ...] = ()
    if system:
        text, _, _ = content_of(system, "request.system")
        before = (Message(role="system", content=text),)
    if isinstance(request.get("messages"), list):
        return (*before, *messages_of(request["messages"], "request.messages"))
    asked = request.get("input")
    if isinstance(asked, str):
        return (*before, Message(role="user", content=asked))
    return (*before, *messages_of(asked, "request.input"))


def _answered(response: Mapping[str, JSON]) -> tuple[Message, ...]:
    choices = response.get("choices")
    if isinstance(choices, list):
        if not choices or not isinstance(choices[0], Mapping):
            refuse("no_answer", "response.choices", expected="at least one choice", found="none")
        _refuse_cut(choices[0].get("finish_reason"), "response.choices[0].finish_reason")
        return turn_of(choices[0].get("message"), "response.choices[0].message")
    _refuse_cut(response.get("stop_reason"), "response.stop_reason")
    details = response.get("incomplete_details")
    if isinstance(details, Mapping):
        _refuse_cut(details.get("reason"), "response.incomplete_details.reason")
    if isinstance(response.get("output"), list):
        if not response["output"]:
            refuse("no_answer", "response.output", expected="at least one item", found="none")
        return _joined(messages_of(response["output"], "response.output"))
    if "content" in response:
        return turn_of({"role": "assistant", "content": response["content"]}, "response")
    refuse("no_answer", "response", expected="choices, content or output", found=type_name(response.get("output")))


def _joined(items: tuple[Message, ...]) -> tuple[Message, ...]:
    """Items of the Responses API (reasoning, text, calls) are one assistant turn."""
    return (
        Message(
            role="assistant",
            content="".join(item.content or "" for item in items) or None,
            reasoning="".join(item.reasoning or "" for item in items) or None,
            tool_calls=tuple(call for item in items for call in item.tool_calls),
        ),
    )


def _refuse_cut(reason: JSON, field: str) -> None:
    if reason in _CUT:
        refuse("cut_answer", field, expected="an answer that ended by itself", found=repr(reason))


def iso_time(value: JSON) -> str | None:
    """Return a time as ISO 8601 (Unix seconds and milliseconds are converted), or `None` where it is none."""
    if isinstance(value, str):
        try:
            datetime.fromisoformat(value.strip())
        except ValueError:
            return None
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    seconds = value / 1000 if abs(value) >= _MIN_MILLISECONDS else value
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None


def _time(record: Mapping[str, JSON], response: Mapping[str, JSON]) -> str | None:
    """When the call was made, from the first field that says a time."""
    times = (iso_time(holder.get(key)) for holder in (record, response) for key in TIME_KEYS)
    return next((time for time in times if time is not None), None)
