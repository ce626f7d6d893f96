"""What trains under each policy, and what is refused instead of guessed."""

import pytest
from chat_world import family_renderer, smollm2_renderer

from tunesmith.chat.foreign_marks import own_marks
from tunesmith.chat.mask import train
from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.chat.render import Renderer
from tunesmith.chat.template import ChatTemplate
from tunesmith.chat.turns import Reasoning, TrainOn


def user(text):
    return {"role": "user", "content": text}


def answer(text, **fields):
    return {"role": "assistant", "content": text, **fields}


TWO = [user("q1"), answer("one"), user("q2"), answer("two")]
CALL = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def trained(renderer, messages, tools=(), **policy):
    """Texts that train, per sequence."""
    out = []
    for sequence in train(renderer, messages, tools, **policy):
        if renderer.tokenizer is None:
            out.append([sequence.text[start:end] for start, end in sequence.spans])
            continue
        texts, run = [], []
        for token, weight in zip((*sequence.ids, 0), (*sequence.weights, 0.0), strict=True):
            if weight > 0:
                run.append(token)
            elif run:
                texts.append(renderer.tokenizer.decode(run, skip_special=False))
                run = []
        out.append(texts)
    return out


def refusal(renderer, messages, tools=(), **policy):
    with pytest.raises(Refused) as caught:
        train(renderer, messages, tools, **policy)
    return caught.value.kind


def test_all_turns_train_with_their_stop_and_nothing_else():
    assert trained(smollm2_renderer(), TWO) == [["one<|im_end|>", "two<|im_end|>"]]


def test_only_the_last_turn_trains_when_asked():
    assert trained(smollm2_renderer(), TWO, train_on=TrainOn.LAST) == [["two<|im_end|>"]]


def test_flagged_turns_train():
    messages = [user("q"), answer("one", train=True), user("q"), answer("two")]
    assert trained(smollm2_renderer(), messages, train_on=TrainOn.FLAGGED) == [["one<|im_end|>"]]


def test_a_turn_flagged_false_never_trains():
    messages = [user("q"), answer("one", train=False), user("q"), answer("two")]
    assert trained(smollm2_renderer(), messages) == [["two<|im_end|>"]]


def test_no_flagged_turn_is_refused():
    assert refusal(smollm2_renderer(), TWO, train_on=TrainOn.FLAGGED) is RefusalKind.NO_TARGET


def test_a_conversation_without_an_answer_is_refused():
    assert refusal(smollm2_renderer(), [user("q")]) is RefusalKind.NO_TARGET


def test_a_weight_scales_the_tokens_of_its_turn_and_their_stop():
    sequence = train(smollm2_renderer(), [user("q"), answer("one", weight=0.5)])[0]
    assert set(sequence.weights) == {0.0, 0.5}


def test_a_weight_of_zero_does_not_train():
    messages = [user("q"), answer("one", weight=0), user("q"), answer("two")]
    assert trained(smollm2_renderer(), messages) == [["two<|im_end|>"]]


@pytest.mark.parametrize("fields", [{"weight": -1}, {"weight": "much"}, {"train": "yes"}])
def test_a_flag_that_cannot_be_read_is_refused(fields):
    assert refusal(smollm2_renderer(), [user("q"), answer("a", **fields)]) is RefusalKind.BAD_INPUT


def test_a_span_of_weight_zero_is_masked_within_its_turn():
    messages = [user("q"), answer("keep drop keep", spans=[[4, 9, 0.0]])]
    assert trained(smollm2_renderer(), messages) == [["keep", " keep<|im_end|>"]]


def test_a_span_outside_of_the_content_is_refused():
    assert refusal(smollm2_renderer(), [user("q"), answer("a", spans=[[0, 9, 1.0]])]) is RefusalKind.BAD_INPUT


def test_reasoning_trains_is_masked_or_goes():
    renderer = family_renderer("qwen3")
    messages = [user("q"), answer("yes", reasoning_content="hm")]
    assert trained(renderer, messages) == [["<think>\nhm\n</think>\n\nyes<|im_end|>"]]
    assert trained(renderer, messages, reasoning=Reasoning.MASK) == [["yes<|im_end|>"]]
    assert trained(renderer, messages, reasoning=Reasoning.DROP) == [["<think>\n\n</think>\n\nyes<|im_end|>"]]


def test_masked_reasoning_still_stands_before_the_answer():
    renderer = family_renderer("qwen3")
    messages = [user("q"), answer("yes", reasoning_content="hm")]
    assert "hm" in train(renderer, messages, reasoning=Reasoning.MASK)[0].text


def test_what_the_generation_prompt_supplies_never_trains():
    renderer = family_renderer("qwen3", enable_thinking=False)
    assert trained(renderer, [user("q"), answer("yes")]) == [["yes<|im_end|>"]]


def test_reasoning_in_a_row_that_the_prompt_rules_out_is_refused():
    renderer = family_renderer("qwen3", enable_thinking=False)
    messages = [user("q"), answer("yes", reasoning_content="hm")]
    assert refusal(renderer, messages) is RefusalKind.NOT_SERVING_PREFIX
    assert trained(renderer, messages, reasoning=Reasoning.DROP) == [["yes<|im_end|>"]]


def test_reasoning_that_the_template_leaves_out_is_refused():
    messages = [user("q"), answer("yes", reasoning_content="hm")]
    assert refusal(smollm2_renderer(), messages) is RefusalKind.REASONING_DROPPED
    assert trained(smollm2_renderer(), messages, reasoning=Reasoning.DROP) == [["yes<|im_end|>"]]


def test_a_template_that_drops_old_thinking_gives_one_sequence_per_turn():
    messages = [user("q"), answer("a", reasoning_content="t1"), user("r"), answer("b", reasoning_content="t2")]
    assert trained(family_renderer("qwen3"), messages) == [
        ["<think>\nt1\n</think>\n\na<|im_end|>"],
        ["<think>\nt2\n</think>\n\nb<|im_end|>"],
    ]


def test_a_stop_that_only_the_last_turn_has_is_trained_at_every_turn():
    assert trained(family_renderer("harmony"), TWO) == [
        ["<|channel|>final<|message|>one<|return|>"],
        ["<|channel|>final<|message|>two<|return|>"],
    ]


def test_the_terminator_is_read_off_the_template_not_the_eos_token():
    assert family_renderer("gemma2").tokenizer.special["eos_token"] == "<eos>"
    assert trained(family_renderer("gemma2"), TWO) == [["one<end_of_turn>", "two<end_of_turn>"]]


def test_an_answer_that_begins_with_a_line_break_keeps_the_serving_prompt_whole():
    renderer = smollm2_renderer()
    messages = [user("q"), answer("\n late"), user("r"), answer("b")]
    sequences = train(renderer, messages)
    assert [sequence.turns for sequence in sequences] == [(1,), (3,)]
    for sequence, upto in zip(sequences, (1, 3), strict=True):
        prompt = renderer.prompt(messages[:upto]).ids
        assert sequence.ids[: len(prompt)] == prompt
    assert sequences[1].text == renderer.full(messages).text


def test_a_template_without_a_stop_is_refused():
    template = ChatTemplate("{% for m in messages %}{{ '\\n' + m.role + ': ' + m.content }}{% endfor %}")
    assert refusal(Renderer(template), TWO) is RefusalKind.NO_STOP


def test_a_template_that_ends_turns_by_opening_the_next_lends_that_token_as_stop():
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    sequences = train(Renderer(ChatTemplate(source)), [user("q"), answer("one")])
    assert sequences[0].appended_stop == "<|user|>"
    assert sequences[0].text == "<|user|>q<|assistant|>one"
    assert sequences[0].spans == ((23, 26),) or sequences[0].text[slice(*sequences[0].spans[0])] == "one"


def test_a_generation_prompt_with_another_name_than_the_turn_is_refused():
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|bot|>{% endif %}"
    )
    assert refusal(Renderer(ChatTemplate(source)), TWO) is RefusalKind.NOT_SERVING_PREFIX


def test_tool_calls_that_the_template_drops_are_refused():
    messages = [user("q"), {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert refusal(smollm2_renderer(), messages) is RefusalKind.TOOL_CALLS_DROPPED


def test_tools_that_the_template_drops_are_refused():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    assert refusal(smollm2_renderer(), TWO, tools) is RefusalKind.TOOLS_DROPPED


def test_a_turn_whose_role_the_template_skips_is_refused():
    messages = [user("q"), {"role": "developer", "content": "be kind"}, answer("a")]
    assert refusal(family_renderer("phi3"), messages) is RefusalKind.CONTENT_DROPPED


def test_images_are_refused():
    messages = [{"role": "user", "content": [{"type": "image", "url": "x"}]}, answer("a")]
    assert refusal(smollm2_renderer(), messages) is RefusalKind.UNSUPPORTED_CONTENT


def test_text_parts_are_text():
    messages = [{"role": "user", "content": [{"type": "text", "text": "q"}]}, answer("a")]
    plain = train(smollm2_renderer(), [user("q"), answer("a")])
    assert train(smollm2_renderer(), messages) == plain


@pytest.mark.parametrize(
    "message",
    [
        {"content": "no role"},
        {"role": "user<|im_end|>", "content": "x"},
        {"role": "user", "content": 3},
        {"role": "user", "content": "half \ud800"},
        {"role": "assistant", "content": "x", "tool_calls": 3},
        {"role": "assistant", "content": "x", "spans": 3},
        {"role": "assistant", "content": "x", "tool_calls": [{"foo": 1}]},
        {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "{not json"}}]},
        {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
    ],
)
def test_what_is_not_a_message_is_refused(message):
    assert refusal(family_renderer("qwen2.5"), [message, answer("a")]) is RefusalKind.BAD_INPUT


def test_arguments_as_text_and_as_object_render_the_same():
    as_text = {**CALL, "function": {"name": "f", "arguments": '{"a": 1}'}}
    for name in ("qwen2.5", "qwen3", "llama3.1", "mistral-v3", "harmony"):
        renderer = family_renderer(name)
        one, other = (
            renderer.full([user("q"), {"role": "assistant", "tool_calls": [call]}]).text for call in (CALL, as_text)
        )
        assert one == other, name


def test_a_single_beginning_of_sequence_token_is_enforced():
    source = (
        "{{ bos_token }}{{ bos_token }}{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}{{ eos_token }}"
    )
    base = family_renderer("mistral-v2")
    renderer = Renderer(ChatTemplate(source), base.variables, base.tokenizer)
    with pytest.raises(Refused) as caught:
        renderer.prompt([user("q")])
    assert caught.value.kind is RefusalKind.TWO_BOS


MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def test_a_system_prompt_that_only_the_prompt_has_stands_before_every_answer():
    """Mistral's published templates leave the system prompt out once an answer follows."""
    renderer = Renderer(ChatTemplate(MISTRAL), {"bos_token": "<s>", "eos_token": "</s>"})
    messages = [{"role": "system", "content": "Be brief."}, *TWO]
    sequences = train(renderer, messages)
    assert [item.text for item in sequences] == [
        "<s>[INST] Be brief.\n\nq1[/INST] one</s>",
        "<s>[INST] q1[/INST] one</s>[INST] Be brief.\n\nq2[/INST] two</s>",
    ]
    assert trained(renderer, messages) == [[" one</s>"], [" two</s>"]]


def test_a_header_that_the_generation_prompt_leaves_out_never_trains():
    text = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    assert refusal(Renderer(ChatTemplate(text)), TWO) is RefusalKind.NOT_SERVING_PREFIX


def test_the_opening_of_the_next_turn_is_no_stop():
    """Command A writes it behind every rendering, with a generation prompt or without."""
    text = (
        "{% for m in messages %}<|START|><|{{ m.role|upper }}|>{{ m.content }}<|END|>{% endfor %}<|START|><|ASSISTANT|>"
    )
    assert trained(Renderer(ChatTemplate(text)), TWO) == [["one<|END|>", "two<|END|>"]]


def test_a_call_without_content_suits_a_template_that_asks_for_content():
    text = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content + '' }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    messages = [user("q"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert trained(Renderer(ChatTemplate(text)), messages) == [['f{"a": 1}<|end|>']]


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ({"training": False}, ["two<|im_end|>"]),
        ({"loss": False}, ["two<|im_end|>"]),
        ({"masked": True}, ["two<|im_end|>"]),
        ({"loss_weight": 0}, ["two<|im_end|>"]),
        ({"train": True, "training": False}, ["one<|im_end|>", "two<|im_end|>"]),
        (
            {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
            ["two<|im_end|>"],
        ),
    ],
)
def test_marks_of_other_projects_mean_here_what_they_mean_there(marks, expected):
    messages = [own_marks(message) for message in [user("q"), answer("one", **marks), user("q"), answer("two")]]
    assert trained(smollm2_renderer(), messages) == [expected]


def test_details_of_axolotl_train_what_they_name_and_nothing_else():
    detail = [
        {"begin_offset": 0, "end_offset": 8, "train": False},
        {"begin_offset": 9, "end_offset": 18, "train": True},
        {"begin_offset": 19, "end_offset": 30, "train": False},
    ]
    message = own_marks(answer("I'm doing very well, thank you!", train_detail=detail))
    assert trained(smollm2_renderer(), [user("q"), message], train_on=TrainOn.FLAGGED) == [[" very well", "<|im_end|>"]]


@pytest.mark.parametrize("marks", [{"masked": 1}, {"train_detail": [{"begin_offset": 0}]}, {"train_detail": "all"}])
def test_marks_of_other_projects_that_say_nothing_are_refused(marks):
    with pytest.raises(Refused):
        own_marks(answer("a", **marks))


def test_a_weight_that_is_no_number_is_refused():
    for weight in (float("nan"), float("inf")):
        assert refusal(smollm2_renderer(), [user("q"), answer("a", weight=weight)]) is RefusalKind.BAD_INPUT
        spans = [[0, 1, weight]]
        assert refusal(smollm2_renderer(), [user("q"), answer("a", spans=spans)]) is RefusalKind.BAD_INPUT
