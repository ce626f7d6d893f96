import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.serve.requests import RequestError, read_feedback, read_request

USER = [{"role": "user", "content": "hi"}]

BAD = [
    ([], 400, None),
    ({"messages": []}, 400, "messages"),
    ({"messages": "hi"}, 400, "messages"),
    ({"messages": [1]}, 400, "messages[0]"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "messages[0].content[0]",
    ),
    ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, 400, "messages[0].weight"),
    ({"messages": [*USER, {"role": "assistant", "content": "x"}]}, 400, "messages[1].role"),
    (
        {
            "messages": [
                {"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
            ]
        },
        400,
        "messages[0].tool_calls",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, *USER]},
        400,
        "messages[0].tool_calls[0]",
    ),
    ({"messages": USER, "temperature": -0.1}, 400, "temperature"),
    ({"messages": USER, "temperature": "0"}, 400, "temperature"),
    ({"messages": USER, "temperature": True}, 400, "temperature"),
    ({"messages": USER, "top_p": 0}, 400, "top_p"),
    ({"messages": USER, "max_tokens": 0}, 400, "max_tokens"),
    ({"messages": USER, "max_tokens": 2.5}, 400, "max_tokens"),
    ({"messages": USER, "max_tokens": 2, "max_completion_tokens": 3}, 400, "max_tokens"),
    ({"messages": USER, "n": 2}, 400, "n"),
    ({"messages": USER, "logprobs": True}, 400, "logprobs"),
    ({"messages": USER, "presence_penalty": 0.5}, 400, "presence_penalty"),
    ({"messages": USER, "stop": ["a"] * 5}, 400, "stop"),
    ({"messages": USER, "stop": [""]}, 400, "stop"),
    ({"messages": USER, "stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"messages": USER, "response_format": {"type": "xml"}}, 400, "response_format"),
    ({"messages": USER, "response_format": {"type": "json_schema"}}, 400, "response_format"),
    ({"messages": USER, "tool_choice": "required"}, 400, "tool_choice"),
    ({"messages": USER, "metadata": {"a": 1}}, 400, "metadata"),
    ({"messages": USER, "chat_template": "x"}, 422, "chat_template"),
    ({"messages": USER, "chat_template_kwargs": {}}, 422, "chat_template_kwargs"),
    ({"messages": USER, "temprature": 1}, 400, "temprature"),
]


@pytest.mark.parametrize(("body", "status", "param"), BAD, ids=[str(case[2]) for case in BAD])
def test_a_bad_request_is_refused_by_name(body, status, param):
    with pytest.raises(RequestError) as caught:
        read_request(body)
    assert caught.value.status == status
    error = caught.value.body["error"]
    assert error["param"] == param
    assert error["message"]
    assert error["code"]


def test_an_unknown_parameter_names_the_close_ones():
    with pytest.raises(RequestError, match="temperature"):
        read_request({"messages": USER, "temprature": 1})


def test_parameters_that_change_nothing_are_accepted():
    request = read_request(
        {"messages": USER, "n": 1, "logprobs": False, "presence_penalty": 0, "logit_bias": None, "user": "u"}
    )
    assert request.conversation.messages[0].content == "hi"
    assert request.tags == {"user": "u"}, "what is accepted is kept"


def test_text_parts_are_joined_and_tools_read():
    request = read_request(
        {
            "model": "m",
            "messages": [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "4"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "stop": "x",
            "max_completion_tokens": 7,
            "store": True,
            "metadata": {"team": "billing"},
        }
    )
    assert request.conversation.messages[0].tool_calls[0].name == "f"
    assert request.conversation.messages[2].content == "ab"
    assert (request.stream, request.include_usage, request.stop, request.max_tokens) == (True, True, ("x",), 7)
    assert (request.store, request.tags) == (True, {"team": "billing"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    [
        "model",
        "messages",
        "stream",
        "stop",
        "seed",
        "max_tokens",
        "temperature",
        "top_p",
        "response_format",
        "tools",
        "tool_choice",
        "metadata",
        "store",
        "stream_options",
        "n",
        "logit_bias",
    ]
)


@given(st.dictionaries(names, json_values, max_size=4), st.booleans())
def test_whatever_a_client_sends_is_read_or_refused(body, good_messages):
    if good_messages:
        body["messages"] = USER
    try:
        status = read_request(body) and 200
    except RequestError as error:
        status = error.status
    assert status in (200, 400, 422)


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"completion_id": "x"},
        {"completion_id": "x", "rating": 2},
        {"completion_id": "x", "rating": "good"},
        {"completion_id": 5, "rating": 1},
        {"completion_id": "x", "ratng": 1},
    ],
)
def test_feedback_that_says_nothing_or_nonsense_is_refused(body):
    with pytest.raises(RequestError):
        read_feedback(body)


def test_feedback_takes_any_of_rating_comment_and_correction():
    assert read_feedback({"completion_id": "x", "rating": 0}).rating == 0
    assert read_feedback({"completion_id": "x", "correction": "{}"}).correction == "{}"
