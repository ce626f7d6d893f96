"""Masks, prompts and stops as TRL's own tests expect them, and this project's families against TRL's template files."""

import importlib.util
import itertools
import json
import random
import sys
from pathlib import Path

import pytest

from tunesmith.chat.families import family_template
from tunesmith.chat.length import Overlong, cut
from tunesmith.chat.mask import train
from tunesmith.chat.refusal import Refused
from tunesmith.chat.render import Renderer
from tunesmith.chat.template import read_template

FILE = Path(__file__).parents[2] / "../shared/oracles/trl_expectations.json"
HERE = Path(__file__).parents[1] / "unit/chat"
sys.path.insert(0, str(HERE))
_spec = importlib.util.spec_from_file_location("chat_world", HERE / "chat_world.py")
chat_world = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chat_world)
_spec = importlib.util.spec_from_file_location("chat_conversations", HERE / "chat_conversations.py")
chat_conversations = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chat_conversations)

THEIRS = {
    "gemma2": "gemma",
    "gemma3": "gemma3",
    "llama3": "llama3",
    "llama3.1": "llama3_1",
    "phi3": "phi3",
    "qwen2.5": "qwen2_5",
    "qwen3": "qwen3",
    "harmony": "gptoss",
}


def oracle(key):
    if not FILE.exists():
        pytest.skip(f"{FILE} is not here")
    return json.loads(FILE.read_text())[key]


def trl_templates():
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("trl is not installed: its template files are not here to compare with")
    return Path(spec.submodule_search_locations[0]) / "chat_templates"


def test_rows_whose_targets_are_cut_are_dropped_and_the_others_keep_their_labels():
    case = next(
        c for c in oracle("labels_from_masks") if c["id"] == "test_fully_masked_examples_dropped_after_truncation"
    )
    kept = []
    for row in case["rows"]:
        try:
            ids, weights = cut(
                row["input_ids"], row["assistant_masks"], budget=case["config"]["max_length"], overlong=Overlong.CUT_END
            )
        except Refused:
            continue
        kept.append([token if weight else -100 for token, weight in zip(ids, weights, strict=True)])
    assert kept == case["expected_labels"]


def test_the_mask_begins_behind_the_user_and_ends_with_the_stop():
    oracle("rules_from_tests")
    for name in sorted(chat_world.FAMILIES):
        render = chat_world.family_renderer(name)
        pair = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        for sequence in train(render, pair):
            assert sequence.weights[0] == 0, name
            last = max(index for index, weight in enumerate(sequence.weights) if weight)
            stops = {render.tokenizer.id_of(stop) for stop in render.traits.stops}
            assert sequence.ids[last] in stops, name
        for sequence in train(render, [*pair, *pair]):
            mask = [weight > 0 for weight in sequence.weights]
            changes = sum(a != b for a, b in itertools.pairwise(mask))
            assert changes in ((3, 4) if len(sequence.turns) == 2 else (1, 2)), name


def test_prompt_and_answer_together_are_the_whole_conversation():
    """Their preference round trip: chosen and rejected each render as the full conversation does."""
    for key, case in oracle("extract_prompt").items():
        if "conversational" not in key or "implicit" not in key:
            continue
        for side in ("chosen", "rejected"):
            for name in ("smollm2", "qwen3", "deepseek-r1"):
                render = chat_world.family_renderer(name)
                prompt = render.prompt(case[side][:-1])
                (sequence,) = train(render, case[side])
                assert sequence.text.startswith(prompt.text), (name, side)
                assert sequence.text == render.full(case[side]).text, (name, side)


@pytest.mark.parametrize("ours", sorted(THEIRS))
def test_a_family_renders_as_the_published_template(ours):
    file = trl_templates() / f"{THEIRS[ours]}.jinja"
    base = chat_world.family_renderer(ours)
    theirs = Renderer(read_template(file), base.variables, base.tokenizer, base.date)
    rng = random.Random(3)
    compared = 0
    for _ in range(60):
        messages, tools, _ = chat_conversations.random_conversation(base, rng)
        for prompt in (False, True):
            shown = messages[:-1] if prompt else messages
            try:
                expected = getattr(theirs, "prompt" if prompt else "full")(shown, tools)
            except Refused:
                continue
            found = getattr(base, "prompt" if prompt else "full")(shown, tools)
            compared += 1
            assert found.text == expected.text
            assert found.ids == expected.ids
    assert compared >= 90


def test_deepseek_prompts_are_those_of_the_published_template():
    base = chat_world.family_renderer("deepseek-r1")
    theirs = Renderer(read_template(trl_templates() / "deepseek_r1_distill.jinja"), base.variables, base.tokenizer)
    rng = random.Random(4)
    for _ in range(40):
        messages, _, _ = chat_conversations.random_conversation(base, rng)
        assert base.prompt(messages[:-1]).text == theirs.prompt(messages[:-1]).text


def test_every_published_template_trains_or_refuses_and_never_guesses():
    from tunesmith.chat.mask import Trained

    pair = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    outcomes = {}
    for file in sorted(trl_templates().glob("*.jinja")):
        render = Renderer(read_template(file), {"bos_token": "<s>", "eos_token": "</s>"})
        try:
            (sequence,) = train(render, pair)
        except Refused as refusal:
            outcomes[file.stem] = refusal.kind.value
            continue
        assert isinstance(sequence, Trained)
        ((start, end),) = sequence.spans
        assert sequence.text[:start] == render.prompt(pair[:1]).text, file.stem
        assert "Hello!" in sequence.text[start:end], file.stem
        outcomes[file.stem] = "trained"
    assert list(outcomes.values()).count("trained") >= 0.8 * len(outcomes), outcomes
    assert family_template("deepseek-r1").name == "family deepseek-r1"
    assert outcomes["deepseek_r1_distill"] == "not_serving_prefix"
