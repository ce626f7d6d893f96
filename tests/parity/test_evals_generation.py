"""Our generation and scoring against transformers' own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.errors import DataError
from tunesmith.model.generate import generate
from tunesmith.model.likelihood import log_likelihood
from tunesmith.model.rows import choose, shared_prefix_length
from tunesmith.types import FinishReason

STOP = 2


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=STOP,
        bos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).float().eval()
    # Spread logits, so that rows end at different steps and no near-tie hides or invents a difference
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(20)
    return model


def transformers_greedy(model, prompt, max_new_tokens):
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=STOP,
            pad_token_id=0,
        )
    ids = out[0, len(prompt) :].tolist()
    return tuple(ids[: ids.index(STOP)] if STOP in ids else ids), STOP in ids


prompts_of_any_kind = st.lists(st.lists(st.integers(3, 96), min_size=1, max_size=20), min_size=1, max_size=7)


@settings(max_examples=15, deadline=None)
@given(
    prompts=prompts_of_any_kind,
    prefix=st.lists(st.integers(3, 96), max_size=12),
    batch_tokens=st.sampled_from([1, 90, 4000]),
    engine=st.sampled_from(["flat", "padded"]),
)
def test_greedy_answers_equal_those_of_transformers_token_by_token(tiny, prompts, prefix, batch_tokens, engine):
    prompts = [prefix + prompt for prompt in prompts]
    completions = generate(tiny, prompts, stop_ids=(STOP,), max_new_tokens=12, batch_tokens=batch_tokens, engine=engine)
    for prompt, completion in zip(prompts, completions, strict=True):
        ids, stopped = transformers_greedy(tiny, prompt, 12)
        assert completion.ids == ids
        assert completion.finish_reason == (FinishReason.STOP if stopped else FinishReason.LENGTH)
        assert completion.prompt_tokens == len(prompt)


def test_some_rows_stop_early_and_some_run_to_the_limit(tiny):
    """Guards the law above: it would be empty if no row ever stopped."""
    prompts = [[3 + i, 5 + i] for i in range(90)]
    stop_ids = range(2, 12)
    reasons = {c.finish_reason for c in generate(tiny, prompts, stop_ids=stop_ids, max_new_tokens=12)}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}


def test_an_answer_never_holds_a_stop_token(tiny):
    stop_ids = tuple(range(2, 50))
    for completion in generate(tiny, [[3, 4], [60, 61, 62]] * 4, stop_ids=stop_ids, max_new_tokens=12):
        assert not set(completion.ids) & set(stop_ids)


def test_sampled_answers_do_not_depend_on_the_batch_and_differ_by_seed(tiny):
    prompts = [[5, 6, 7 + i] for i in range(6)]

    def sample(seed, batch_tokens):
        completions = generate(
            tiny,
            prompts,
            stop_ids=(STOP,),
            max_new_tokens=8,
            temperature=5.0,
            top_p=0.9,
            seed=seed,
            batch_tokens=batch_tokens,
        )
        return [completion.ids for completion in completions]

    assert sample(1, 1) == sample(1, 10_000)
    assert sample(1, 1) != sample(2, 1)
    assert len(set(sample(1, 1))) > 1


def test_sampling_follows_the_distribution_and_respects_the_nucleus():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().expand(4000, -1)
    streams = [torch.Generator().manual_seed(i) for i in range(4000)]
    counts = torch.bincount(torch.tensor(choose(logits, streams, temperature=1.0, top_p=1.0)), minlength=4) / 4000
    assert torch.allclose(counts, probabilities, atol=0.03)
    streams = [torch.Generator().manual_seed(i) for i in range(4000)]
    cut = torch.bincount(torch.tensor(choose(logits, streams, temperature=1.0, top_p=0.75)), minlength=4) / 4000
    assert torch.allclose(cut, torch.tensor([0.625, 0.375, 0, 0]), atol=0.03)


def test_an_empty_prompt_and_one_that_does_not_fit_are_refused_by_number(tiny):
    with pytest.raises(DataError, match="prompt 1"):
        generate(tiny, [[3], []], stop_ids=(STOP,), max_new_tokens=4)
    with pytest.raises(DataError, match="at most 128 tokens"):
        generate(tiny, [[3] * 125], stop_ids=(STOP,), max_new_tokens=4)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), min_size=1, max_size=5))
def test_the_shared_prefix_is_the_longest_that_leaves_every_row_a_token(prompts):
    length = shared_prefix_length(prompts)
    shortest = min(map(len, prompts))
    assert all(prompt[:length] == prompts[0][:length] for prompt in prompts)
    assert length <= shortest - 1
    if length < shortest - 1:
        assert len({prompt[: length + 1] for prompt in prompts}) > 1


@settings(max_examples=15, deadline=None)
@given(prefix=st.lists(st.integers(3, 96), min_size=1, max_size=10), endings=prompts_of_any_kind)
def test_likelihood_equals_the_sum_over_one_unbatched_forward(tiny, prefix, endings):
    scores = log_likelihood(tiny, [(prefix, ending) for ending in endings], batch_tokens=40)
    for ending, score in zip(endings, scores, strict=True):
        with torch.inference_mode():
            logits = tiny(torch.tensor([prefix + ending])).logits[0].double().log_softmax(-1)
        expected = [float(logits[len(prefix) - 1 + i, token]) for i, token in enumerate(ending)]
        assert score.total == pytest.approx(sum(expected), rel=1e-4, abs=1e-4)
        best = logits[len(prefix) - 1 : -1].max(-1).indices.tolist()
        assert score.greedy == (best == ending)
        assert score.num_tokens == len(ending)


def test_a_likelihood_without_anything_before_it_is_refused(tiny):
    with pytest.raises(DataError, match="pair 0"):
        log_likelihood(tiny, [((), (3,))])


def test_generation_leaves_the_model_in_the_mode_it_was_in(tiny):
    tiny.train()
    try:
        generate(tiny, [[3]], stop_ids=(STOP,), max_new_tokens=1)
        assert tiny.training
    finally:
        tiny.eval()
