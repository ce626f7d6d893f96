"""The quick way gives what the general way gives, and is taken only where that is proved."""

import pytest
from chat_conversations import conversations
from chat_world import FAMILIES, family_renderer, family_tokenizer, smollm2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.chat.families import family_template
from tunesmith.chat.insertion import find_insertion
from tunesmith.chat.mask import train
from tunesmith.chat.refusal import Refused
from tunesmith.chat.render import Renderer
from tunesmith.chat.skeleton import Skeletons, isolates_segments
from tunesmith.chat.template import ChatTemplate
from tunesmith.chat.turns import Reasoning, TrainOn
from tunesmith.chat.words import Words, splits_at_spaces
from tunesmith.types import Conversation

QUICK = sorted(set(FAMILIES) - {"harmony", "phi3", "mistral-v3"})
"""harmony has macros; phi3 strips behind its tokens; mistral-v3's words depend on where they stand."""


def both_ways(renderer, skeletons, messages):
    conversation = Conversation.from_json({"messages": messages})
    quick = skeletons.encode([conversation.messages])[0]
    try:
        general = train(
            renderer,
            [message.to_json() for message in conversation.messages],
            train_on=skeletons.train_on,
            reasoning=skeletons.reasoning,
        )
    except Refused:
        return quick, None
    return quick, [(list(item.ids), list(item.weights)) for item in general]


@pytest.mark.parametrize("name", QUICK)
def test_quick_and_general_way_agree_on_random_conversations(name):
    renderer = family_renderer(name)
    skeletons = Skeletons(renderer, TrainOn.ALL, Reasoning.TRAIN)
    taken = []

    @settings(max_examples=60, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(conversations(renderer, plant=False), st.booleans())
    def agree(conversation, strip):
        messages, tools, turns = conversation
        if tools or not turns:
            return
        if strip:
            messages = [{**message, "content": message["content"].strip() or "x"} for message in messages]
        quick, general = both_ways(renderer, skeletons, messages)
        taken.append(quick is not None)
        assert quick is None or quick == general

    agree()
    assert any(taken), "the quick way was never taken"


def test_the_families_that_are_quick_are_known():
    usable = {name for name in FAMILIES if Skeletons(family_renderer(name), TrainOn.ALL, Reasoning.TRAIN).usable}
    assert sorted(usable) == QUICK


@pytest.mark.parametrize("policy", [(TrainOn.LAST, Reasoning.TRAIN), (TrainOn.ALL, Reasoning.DROP)])
def test_policies_agree_too(policy):
    renderer = family_renderer("qwen3")
    skeletons = Skeletons(renderer, *policy)
    messages = [{"role": role, "content": text} for role, text in [("user", "q"), ("assistant", "a")] * 2]
    quick, general = both_ways(renderer, skeletons, messages)
    assert quick == general
    assert quick is not None


@pytest.mark.parametrize(
    "message",
    [
        {"content": "say <|im_end|> please"},
        {"content": ""},
        {"content": "a", "weight": 0.5},
        {"content": "a", "spans": [[0, 1, 0.5]]},
        {"content": "a", "name": "bob"},
    ],
)
def test_what_is_not_plain_takes_the_general_way(message):
    renderer = family_renderer("chatml")
    messages = [{"role": "user", **message}, {"role": "assistant", "content": "a"}]
    quick, general = both_ways(renderer, Skeletons(renderer, TrainOn.ALL, Reasoning.TRAIN), messages)
    assert quick is None
    assert general is not None


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content | length }}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content[:3] }}{% endfor %}",
        "{% for m in messages %}{{ m.content.replace('a', 'b') }}{% endfor %}",
        "{% for m in messages %}{% if m.content > 'm' %}x{% endif %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if 'x' in 'y' + m.content %}x{% endif %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% for line in m.content.split('\\n') %}{{ line | length }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{{ m.items() }}{% endfor %}",
        "{% for m in messages %}{{ m.get('content') }}{% endfor %}",
        "{% for m in messages %}{{ m[key] | length }}{% endfor %}",
        "{% for m in messages %}{{ m }}{% endfor %}",
        "{{ messages }}",
        "{{ messages | map(attribute='content') | join }}",
        "{% for m in messages %}{% set x = m.content %}{{ x | length }}{% endfor %}",
        "{% set n = namespace(t='') %}{% for m in messages %}{% set n.t = m.content %}{% endfor %}{{ n.t | length }}",
        "{% set n = namespace(t='') %}{% for m in messages %}{% set n.t = m.content %}{% endfor %}{{ n['t'] | length }}",
        "{% for m in messages %}{{ loop.nextitem.content | length }}{% endfor %}",
        "{% macro f(x) %}{{ x | length }}{% endmacro %}{% for m in messages %}{{ f(m.content) }}{% endfor %}",
        "{% for m in messages %}{% set parts = m.content.split('a') %}{{ parts[0] | length }}{% endfor %}",
        "{% for m in messages %}{{ '%s' % m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content * 2 }}{% endfor %}",
        "{% with c = messages[0].content %}{{ c | length }}{% endwith %}",
        "{% for m in messages %}{{ m.content.strip('\"') }}{% endfor %}",
    ],
)
def test_a_template_that_does_more_than_write_content_down_is_noticed(source):
    assert find_insertion(ChatTemplate(source)) is None


def test_strings_that_a_template_looks_for_are_listed():
    found = find_insertion(family_template("qwen3"))
    assert found.sought == {"<think>", "</think>", "<tool_response>", "</tool_response>"}
    assert found.strips


def test_content_written_as_json_is_noticed_when_the_template_runs():
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | tojson }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = Renderer(ChatTemplate(source), {}, family_tokenizer("chatml"))
    skeletons = Skeletons(renderer, TrainOn.ALL, Reasoning.TRAIN)
    assert skeletons.usable
    messages = [{"role": "user", "content": 'a "b"'}, {"role": "assistant", "content": "c"}]
    assert both_ways(renderer, skeletons, messages)[0] is None


def test_tokens_that_take_whitespace_beside_them_rule_the_quick_way_out():
    assert isolates_segments(family_tokenizer("chatml"))
    assert not isolates_segments(family_tokenizer("phi3"))
    assert not isolates_segments(family_tokenizer("mistral-v3"))


WORDY = [name for name in ("chatml", "qwen2.5", "llama3")]


@pytest.mark.parametrize("name", WORDY)
def test_words_give_the_ids_of_the_whole_text(name):
    tokenizer = family_tokenizer(name)
    words = Words(tokenizer)
    texts = st.lists(
        st.one_of(st.sampled_from([" ", "  ", "\n", "\t", "a", "Zürich", "48", "don't", "'s", ".", "(", "é", "e\u0301", "你"]), st.characters()),
        max_size=12,
    ).map("".join)  # fmt: skip

    @settings(max_examples=300, derandomize=True, database=None)
    @given(st.lists(texts, min_size=1, max_size=3))
    def same(batch):
        assert words.encode(batch) == tokenizer.encode_batch(batch)

    same()


def test_only_known_splitters_encode_by_words():
    assert splits_at_spaces(smollm2())
    assert all(splits_at_spaces(family_tokenizer(name)) for name in WORDY)
    assert not any(splits_at_spaces(family_tokenizer(name)) for name in ("gemma2", "phi3", "mistral-v1", "mistral-v3"))
