"""A road in miniature up to the bundle: fetched base, contract, disjoint splits, an adapter, evaluation and hardening.

The model is random, so its answers are no JSON: what matters here is that every wrong answer is seen, kept and harvested.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.chat.families import family_template
from tunesmith.core.artifact import Artifact, Manifest
from tunesmith.data.write import write_rows
from tunesmith.types import Conversation, Message, Provenance, Row

SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["refund", "login", "other"]}, "urgent": {"type": "boolean"}},
    "required": ["intent", "urgent"],
    "additionalProperties": False,
}
CRITERIA = ["json_parse >= 0", "cut <= 1"]
"""Gates that a random model passes; tests that need a failing one ask for more."""
CONTRACT = {
    "system": "Answer with one JSON object.",
    "output_schema": SCHEMA,
    "decoding": {"max_new_tokens": 32},
    "criteria": CRITERIA,
}
OPENERS = ["please", "hello there", "good morning", "as I said last week", "to whom it may concern", "hi team"]
ASKED = {
    "refund": ["return the money for order", "I was charged twice for invoice", "take back the broken lamp, receipt"],
    "login": ["I cannot sign in since Tuesday, account", "reset the password of user", "two-factor code fails for"],
    "other": ["what are your opening hours in branch", "do you sell gift cards worth", "thanks for solving case"],
}


def artifact(root: Path, kind: str, **changes) -> Artifact:
    (root / "data").mkdir(parents=True, exist_ok=True)
    values = dict(
        stage=kind, version=1, kind=kind, fingerprint=kind * 3, digest="", spec={}, inputs={}, outputs=(), summary={}
    )
    return Artifact(root=root, manifest=Manifest(**{**values, **changes}))


def write_base(folder: Path) -> None:
    folder.mkdir(parents=True)
    vocab = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(family_template("chatml").text)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=264,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=257,
            pad_token_id=258,
            tie_word_embeddings=False,
            initializer_range=0.2,
        )
    ).save_pretrained(folder)


def write_adapter(base: Path, folder: Path) -> None:
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)


def make_rows(count: int, *, start: int) -> list[Row]:
    rows = []
    for number in range(start, start + count):
        intent = ("refund", "login", "other")[number % 3]
        text = f"{OPENERS[number % len(OPENERS)]}, {ASKED[intent][(number // 3) % 3]} {1000 + 37 * number}"
        answer = json.dumps({"intent": intent, "urgent": number % 2 == 0}, separators=(",", ":"))
        messages = (Message(role="user", content=text), Message(role="assistant", content=answer))
        rows.append(
            Row(
                id=f"row{number:013d}",
                conversation=Conversation(messages=messages),
                provenance=Provenance(source="desk", path="desk.jsonl", line=number + 1, license="CC0-1.0"),
            )
        )
    return rows


@dataclass(frozen=True)
class World:
    """The artifacts before the bundle, and the folder of the store that they are in."""

    folder: Path
    base: Artifact
    contract: Artifact
    splits: Artifact
    adapter: Artifact
    evaluation: Artifact
    contract_settings: dict

    def bundle_inputs(self, **changes) -> dict[str, Artifact]:
        names = ("base", "contract", "splits", "adapter", "evaluation")
        return {**{name: getattr(self, name) for name in names}, **changes}


@pytest.fixture(scope="session")
def run():
    """`run_stage` for fixtures that outlive one test."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("stage_runner", Path(__file__).parents[1] / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._run_stage


def make_world(run, folder: Path) -> World:
    write_base(folder / "base")
    base = run("fetch", {}, {"model": "base"}, folder)
    agreed = run("contract", {"base": base}, CONTRACT, folder)
    splits = artifact(folder / "splits", "splits")
    counts = {"train": 30, "val": 12, "test": 18}
    start = 0
    for side, count in counts.items():
        write_rows(splits.path / f"{side}.parquet", make_rows(count, start=start))
        start += count
    proof = {"rows": counts, "overlaps": {"exact": 0, "near": 0, "group": 0}}
    (splits.path / "split_proof.json").write_text(json.dumps(proof))
    adapter = artifact(folder / "adapter", "adapter", spec={"learning_rate": 2e-4})
    write_adapter(base.path / "model", adapter.path / "adapter")
    inputs = {"base": base, "contract": agreed, "splits": splits, "adapter": adapter}
    evaluation = run("evaluate", inputs, {"dtype": "float32"}, folder)
    return World(folder=folder, evaluation=evaluation, contract_settings=CONTRACT, **inputs)


@pytest.fixture(scope="session")
def world(run, tmp_path_factory) -> World:
    return make_world(run, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def bundle(run, world) -> Artifact:
    return run("bundle", world.bundle_inputs(), {"name": "desk-triage", "intended_use": "Routing."}, world.folder)


@pytest.fixture
def refingerprint():
    """Return the same artifact under another identity."""
    return lambda one, fingerprint: dataclasses.replace(
        one, manifest=dataclasses.replace(one.manifest, fingerprint=fingerprint)
    )


@pytest.fixture(scope="session")
def traces(run, world, bundle) -> Artifact:
    inputs = {"bundle": bundle, "base": world.base, "splits": world.splits}
    return run("rehearse", inputs, {"requests": 24}, world.folder)


@pytest.fixture
def make_artifact():
    """Return `artifact(root, kind, **manifest_fields)`."""
    return artifact
