"""Each shape is told apart and becomes the conversation that it says; what is wrong is named by field."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.shapes import RowProblem, Shape, convert, detect_shape
from tunesmith.types import Conversation, Message, ToolCall

USER, OK = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
HI_OK = Conversation(messages=(Message(role="user", content="hi"), Message(role="assistant", content="ok")))

CASES = [
    ({"instruction": "hi", "output": "ok"}, Shape.ALPACA),
    ({"instruction": "hi", "input": "", "output": "ok", "history": []}, Shape.ALPACA),
    ({"messages": [USER, OK]}, Shape.MESSAGES),
    ({"messages": '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]'}, Shape.MESSAGES),
    ({"messages": [{"role": "user", "content": [{"type": "text", "value": "hi"}]}, OK]}, Shape.MESSAGES),
    ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ok"}]}, Shape.SHAREGPT),
    ({"conversations": [USER, OK]}, Shape.MESSAGES),
    ({"prompt": "hi", "completion": "ok"}, Shape.COMPLETION),
    ({"question": "hi", "answer": "ok"}, Shape.COMPLETION),
    ({"prompt": [USER], "completion": [OK]}, Shape.COMPLETION),
    ({"prompt": "hi", "chosen": "ok", "rejected": "no"}, Shape.PREFERENCE),
    ({"messages": [USER, OK], "label": True}, Shape.KTO),
    ({"prompt": "hi", "completion": "ok", "label": "false"}, Shape.KTO),
    ({"request": {"messages": [USER]}, "response": {"choices": [{"message": OK}]}}, Shape.REQUEST_LOG),
]


@pytest.mark.parametrize(("record", "shape"), CASES)
def test_every_shape_is_told_apart_and_read(record, shape):
    assert detect_shape(record, {}) is shape
    assert convert(record, shape, columns={}).conversation == HI_OK


def test_plain_text_is_one_answer_without_a_prompt():
    assert detect_shape({"text": "once"}, {}) is Shape.TEXT
    conversation = convert({"text": "once"}, Shape.TEXT, columns={}).conversation
    assert conversation.messages == (Message(role="assistant", content="once"),)


@pytest.mark.parametrize("record", [{}, {"a": 1}, {"prompt": "only"}, {"question": [], "function": []}])
def test_what_has_no_shape_gets_none(record):
    assert detect_shape(record, {}) is None


def test_a_label_that_is_no_flag_does_not_make_kto():
    assert detect_shape({"messages": [USER, OK], "label": "spam"}, {}) is Shape.MESSAGES


def test_alpaca_joins_instruction_and_input_and_keeps_system_and_history():
    record = {"instruction": "a", "input": "b", "output": "c", "system": "s", "history": [["q", "r"]]}
    messages = convert(record, Shape.ALPACA, columns={}).conversation.messages
    assert [(m.role, m.content) for m in messages] == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "r"),
        ("user", "a\nb"),
        ("assistant", "c"),
    ]


def test_columns_map_fields():
    columns = {"prompt": "ask", "completion": "say", "system": "rules"}
    record = {"ask": "hi", "say": "ok", "rules": "be brief", "question": "other", "answer": "fields"}
    assert detect_shape(record, columns) is Shape.COMPLETION
    messages = convert(record, Shape.COMPLETION, columns=columns).conversation.messages
    assert [m.content for m in messages] == ["be brief", "hi", "ok"]


def test_a_json_answer_stays_text():
    record = {"prompt": "label this", "completion": '{"intent": "x"}'}
    assert convert(record, Shape.COMPLETION, columns={}).conversation.answer == '{"intent": "x"}'
    record = {"prompt": "list this", "completion": '["a", "b"]'}
    assert convert(record, Shape.COMPLETION, columns={}).conversation.answer == '["a", "b"]'


def test_sharegpt_calls_and_observations_become_tool_turns():
    record = {
        "conversations": [
            {"from": "human", "value": "weather?"},
            {
                "from": "function_call",
                "value": '[{"name": "w", "arguments": {"at": "Rome"}}, {"name": "v", "arguments": {}}]',
            },
            {"from": "observation", "value": "sun"},
            {"from": "gpt", "value": "sunny"},
        ],
        "tools": '[{"name": "w", "parameters": {}}]',
    }
    conversation = convert(record, Shape.SHAREGPT, columns={}).conversation
    calls = (ToolCall(name="w", arguments={"at": "Rome"}), ToolCall(name="v", arguments={}))
    assert conversation.messages[1] == Message(role="assistant", tool_calls=calls)
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert conversation.tools == ({"type": "function", "function": {"name": "w", "parameters": {}}},)


def test_reasoning_calls_and_marks_of_typed_parts_are_kept():
    turn = {
        "role": "assistant",
        "content": [
            {"type": "reasoning", "value": "hm"},
            {"type": "tool_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
        ],
        "loss_weight": 0.0,
    }
    record = {"messages": [USER, turn, {"role": "tool", "content": "1", "tool_call_id": "c"}, {**OK, "weight": 2}]}
    messages = convert(record, Shape.MESSAGES, columns={}).conversation.messages
    assert messages[1] == Message(
        role="assistant", reasoning="hm", tool_calls=(ToolCall(name="f", arguments={"a": 1}),), train=False
    )
    assert messages[2].tool_call_id == "c"
    assert messages[3].weight == 2


def test_weighted_parts_of_a_turn_are_kept():
    record = {"messages": [USER, {**OK, "spans": [[0, 1, 0.5]]}]}
    assert convert(record, Shape.MESSAGES, columns={}).conversation.messages[1].spans == ((0, 1, 0.5),)


def test_preference_pairs_give_prompt_chosen_and_rejected():
    shared = {"chosen_messages": [USER, OK], "rejected_messages": [USER, {"role": "assistant", "content": "no"}]}
    sharegpt = {
        "conversations": [{"from": "human", "value": "hi"}],
        "chosen": {"from": "gpt", "value": "ok"},
        "rejected": {"from": "gpt", "value": "no"},
    }
    openai = {
        "input": {"messages": [USER]},
        "preferred_output": [OK],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    whole = {"prompt": [USER], "chosen": [USER, OK], "rejected": [USER, {"role": "assistant", "content": "no"}]}
    for record in (shared, sharegpt, openai, whole):
        converted = convert(record, Shape.PREFERENCE, columns={})
        assert converted.conversation == HI_OK
        assert converted.rejected == (Message(role="assistant", content="no"),)


PROBLEMS = [
    (Shape.MESSAGES, {"messages": "text"}, "wrong_type", "'messages'"),
    (Shape.MESSAGES, {"turns": []}, "missing_field", "'turns'"),
    (Shape.MESSAGES, {"messages": [{"role": "narrator", "content": "x"}]}, "unknown_role", "messages[0].role"),
    (Shape.MESSAGES, {"messages": [USER, {"role": "assistant"}]}, "missing_field", "messages[1].content"),
    (Shape.MESSAGES, {"messages": [USER, {"role": "assistant", "content": 3}]}, "wrong_type", "a number"),
    (
        Shape.MESSAGES,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, OK]},
        "unsupported_part",
        "image_url",
    ),
    (
        Shape.MESSAGES,
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "bad_tool_call",
        "messages[1].tool_calls[0].arguments",
    ),
    (Shape.MESSAGES, {"messages": [USER, OK], "tools": [{"no": "name"}]}, "bad_tools", "tools[0]"),
    (Shape.MESSAGES, {"messages": [USER, {**OK, "weight": -1}]}, "wrong_type", "messages[1].weight"),
    (Shape.MESSAGES, {"messages": [USER, {**OK, "spans": [[0, 9, 1]]}]}, "bad_spans", "messages[1].spans[0]"),
    (Shape.SHAREGPT, {"conversations": [{"from": "crowd", "value": "x"}]}, "unknown_role", "'crowd'"),
    (Shape.ALPACA, {"instruction": "hi", "outptu": "ok"}, "missing_field", "outptu"),
    (Shape.ALPACA, {"instruction": 1, "output": "ok"}, "wrong_type", "'instruction'"),
    (Shape.COMPLETION, {"prompt": "hi"}, "missing_field", "completion"),
    (Shape.PREFERENCE, {"prompt": "hi", "chosen": "a", "rejected": "a"}, "same_answers", "twice"),
    (Shape.PREFERENCE, {"chosen": "a", "rejected": "b"}, "missing_field", "prompt"),
    (Shape.KTO, {"messages": [USER, OK], "label": 1}, "wrong_type", "true or false"),
]


@pytest.mark.parametrize(("shape", "record", "reason", "said"), PROBLEMS)
def test_what_is_wrong_is_named_by_field(shape, record, reason, said):
    with pytest.raises(RowProblem) as caught:
        convert(record, shape, columns={})
    assert caught.value.reason == reason
    assert said in caught.value.detail
    assert "expected" in caught.value.detail
    assert "found" in caught.value.detail


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "from",
                    "value",
                    "name",
                    "type",
                    "function",
                    "arguments",
                    "choices",
                    "delta",
                    "index",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
FIELDS = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "output",
    "chosen",
    "rejected",
    "label",
    "tools",
    "text",
    "input",
    "history",
    "request",
    "response",
]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4), st.sampled_from(Shape))
def test_any_record_is_read_or_refused_never_a_crash(record, shape):
    with contextlib.suppress(RowProblem):
        convert(record, shape, columns={})
    detect_shape(record, {})
