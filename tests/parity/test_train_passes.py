"""Loss and gradients of each pass against transformers + PEFT in float32, on padded batches with full logits.

The reference below shares no code with tunesmith but the adapter that PEFT makes.
"""

import random

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.integrations.neftune import neftune_post_forward_hook

from tunesmith.errors import PlanError
from tunesmith.model import kernels
from tunesmith.model.full import train_all_
from tunesmith.model.layout import DocumentLayout, Segment
from tunesmith.model.lora import adapter_parameters, add_lora
from tunesmith.train import passes
from tunesmith.train.batches import flatten, micro_batches
from tunesmith.train.examples import table_of
from tunesmith.train.isolation import leak, with_sharing_pair
from tunesmith.train.passes import DocumentPass, FlatPass, FusedPass, choose_pass, prove
from tunesmith.types import Example

VOCAB = 61
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 2,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama with biases": LlamaConfig(**SHAPE, attention_bias=True),
    "llama tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama scaled positions": LlamaConfig(
        **SHAPE,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
    "mistral with a window": MistralConfig(**SHAPE, sliding_window=8),
    "gemma": GemmaConfig(**SHAPE, head_dim=16),
}
OTHERS = {
    "gemma2": Gemma2Config(**SHAPE, head_dim=8, sliding_window=8),
    "gemma3": Gemma3TextConfig(
        **SHAPE, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0
    ),
}


def examples():
    """Twelve rows, eight under one system prompt, with fractional weights; the end token equals the pad token."""
    rng = random.Random(0)
    prefix = [rng.randrange(3, VOCAB) for _ in range(20)]
    rows = []
    for index in range(12):
        own = [rng.randrange(3, VOCAB) for _ in range(rng.randint(5, 30))] + [2]
        ids = (prefix if index < 8 else []) + own
        supervised = rng.randint(2, len(own) - 1)
        weights = [0.0] * (len(ids) - supervised) + [rng.choice([1.0, 1.0, 0.5]) for _ in range(supervised)]
        rows.append(Example(row_id=f"r{index}", ids=tuple(ids), weights=tuple(weights)))
    return table_of(rows)


def adapted(config, **lora):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = add_lora(model, **{"rank": 4, "alpha": 8, **lora})
    torch.manual_seed(2)
    for parameter in adapter_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def reference(model, table, indices):
    """Padded batch, full logits, labels by position: the textbook."""
    rows = [table.example(index) for index in indices]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), 2)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    weights = torch.zeros(len(rows), longest)
    for at, (tokens, row_weights) in enumerate(rows):
        ids[at, : len(tokens)] = torch.tensor(tokens)
        mask[at, : len(tokens)] = 1
        weights[at, : len(tokens)] = torch.tensor(row_weights)
    (model.get_base_model() if isinstance(model, PeftModel) else model).set_attn_implementation("eager")
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum() / weights.sum()


@pytest.fixture(params=["compiled", "torch"])
def loops(request, monkeypatch):
    """What stands between the products: loops that the C compiler made, or torch's operations."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "_library", lambda dtype: None)
    elif kernels.why_not_compiled() is not None:
        pytest.skip(kernels.why_not_compiled())


def gradients(model, loss):
    return torch.autograd.grad(loss, list(adapter_parameters(model).values()))


def assert_same(model, loss, grads, expected_loss, expected_grads):
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    scale = torch.cat([grad.flatten() for grad in expected_grads]).norm()
    for mine, theirs in zip(grads, expected_grads, strict=True):
        assert float((mine - theirs).norm()) <= 1e-5 * float(scale)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", ["fused", "fused, checkpointing", "flat", "document"])
def test_each_pass_computes_what_transformers_and_peft_compute(config, kind):
    model, table = adapted(config), examples()
    expected = reference(model, table, range(12))
    expected_grads = gradients(model, expected)
    loss_pass = {
        "fused": lambda: FusedPass(model, gradient_checkpointing=False),
        "fused, checkpointing": lambda: FusedPass(model, gradient_checkpointing=True),
        "flat": lambda: FlatPass(model, plain_head=True),
        "document": lambda: DocumentPass(model, attention="sdpa"),
    }[kind]()
    batch = flatten(table, range(12), share_prefixes=loss_pass.shares_prefixes)
    assert (batch.num_rows < batch.num_tokens) == loss_pass.shares_prefixes
    loss = loss_pass.loss(batch, denominator=float(batch.weights.sum()))
    assert_same(model, loss, gradients(model, loss), expected, expected_grads)


@pytest.mark.parametrize("config", [CONFIGS["llama"], CONFIGS["qwen3"]], ids=["llama", "qwen3"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.usefixtures("loops")
def test_the_fused_pass_is_the_same_compiled_and_in_torch(config, checkpointing):
    model, table = adapted(config), examples()
    expected = reference(model, table, range(12))
    loss_pass = FusedPass(model, gradient_checkpointing=checkpointing)
    batch = flatten(table, range(12), share_prefixes=True)
    loss = loss_pass.loss(batch, denominator=float(batch.weights.sum()))
    assert_same(model, loss, gradients(model, loss), expected, gradients(model, expected))


@pytest.mark.parametrize("lora", [{}, {"decomposition": "dora"}], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", ["flat", "document"])
def test_checkpointing_of_transformers_layers_changes_nothing(lora, kind):
    model, table = adapted(CONFIGS["llama"], **lora), examples()
    expected = reference(model, table, range(12))
    expected_grads = gradients(model, expected)
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    loss_pass = FlatPass(model, plain_head=True) if kind == "flat" else DocumentPass(model, attention="sdpa")
    batch = flatten(table, range(12), share_prefixes=loss_pass.shares_prefixes)
    loss = loss_pass.loss(batch, denominator=float(batch.weights.sum()))
    assert_same(model, loss, gradients(model, loss), expected, expected_grads)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", ["fused", "flat"])
def test_training_all_weights_gives_the_gradients_of_transformers(config, kind):
    torch.manual_seed(1)
    model, table = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval(), examples()
    train_all_(model)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    expected = reference(model, table, range(12))
    expected_grads = gradients(model, expected)
    loss_pass = FusedPass(model, gradient_checkpointing=False) if kind == "fused" else FlatPass(model, plain_head=True)
    batch = flatten(table, range(12), share_prefixes=True)
    loss = loss_pass.loss(batch, denominator=float(batch.weights.sum()))
    assert_same(model, loss, gradients(model, loss), expected, expected_grads)


@pytest.mark.parametrize("lora", [{"scaling": "rslora"}, {"decomposition": "dora"}], ids=str)
def test_other_updates_than_plain_lora_take_pefts_own_arithmetic(lora):
    model, table = adapted(CONFIGS["llama"], rank=3, alpha=5, **lora), examples()
    if "decomposition" in lora:
        for name, parameter in adapter_parameters(model).items():
            if "magnitude" in name:
                torch.nn.init.normal_(parameter, mean=0.5, std=0.1)
    expected = reference(model, table, range(12))
    expected_grads = gradients(model, expected)
    choice = choose_pass(model, table, gradient_checkpointing=False)
    assert choice.loss_pass.name == ("flat" if "decomposition" in lora else "fused")
    batch = flatten(table, range(12), share_prefixes=True)
    loss = choice.loss_pass.loss(batch, denominator=float(batch.weights.sum()))
    assert_same(model, loss, gradients(model, loss), expected, expected_grads)


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_a_model_of_another_shape_takes_its_own_layers_over_the_flat_batch(config):
    model, table = adapted(config), examples()
    expected = reference(model, table, range(12))
    expected_grads = gradients(model, expected)
    choice = choose_pass(model, table, gradient_checkpointing=False)
    assert (choice.loss_pass.name, len(choice.notes)) == ("flat", 1)
    batch = flatten(table, range(12), share_prefixes=True)
    loss = choice.loss_pass.loss(batch, denominator=float(batch.weights.sum()))
    assert_same(model, loss, gradients(model, loss), expected, expected_grads)


def test_a_model_without_attention_goes_document_by_document_and_says_why():
    config = MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = adapted(config, targets=["in_proj"])
    choice = choose_pass(model, examples(), gradient_checkpointing=False)
    assert choice.loss_pass.name == "document"
    assert any("not flat" in note for note in choice.notes)


def test_layers_that_cannot_carry_an_adapter_are_refused_by_name():
    """Mamba's kernel reads the weight of `out_proj` itself, past whatever stands on it."""
    config = Mamba2Config(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, state_size=8, num_heads=8, head_dim=8, n_groups=1
    )
    with pytest.raises(PlanError, match="cannot put an adapter") as error:
        adapted(config)
    assert "out_proj" in str(error.value)


def test_the_proof_fails_where_documents_see_each_other(monkeypatch):
    model, table = adapted(CONFIGS["llama"]), examples()

    def one_document(segments, device):
        return DocumentLayout([Segment(start=0, stop=segments[-1].stop)], device)

    monkeypatch.setattr(passes, "DocumentLayout", one_document)
    proof = prove(
        FusedPass(model, gradient_checkpointing=False), DocumentPass(model, attention="eager"), table, [8, 9], model
    )
    assert not proof.holds


OWN_WAYS = {
    "gptj: an attention of its own": GPTJConfig(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=128
    ),
    "bloom: positions that are no argument": BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
    "lfm2: convolutions over neighbours": Lfm2Config(**SHAPE, layer_types=["conv", "full_attention", "conv"]),
}


@pytest.mark.parametrize("config", OWN_WAYS.values(), ids=OWN_WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_whose_documents_would_not_stay_apart_goes_document_by_document(config, dtype):
    """In bfloat16 rounding hides what a convolution carries over; rows without a common beginning hide the rest."""
    model, table = adapted(config), examples()
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    for rows in (range(12), range(8, 12)):
        apart = table_of(
            Example(row_id=str(at), ids=tuple(ids.tolist()), weights=tuple(weights.tolist()))
            for at, (ids, weights) in ((at, table.example(at)) for at in rows)
        )
        choice = choose_pass(model, apart, gradient_checkpointing=False)
        assert choice.loss_pass.name == "document", choice.proof
        assert any("not flat" in note for note in choice.notes)
    if dtype == torch.float32:
        expected = reference(model, table, range(12))
        batch = flatten(table, range(12), share_prefixes=False)
        loss = choice.loss_pass.loss(batch, denominator=float(batch.weights.sum()))
        assert_same(model, loss, gradients(model, loss), expected, gradients(model, expected))


@pytest.mark.parametrize("config", [CONFIGS["llama"], OTHERS["gemma3"]], ids=["llama", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_gradient_flows_between_documents_to_the_last_bit(monkeypatch, config, dtype):
    model = adapted(config)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    proven = with_sharing_pair(examples(), [8, 9])
    first, second = (proven.example(index)[0].tolist() for index in (2, 3))
    assert first[:16] == second[:16]
    assert first != second
    loss_passes = [FlatPass(model, plain_head=True)]
    loss_passes += [FusedPass(model, gradient_checkpointing=False)] if config.model_type == "llama" else []
    base = model.get_base_model()
    for loss_pass in loss_passes:
        assert leak(loss_pass, base, proven, range(4)) == 0.0

    def one_document(segments, device):
        return DocumentLayout([Segment(start=0, stop=segments[-1].stop)], device)

    monkeypatch.setattr(passes, "DocumentLayout", one_document)
    for loss_pass in loss_passes:
        assert leak(loss_pass, base, proven, range(4)) > 0.0


@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("targets", [None, ("q_proj", "v_proj"), ("down_proj",), ("gate_proj", "o_proj")])
def test_any_rank_and_any_targets_fold(rank, targets):
    model, table = adapted(CONFIGS["llama"], rank=rank, alpha=5, targets=targets), examples()
    expected = reference(model, table, range(12))
    expected_grads = gradients(model, expected)
    loss_pass = FusedPass(model, gradient_checkpointing=False)
    batch = flatten(table, range(12), share_prefixes=True)
    loss = loss_pass.loss(batch, denominator=float(batch.weights.sum()))
    assert_same(model, loss, gradients(model, loss), expected, expected_grads)


def step_gradient(model, loss_pass, table, groups):
    """One optimizer step's gradient, over its passes, with one denominator."""
    for parameter in adapter_parameters(model).values():
        parameter.grad = None
    denominator = table.weight_of(index for group in groups for index in group)
    total = 0.0
    for group in groups:
        batch = flatten(table, group, share_prefixes=loss_pass.shares_prefixes)
        loss = loss_pass.loss(batch, denominator=denominator)
        loss.backward()
        total += loss.item()
    return total, [parameter.grad.clone() for parameter in adapter_parameters(model).values()]


@pytest.mark.parametrize("kind", ["fused", "flat"])
def test_accumulation_never_changes_a_step(kind):
    model, table = adapted(CONFIGS["llama"]), examples()
    expected = reference(model, table, range(11))
    expected_grads = gradients(model, expected)
    loss_pass = FusedPass(model, gradient_checkpointing=False) if kind == "fused" else FlatPass(model, plain_head=True)
    ragged = list(range(11))
    for groups in (
        [ragged],
        [ragged[:4], ragged[4:8], ragged[8:]],
        [[index] for index in ragged],
        micro_batches(table, ragged, max_tokens=50, share_prefixes=True),
        micro_batches(table, ragged, max_tokens=50, share_prefixes=False),
    ):
        loss, grads = step_gradient(model, loss_pass, table, groups)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        scale = float(torch.cat([grad.flatten() for grad in expected_grads]).norm())
        for mine, theirs in zip(grads, expected_grads, strict=True):
            assert float((mine - theirs).norm()) <= 1e-5 * scale


def test_the_model_still_computes_the_same_after_its_weights_were_folded():
    model, table = adapted(CONFIGS["qwen2"]), examples()
    before = reference(model, table, range(12))
    FusedPass(model, gradient_checkpointing=False)
    torch.testing.assert_close(reference(model, table, range(12)), before, rtol=1e-6, atol=0)


def test_use_cache_left_on_does_not_mix_documents():
    model, table = adapted(CONFIGS["llama"]), examples()
    expected = reference(model, table, range(12))
    model.get_base_model().config.use_cache = True
    batch = flatten(table, range(12), share_prefixes=True)
    loss = FlatPass(model, plain_head=True).loss(batch, denominator=float(batch.weights.sum()))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_the_noise_of_neftune_is_that_of_transformers_for_each_document_alone():
    model, table = adapted(CONFIGS["llama"]).get_base_model(), examples()
    embedding = model.get_input_embeddings()
    embedding.neftune_noise_alpha = 5.0
    batch = flatten(table, [0, 9], share_prefixes=False)
    plain = passes.embed(model.eval(), batch, noise_alpha=5.0)
    torch.testing.assert_close(plain, embedding(batch.ids), rtol=0, atol=0)
    model.train()
    for index in (0, 9):
        alone = flatten(table, [index], share_prefixes=False)
        torch.manual_seed(4)
        ours = passes.embed(model, alone, noise_alpha=5.0)
        torch.manual_seed(4)
        theirs = neftune_post_forward_hook(embedding, None, embedding(alone.ids)[None])[0]
        torch.testing.assert_close(ours, theirs)
    noise = passes.embed(model, batch, noise_alpha=5.0) - plain
    for segment in batch.segments:
        limit = 5.0 / (segment.length * plain.shape[-1]) ** 0.5
        largest = float(noise[segment.start : segment.stop].abs().max())
        assert 0.9 * limit < largest <= limit * (1 + 1e-5)


LENGTH_ROPES = {
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}


@pytest.mark.parametrize("kind", LENGTH_ROPES)
def test_positions_that_depend_on_length_are_not_shared_with_a_longer_row(kind):
    limit = {"max_position_embeddings": 128 if kind == "longrope" else 32}
    model, table = adapted(LlamaConfig(**{**SHAPE, **limit}, rope_parameters=LENGTH_ROPES[kind])), examples()
    choice = choose_pass(model, table, gradient_checkpointing=False)
    assert choice.loss_pass.name == "document"
    assert f"({kind}) change beyond 32 tokens, and a row has " in choice.notes[0]
    short = [index for index in range(len(table)) if table.length(index) <= 32]
    few = table_of(
        Example(row_id=str(at), ids=tuple(ids.tolist()), weights=tuple(weights.tolist()))
        for at, (ids, weights) in ((at, table.example(at)) for at in short)
    )
    assert choose_pass(model, few, gradient_checkpointing=False).loss_pass.name == "fused"
    # And it matters: beside a long row, short ones would be computed with its frequencies.
    batch = flatten(table, range(len(table)), share_prefixes=False)
    together = FusedPass(model, gradient_checkpointing=False).loss(batch, denominator=1.0).detach()
    apart = choice.loss_pass.loss(batch, denominator=1.0).detach()
    assert abs(float(together) - float(apart)) > 5e-6 * float(apart)  # Passes that agree are within 1e-7.
