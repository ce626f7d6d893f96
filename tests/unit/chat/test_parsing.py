"""Answers read back: content, reasoning and tool calls, and how the answer ended."""

import pytest
from chat_world import family_renderer
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat.parse import Parser, ParseStatus
from tunesmith.chat.schema import AnswerSchema, strict_json
from tunesmith.chat.toolcalls import ToolFormat, read_calls, write_calls
from tunesmith.chat.tooltext import WRITTEN_FORMATS, write_into_text
from tunesmith.types import ToolCall


@pytest.mark.parametrize(
    ("family", "text", "status", "content", "reasoning"),
    [
        ("smollm2", "Blue.<|im_end|>", ParseStatus.OK, "Blue.", None),
        ("smollm2", "Blue.", ParseStatus.CUT, "Blue.", None),
        ("smollm2", "<|im_end|>", ParseStatus.EMPTY, "", None),
        ("smollm2", "Blue.<|im_end|>\n<|im_start|>user", ParseStatus.OK, "Blue.", None),
        ("qwen3", "<think>\nhm\n</think>\n\nBlue.<|im_end|>", ParseStatus.OK, "Blue.", "hm"),
        ("qwen3", "<think>\n\n</think>\n\nBlue.<|im_end|>", ParseStatus.OK, "Blue.", None),
        ("qwen3", "<think>hm</think>Blue.<|im_end|>", ParseStatus.OK, "Blue.", "hm"),
        ("qwen3", "Blue.<|im_end|>", ParseStatus.OK, "Blue.", None),
        ("qwen3", "<think>\nhm<|im_end|>", ParseStatus.OPEN_REASONING, "", "hm"),
        ("qwen3", "<think>\nhm", ParseStatus.CUT, "", "hm"),
        ("deepseek-r1", "hm\n</think>\n\nBlue.<｜end▁of▁sentence｜>", ParseStatus.OK, "Blue.", "hm"),
        ("deepseek-r1", "hm<｜end▁of▁sentence｜>", ParseStatus.OPEN_REASONING, "", "hm"),
        ("harmony", "<|channel|>final<|message|>Blue.<|return|>", ParseStatus.OK, "Blue.", None),
        (
            "harmony",
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Blue.<|return|>",
            ParseStatus.OK,
            "Blue.",
            "hm",
        ),
        ("harmony", "<|channel|>analysis<|message|>hm", ParseStatus.CUT, "", "hm"),
    ],
)
def test_content_reasoning_and_ending(family, text, status, content, reasoning):
    parsed = Parser.of(family_renderer(family)).parse(text)
    assert (parsed.status, parsed.content, parsed.reasoning) == (status, content, reasoning)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("qwen2.5", '<tool_call>\n{"name": "f", "arguments": {"a": [1, "</tool_call>"]}}\n</tool_call><|im_end|>'),
        ("llama3.1", '{"name": "f", "parameters": {"a": [1, "</tool_call>"]}}<|eot_id|>'),
        ("mistral-v3", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1, "</tool_call>"]}, "id": "x"}]</s>'),
        ("mistral-v7", '[TOOL_CALLS]f[ARGS]{"a": [1, "</tool_call>"]}</s>'),
        ("harmony", ' to=functions.f<|channel|>commentary json<|message|>{"a": [1, "</tool_call>"]}<|call|>'),
        (
            "harmony",
            '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": [1, "</tool_call>"]}<|call|>',
        ),
    ],
)
def test_tool_calls_read_back(family, text):
    parsed = Parser.of(family_renderer(family)).parse(text)
    assert parsed.status is ParseStatus.OK
    assert [(call.name, call.arguments) for call in parsed.tool_calls] == [("f", {"a": [1, "</tool_call>"]})]


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("qwen2.5", '<tool_call>\n{"name": "f", "arguments": {"a"<|im_end|>'),
        ("qwen2.5", '<tool_call>\n{"name": "f"}\n</tool_call><|im_end|>'),
        ("mistral-v3", '[TOOL_CALLS] [{"name": "f"</s>'),
        ("llama3.1", '{"name": "f", "parameters": {"a"<|eot_id|>'),
    ],
)
def test_a_tool_call_that_cannot_be_read_is_said_to_be_one(family, text):
    parsed = Parser.of(family_renderer(family)).parse(text)
    assert parsed.status is ParseStatus.BAD_TOOL_CALL
    assert parsed.tool_calls == ()
    assert parsed.content


def test_json_that_is_no_call_stays_content():
    parsed = Parser.of(family_renderer("llama3.1")).parse('{"intent": "refund"}<|eot_id|>')
    assert (parsed.content, parsed.tool_calls) == ('{"intent": "refund"}', ())


def test_a_stop_that_is_spelt_out_does_not_end_an_answer_of_ids():
    renderer = family_renderer("smollm2")
    literal = renderer.tokenizer.encode_literal("say <|im_end|> now", renderer.guard.strings)
    stop = renderer.tokenizer.id_of("<|im_end|>")
    parsed = Parser.of(renderer).parse_ids([*literal, stop])
    assert (parsed.content, parsed.status) == ("say <|im_end|> now", ParseStatus.OK)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab_", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
arguments = st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True).filter(lambda k: k not in ("if", "in", "is", "as", "or", "not", "and", "for", "def", "del", "try")), values, max_size=3)  # fmt: skip


@pytest.mark.parametrize("form", WRITTEN_FORMATS)
@settings(max_examples=60, derandomize=True, database=None)
@given(st.lists(arguments, min_size=1, max_size=3))
def test_written_calls_read_back(form, given_arguments):
    if form is ToolFormat.NAME_LINE:
        given_arguments = given_arguments[:1]
    calls = [ToolCall(name=f"tool_{index}", arguments=item) for index, item in enumerate(given_arguments)]
    text = write_calls(calls, form)
    if form is ToolFormat.REACT and "Action:" in str(given_arguments):
        return
    read = read_calls(text, form)
    assert read.broken is None, text
    assert [(call.name, call.arguments) for call in read.calls] == [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize("form", [ToolFormat.HARMONY, ToolFormat.DEEPSEEK])
def test_formats_of_templates_are_not_written_by_hand(form):
    with pytest.raises(ValueError, match="templates"):
        write_calls([ToolCall(name="f", arguments={})], form)


def test_results_in_a_row_become_one_user_turn():
    messages = [
        {"role": "user", "content": "q"},
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
    ]
    written = write_into_text(messages, [], ToolFormat.HERMES)
    assert [message["role"] for message in written] == ["user", "user"]
    assert written[1]["content"].count("<tool_response>") == 2


@pytest.mark.parametrize("text", ["", "NaN", '{"a": 1, "a": 2}', '{"a": 1} trailing', "```json\n{}\n```", "{'a': 1}"])
def test_what_is_not_one_json_value_does_not_parse(text):
    verdict = AnswerSchema({}).check(text)
    assert not verdict.parses
    assert not verdict.adheres
    with pytest.raises(ValueError):
        strict_json(text)


def test_an_answer_adheres_or_says_where_it_does_not():
    schema = AnswerSchema({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    assert schema.check(' {"n": 1} ').adheres
    verdict = schema.check('{"n": "one"}')
    assert verdict.parses
    assert verdict.errors == ("/n: 'one' is not of type 'integer'",)
