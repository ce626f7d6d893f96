"""Whole loss curves against the field's trainers, in float32: same rows, order, adapter at the start, schedule."""

import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tunesmith.model.lora import adapter_parameters, add_lora
from tunesmith.train.batches import StepPlan
from tunesmith.train.checkpoint import Identity
from tunesmith.train.examples import table_of
from tunesmith.train.loop import run_training
from tunesmith.train.optim import adamw, parameter_groups
from tunesmith.train.passes import DocumentPass, FlatPass, FusedPass
from tunesmith.train.schedule import learning_rate_at
from tunesmith.types import Example

STEPS, BATCH, PEAK, WARMUP, DECAY, CLIP = 8, 6, 3e-2, 0.25, 0.1, 0.5
VOCAB = 61


def rows():
    """Answers repeat the question, so that the loss falls; the end token equals the pad token."""
    rng = random.Random(0)
    out = []
    for index in range(24):
        question = [3, 4, 5, 6, 7, 8, 9, 10, 11, *(rng.randrange(12, VOCAB) for _ in range(rng.randint(2, 12)))]
        answer = [*question[9:12], 2]
        ids = (*question, *answer)
        out.append(Example(row_id=f"r{index}", ids=ids, weights=(0.0,) * len(question) + (1.0,) * len(answer)))
    return out


def tiny_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=2,
        eos_token_id=2,
    )
    return add_lora(AutoModelForCausalLM.from_config(config), rank=4, alpha=8, seed=3)


def plan_of(examples):
    return StepPlan(num_examples=len(examples), batch_size=BATCH, total_steps=STEPS, seed=11)


def our_curve(examples, tmp_path, *, make_pass, max_tokens=10_000):
    model = tiny_model()
    parameters = adapter_parameters(model)
    records = []

    def log(name, fields):
        if name == "train_step":
            records.append(fields)

    run_training(
        model,
        parameters,
        train=table_of(examples),
        val=table_of(()),
        loss_pass=make_pass(model),
        plan=plan_of(examples),
        optimizer=adamw(parameter_groups(parameters, weight_decay=DECAY)),
        publish=lambda: None,
        learning_rate_at=lambda step: learning_rate_at(
            step, total_steps=STEPS, peak=PEAK, warmup_ratio=WARMUP, schedule="cosine"
        ),
        max_grad_norm=CLIP,
        max_tokens_per_batch=max_tokens,
        share_prefixes=True,
        eval_every=100,
        patience=None,
        work=tmp_path,
        identity=Identity(data="d", settings="s"),
        log=log,
        report=lambda *_, **__: None,
    )
    return records


PASSES = {
    "fused": lambda model: FusedPass(model, gradient_checkpointing=False),
    "flat": lambda model: FlatPass(model, plain_head=True),
    "document": lambda model: DocumentPass(model, attention="sdpa"),
}


RECORD = Path(__file__).parent / "golden" / "trl_curve.json"
"""What `curve_of_trl` returned, beside the versions that made it: TRL is no dependency, and this test needs its curve."""


@pytest.fixture(scope="module")
def trl_curve():
    return json.loads(RECORD.read_text())["steps"]


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_the_recorded_curve_is_the_one_that_trl_has(trl_curve, tmp_path):
    for recorded, live in zip(trl_curve, curve_of_trl(tmp_path), strict=True):
        assert live == pytest.approx(recorded, rel=1e-5)


def curve_of_trl(folder):
    """Return loss, gradient norm and rate of each step of TRL's SFTTrainer."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    examples = rows()
    plan = plan_of(examples)
    ordered = [examples[index] for step in range(STEPS) for index in plan.examples_of(step)]
    dataset = Dataset.from_list(
        [
            {
                "input_ids": list(row.ids),
                "labels": [token if weight else -100 for token, weight in zip(row.ids, row.weights, strict=True)],
            }
            for row in ordered
        ]
    )
    config = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_steps=STEPS,
        learning_rate=PEAK,
        warmup_steps=round(WARMUP * STEPS),
        lr_scheduler_type="cosine",
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        max_length=None,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        disable_tqdm=True,
    )
    trainer = SFTTrainer(model=tiny_model(), args=config, train_dataset=dataset, processing_class=processing_class())
    trainer.train()
    kept = ("loss", "grad_norm", "learning_rate")
    return [{key: record[key] for key in kept} for record in trainer.state.log_history if "loss" in record]


def processing_class():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {f"t{index}": index for index in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="t2", eos_token="t2")


@pytest.mark.parametrize("make_pass", PASSES.values(), ids=PASSES)
def test_the_loss_curve_is_that_of_trl(trl_curve, tmp_path, make_pass):
    ours = our_curve(rows(), tmp_path, make_pass=make_pass)
    assert len(ours) == len(trl_curve) == STEPS
    for mine, theirs in zip(ours, trl_curve, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4), mine["step"]
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert mine["learning_rate"] == pytest.approx(theirs["learning_rate"])
    assert ours[-1]["loss"] < 0.97 * ours[0]["loss"]


@pytest.mark.parametrize("max_tokens", [1, 30, 50])
def test_the_curve_does_not_depend_on_how_a_step_is_cut_into_passes(tmp_path, max_tokens):
    whole = our_curve(rows(), tmp_path / "whole", make_pass=PASSES["fused"])
    cut = our_curve(rows(), tmp_path / "cut", make_pass=PASSES["fused"], max_tokens=max_tokens)
    assert [record["passes"] for record in cut] != [record["passes"] for record in whole]
    for mine, theirs in zip(cut, whole, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_bfloat16_stays_close_to_float32(tmp_path):
    exact = our_curve(rows(), tmp_path / "exact", make_pass=PASSES["fused"])

    def in_bfloat16(model):
        base = model.get_base_model()
        for name, parameter in base.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)
        return FusedPass(model, gradient_checkpointing=False)

    rounded = our_curve(rows(), tmp_path / "rounded", make_pass=in_bfloat16)
    for mine, theirs in zip(rounded, exact, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=3e-3)


def test_the_loss_curve_is_that_of_the_plain_loop_in_one_file(tmp_path, monkeypatch):
    """examples/sft_in_150_lines.py shares no code with the engine: padded batches, its own LoRA, its own schedule."""
    path = Path(__file__).parents[2] / "examples" / "sft_in_150_lines.py"
    spec = importlib.util.spec_from_file_location("sft_in_150_lines", path)
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    assert "tunesmith" not in [name.partition(".")[0] for name in vars(plain)]
    for name, value in {"SEED": 11, "EPOCHS": 2, "BATCH_SIZE": BATCH, "LEARNING_RATE": PEAK}.items():
        monkeypatch.setattr(plain, name, value)
    for name, value in {"WARMUP_RATIO": WARMUP, "WEIGHT_DECAY": DECAY, "CLIP": CLIP}.items():
        monkeypatch.setattr(plain, name, value)
    ours = our_curve(rows(), tmp_path, make_pass=PASSES["fused"])
    adapted = tiny_model()
    start = {name: parameter.detach().clone() for name, parameter in adapter_parameters(adapted).items()}
    model = adapted.unload()
    adapters = plain.add_lora(model, rank=4, alpha=8)
    with torch.no_grad():
        for name, adapter in adapters.items():
            adapter.a.copy_(start[f"base_model.model.{name}.lora_A.default.weight"])
    losses = plain.train(model, [(list(row.ids), list(row.weights)) for row in rows()], log=lambda line: None)
    assert len(losses) == len(ours) == STEPS
    for mine, theirs in zip(ours, losses, strict=True):
        assert mine["loss"] == pytest.approx(theirs, rel=1e-4)
    plain.save(adapters, tmp_path / "adapter", "tiny")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
