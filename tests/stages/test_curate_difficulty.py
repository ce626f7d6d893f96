"""curate.difficulty through the kernel: scores are those of transformers, rows outside the limits are flagged or go."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tunesmith.chat.contract import load_contract
from tunesmith.core.artifact import Artifact, Manifest
from tunesmith.data.write import read_rejects, read_rows
from tunesmith.errors import PlanError
from tunesmith.stages.answer_scores import AnswerScorer
from tunesmith.stages.curating import CurateSpec, check_curate

_spec = importlib.util.spec_from_file_location("chat_world", Path(__file__).parents[1] / "unit/chat/chat_world.py")
chat_world = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("chat_world", chat_world)
_spec.loader.exec_module(chat_world)

CONTEXT = 192
RECORDS = [
    {
        "messages": [
            {"role": "user", "content": "Which day is it?"},
            {"role": "assistant", "content": "A sunny Monday."},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "Say one."},
            {"role": "assistant", "content": "One, and gladly."},
            {"role": "user", "content": "Say two."},
            {"role": "assistant", "content": "Two."},
        ]
    },
    {"messages": [{"role": "user", "content": "x " * CONTEXT}, {"role": "assistant", "content": "Far too long."}]},
]


@pytest.fixture
def world(run_stage, tmp_path):
    manifest = Manifest(
        stage="fetch", version=1, kind="base", fingerprint="f" * 64, digest="0" * 64, spec={}, inputs={}, outputs=(),
        summary={},
    )  # fmt: skip
    folder = tmp_path / "base" / "data" / "model"
    folder.mkdir(parents=True)
    for file in chat_world.small_base().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    base = Artifact(root=tmp_path / "base", manifest=manifest)
    contract = run_stage("contract", {"base": base}, {"criteria": ["general_loss <= base"]}, tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    rows = run_stage("ingest", {}, {"sources": [{"path": "rows.jsonl", "license": "MIT"}]}, tmp_path)
    return {"rows": rows, "contract": contract, "base": base}


def scores_of(artifact):
    return pq.read_table(artifact.path / "answer_scores.parquet").to_pylist()


def test_losses_are_those_that_transformers_computes(run_stage, world, tmp_path):
    made = run_stage("curate", world, {"difficulty": {}}, tmp_path)
    contract = load_contract(world["contract"].path)
    model = AutoModelForCausalLM.from_pretrained(world["base"].path / "model", dtype=torch.float32).eval()
    header = contract.tokenizer.encode(contract.renderer.traits.generation_prompt).ids
    rows = {row.id: row for row in read_rows(made.path / "rows.parquet")}
    scored = [record for record in scores_of(made) if record["not_scored"] is None]
    assert len(scored) == 2
    for record in scored:
        [example] = contract.encode(rows[record["row_id"]].conversation, row_id="r")
        labels = [token if weight > 0 else -100 for token, weight in zip(example.ids, example.weights, strict=True)]
        with torch.no_grad():
            loss = model(torch.tensor([example.ids]), labels=torch.tensor([labels])).loss
        assert record["loss"] == pytest.approx(float(loss), rel=1e-5)
        assert record["num_tokens"] == example.num_supervised
        assert record["perplexity"] == pytest.approx(math.exp(float(loss)), rel=1e-5)
    single = next(record for record in scored if len(rows[record["row_id"]].conversation.messages) == 2)
    [example] = contract.encode(rows[single["row_id"]].conversation, row_id="r")
    answer = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight > 0]
    with torch.no_grad():
        alone = model(torch.tensor([header + answer]), labels=torch.tensor([[-100] * len(header) + answer])).loss
    assert single["loss_alone"] == pytest.approx(float(alone), rel=1e-5)
    assert single["ifd"] == pytest.approx(math.exp(single["loss"] - float(alone)), rel=1e-5)


def test_rows_outside_the_limits_are_flagged_or_dropped_and_a_row_too_long_is_not_scored(run_stage, world, tmp_path):
    flagged = run_stage("curate", world, {"difficulty": {"max_ifd": 1e-6}}, tmp_path)
    assert flagged.summary["flagged"] == {"high_ifd": 2, "not_scored": 1}
    assert flagged.summary["rows_kept"] == 3
    assert flagged.summary["difficulty"]["scored"] == 2
    assert "Difficulty for the base model" in (flagged.path / "report.html").read_text()
    dropped = run_stage(
        "curate", world, {"difficulty": {"max_ifd": None, "max_perplexity": 1.01, "action": "drop"}}, tmp_path
    )
    assert {reject.reason for reject in read_rejects(dropped.path / "rejects.parquet")} == {"high_perplexity"}
    assert dropped.summary["rows_kept"] == 1
    assert len(scores_of(dropped)) == 3


def test_nothing_is_scored_unless_the_recipe_says_so(run_stage, world, tmp_path):
    made = run_stage("curate", world, {}, tmp_path)
    assert not (made.path / "answer_scores.parquet").exists()
    assert "difficulty" not in made.summary


def test_finished_scores_are_read_back_after_a_crash(world, tmp_path):
    rows = read_rows(world["rows"].path / "rows.parquet")

    def scorer(folder):
        return AnswerScorer(
            load_contract(world["contract"].path),
            model_dir=folder,
            dtype="float32",
            device="cpu",
            cache=tmp_path / "work" / "scores.jsonl",
            progress=lambda done, total, note="", **fields: None,
        )

    first = scorer(world["base"].path / "model")(rows)
    with (tmp_path / "work" / "scores.jsonl").open("a") as handle:
        handle.write('{"row": "cut sho')
    assert scorer(tmp_path / "no such model")(rows) == first


def test_a_recipe_without_a_base_model_is_refused_before_the_run():
    spec = CurateSpec.model_validate({"difficulty": {}})
    with pytest.raises(PlanError, match="needs a contract and a base model"):
        check_curate(spec, {"rows": None, "contract": None})
    assert check_curate(spec, {"rows": None, "contract": None, "base": None}) == []
