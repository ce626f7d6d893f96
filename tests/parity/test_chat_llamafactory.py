"""Templates, reasoning, tool text and length rules as LLaMA-Factory's own tests expect them."""

import datetime
import importlib.util
import json
from pathlib import Path

import pytest

from tunesmith.chat.families import family_template
from tunesmith.chat.length import share_budget
from tunesmith.chat.mask import train
from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.chat.render import Renderer
from tunesmith.chat.toolcalls import ToolFormat, read_calls, write_calls
from tunesmith.chat.tooltext import write_tools
from tunesmith.chat.turns import Reasoning, TrainOn
from tunesmith.types import ToolCall

FILE = Path(__file__).parents[2] / "../shared/oracles/llamafactory_expectations.json"
_spec = importlib.util.spec_from_file_location("chat_world", Path(__file__).parents[1] / "unit/chat/chat_world.py")
chat_world = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chat_world)

FAMILY = {"gemma": "gemma3", "gemma2": "gemma2", "qwen": "qwen2.5"}
SPECIAL = {"gemma": ("<bos>", "<eos>"), "gemma2": ("<bos>", "<eos>"), "llama3": ("<|begin_of_text|>", "<|eot_id|>")}
SPECIAL["llama4"] = ("<|begin_of_text|>", "<|eot|>")
FORMATS = {
    "default": ToolFormat.REACT,
    "glm4": ToolFormat.NAME_LINE,
    "llama3": ToolFormat.LLAMA,
    "mistral": ToolFormat.MISTRAL,
    "qwen": ToolFormat.HERMES,
    "lfm2": ToolFormat.PYTHONIC,
}


def oracle(key):
    if not FILE.exists():
        pytest.skip(f"{FILE} is not here")
    return json.loads(FILE.read_text())[key]


def renderer(name, **arguments):
    bos, eos = SPECIAL.get(name, ("", "<|im_end|>"))
    return Renderer(family_template(FAMILY.get(name, name)), {"bos_token": bos, "eos_token": eos, **arguments})


def last_turn(render, messages, **policy):
    """(prompt, trained text with its stop) of the last turn."""
    sequence = train(render, messages, train_on=TrainOn.LAST, **policy)[-1]
    ((start, end),) = sequence.spans
    return sequence.text[:start], sequence.text[start:end]


def test_prompts_and_answers_of_eight_templates():
    for case in oracle("templates"):
        prompt, answer = last_turn(renderer(case["template"]), case["messages"])
        assert prompt == case["prompt_text"], case["id"]
        # LLaMA-Factory trains the line break behind the stop where the template has one; nothing is sampled there.
        assert answer == case["answer_text"].rstrip("\n"), case["id"]


def test_turns_of_a_conversation_share_one_sequence_where_the_template_is_prefix_stable():
    case = oracle("llama3_multiturn")
    (sequence,) = train(renderer("llama3"), case["messages"])
    assert sequence.text == "".join(prompt + answer for prompt, answer in case["pairs"])
    assert [sequence.text[start:end] for start, end in sequence.spans] == [answer for _, answer in case["pairs"]]


def expected_of(case):
    if "pairs" in case:
        return case["pairs"][-1][1].rstrip("\n")
    return case["answer_text"].rstrip("\n")


def test_reasoning_where_thinking_is_on_or_off():
    compared = 0
    for case in oracle("reasoning_matrix"):
        if case["enable_thinking"] is None:
            continue
        arguments = {"enable_thinking": case["enable_thinking"]}
        policy = {} if case["enable_thinking"] else {"reasoning": Reasoning.DROP}
        prompt, answer = last_turn(renderer("qwen3", **arguments), case["messages"], **policy)
        compared += 1
        assert answer == expected_of(case), case
        if "prompt_text" in case:
            assert prompt == case["prompt_text"], case
    assert compared == 8


def test_reasoning_where_the_template_is_not_told():
    """LLaMA-Factory closes the think block in the prompt of rows without reasoning. The server cannot know the answer
    beforehand: its prompt has no block, so the block is the model's to write, and trains."""
    for case in oracle("reasoning_matrix"):
        if case["enable_thinking"] is not None:
            continue
        prompt, answer = last_turn(renderer("qwen3"), case["messages"])
        theirs = case.get("prompt_text")
        whole = None if theirs is None else theirs + case["answer_text"].rstrip("\n")
        assert whole in (None, prompt + answer)
        assert prompt.endswith("<|im_start|>assistant\n")


def test_every_turn_of_a_thinking_conversation_has_its_own_sequence():
    for case in oracle("reasoning_matrix"):
        if "pairs" not in case or case["enable_thinking"] is not True:
            continue
        sequences = train(renderer("qwen3", enable_thinking=True), case["messages"])
        trained = [sequence.text[start:end] for sequence in sequences for start, end in sequence.spans]
        assert trained == [answer.rstrip("\n") for _, answer in case["pairs"]]


def test_calls_are_written_as_their_formatters_write_them():
    for case in oracle("tool_formatters"):
        if case.get("formatter") != "FunctionFormatter":
            continue
        value = json.loads(case["kwargs"]["content"])
        calls = [
            ToolCall(name=c["name"], arguments=c["arguments"]) for c in (value if isinstance(value, list) else [value])
        ]
        written = write_calls(calls, FORMATS[case["tool_format"]])
        first, *rest = case["slots"]
        assert [first.replace("{{content}}", written), *rest] == case["expected"], case["id"]


def test_tools_are_declared_as_their_formatters_declare_them():
    today = datetime.date(2026, 11, 22)
    for case in oracle("tool_formatters"):
        if case.get("formatter") == "ToolFormatter" and case["op"] == "apply":
            tools = json.loads(case["kwargs"]["content"])
            text = write_tools(tools, FORMATS[case["tool_format"]], date=today.strftime("%d %b %Y"))
            assert [text] == case["expected"], case["id"]


def test_calls_are_read_as_their_extractors_read_them():
    compared = 0
    for case in oracle("tool_formatters"):
        if case["op"] != "extract":
            continue
        read = read_calls(case["input"], FORMATS[case["tool_format"]])
        compared += 1
        if isinstance(case["expected"], str):
            assert (read.content, read.calls) == (case["expected"], ()), case["id"]
            continue
        expected = [(name, json.loads(args) if isinstance(args, str) else args) for name, args in case["expected"]]
        assert [(call.name, call.arguments) for call in read.calls] == expected, case["id"]
    assert compared >= 14


def rule(name):
    return next(case for case in oracle("rendering_rules") if case["id"] == name)


def regions(name):
    case = rule(name)
    messages = [{("weight" if k == "loss_weight" else k): v for k, v in m.items()} for m in case["messages"]]
    policy = {"train_on": TrainOn.LAST} if name == "last_turn_only" else {}
    sequence = train(chat_world.smollm2_renderer(), messages, **policy)[-1]
    return case, [sequence.text[start:end] for start, end in sequence.spans]


@pytest.mark.parametrize("name", ["last_turn_only", "loss_weight_zero", "special_token_injection"])
def test_the_trained_text_contains_and_excludes(name):
    case, texts = regions(name)
    assert len(texts) == case["regions"]
    assert all(any(part in text for text in texts) for part in case["trained_text_contains"])
    assert not any(part in text for text in texts for part in case["trained_text_excludes"])


def test_labels_are_the_full_rendering_with_the_prompt_masked():
    render = chat_world.smollm2_renderer()
    messages = rule("diff_labeling")["messages"]
    (sequence,) = train(render, messages)
    assert sequence.ids == render.full(messages).ids
    prompt = render.prompt(messages[:-1]).ids
    assert sequence.ids[: len(prompt)] == prompt
    assert not any(sequence.weights[: len(prompt)])
    assert sequence.weights[len(prompt)] > 0


def test_a_turn_of_weight_zero_is_no_cut():
    case = rule("prefix_cuts_weight0")
    messages = [{("weight" if k == "loss_weight" else k): v for k, v in m.items()} for m in case["messages"]]
    (sequence,) = train(chat_world.smollm2_renderer(), messages)
    assert [turn + 1 for turn in sequence.turns] == case["cuts"]
    plain = [{"role": role, "content": role} for role in rule("prefix_cuts")["messages_roles"]]
    (sequence,) = train(chat_world.smollm2_renderer(), plain)
    assert [turn + 1 for turn in sequence.turns] == rule("prefix_cuts")["cuts"]


@pytest.mark.parametrize(("name", "arguments"), [("tool_call_not_json", None), ("tool_call_missing_keys", None)])
def test_tool_calls_that_are_none_are_refused(name, arguments):
    value = rule(name)["tool_call_value"]
    call = {"function": {"name": "f", "arguments": value}} if name == "tool_call_not_json" else json.loads(value)
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(Refused) as caught:
        train(renderer("qwen"), messages)
    assert caught.value.kind is RefusalKind.BAD_INPUT


def test_a_tool_conversation_trains_call_and_answer_and_nothing_of_the_tool():
    case = oracle("tool_messages")
    (sequence,) = train(renderer("qwen"), case["hf"], case["tools"])
    trained = [sequence.text[start:end] for start, end in sequence.spans]
    assert trained == [
        '<tool_call>\n{"name": "multiply", "arguments": {"a": 6, "b": 8}}\n</tool_call><|im_end|>',
        "The result of 6*8 is 48.<|im_end|>",
    ]
    assert json.dumps(case["tools"][0], ensure_ascii=False) in sequence.text


def test_the_budget_is_shared_as_they_share_it():
    table = oracle("infer_seqlen")
    for source, target, cutoff, *expected in table["rows"]:
        assert list(share_budget(source, target, cutoff)) == expected
