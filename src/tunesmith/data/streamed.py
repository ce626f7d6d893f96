"""Streamed answers: the events of a streamed response become the response that would have come in one piece.

What lives here: server-sent events of OpenAI's Chat Completions and Responses APIs and of Anthropic's Messages API, as
text or as a list of events. What does not: what a response says (`data.logs`).

    whole_response('data: {"choices": [{"delta": {"content": "Hi"}}]}\\n\\ndata: [DONE]')
        ->  {"choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "length"}]}

A stream without its last event was broken off: its answer counts as cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.types import JSON

_LAST = ("response.completed", "response.incomplete", "response.failed")


def whole_response(value: JSON) -> Mapping[str, JSON] | None:
    """Return the response that a stream of events adds up to, or `None` where the value is no such stream."""
    events = _events(value)
    if not events:
        return None
    if any(event.get("type") in _LAST for event in events):
        last = next(event for event in reversed(events) if event.get("type") in _LAST)
        return last["response"] if isinstance(last.get("response"), Mapping) else None
    if any(event.get("type") == "message_start" for event in events):
        return _anthropic(events)
    if any(isinstance(event.get("choices"), list) for event in events):
        return _chat(events)
    return None


def _events(value: JSON) -> list[Mapping[str, Any]]:
    if isinstance(value, str):
        if not value.lstrip().startswith(("data:", "event:", ":")):
            return []
        lines = [line.removeprefix("data:").strip() for line in value.splitlines() if line.startswith("data:")]
        value = []
        for line in lines:
            if not line or line == "[DONE]":
                continue
            try:
                value.append(json.loads(line))
            except ValueError:
                if line is not lines[-1]:
                    return []  # no stream; a last event that stops in its middle broke off, and counts as cut
    return [event for event in value if isinstance(event, Mapping)] if isinstance(value, list) else []


def _object(value: JSON) -> Mapping[str, Any]:
    """What an event holds at a place where an object belongs; anything else is passed over, as clients do."""
    return value if isinstance(value, Mapping) else {}


def _list(value: JSON) -> list[Any]:
    return value if isinstance(value, list) else []


def _index(value: Mapping[str, Any]) -> int:
    index = value.get("index")
    return index if isinstance(index, int) else 0


def _chat(events: Sequence[Mapping[str, Any]]) -> Mapping[str, JSON]:
    """Only the first choice is put together: it is the one that is read."""
    message: dict[str, JSON] = {"role": "assistant"}
    calls: dict[int, dict[str, JSON]] = {}
    finish, model = None, None
    for event in events:
        model = event.get("model") or model
        choices = _list(event.get("choices"))
        choice = next((c for c in choices if isinstance(c, Mapping) and c.get("index", 0) == 0), None)
        if choice is None:
            continue
        finish = choice.get("finish_reason") or finish
        delta = _object(choice.get("delta"))
        for key in ("content", "reasoning_content", "reasoning", "refusal"):
            if isinstance(delta.get(key), str):
                message[key] = str(message.get(key, "")) + delta[key]
        for part in map(_object, _list(delta.get("tool_calls"))):
            call = calls.setdefault(_index(part), {"type": "function", "function": {"name": "", "arguments": ""}})
            call.update({"id": part["id"]} if part.get("id") else {})
            for key in ("name", "arguments"):
                call["function"][key] += str(_object(part.get("function")).get(key) or "")
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return {"model": model, "choices": [{"message": message, "finish_reason": finish or "length"}]}


def _anthropic(events: Sequence[Mapping[str, Any]]) -> Mapping[str, JSON]:
    started: Mapping[str, JSON] = {}
    blocks: dict[int, dict[str, JSON]] = {}
    inputs: dict[int, str] = {}
    stop = None
    for event in events:
        kind, index = event.get("type"), _index(event)
        delta = _object(event.get("delta"))
        if kind == "message_start":
            started = _object(event.get("message"))
        elif kind == "content_block_start":
            blocks[index] = dict(_object(event.get("content_block")))
        elif kind == "content_block_delta":
            block = blocks.setdefault(index, {"type": "text", "text": ""})
            for key in ("text", "thinking"):
                if isinstance(delta.get(key), str):
                    block[key] = str(block.get(key) or "") + delta[key]
            inputs[index] = inputs.get(index, "") + str(delta.get("partial_json") or "")
        elif kind == "message_delta":
            stop = delta.get("stop_reason") or stop
    for index, block in blocks.items():
        if block.get("type") == "tool_use" and inputs.get(index):
            block["input"] = inputs[index]
    content = [blocks[index] for index in sorted(blocks)]
    return {"model": started.get("model"), "content": content, "stop_reason": stop or "max_tokens"}
