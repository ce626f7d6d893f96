import queue
import threading

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tunesmith.errors import ServeError
from tunesmith.model.generate import generate
from tunesmith.serve.batching import BatchingEngine
from tunesmith.serve.engines import Finished, GenerationRequest, ScriptedEngine, Weights
from tunesmith.serve.runners import FlatRunner, PaddedRunner, choose_runner
from tunesmith.types import FinishReason, ignore

VOCAB = 97
PROMPTS = [(1, 2, 3), (5,), (7, 8, 9, 10, 11, 12, 13), (4, 4), (20, 21, 22, 23, 24), (50, 40, 30, 20)]


def tiny(kind=LlamaForCausalLM, config=LlamaConfig):
    torch.manual_seed(0)
    return kind(
        config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=128,
        )
    ).eval()


@pytest.fixture(scope="module")
def adapted():
    model = get_peft_model(tiny(), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def request(prompt, **changes):
    values = dict(prompt=tuple(prompt), stop_ids=frozenset({3}), max_new_tokens=12, temperature=0.0, top_p=1.0, seed=0)
    return GenerationRequest(**{**values, **changes})


def collect(engine, requests):
    answers = [queue.Queue() for _ in requests]
    for item, answer in zip(requests, answers, strict=True):
        engine.submit(item, answer.put)
    out = []
    for answer in answers:
        ids, event = [], answer.get(timeout=600)
        while not isinstance(event, Finished):
            ids.extend(event.ids)
            event = answer.get(timeout=600)
        out.append((tuple(ids), event))
    return out


SHARED = (60, 61, 62, 63)
"""What some prompts begin with: the flat runner computes it once."""
RUNNERS = {
    "padded": PaddedRunner,
    "flat": lambda model: FlatRunner(model, prefix=()),
    "flat, shared prefix": lambda model: FlatRunner(model, prefix=SHARED),
}
every_runner = pytest.mark.parametrize("runner", sorted(RUNNERS))


def open_engine(model, runner="padded", *, max_batch=4, log=ignore):
    return BatchingEngine(RUNNERS[runner](model), max_batch=max_batch, log=log)


def run(model, requests, runner="padded", max_batch=4):
    engine = open_engine(model, runner, max_batch=max_batch)
    engine.start()
    try:
        return collect(engine, requests)
    finally:
        engine.close()


@every_runner
@pytest.mark.parametrize(("kind", "config"), [(LlamaForCausalLM, LlamaConfig), (Qwen3ForCausalLM, Qwen3Config)])
def test_answers_in_a_changing_batch_equal_answers_alone(kind, config, runner):
    model = tiny(kind, config)
    lengths = [3, 12, 5, 70, 1, 9, 7]
    prompts = [*PROMPTS, SHARED + (9, 8)]
    mixed = [SHARED + prompt if index % 2 else prompt for index, prompt in enumerate(prompts)]
    requests = [
        request(prompt, max_new_tokens=length, stop_ids=frozenset({3}), weights=Weights.BASE)
        for prompt, length in zip(mixed, lengths, strict=True)
    ]
    found = run(model, requests, runner, max_batch=3)
    for prompt, length, (ids, end) in zip(mixed, lengths, found, strict=True):
        alone = generate(model, [prompt], stop_ids=(3,), max_new_tokens=length, engine="padded")[0]
        assert ids == alone.ids
        assert end.reason == alone.finish_reason


@every_runner
def test_adapter_and_base_answer_side_by_side_from_one_set_of_weights(adapted, runner):
    both = [request(prompt, weights=weights) for prompt in PROMPTS[:3] for weights in Weights]
    found = run(adapted, both, runner)
    for item, (ids, _) in zip(both, found, strict=True):
        if item.weights is Weights.ADAPTER:
            expected = generate(adapted, [item.prompt], stop_ids=(3,), max_new_tokens=12, engine="padded")[0].ids
        else:
            with adapted.disable_adapter():
                expected = generate(adapted, [item.prompt], stop_ids=(3,), max_new_tokens=12, engine="padded")[0].ids
        assert ids == expected
    assert found[0][0] != found[1][0], "the adapter changes nothing, so this test proves nothing"


@every_runner
def test_a_seed_gives_the_same_sample_whatever_shares_the_batch(runner):
    model = tiny()
    sampled = request(PROMPTS[0], temperature=1.0, seed=5, weights=Weights.BASE)
    others = [
        request(prompt, temperature=1.0, seed=index, weights=Weights.BASE) for index, prompt in enumerate(PROMPTS)
    ]
    alone = run(model, [sampled], runner)[0]
    crowd = run(model, [*others, sampled], runner)[-1]
    other_seed = run(model, [request(PROMPTS[0], temperature=1.0, seed=6, weights=Weights.BASE)], runner)[0]
    assert alone == crowd
    assert alone != other_seed


@pytest.mark.parametrize("runner", ["flat", "flat, shared prefix"])
def test_a_long_prompt_joins_short_answers_that_run_and_outlives_them(runner):
    model = tiny()
    long = SHARED + tuple(10 + index % 80 for index in range(90))
    wanted = [((5, 6), 30), (long, 8), ((7,), 2), ((9, 9, 9), 100)]
    requests = [request(p, max_new_tokens=n, stop_ids=frozenset(), weights=Weights.BASE) for p, n in wanted]
    engine = open_engine(model, runner, max_batch=2)
    engine.start()
    found = collect(engine, requests)
    engine.close()
    for (prompt, length), (ids, _) in zip(wanted, found, strict=True):
        assert ids == generate(model, [prompt], stop_ids=(), max_new_tokens=length, engine="padded")[0].ids


def test_the_runner_is_chosen_by_what_the_model_is():
    assert choose_runner(tiny(), prefix=())[0].name == "flat"
    model = tiny()
    model.config.hidden_act = "gelu"
    runner, reason = choose_runner(model, prefix=())
    assert runner.name == "transformers"
    assert "gelu" in reason


class OnlyEven:
    """Allows even tokens, and never the stop token."""

    def allowed(self):
        mask = np.zeros(VOCAB, dtype=bool)
        mask[::2] = True
        return mask

    def consume(self, token):
        assert token % 2 == 0


def test_a_constraint_binds_its_own_answer_and_no_other():
    free = [request(prompt, weights=Weights.BASE) for prompt in PROMPTS[:2]]
    bound = request(PROMPTS[0], weights=Weights.BASE, make_constraint=OnlyEven)
    found = run(tiny(), [*free, bound])
    assert all(token % 2 == 0 for token in found[-1][0])
    assert any(token % 2 for token in found[0][0])


def test_a_cancelled_answer_ends_and_the_others_go_on():
    engine = open_engine(tiny())
    answer, other = queue.Queue(), queue.Queue()
    first = threading.Event()

    def emit(event):
        answer.put(event)
        first.set()

    long = request(PROMPTS[0], max_new_tokens=100, stop_ids=frozenset(), weights=Weights.BASE)
    cancel = engine.submit(long, emit)
    engine.submit(request(PROMPTS[1], max_new_tokens=100, stop_ids=frozenset(), weights=Weights.BASE), other.put)
    engine.start()
    assert first.wait(600)
    cancel()
    events = []
    while not isinstance(event := answer.get(timeout=600), Finished):
        events.append(event)
    assert event.error == "cancelled"
    assert len(events) < 100
    count = 0
    while not isinstance(event := other.get(timeout=600), Finished):
        count += 1
    assert (count, event.reason) == (100, FinishReason.LENGTH)
    engine.close()


@every_runner
def test_a_failing_step_fails_its_answers_with_the_reason_and_the_engine_goes_on(runner):
    events = []
    engine = open_engine(tiny(), runner, log=lambda *event: events.append(event))
    engine.start()
    broken = collect(engine, [request((VOCAB + 5,), weights=Weights.BASE)])[0][1]
    assert broken.reason is FinishReason.ERROR
    assert "generation failed" in broken.error
    assert events[0][0] == "engine_step_failed"
    assert collect(engine, [request(PROMPTS[0], weights=Weights.BASE)])[0][1].reason is not FinishReason.ERROR
    assert engine.failure() is None
    engine.close()


def test_a_closed_engine_fails_what_waits_and_refuses_the_rest():
    engine = open_engine(tiny(), max_batch=1)
    engine.start()
    answers = [queue.Queue() for _ in range(3)]
    for answer in answers:
        engine.submit(request(PROMPTS[0], max_new_tokens=100, stop_ids=frozenset(), weights=Weights.BASE), answer.put)
    engine.close()
    for answer in answers:
        while not isinstance(event := answer.get(timeout=600), Finished):
            pass
        assert event.reason in (FinishReason.ERROR, FinishReason.LENGTH)
    late = queue.Queue()
    engine.submit(request(PROMPTS[0], weights=Weights.BASE), late.put)
    assert late.get(timeout=600).error == "the server is closing"
    assert engine.failure() == "the server is closing"


def test_asking_for_an_adapter_that_is_not_there_is_refused():
    engine = open_engine(tiny(), max_batch=1)
    with pytest.raises(ServeError, match="no adapter"):
        engine.submit(request(PROMPTS[0]), lambda event: None)


def test_an_architecture_without_a_positional_cache_is_refused():
    model = tiny()
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ServeError, match="linear_attention"):
        choose_runner(model, prefix=())
    model.config.layer_types = None


@every_runner
def test_next_token_logprobs_are_those_of_the_weights_asked_for(adapted, runner):
    engine = open_engine(adapted, runner)
    tuned = engine.next_token_logprobs(PROMPTS[0], Weights.ADAPTER, tokens=range(VOCAB))
    base = engine.next_token_logprobs(PROMPTS[0], Weights.BASE, tokens=range(VOCAB))
    assert tuned != base
    with adapted.disable_adapter(), torch.inference_mode():
        expected = adapted(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].float().log_softmax(-1)
    assert np.allclose(base, expected.numpy(), atol=1e-4)


def test_the_scripted_engine_keeps_the_rules_of_an_engine():
    engine = ScriptedEngine(lambda prompt: (9, 8, 3, 7), vocab_size=10)
    engine.start()
    found = collect(engine, [request((1,)), request((1,), max_new_tokens=1), request((1,), stop_ids=frozenset())])
    assert [item[0] for item in found] == [(9, 8), (9,), (9, 8, 3, 7)]
    assert [item[1].reason for item in found] == ["stop", "length", "length"]
    engine.close()
