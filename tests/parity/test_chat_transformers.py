"""Rendering and ids against transformers' `apply_chat_template`, for every family and random conversations."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest

from tunesmith.chat.refusal import Refused

HERE = Path(__file__).parents[1] / "unit/chat"
sys.path.insert(0, str(HERE))


def _module(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


chat_world = _module("chat_world")
chat_conversations = _module("chat_conversations")


def theirs(renderer):
    """The same tokenizer and template as a transformers tokenizer."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = renderer.tokenizer
    backend = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=renderer.template.text, **tokenizer.special)


@pytest.mark.parametrize("name", sorted(set(chat_world.FAMILIES) - {"harmony"}))
def test_text_and_ids_equal_those_of_transformers(name):
    renderer = chat_world.family_renderer(name)
    reference = theirs(renderer)
    rng = random.Random(11)
    compared = 0
    for _ in range(25):
        messages, tools, _ = chat_conversations.random_conversation(renderer, rng, plant=False)
        for prompt in (False, True):
            shown = messages[:-1] if prompt else messages
            clean = [{key: value for key, value in message.items() if key != "train"} for message in shown]
            given = {"tools": tools or None, "add_generation_prompt": prompt}
            try:
                found = (renderer.prompt if prompt else renderer.full)(shown, tools)
            except Refused:
                continue
            compared += 1
            assert found.text == reference.apply_chat_template(clean, tokenize=False, **given)
            if not _spells_control(renderer, clean):
                ids = reference.apply_chat_template(clean, tokenize=True, return_dict=False, **given)
                assert list(found.ids) == list(ids)
    assert compared >= 40


def _spells_control(renderer, messages):
    return renderer.guard.mask(messages, []) is not None


@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "llama3", "gemma2", "mistral-v7"])
def test_planted_control_strings_are_text_as_under_their_sanitizer(name):
    renderer = chat_world.family_renderer(name)
    reference = theirs(renderer)
    control = {token.id for token in renderer.tokenizer.added if token.content.strip()}
    rng = random.Random(12)
    for _ in range(15):
        messages, tools, _ = chat_conversations.random_conversation(renderer, rng)
        clean = [{key: value for key, value in message.items() if key != "train"} for message in messages]
        ours = renderer.full(messages, tools)
        ids = reference.apply_chat_template(
            clean, tools=tools or None, tokenize=True, return_dict=False, sanitize_control_tokens=True
        )
        assert [i for i in ours.ids if i in control] == [i for i in ids if i in control]
        assert renderer.tokenizer.decode(ours.ids, skip_special=False) == renderer.tokenizer.decode(
            ids, skip_special=False
        )


def test_the_smollm2_folder_renders_as_auto_tokenizer_does():
    from transformers import AutoTokenizer

    folder = chat_world.smollm2_folder()
    reference = AutoTokenizer.from_pretrained(folder)
    renderer = chat_world.smollm2_renderer()
    rng = random.Random(13)
    for _ in range(20):
        messages, _, _ = chat_conversations.random_conversation(renderer, rng, plant=False)
        clean = [{key: value for key, value in message.items() if key != "train"} for message in messages]
        found = renderer.full(messages)
        assert found.text == reference.apply_chat_template(clean, tokenize=False)
        assert list(found.ids) == list(reference.apply_chat_template(clean, tokenize=True, return_dict=False))
