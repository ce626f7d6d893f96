"""Logged calls of OpenAI's and Anthropic's APIs become conversations; failed and cut ones are refused."""

import json

import pytest

from tunesmith.data.logs import logged_exchange, looks_logged
from tunesmith.data.shapes import Shape, convert, detect_shape
from tunesmith.data.turns import RowProblem
from tunesmith.types import Message, ToolCall

ASK = {"model": "m", "messages": [{"role": "user", "content": "weather?"}]}
CALL = {"id": "c1", "type": "function", "function": {"name": "w", "arguments": '{"at": "Rome"}'}}


def answer(message, reason="stop", **more):
    return {
        "model": "m-2",
        "created": 1_700_000_000,
        "choices": [{"message": message, "finish_reason": reason}],
        **more,
    }


def test_chat_completions_are_read_with_tools_model_and_time():
    tools = [{"type": "function", "function": {"name": "w", "parameters": {}}}]
    record = {"request": {**ASK, "tools": tools}, "response": answer({"role": "assistant", "tool_calls": [CALL]})}
    exchange = logged_exchange(record)
    expected = Message(role="assistant", tool_calls=(ToolCall(name="w", arguments='{"at": "Rome"}', id="c1"),))
    assert exchange.conversation.messages[-1] == expected
    assert exchange.conversation.tools == tuple(tools)
    assert (exchange.generator, exchange.collected_at) == ("m-2", "2023-11-14T22:13:20+00:00")


def test_bodies_of_a_batch_are_unwrapped_and_json_text_is_parsed():
    record = {
        "request_body": '{"messages": [{"role": "user", "content": "hi"}]}',
        "response": {"status_code": 200, "body": answer({"role": "assistant", "content": "ok"})},
    }
    assert detect_shape(record, {}) is Shape.REQUEST_LOG
    assert logged_exchange(record).conversation.answer == "ok"


def test_anthropic_messages_are_read_with_system_thoughts_calls_and_results():
    record = {
        "request": {
            "model": "claude",
            "system": [{"type": "text", "text": "be brief"}],
            "tools": [{"name": "w", "description": "d", "input_schema": {"type": "object"}}],
            "messages": [
                {"role": "user", "content": "weather?"},
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "t1", "name": "w", "input": {"at": "Rome"}}],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]},
                        {"type": "text", "text": "and?"},
                    ],
                },
            ],
        },
        "response": {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "easy"}, {"type": "text", "text": "sunny"}],
            "stop_reason": "end_turn",
        },
    }
    conversation = logged_exchange(record).conversation
    assert [message.role for message in conversation.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "user",
        "assistant",
    ]
    assert conversation.messages[3] == Message(role="tool", content="sun", tool_call_id="t1")
    assert conversation.messages[-1] == Message(role="assistant", content="sunny", reasoning="easy")
    function = {"name": "w", "description": "d", "parameters": {"type": "object"}}
    assert conversation.tools == ({"type": "function", "function": function},)


def test_the_responses_api_is_one_assistant_turn():
    record = {
        "request": {
            "instructions": "be brief",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        },
        "response": {
            "status": "completed",
            "output": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            ],
        },
    }
    messages = logged_exchange(record).conversation.messages
    assert [message.content for message in messages[:2]] == ["be brief", "hi"]
    call = ToolCall(name="f", arguments="{}", id="c")
    assert messages[2] == Message(role="assistant", content="ok", reasoning="hm", tool_calls=(call,))


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (answer({"role": "assistant", "content": "half a"}, "length"), "cut_answer"),
        ({"content": [{"type": "text", "text": "half a"}], "stop_reason": "max_tokens"}, "cut_answer"),
        ({"output": [], "incomplete_details": {"reason": "max_output_tokens"}}, "cut_answer"),
        ({"error": {"message": "overloaded"}, "choices": []}, "failed_request"),
        ({"choices": []}, "no_answer"),
    ],
)
def test_calls_that_teach_nothing_are_refused(response, reason):
    assert looks_logged({"request": ASK, "response": response})
    with pytest.raises(RowProblem) as caught:
        logged_exchange({"request": ASK, "response": response})
    assert caught.value.reason == reason


def sse(*events):
    return "".join(f"event: x\ndata: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def chunk(delta, finish=None):
    return {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


PARTIAL = [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a"'}}]
CHAT_EVENTS = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Let me "}),
    chunk({"content": "see.", "tool_calls": PARTIAL}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}),
    chunk({}, "tool_calls"),
]
ANTHROPIC_EVENTS = [
    {"type": "message_start", "message": {"model": "m", "content": []}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Let me see."}},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
    },
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a": '}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "1}"}},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
    {"type": "message_stop"},
]


@pytest.mark.parametrize("events", [CHAT_EVENTS, ANTHROPIC_EVENTS], ids=["chat", "anthropic"])
@pytest.mark.parametrize("form", [list, lambda events: sse(*events)], ids=["list", "text"])
def test_a_streamed_answer_is_put_together(events, form):
    record = {"request": {"messages": [{"role": "user", "content": "hi"}]}, "response": form(events)}
    assert detect_shape(record, {}) is Shape.REQUEST_LOG
    converted = convert(record, Shape.REQUEST_LOG, columns={})
    answer = converted.conversation.messages[-1]
    assert (answer.content, converted.generator) == ("Let me see.", "m")
    (call,) = answer.tool_calls
    assert (call.name, call.id, json.loads(call.arguments)) == ("f", "c1", {"a": 1})
    assert answer.reasoning == ("hm" if events is ANTHROPIC_EVENTS else None)


@pytest.mark.parametrize("events", [CHAT_EVENTS[:-1], ANTHROPIC_EVENTS[:-2]], ids=["chat", "anthropic"])
def test_a_stream_that_broke_off_is_a_cut_answer(events):
    record = {"request": {"messages": [{"role": "user", "content": "hi"}]}, "response": list(events)}
    with pytest.raises(RowProblem) as caught:
        convert(record, Shape.REQUEST_LOG, columns={})
    assert caught.value.reason == "cut_answer"


def test_a_responses_stream_is_its_last_event():
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]}
    events = [
        {"type": "response.created"},
        {"type": "response.completed", "response": {"model": "m", "output": [item]}},
    ]
    record = {"request": {"input": "hi"}, "response": sse(*events)}
    assert convert(record, Shape.REQUEST_LOG, columns={}).conversation.answer == "ok"


def test_request_and_response_may_stand_side_by_side():
    answer = {"message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    record = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "choices": [answer],
        "created": 1767225600000,
    }
    assert detect_shape(record, {}) is Shape.REQUEST_LOG
    converted = convert(record, Shape.REQUEST_LOG, columns={})
    assert converted.conversation.answer == "ok"
    assert converted.collected_at == "2026-01-01T00:00:00+00:00"
    record = {"messages": [{"role": "user", "content": "hi"}], "response": {"choices": [answer]}}
    assert convert(record, Shape.REQUEST_LOG, columns={}).conversation.answer == "ok"
