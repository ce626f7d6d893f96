"""Artefacts that stand before training, made by hand: a tiny random Llama, a contract, encoded examples."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tunesmith.core.artifact import Artifact, Manifest

VOCAB = 64


def artifact(root: Path, kind: str, *, inputs=None, fingerprint=None) -> Artifact:
    (root / "data").mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        stage=kind,
        version=1,
        kind=kind,
        fingerprint=fingerprint or f"{kind}-fingerprint",
        digest="0" * 64,
        spec={},
        inputs=inputs or {},
        outputs=(),
        summary={},
    )
    return Artifact(root=root, manifest=manifest)


def tiny_base(root: Path, *, config=None) -> Artifact:
    base = artifact(root / "base", "base")
    torch.manual_seed(0)
    config = config or LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(base.path / "model")
    (base.path / "source.json").write_text(json.dumps({"id": "tests/tiny", "sha256": "0" * 64}))
    return base


def examples(count: int, *, seed: int, prefix: int = 12) -> list[dict]:
    """Rows with a common beginning whose answer repeats the question's tokens: something that can be learned."""
    rng = random.Random(seed)
    shared = [3 + at % 5 for at in range(prefix)]
    rows = []
    for index in range(count):
        question = [rng.randrange(10, VOCAB) for _ in range(rng.randint(2, 9))]
        answer = [*question[:3], 2]
        ids = [*shared, *question, 1, *answer]
        weights = [0.0] * (len(ids) - len(answer)) + [1.0] * len(answer)
        rows.append({"row_id": f"row-{seed}-{index}", "ids": ids, "weights": weights})
    return rows


def write_examples(path: Path, rows: list[dict]) -> None:
    schema = pa.schema([("row_id", pa.string()), ("ids", pa.list_(pa.int32())), ("weights", pa.list_(pa.float32()))])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def training_inputs(root: Path, *, num_train: int = 40, num_val: int = 8, config=None) -> dict[str, Artifact]:
    contract = artifact(root / "contract", "contract")
    encoded = artifact(root / "examples", "examples", inputs={"contract": contract.fingerprint})
    write_examples(encoded.path / "train.parquet", examples(num_train, seed=1))
    write_examples(encoded.path / "val.parquet", examples(num_val, seed=2))
    return {"base": tiny_base(root, config=config), "contract": contract, "examples": encoded}
