"""A base in 4 or 8 bits: bitsandbytes' own numbers, gradients as transformers + PEFT have them, and no corruption."""

import copy
import random
import weakref

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, LlamaConfig

from tunesmith.errors import PlanError, TrainingError
from tunesmith.model import quantised
from tunesmith.model.export import check_agreement, compare, logits_of, merged_model, on_plain_base, reference_logits
from tunesmith.model.fused import FusedDecoder
from tunesmith.model.load import load_model
from tunesmith.model.lora import adapter_parameters, add_lora, save_adapter
from tunesmith.model.quantised import (
    Quantisation,
    QuantisedLinear,
    dequantise_,
    is_quantised,
    quantise_,
    read_record,
)
from tunesmith.train.batches import flatten
from tunesmith.train.examples import table_of
from tunesmith.train.passes import DocumentPass, FlatPass, FusedPass
from tunesmith.types import Example

NF4 = Quantisation(kind="nf4", double=True)
WAYS = [NF4, Quantisation(kind="nf4"), Quantisation(kind="int8")]
VOCAB = 160


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    """A random Llama wide enough for the layout that bitsandbytes rearranges on a CPU."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def adapted(base_dir, how, *, std=0.05):
    model = add_lora(load_model(base_dir, dtype="float32", quantisation=how), rank=4, alpha=8)
    torch.manual_seed(2)
    for parameter in adapter_parameters(model).values():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()


@pytest.fixture
def adapter_dir(base_dir, tmp_path):
    save_adapter(adapted(base_dir, NF4), tmp_path / "adapter", quantisation=NF4)
    return tmp_path / "adapter"


def prompts():
    rng = random.Random(3)
    return [[rng.randrange(3, VOCAB) for _ in range(rng.randint(20, 60))] for _ in range(4)]


def rows():
    rng = random.Random(0)
    shared = [rng.randrange(3, VOCAB) for _ in range(16)]
    out = []
    for index in range(6):
        ids = [*shared, *(rng.randrange(3, VOCAB) for _ in range(rng.randint(5, 20)))]
        weights = [0.0] * (len(ids) - 4) + [1.0] * 4
        out.append(Example(row_id=f"r{index}", ids=tuple(ids), weights=tuple(weights)))
    return table_of(out)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_a_layer_computes_what_bitsandbytes_computes(how):
    torch.manual_seed(0)
    plain = torch.nn.Linear(128, 96)
    if how.kind == "int8":
        theirs = bnb.nn.Linear8bitLt(128, 96, has_fp16_weights=False)
        theirs.load_state_dict(plain.state_dict())
        theirs = theirs.to("cpu")
        weight = theirs.weight.CB.float() * theirs.weight.SCB[:, None] / 127
    else:
        theirs = bnb.nn.Linear4bit(128, 96, compress_statistics=how.double, quant_type="nf4")
        theirs.load_state_dict(plain.state_dict())
        theirs = theirs.to("cpu").train()
        weight = bnb.functional.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state)
    ours = QuantisedLinear(copy.deepcopy(plain), how)
    torch.testing.assert_close(ours.weight, weight, rtol=1e-6, atol=1e-8)
    assert not torch.equal(ours.weight, plain.weight)
    x = torch.randn(5, 128, requires_grad=True)
    expected = torch.nn.functional.linear(x, weight, plain.bias)
    torch.testing.assert_close(ours(x), expected)
    grad = torch.randn(5, 96)
    torch.testing.assert_close(
        torch.autograd.grad(ours(x), x, grad)[0], torch.autograd.grad(expected, x, grad)[0], rtol=1e-5, atol=1e-6
    )


def test_a_matrix_that_a_cpu_goes_through_in_pieces_is_the_same(monkeypatch):
    torch.manual_seed(0)
    plain, how = torch.nn.Linear(100, 33, bias=False).to(torch.bfloat16), Quantisation(kind="int8")
    whole = QuantisedLinear(plain, how)
    packed, scales, _ = bnb.functional.int8_vectorwise_quant(plain.weight.detach().to(torch.float16))
    monkeypatch.setattr(quantised, "PIECE", 1000)
    pieces = QuantisedLinear(plain, how)
    assert torch.equal(pieces.packed, packed)
    assert torch.equal(pieces.scales, scales)
    assert torch.equal(pieces.weight, whole.weight)


def test_packing_a_model_lets_go_of_each_layer_before_the_next(base_dir, monkeypatch):
    """Else a model in memory stands there twice while it is packed."""
    model = load_model(base_dir, dtype="float32")
    layers = [weakref.ref(part) for part in model.modules() if type(part) is torch.nn.Linear]
    alive, pack = [], quantised._pack

    def counted(weight, how):
        alive.append(sum(layer() is not None for layer in layers))
        return pack(weight, how)

    monkeypatch.setattr(quantised, "_pack", counted)
    quantise_(model, NF4)
    assert alive == list(range(15, 1, -1)), "14 layers and the head"


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_folding_layers_spreads_no_weight_out(base_dir, how, monkeypatch):
    model = adapted(base_dir, how)
    with monkeypatch.context() as patched:
        patched.setattr(QuantisedLinear, "weight", property(lambda layer: pytest.fail("a weight was spread out")))
        FusedDecoder(model)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_stored_bytes_outlive_inference_casts_and_copies(how):
    """Inference without gradients, then a change of number format: what destroys bitsandbytes' own layer on a CPU."""
    torch.manual_seed(0)
    layer = QuantisedLinear(torch.nn.Linear(128, 128, bias=False).to(torch.bfloat16), how).eval()
    weight = layer.weight.clone()
    with torch.inference_mode():
        layer(torch.randn(3, 128, dtype=torch.bfloat16))
    assert torch.equal(layer.weight, weight)
    assert torch.equal(copy.deepcopy(layer).weight, weight)
    assert torch.equal(layer.to(torch.float32).weight, weight)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_a_model_is_stored_in_the_bits_that_it_says(base_dir, how):
    plain, model = load_model(base_dir, dtype="float32"), load_model(base_dir, dtype="float32", quantisation=how)
    layers = {name: part for name, part in model.named_modules() if isinstance(part, QuantisedLinear)}
    assert len(layers) == 14
    assert "lm_head" not in layers
    num_bytes = sum(part.packed.numel() * part.packed.element_size() for part in layers.values())
    count = sum(dict(plain.named_modules())[name].weight.numel() for name in layers)
    assert 8 * num_bytes / count == (8 if how.kind == "int8" else 4)
    assert num_bytes * 8 <= count * how.bits_per_weight
    assert is_quantised(model)
    assert not is_quantised(plain)


def test_the_bits_come_from_the_file_whatever_the_model_computes_in(base_dir):
    exact, rounded = (load_model(base_dir, dtype=dtype, quantisation=NF4) for dtype in ("float32", "bfloat16"))
    for name, part in exact.named_modules():
        if isinstance(part, QuantisedLinear):
            other = rounded.get_submodule(name)
            assert torch.equal(part.packed, other.packed)
            assert (part.weight.dtype, other.weight.dtype) == (torch.float32, torch.bfloat16)
    assert next(rounded.parameters()).dtype == torch.bfloat16


def test_a_model_without_plain_linear_layers_is_refused():
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4, n_positions=32))
    with pytest.raises(PlanError, match="no plain linear layers"):
        quantise_(model, NF4)


def theirs_with(base_dir, ours, config):
    """transformers' own quantised base and PEFT's own adapter, holding our adapter's numbers."""
    base = AutoModelForCausalLM.from_pretrained(base_dir, quantization_config=config, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    live = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in adapter_parameters(ours).items():
            live[name].copy_(parameter)
    return model


@pytest.mark.parametrize("double", [True, False])
def test_every_pass_has_the_loss_and_gradients_of_transformers_bitsandbytes_and_peft(base_dir, double):
    how = Quantisation(kind="nf4", double=double)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )
    ours, table = adapted(base_dir, how), rows()
    theirs = theirs_with(base_dir, ours, config).train()
    denominator = table.weight_of(range(len(table)))
    losses = []
    for index in range(len(table)):
        ids, weights = (torch.tensor(part) for part in table.example(index))
        logits = theirs(input_ids=ids[None].long(), use_cache=False).logits[0]
        nll = torch.nn.functional.cross_entropy(logits[:-1], ids[1:].long(), reduction="none")
        losses.append((nll * weights[1:]).sum() / denominator)
    expected = torch.stack(losses).sum()
    names = list(adapter_parameters(ours))
    expected_grads = torch.autograd.grad(expected, [dict(theirs.named_parameters())[name] for name in names])
    scale = torch.cat([grad.flatten() for grad in expected_grads]).norm()
    for loss_pass in (
        DocumentPass(ours, attention="sdpa"),
        FlatPass(ours, plain_head=True),
        FusedPass(ours, gradient_checkpointing=True),
        FusedPass(ours, gradient_checkpointing=False),
    ):
        batch = flatten(table, range(len(table)), share_prefixes=loss_pass.shares_prefixes)
        loss = loss_pass.loss(batch, denominator=denominator)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        grads = torch.autograd.grad(loss, list(adapter_parameters(ours).values()))
        for mine, other in zip(grads, expected_grads, strict=True):
            assert float((mine - other).norm()) <= 1e-5 * float(scale)


def test_an_adapter_carries_its_base_and_merges_into_what_that_base_computed_with(base_dir, adapter_dir):
    trained = logits_of(adapted(base_dir, NF4), prompts())
    assert read_record(adapter_dir) == NF4
    reference = reference_logits(base_dir, adapter_dir, prompts(), device="cpu")
    assert compare(reference, trained).mean_kl < 1e-9
    merged = compare(reference, logits_of(merged_model(base_dir, adapter_dir), prompts()))
    elsewhere = on_plain_base(base_dir, adapter_dir, prompts(), reference, device="cpu")
    assert merged.mean_kl < 1e-6
    assert merged.top1 == 1.0
    assert elsewhere.mean_kl > 100 * max(merged.mean_kl, 1e-9)
    check_agreement(merged, where=adapter_dir)


def test_a_merge_does_not_mind_that_the_model_answered_before(base_dir, adapter_dir):
    model = load_model(base_dir, dtype="float32", adapter_dir=adapter_dir)
    before = logits_of(model, prompts())
    dequantise_(model)
    assert not is_quantised(model)
    for mine, other in zip(logits_of(model.merge_and_unload(safe_merge=True), prompts()), before, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not has_avx512bf16(), reason="bitsandbytes rearranges weights on CPUs with AVX512-BF16 alone")
def test_the_gate_catches_what_bitsandbytes_itself_does_to_a_model_that_answered_before_its_merge(
    base_dir, adapter_dir
):
    """Fails the day bitsandbytes merges right after inference (bitsandbytes#2078)."""
    reference = reference_logits(base_dir, adapter_dir, prompts(), device="cpu")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)

    def merged_by_peft(*, answers_first):
        base = AutoModelForCausalLM.from_pretrained(base_dir, quantization_config=config, dtype=torch.bfloat16)
        model = PeftModel.from_pretrained(base.dequantize() if not answers_first else base, str(adapter_dir)).eval()
        if answers_first:
            logits_of(model, prompts())
        return compare(reference, logits_of(model.merge_and_unload(), prompts()))

    check_agreement(merged_by_peft(answers_first=False), where=adapter_dir)
    with pytest.raises(TrainingError, match="does not say what the tuned one says"):
        check_agreement(merged_by_peft(answers_first=True), where=adapter_dir)


def test_a_record_that_cannot_be_read_is_an_error_and_no_plain_base(base_dir, adapter_dir):
    (adapter_dir / "base_quantization.json").write_text('{"kind": "nf4", "colour": 3}')
    with pytest.raises(TrainingError, match="what base it belongs to"):
        load_model(base_dir, dtype="float32", adapter_dir=adapter_dir)
