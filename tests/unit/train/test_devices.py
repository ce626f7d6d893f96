"""Every pass keeps its tensors on the model's device, and computes there what it computes on the CPU.

A GPU would refuse what mixes devices; here a stand-in does (`elsewhere`). It proves nothing about kernels of a GPU.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GemmaConfig, LlamaConfig, Qwen3Config

sys.path.append(str(Path(__file__).parent))
from elsewhere import ELSEWHERE, Elsewhere

from tunesmith.model import full, lora
from tunesmith.train.batches import flatten
from tunesmith.train.examples import ExampleTable
from tunesmith.train.passes import DocumentPass, FlatPass, FusedPass, _has_plain_head, base_of

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "gemma": GemmaConfig(**SIZES),
    "gemma2": Gemma2Config(**SIZES, sliding_window=16),
}
PASSES = {
    "document": lambda model: DocumentPass(model, attention="eager"),
    "flat": lambda model: FlatPass(model, plain_head=_has_plain_head(base_of(model))),
    "noisy": lambda model: FlatPass(model, plain_head=_has_plain_head(base_of(model)), noise_alpha=5.0),
    "fused": lambda model: FusedPass(model, gradient_checkpointing=False),
    "checkpointed": lambda model: FusedPass(model, gradient_checkpointing=True),
}


def rows():
    """Four rows behind one prefix and one alone; one is long enough to be computed block by block."""
    random = np.random.default_rng(0)
    prefix = random.integers(3, 100, 12)
    documents = [np.concatenate((prefix, random.integers(3, 100, length))) for length in (5, 9, 30, 1100)]
    documents.append(random.integers(3, 100, 40))
    lengths = [len(document) for document in documents]
    weights = [np.where(np.arange(length) < 12, 0.0, 1.0) for length in lengths]
    return ExampleTable(
        row_ids=tuple("abcde"),
        ids=np.concatenate(documents).astype(np.int32),
        weights=np.concatenate(weights).astype(np.float32),
        offsets=np.cumsum([0, *lengths]),
    )


def loss_and_gradients(config, kind, name, device):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.to(device)
    model.tie_weights()  # The stand-in moves a tied embedding twice.
    if kind == "full":
        parameters, _ = full.train_all_(model)
    else:
        model = lora.add_lora(model, rank=4, alpha=8, decomposition="dora" if kind == "dora" else "none", seed=0)
        parameters = lora.adapter_parameters(model)
    loss_pass = PASSES[name](model)
    model.train()
    torch.manual_seed(1)
    table, shared = rows(), loss_pass.shares_prefixes and name != "noisy"
    loss = loss_pass.loss(flatten(table, range(len(table)), share_prefixes=shared, device=device), denominator=9.0)
    loss.backward()
    loss_pass.refresh_()
    assert {parameter.grad.device.type for parameter in parameters.values()} == {device}
    return loss.cpu(), torch.cat([parameter.grad.cpu().flatten() for parameter in parameters.values()])


@pytest.mark.parametrize(
    ("family", "kind", "name"),
    [(family, kind, name) for family in ("llama", "qwen3", "gemma") for kind in ("lora", "full") for name in PASSES]
    + [("gemma2", kind, name) for kind in ("lora", "full") for name in ("document", "flat")]
    + [("llama", "dora", name) for name in ("document", "flat", "noisy")],
)
def test_a_pass_stays_on_its_device_and_computes_the_same_there(family, kind, name):
    with Elsewhere():
        there, gradients_there = loss_and_gradients(CONFIGS[family], kind, name, ELSEWHERE)
    here, gradients_here = loss_and_gradients(CONFIGS[family], kind, name, "cpu")
    torch.testing.assert_close(there, here.detach(), rtol=1e-5, atol=1e-6)
    assert (gradients_there - gradients_here).norm() <= 1e-4 * gradients_here.norm()


def test_the_stand_in_refuses_what_mixes_devices():
    with Elsewhere():
        there = torch.ones(3, device=ELSEWHERE)
        assert (there + torch.tensor(1.0)).device.type == ELSEWHERE
        with pytest.raises(RuntimeError, match="mixes devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="mixes devices"):
            there.index_select(0, torch.tensor([0]))
        assert there[torch.tensor([0])].cpu().tolist() == [1.0]
