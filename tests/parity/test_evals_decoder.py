"""The flat decoder against the modules of transformers and PEFT that it stands in for."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tunesmith.model import decoder as decoder_module
from tunesmith.model.decoder import Decoder
from tunesmith.model.decoder_cache import Cache
from tunesmith.model.decoder_weights import unsupported
from tunesmith.model.generate import check_decoder, choose_engine, generate

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama tied, stretched rope": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters=ROPE)),
    "llama with biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None, head_dim=8)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
}  # fmt: skip


@pytest.fixture(params=list(FAMILIES))
def model(request):
    torch.manual_seed(3)
    made = FAMILIES[request.param]().float().eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def with_lora(model, *, rank=4):
    torch.manual_seed(4)
    targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=targets)).eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return tuned


def last_logits(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1]


def assert_same(ours, theirs):
    assert torch.allclose(ours, theirs, atol=2e-5 * float(theirs.abs().max() + 1)), float((ours - theirs).abs().max())


def walk(model, *, prefix, rows, steps=5):
    """Prefill rows, add tokens, replace one row on the way; compare every logit row with a fresh forward."""
    with torch.inference_mode():
        decoder = Decoder(model, max_positions=128)
        shared = decoder.prefix(prefix)
        texts = [prefix + row for row in rows]
        block, hidden = decoder.prefill(rows, shared)
        for logits, text in zip(decoder.head(hidden), texts, strict=True):
            assert_same(logits, last_logits(model, text))
        width = max(map(len, rows))
        cache = Cache(decoder, rows=len(rows), capacity=width + steps + 1)
        cache.end = width
        cache.put_(list(range(len(rows))), block)
        for step in range(steps):
            if step == 2:  # the first row ends and another takes its place
                newcomer = [70, 71]
                cache.free_([0])
                cache.put_([0], decoder.prefill([newcomer], shared)[0])
                texts[0] = prefix + newcomer
            ids = [(7 * step + 3 * row) % 90 + 3 for row in range(len(rows))]
            cache.make_room_()
            logits = decoder.head(decoder.step(ids, cache, shared))
            for row, token in enumerate(ids):
                texts[row] = [*texts[row], token]
                assert_same(logits[row], last_logits(model, texts[row]))


@pytest.mark.parametrize("prefix", [[], [50, 51, 52, 53]])
def test_prefill_and_steps_equal_a_fresh_forward(model, prefix):
    assert unsupported(model) is None
    walk(model, prefix=prefix, rows=[[3, 4, 5, 6, 7], [8, 9], [10]])


@pytest.mark.parametrize("prefix", [[], [50, 51, 52, 53]])
def test_without_compiled_loops_torch_attends_to_the_same(model, prefix, monkeypatch):
    monkeypatch.setattr(decoder_module, "attend_rows", lambda *given, **named: None)
    monkeypatch.setattr(decoder_module, "attend_step_", lambda *given, **named: None)
    walk(model, prefix=prefix, rows=[[3, 4, 5, 6, 7], [8, 9], [10]])


def test_an_adapter_is_folded_in(model):
    tuned = with_lora(model)
    assert float((last_logits(tuned, [3, 4, 5]) - last_logits(model, [3, 4, 5])).abs().max()) > 1e-3
    walk(tuned, prefix=[50, 51], rows=[[3, 4, 5], [8, 9]])


def test_a_switched_off_adapter_is_left_out(model):
    tuned = with_lora(model)
    with tuned.disable_adapter(), torch.inference_mode():
        decoder = Decoder(tuned, max_positions=32)
        ours = decoder.head(decoder.prefill([[3, 4, 5]], None)[1])[0]
    assert_same(ours, last_logits(model, [3, 4, 5]))


def test_rows_of_very_different_length_attend_in_parts_and_come_out_the_same():
    torch.manual_seed(5)
    model = FAMILIES["llama"]().float().eval()
    rows = [[3 + i % 90 for i in range(120)], *[[5 + i, 6, 7] for i in range(40)]]
    with torch.inference_mode():
        decoder = Decoder(model, max_positions=256)
        cache = Cache(decoder, rows=len(rows), capacity=130)
        cache.end = 120
        for slot, row in enumerate(rows):
            cache.put_([slot], decoder.prefill([row], None)[0])
        assert len(cache.spans()) == 3
        logits = decoder.head(decoder.step([11] * len(rows), cache, None))
        for row, ours in zip(rows, logits, strict=True):
            assert_same(ours, last_logits(model, [*row, 11]))


def test_the_buffer_moves_what_is_owned_to_its_front(model):
    walk(model, prefix=[], rows=[[3, 4, 5, 6], [8, 9]], steps=4)
    with torch.inference_mode():
        decoder = Decoder(model, max_positions=64)
        cache = Cache(decoder, rows=2, capacity=8)
        cache.end = 3
        cache.put_([0, 1], decoder.prefill([[3, 4, 5], [6]], None)[0])
        texts = [[3, 4, 5], [6]]
        moved = 0
        for step in range(9):
            if step % 3 == 2:  # the longest row ends: its slot is refilled with one token
                cache.free_([0])
                cache.put_([0], decoder.prefill([[20 + step]], None)[0])
                cache.free_([1])
                cache.put_([1], decoder.prefill([[30 + step]], None)[0])
                texts = [[20 + step], [30 + step]]
            before = cache.end
            cache.make_room_()
            moved += cache.end < before
            logits = decoder.head(decoder.step([40 + step, 50 + step], cache, None))
            texts = [[*text, token] for text, token in zip(texts, (40 + step, 50 + step), strict=True)]
            for ours, text in zip(logits, texts, strict=True):
                assert_same(ours, last_logits(model, text))
        assert moved > 0


@pytest.mark.parametrize("adapter", [False, True])
def test_answers_equal_those_of_the_padded_engine(model, adapter):
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(10)
    asked = with_lora(model) if adapter else model
    prompts = [[50, 51, 3 + i, *range(4, 4 + i % 9)] for i in range(30)]
    settings = {"stop_ids": tuple(range(2, 9)), "max_new_tokens": 10, "batch_tokens": 200}
    flat = generate(asked, prompts, engine="flat", **settings)
    padded = generate(asked, prompts, engine="padded", **settings)
    assert [(c.ids, c.finish_reason) for c in flat] == [(c.ids, c.finish_reason) for c in padded]


def test_bfloat16_stays_close_to_float32():
    torch.manual_seed(6)
    model = FAMILIES["llama"]().float().eval()
    half = copy.deepcopy(model).bfloat16()
    with torch.inference_mode():
        decoder = Decoder(half, max_positions=64)
        ours = decoder.head(decoder.prefill([[3, 4, 5, 6, 7, 8]], None)[1])[0].float()
    theirs = last_logits(model, [3, 4, 5, 6, 7, 8])
    assert float((ours - theirs).abs().max()) < 0.05 * float(theirs.abs().max())


def test_what_cannot_be_run_is_named():
    other = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    assert "GPT2LMHeadModel" in unsupported(other)
    assert choose_engine(other).engine == "padded"
    windowed = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))
    assert "window" in unsupported(windowed)
    dora = get_peft_model(FAMILIES["llama"](), LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    assert "low-rank" in unsupported(dora)
    merged = with_lora(FAMILIES["llama"]())
    merged.merge_adapter()
    assert "merged" in unsupported(merged)
    assert "float16" in unsupported(FAMILIES["llama"]().half())


def test_a_model_without_support_still_answers():
    torch.manual_seed(7)
    other = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=64)).eval()
    completions = generate(other, [[3, 4], [5]], stop_ids=(2,), max_new_tokens=4)
    assert all(len(completion.ids) <= 4 for completion in completions)


def test_a_model_whose_code_differs_is_caught_before_it_answers(model):
    with torch.inference_mode():
        decoder = Decoder(model, max_positions=32)
        check_decoder(decoder, model, [3, 4, 5])
        model.model.layers[1].mlp.down_proj.weight.mul_(-1)
        with pytest.raises(AssertionError, match="flat decoder is off"):
            check_decoder(decoder, model, [3, 4, 5])
