"""Which weights an adapter reaches."""

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Qwen3MoeConfig

from tunesmith.model.lora import add_lora, uncovered_experts

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(**SHAPE, num_local_experts=4),
        Qwen3MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8),
    ],
    ids=lambda config: config.model_type,
)
def test_experts_without_an_adapter_are_told(config):
    model = add_lora(AutoModelForCausalLM.from_config(config), rank=4, alpha=8)
    (warning,) = uncovered_experts(model)
    assert warning.startswith("the experts carry no adapter: 4 stacked tensors of ")


def test_a_dense_model_is_reached_everywhere():
    assert not uncovered_experts(add_lora(AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)), rank=4, alpha=8))
