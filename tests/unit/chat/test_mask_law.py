"""The law of masks over every family: prompts as the server sends them, answers that read back, nothing else trains."""

import pytest
from chat_conversations import TOOLS, conversations
from chat_world import FAMILIES, family_renderer
from hypothesis import HealthCheck, given, settings

from tunesmith.chat.families import family_names
from tunesmith.chat.law import check_law
from tunesmith.chat.mask import Trained, train
from tunesmith.chat.parse import Parser
from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.errors import ContractError

EXAMPLES = 106
"""Per family: 2,014 conversations in all. `benchmarks/rendering.py --law` runs as many as it is told."""

THINKING_OFF = ("qwen3", {"enable_thinking": False})


def test_every_family_has_a_tokenizer_here():
    assert set(FAMILIES) == set(family_names())


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_law_holds_for_random_conversations(name):
    renderer = family_renderer(name)
    parser = Parser.of(renderer)
    refused = []

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(conversations(renderer))
    def holds(conversation):
        messages, tools, turns = conversation
        if not turns:
            return
        try:
            sequences = train(renderer, messages, tools)
        except Refused as refusal:
            refused.append(refusal)
            return
        check_law(renderer, messages, tools, sequences, turns=turns, parser=parser)

    holds()
    assert len(refused) <= EXAMPLES // 50, [str(refusal) for refusal in refused[:3]]


def test_the_law_holds_where_the_generation_prompt_closes_the_think_block():
    renderer = family_renderer(THINKING_OFF[0], **THINKING_OFF[1])
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "b"},
    ]
    sequences = train(renderer, messages, [])
    check_law(renderer, messages, [], sequences, turns=[1, 3])
    trained = [[i for i, weight in zip(s.ids, s.weights, strict=True) if weight] for s in sequences]
    assert [renderer.tokenizer.decode(ids, skip_special=False) for ids in trained] == ["a<|im_end|>", "b<|im_end|>"]


def _calls(*ids):
    function = {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}
    return [{"id": one, "type": "function", "function": function} for one in ids]


def _parallel(content):
    return [
        {"role": "user", "content": "Paris and Paris?"},
        {"role": "assistant", "content": content, "tool_calls": _calls("call00001", "call00002")},
        {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": "11"},
        {"role": "tool", "name": "get_weather", "tool_call_id": "call00002", "content": "12"},
        {"role": "assistant", "content": "11 and 12."},
    ]


CALLING = ["qwen2.5", "qwen3", "mistral-v2", "mistral-v3", "mistral-v3-tekken", "mistral-v7"]
SAYING = ["qwen2.5", "qwen3", "mistral-v7"]
"""Templates that render what is said before a call."""


@pytest.mark.parametrize(("name", "content"), [(n, None) for n in CALLING] + [(n, "Let me look.") for n in SAYING])
def test_the_law_holds_for_parallel_calls_and_calls_after_words(name, content):
    renderer = family_renderer(name)
    sequences = train(renderer, _parallel(content), TOOLS)
    check_law(renderer, _parallel(content), TOOLS, sequences, turns=[1, 4])


@pytest.mark.parametrize("name", sorted(set(CALLING) - set(SAYING)))
def test_words_before_a_call_are_never_dropped_silently(name):
    with pytest.raises(Refused) as caught:
        train(family_renderer(name), _parallel("Let me look."), TOOLS)
    assert caught.value.kind is RefusalKind.CONTENT_DROPPED


@pytest.mark.parametrize("name", ["llama3.1", "harmony"])
def test_parallel_calls_are_refused_where_the_format_has_one_call_a_turn(name):
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": _calls("call00001", "call00002")},
    ]
    with pytest.raises(Refused) as caught:
        train(family_renderer(name), messages, TOOLS)
    assert caught.value.kind is RefusalKind.TEMPLATE_ERROR


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_empty_list_of_calls_is_no_call(name):
    pair = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with_list = [pair[0], {**pair[1], "tool_calls": []}]
    assert train(family_renderer(name), with_list) == train(family_renderer(name), pair)


def _good():
    renderer = family_renderer("smollm2")
    messages = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello, you"}]
    return renderer, messages, train(renderer, messages, [])[0]


def _changed(sequence: Trained, **changes) -> Trained:
    fields = {name: getattr(sequence, name) for name in ("text", "spans", "ids", "weights", "turns", "prompt_lengths")}
    return Trained(**{**fields, **changes})


def test_the_check_notices_a_span_that_is_too_narrow():
    renderer, messages, sequence = _good()
    stop = len(sequence.ids) - 2
    weights = tuple(0.0 if index == stop else weight for index, weight in enumerate(sequence.weights))
    with pytest.raises(ContractError, match="does not end with a stop"):
        check_law(renderer, messages, [], [_changed(sequence, weights=weights)], turns=[1])


def test_the_check_notices_a_span_that_starts_in_the_header():
    renderer, messages, sequence = _good()
    length = sequence.prompt_lengths[0]
    weights = tuple(1.0 if index == length - 1 else weight for index, weight in enumerate(sequence.weights))
    with pytest.raises(ContractError):
        check_law(
            renderer, messages, [], [_changed(sequence, weights=weights, prompt_lengths=(length - 1,))], turns=[1]
        )


def test_the_check_notices_a_user_token_that_trains():
    renderer, messages, sequence = _good()
    weights = (0.0, 1.0, *sequence.weights[2:])
    with pytest.raises(ContractError, match="outside of the trained turns"):
        check_law(renderer, messages, [], [_changed(sequence, weights=weights)], turns=[1])


def test_the_check_notices_a_prefix_that_the_server_would_not_send():
    renderer, messages, sequence = _good()
    ids = (*sequence.ids[:4], sequence.ids[4] + 1, *sequence.ids[5:])
    with pytest.raises(ContractError, match="not the serving prompt"):
        check_law(renderer, messages, [], [_changed(sequence, ids=ids)], turns=[1])


def test_the_check_notices_a_turn_that_does_not_train():
    renderer, messages, sequence = _good()
    with pytest.raises(ContractError, match="other turns train"):
        check_law(renderer, [*messages, *messages], [], [sequence], turns=[1, 3])
