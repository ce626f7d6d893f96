"""Memory by arithmetic: known parameter counts, what autograd really keeps, and which card is named."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from tunesmith.model.layout import DocumentLayout
from tunesmith.model.lora import adapter_parameters, add_lora
from tunesmith.train import footprint as footprint_module
from tunesmith.train import loss
from tunesmith.train.batches import flatten
from tunesmith.train.examples import table_of
from tunesmith.train.footprint import CARDS, WAYS, Shape, advice, fitting, footprint
from tunesmith.train.passes import FusedPass
from tunesmith.types import Example

LLAMA_2_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
KNOWN = {
    "Llama-2-7B": (LLAMA_2_7B, 6_738_415_616),
    "Llama-3.1-8B": (
        {**LLAMA_2_7B, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256},
        8_030_261_248,
    ),
    "Llama-3.2-1B": (
        {
            **LLAMA_2_7B, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
        },
        1_235_814_400,
    ),
    "Mistral-7B-v0.1": (
        {**LLAMA_2_7B, "model_type": "mistral", "intermediate_size": 14336, "num_key_value_heads": 8},
        7_241_732_096,
    ),
    "Qwen2.5-7B": (
        {
            **LLAMA_2_7B, "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
            "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        },
        7_615_616_512,
    ),
    "Qwen3-8B": (
        {
            **LLAMA_2_7B, "model_type": "qwen3", "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        },
        8_190_735_360,
    ),
    "SmolLM2-135M": (
        {
            **LLAMA_2_7B, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
        },
        134_515_008,
    ),
}  # fmt: skip
"""Counts as published with each model's weights."""


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_are_those_that_the_model_is_published_with(name):
    config, count = KNOWN[name]
    assert Shape.of(config).parameters == count


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "Qwen2.5-7B", "Qwen3-8B"])
def test_counts_are_those_of_the_modules_adapters_included(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(KNOWN[name][0]))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
        shape = Shape.of(KNOWN[name][0])
        assert shape.parameters == sum(part.numel() for part in model.parameters())
        adapted = add_lora(model, rank=8, alpha=16)
    assert shape.adapter_parameters(8) == sum(part.numel() for part in adapter_parameters(adapted).values())


def test_another_family_has_no_shape():
    assert Shape.of({"model_type": "gpt2"}) is None


def tensors_of(kept):
    """Every tensor in nested lists."""
    if isinstance(kept, torch.Tensor):
        return [kept]
    return [tensor for part in kept for tensor in tensors_of(part)] if isinstance(kept, list | tuple) else []


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_token_keeps_is_what_autograd_keeps(checkpointing):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    model = add_lora(AutoModelForCausalLM.from_config(config), rank=2, alpha=4)
    loss_pass = FusedPass(model, gradient_checkpointing=checkpointing)
    # Short documents: on a CPU attention keeps its scores too, which grow with the square of a document's length.
    rows = [Example(row_id=f"r{at}", ids=(at, *range(3, 22)), weights=(0.0,) + (1.0,) * 19) for at in range(9)]
    batch = flatten(table_of(rows), range(9), share_prefixes=False)
    layout = DocumentLayout(batch.segments, batch.ids.device)
    embedded = model.get_input_embeddings()(batch.ids).requires_grad_()
    hidden = loss_pass.decoder.hidden(embedded, batch.positions, layout, torch.arange(batch.num_rows))
    kept = {
        part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in tensors_of(hidden.grad_fn.kept)
    }
    found = sum(kept.values())
    shape = Shape.of({"model_type": "llama", **config.to_dict()})
    predicted = 4 * batch.num_rows * shape.kept_a_token(checkpointing=checkpointing)
    if checkpointing:  # One layer's all comes on top in the backward, while it is computed again.
        predicted -= 4 * batch.num_rows * (shape.kept_a_token(checkpointing=False) // shape.layers)
    assert found == pytest.approx(predicted, rel=0.15)


def test_each_way_asks_less_of_a_card_than_the_one_before_it():
    shape = Shape.of(LLAMA_2_7B)
    needed = [footprint(shape, way, tokens=4096, rank=16).total for way in WAYS if way.checkpointing]
    assert needed == sorted(needed, reverse=True)
    for plain, frugal in zip(WAYS[::2], WAYS[1::2], strict=True):
        assert frugal.checkpointing
        assert (
            footprint(shape, frugal, tokens=4096, rank=16).total < footprint(shape, plain, tokens=4096, rank=16).total
        )


def test_adamw_in_eight_bits_saves_six_bytes_a_trained_parameter():
    shape = Shape.of(LLAMA_2_7B)
    full, small = (footprint(shape, WAYS[0], tokens=1, rank=16, optimizer_bytes=size).trained for size in (8.0, 2.0))
    assert full - small == 6 * shape.parameters


@pytest.mark.parametrize(
    ("card", "tokens", "name"),
    [
        ("80 GB", 4096, "LoRA"),
        ("24 GB", 4096, "LoRA with gradient checkpointing"),
        ("12 GB", 4096, "QLoRA (nf4) with gradient checkpointing"),
        ("8 GB", 2048, "QLoRA (nf4) with gradient checkpointing"),
    ],
)
def test_a_7b_fits_a_card_in_the_lightest_way_that_does(card, tokens, name):
    way, needed = fitting(Shape.of(LLAMA_2_7B), card_bytes=CARDS[card], tokens=tokens, rank=16)
    assert way.name == name
    assert needed.total < CARDS[card]


def test_what_fits_nowhere_is_said():
    assert fitting(Shape.of(LLAMA_2_7B), card_bytes=4e9, tokens=4096, rank=16) is None
    said = advice(Shape.of(LLAMA_2_7B), tokens=4096, rank=16)
    assert said[0] == "full fine-tuning fits on none of the common cards alone"
    assert said[1].startswith("LoRA fits on 24 GB with gradient checkpointing, about ")
    assert said[2].startswith("QLoRA fits on 12 GB with gradient checkpointing, about ")


def test_the_chunk_of_logits_is_that_of_the_loss():
    assert (footprint_module.CHUNK_ROWS, footprint_module.CHUNK_LOGITS) == (loss.CHUNK_ROWS, loss.GPU_CHUNK_LOGITS)
