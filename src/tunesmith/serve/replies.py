"""The OpenAI chat-completions wire format, outwards: the JSON bodies of answers, chunks and errors.

What lives here: shapes. What does not: when each is sent (`serve.app`).

    error_body(404, "no model x", code="model_not_found") -> {"error": {"message", "type", "param", "code"}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.types import JSON, ToolCall


def error_body(status: int, message: str, *, code: str, param: str | None = None) -> dict[str, JSON]:
    """Return an OpenAI error body; its `type` follows from the status."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, JSON]:
    """Return the `usage` object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def completion_body(
    *,
    trace_id: str,
    created: int,
    model: str,
    fingerprint: str,
    message: Mapping[str, JSON],
    finish_reason: str,
    token_usage: Mapping[str, JSON],
    verdict: Mapping[str, JSON],
) -> dict[str, JSON]:
    """Return the body of an answer that is not streamed. `verdict` is our extension, under `tunesmith`."""
    return {
        "id": trace_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [{"index": 0, "message": dict(message), "logprobs": None, "finish_reason": finish_reason}],
        "usage": dict(token_usage),
        "tunesmith": dict(verdict),
    }


def chunk_body(
    *,
    trace_id: str,
    created: int,
    model: str,
    fingerprint: str,
    delta: Mapping[str, JSON] | None = None,
    finish_reason: str | None = None,
    token_usage: Mapping[str, JSON] | None = None,
    verdict: Mapping[str, JSON] | None = None,
) -> dict[str, JSON]:
    """Return one server-sent chunk. Without `delta` it is the usage chunk, whose `choices` are empty."""
    body: dict[str, Any] = {
        "id": trace_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [],
    }
    if delta is not None:
        body["choices"] = [{"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}]
    if token_usage is not None:
        body["usage"] = dict(token_usage)
    if verdict is not None:
        body["tunesmith"] = dict(verdict)
    return body


def message_body(
    content: str | None,
    *,
    reasoning: str | None = None,
    tool_calls: Sequence[ToolCall] = (),
    refusal: str | None = None,
) -> dict[str, JSON]:
    """Return the assistant message of an answer; the arguments of a call are JSON text, as the OpenAI API has them."""
    body: dict[str, JSON] = {"role": "assistant", "content": content, "refusal": refusal}
    if reasoning is not None:
        body["reasoning_content"] = reasoning
    if tool_calls:
        body["tool_calls"] = [
            {
                "id": call.id or f"call_{index}",
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments
                    if isinstance(call.arguments, str)
                    else json.dumps(dict(call.arguments)),
                },
            }
            for index, call in enumerate(tool_calls)
        ]
    return body
