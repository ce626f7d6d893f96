"""SmolLM2's ids and assistant masks for twenty conversations, against those that transformers gave."""

import importlib.util
import json
from pathlib import Path

import pytest

from tunesmith.chat.mask import train

FILE = Path(__file__).parents[2] / "../shared/oracles/smollm2_token_masks.json"
_spec = importlib.util.spec_from_file_location("chat_world", Path(__file__).parents[1] / "unit/chat/chat_world.py")
chat_world = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chat_world)

CAUTIONED = {"whitespace", "literal_special", "injection"}
"""Cases whose caution says that the plain ids are unsafe or break the serving prompt: see docs/masks.md."""


def oracle():
    if not FILE.exists():
        pytest.skip(f"{FILE} is not here")
    return json.loads(FILE.read_text())


def test_ids_masks_and_spans_equal_those_of_transformers():
    compared = []
    for case in oracle()["cases"]:
        sequences = train(chat_world.smollm2_renderer(), case["messages"])
        assert [sequence.text for sequence in sequences] == [case["rendered"]], case["id"]
        assert [list(span) for span in sequences[0].spans] == [s["with_eot"] for s in case["assistant_spans"]], case[
            "id"
        ]
        if case["id"] in CAUTIONED:
            assert case["caution"]
            continue
        compared.append(case["id"])
        assert list(sequences[0].ids) == case["input_ids"], case["id"]
        mask = [int(weight > 0) for weight in sequences[0].weights]
        assert mask == case["assistant_mask_content_plus_eot"], case["id"]
    assert len(compared) == 17


def test_a_leading_line_break_keeps_the_serving_prompt_and_loses_no_token_of_the_answer():
    case = next(case for case in oracle()["cases"] if case["id"] == "whitespace")
    renderer = chat_world.smollm2_renderer()
    (sequence,) = train(renderer, case["messages"])
    prompt = renderer.prompt(case["messages"][:-1]).ids
    assert sequence.ids[: len(prompt)] == prompt
    trained = [token for token, weight in zip(sequence.ids, sequence.weights, strict=True) if weight]
    assert renderer.tokenizer.decode(trained, skip_special=False) == case["messages"][-1]["content"] + "<|im_end|>"
    assert renderer.tokenizer.decode(sequence.ids, skip_special=False) == case["rendered"]


@pytest.mark.parametrize("name", ["literal_special", "injection"])
def test_control_strings_in_content_are_text(name):
    case = next(case for case in oracle()["cases"] if case["id"] == name)
    renderer = chat_world.smollm2_renderer()
    (sequence,) = train(renderer, case["messages"])
    turns = case["rendered"].count("<|im_end|>") - sum(m["content"].count("<|im_end|>") for m in case["messages"])
    assert sequence.ids.count(renderer.tokenizer.id_of("<|im_end|>")) == turns
    assert renderer.tokenizer.decode(sequence.ids, skip_special=False) == case["rendered"]


def test_generation_prompts_equal_those_of_transformers():
    for case in oracle()["generation_prompts"]:
        assert chat_world.smollm2_renderer().prompt(case["messages"]).text == case["rendered"], case["id"]
