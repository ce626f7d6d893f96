"""A small world for the stages `evaluate` and `harden`: tiny base, an adapter that learned its task, rows, contract.

The base is a Llama of two layers over a byte-level tokenizer that learned the rows in a few seconds. A random low-rank
part is then taken out of its weights: the base babbles, and the PEFT folder that gives the part back answers rightly,
so that base and tuned differ as they do in a real run.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.chat.contract import load_contract
from tunesmith.core.artifact import Artifact, Manifest
from tunesmith.core.stage import Context
from tunesmith.data.write import write_rows
from tunesmith.stages.contract import ContractInputs, ContractSpec, contract
from tunesmith.types import Conversation, Message, Provenance, Row, ignore

SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["refund", "login"]}, "urgent": {"type": "boolean"}},
    "required": ["intent", "urgent"],
    "additionalProperties": False,
}
SYSTEM = "Answer with one JSON object: intent and urgent."
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def artifact(root: Path, kind: str) -> Artifact:
    (root / "data").mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        stage=kind, version=1, kind=kind, fingerprint=root.name, digest="", spec={}, inputs={}, outputs=(), summary={}
    )
    return Artifact(root=root, manifest=manifest)


def make_base(root: Path) -> Artifact:
    base = artifact(root, "base")
    folder = base.path / "model"
    folder.mkdir()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"})
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 0}))
    return base


def make_rows() -> list[Row]:
    asked = [
        ("give me my money back", "refund", False),
        ("refund now!!", "refund", True),
        ("i cannot sign in", "login", False),
        ("locked out, urgent", "login", True),
        ("password reset please", "login", False),
        ("charged twice, refund today", "refund", True),
        ("where is my refund", "refund", False),
        ("login fails at once, help now", "login", True),
    ]
    rows = []
    for number, (text, intent, urgent) in enumerate(asked):
        answer = json.dumps({"intent": intent, "urgent": urgent}, separators=(",", ":"))
        messages = (Message(role="user", content=text), Message(role="assistant", content=answer))
        rows.append(
            Row(
                id=f"row{number:013d}",
                conversation=Conversation(messages=messages),
                provenance=Provenance(source="desk", path="desk.jsonl", line=number + 1),
                labels={"channel": "mail" if number % 2 else "chat"},
            )
        )
    return rows


def make_splits(root: Path, rows: list[Row]) -> Artifact:
    splits = artifact(root, "splits")
    for side in ("train", "val", "test"):
        write_rows(splits.path / f"{side}.parquet", rows)
    (splits.path / "split_proof.json").write_text(json.dumps({"overlap": 0}))
    return splits


def teach_(base: Artifact, contract, rows: list[Row], *, steps: int = 90) -> float:
    """Train all weights of the base on the rows until it knows them; return the last loss."""
    torch.manual_seed(1)
    model = LlamaForCausalLM.from_pretrained(base.path / "model")
    examples = [example for row in rows for example in contract.encode(row.conversation, row_id=row.id)]
    width = max(len(example.ids) for example in examples)
    ids = torch.tensor([list(e.ids) + [0] * (width - len(e.ids)) for e in examples])
    weights = torch.tensor([list(e.weights) + [0.0] * (width - len(e.ids)) for e in examples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (losses * weights[:, 1:]).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(base.path / "model")
    return loss.item()


def split_off_adapter_(root: Path, base: Artifact) -> Artifact:
    """Take a random low-rank part out of the base's weights; the PEFT folder that gives it back is the adapter."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    model = LlamaForCausalLM.from_pretrained(base.path / "model")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=targets, lora_dropout=0.0))
    with torch.no_grad():
        for module in tuned.modules():
            if hasattr(module, "lora_A"):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                b.normal_(0, 0.3)
                module.base_layer.weight.sub_(b @ a)
    adapter = artifact(root, "adapter")
    tuned.save_pretrained(adapter.path / "adapter")
    tuned.unload().save_pretrained(base.path / "model")
    return adapter


@dataclass(frozen=True, kw_only=True)
class World:
    """Artifacts of every role that evaluation takes."""

    base: Artifact
    contract: Artifact
    splits: Artifact
    adapter: Artifact
    rows: list[Row]
    system: str = SYSTEM

    @property
    def inputs(self) -> dict[str, Artifact]:
        return {"base": self.base, "contract": self.contract, "splits": self.splits, "adapter": self.adapter}


def write_contract(root: Path, base: Artifact, **settings) -> Artifact:
    made = artifact(root, "contract")
    context = Context(out=made.path, work=root, log=ignore, progress=lambda *a, **k: None, workers=1, device="cpu")
    contract(ContractInputs(base=base), ContractSpec.model_validate(settings), context)
    return made


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "base")
    rows = make_rows()
    splits = make_splits(root / "splits", rows)
    agreed = write_contract(
        root / "contract", base, system=SYSTEM, output_schema=SCHEMA, decoding={"max_new_tokens": 48}
    )
    loss = teach_(base, load_contract(agreed.path), rows)
    assert loss < 0.05
    adapter = split_off_adapter_(root / "adapter", base)
    return World(base=base, contract=agreed, splits=splits, adapter=adapter, rows=rows)


@pytest.fixture
def make_contract():
    """`make_contract(root, base, **settings) -> Artifact`."""
    return write_contract


@pytest.fixture
def stage_context(tmp_path) -> Context:
    """Circumstances of a stage that is called as a function."""
    (tmp_path / "out").mkdir()
    (tmp_path / "work").mkdir()
    return Context(
        out=tmp_path / "out",
        work=tmp_path / "work",
        log=ignore,
        progress=lambda *a, **k: None,
        workers=1,
        device="cpu",
    )


@pytest.fixture
def make_artifact():
    """`make_artifact(root, kind) -> Artifact`, empty."""
    return artifact
