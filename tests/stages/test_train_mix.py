"""Training with general rows: warned of, refused, resumed bit for bit, accounted for."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

sys.path.append(str(Path(__file__).parent))
from training_process import train_in
from training_world import artifact, examples, tiny_base, write_examples

from tunesmith.errors import PlanError
from tunesmith.stages.training import TrainSpec, check

SPEC = {
    "learning_rate": 5e-3,
    "num_train_epochs": 2,
    "batch_size": 8,
    "adapter": {"kind": "lora", "rank": 4, "alpha": 8},
    "dtype": "float32",
    "mix": [
        {"name": "general", "length": 1, "shares": {"general": 0.5}},
        {"name": "task", "length": 3, "shares": {"general": 0.1}},
    ],
}


def write_sources(path, sources):
    """Encoded examples of sources: name -> (role, number of rows)."""
    rows = [
        {**row, "source": name, "role": role}
        for number, (name, (role, count)) in enumerate(sources.items(), start=10)
        for row in examples(count, seed=number)
    ]
    schema = pa.schema(
        [
            ("row_id", pa.string()),
            ("ids", pa.list_(pa.int32())),
            ("weights", pa.list_(pa.float32())),
            ("source", pa.string()),
            ("role", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def world(root, sources, *, base=True):
    contract = artifact(root / "contract", "contract")
    encoded = artifact(root / "examples", "examples", inputs={"contract": contract.fingerprint})
    write_sources(encoded.path / "train.parquet", sources)
    write_examples(encoded.path / "val.parquet", examples(8, seed=2))
    made = {"contract": contract, "examples": encoded}
    return {**made, "base": tiny_base(root)} if base else made


SOURCES = {"desk": ("task", 40), "mail": ("task", 16), "talk": ("general", 12)}


def weights(root):
    return (root / "out" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_mixed_run_killed_with_sigkill_resumes_to_the_same_weights_and_tells_what_it_saw(tmp_path):
    once, killed = tmp_path / "once", tmp_path / "killed"
    for root in (once, killed):
        world(root, SOURCES)
    summary = train_in(once, SPEC)
    program = str(Path(__file__).with_name("training_process.py"))
    done = subprocess.run(
        [sys.executable, program, str(killed), json.dumps(SPEC), "7"], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr[-2000:]
    resumed = train_in(killed, SPEC)
    assert resumed["resumed_from_step"] is not None
    assert weights(killed) == weights(once)
    assert resumed["mix"] == summary["mix"]

    mix = summary["mix"]
    assert {name: figures["epochs"] for name, figures in mix["sources"].items() if name != "talk"} == {
        "desk": 2,
        "mail": 2,
    }
    assert mix["sources"]["talk"]["role"] == "general"
    assert mix["rows_never_seen"] == 0
    assert mix["general_share"] == pytest.approx(0.2, abs=0.02)  # (1 * 0.5 + 3 * 0.1) / 4
    assert [stage["name"] for stage in mix["stages"]] == ["general", "task"]
    assert [stage["general_share"] for stage in mix["stages"]] == pytest.approx([0.5, 0.1], abs=0.03)
    drawn = sum(figures["trained_tokens"] for figures in mix["sources"].values())
    assert drawn == summary["supervised_tokens"]


def warnings_of(root, sources, **changes):
    spec = TrainSpec.model_validate({**SPEC, "mix": {"shares": {"general": 0.15}}, **changes})
    return check(spec, world(root, sources, base=False))


def about_general(found):
    return [warning for warning in found if "general rows" in warning]


def test_ten_to_thirty_percent_of_general_tokens_is_quiet_and_anything_else_warns(tmp_path):
    for number, (share, quiet) in enumerate([(0.12, True), (0.28, True), (0.05, False), (0.4, False)]):
        root = tmp_path / str(number)
        found = about_general(warnings_of(root, SOURCES, mix={"shares": {"general": share}}, max_source_epochs=50))
        assert (not found) is quiet, (share, found)


def test_general_rows_without_a_mix_are_said(tmp_path):
    assert any("train.mix" in warning for warning in warnings_of(tmp_path, SOURCES, mix=[]))


def test_rows_of_the_task_that_are_never_seen_are_said(tmp_path):
    found = warnings_of(tmp_path, SOURCES, num_train_epochs=0.5)
    assert any("20 of 40 rows of desk are never seen" in warning for warning in found)


def test_a_few_general_rows_are_not_repeated_without_end(tmp_path):
    sources = {"desk": ("task", 40), "talk": ("general", 1)}
    with pytest.raises(PlanError, match="repeats talk") as caught:
        warnings_of(tmp_path, sources)
    assert "train.max_source_epochs" in str(caught.value)
    warnings_of(tmp_path, sources, max_source_epochs=100)


def test_a_share_of_general_rows_that_are_not_there_is_refused_before_work_starts(tmp_path):
    with pytest.raises(PlanError, match="role: general"):
        warnings_of(tmp_path, {"desk": ("task", 40)})


@pytest.mark.parametrize("shares", [{"general": 1.2}, {"general": 0.2, "task": 0.7}, {"general": -0.1}])
def test_shares_that_are_no_parts_of_one_are_refused(shares):
    with pytest.raises(ValidationError):
        TrainSpec.model_validate({"mix": {"shares": shares}})


def test_a_stage_of_harder_rows_is_no_loss_that_runs_away(tmp_path):
    """A base that knows the task's rows: they come first, then general ones at a loss that is much higher."""
    world(tmp_path / "taught", {"desk": ("task", 40)})
    taught = {**SPEC, "mix": [], "adapter": {"kind": "full"}, "learning_rate": 1e-2, "num_train_epochs": 12}
    train_in(tmp_path / "taught", {**taught, "evals_per_epoch": 0.1, "early_stopping_patience": None})
    root = tmp_path / "root"
    made = world(root, {"desk": ("task", 40), "talk": ("general", 80)})
    (made["examples"].path / "val.parquet").unlink()
    write_examples(made["examples"].path / "val.parquet", [])
    shutil.rmtree(made["base"].path / "model")
    shutil.copytree(tmp_path / "taught" / "out" / "adapter", made["base"].path / "model")
    stages = [
        {"name": "task", "length": 1, "shares": {"general": 0}},
        {"name": "talk", "length": 1, "shares": {"general": 0.9}},
    ]
    train_in(root, {**SPEC, "mix": stages, "learning_rate": 1e-4, "num_train_epochs": 2, "batch_size": 4})
    records = [json.loads(line) for line in (root / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) > 20
    before, after = sum(losses[:8]) / 8, sum(losses[-8:]) / 8
    assert after > max(before * 1.5, before + 1), "what is called running away where rows are alike"
