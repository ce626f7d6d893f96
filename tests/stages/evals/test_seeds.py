"""The stage `seeds`: evaluations of several adapters become one, and what cannot be averaged is refused."""

import copy
import json

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import DataError
from tunesmith.evals.gates import check_criteria
from tunesmith.stages.seeds import check_alike


def another_adapter(world, root, artifact):
    """A training run that went a little otherwise: the same adapter with noise, so that some answers change."""
    other = artifact(root / "noisy", "adapter")
    folder = other.path / "adapter"
    folder.mkdir()
    for file in (world.adapter.path / "adapter").iterdir():
        if file.suffix == ".safetensors":
            torch.manual_seed(7)
            tensors = {name: t + 0.02 * torch.randn_like(t) for name, t in load_file(file).items()}
            save_file(tensors, folder / file.name, metadata={"format": "pt"})
        else:
            (folder / file.name).write_bytes(file.read_bytes())
    return other


@pytest.fixture
def evaluations(world, run_stage, make_artifact, tmp_path):
    settings = {"dtype": "float32"}
    first = run_stage("evaluate", world.inputs, settings, tmp_path)
    inputs = {**world.inputs, "adapter": another_adapter(world, tmp_path, make_artifact)}
    return first, run_stage("evaluate", inputs, settings, tmp_path)


def report_of(artifact):
    return json.loads((artifact.path / "results.json").read_text())


def test_two_seeds_become_one_evaluation_whose_mean_gates(evaluations, run_stage, tmp_path):
    first, second = evaluations
    done = run_stage("seeds", {"first": first, "second": second}, {}, tmp_path)
    results = report_of(done)
    one, two = (report_of(item)["tuned"]["exact_match"]["value"] for item in evaluations)
    entry = results["tuned"]["exact_match"]
    assert entry["seeds"]["values"] == [one, two]
    assert entry["value"] == pytest.approx((one + two) / 2)
    assert entry["low"] <= entry["items"]["low"]
    assert len(results["adapters"]) == 2
    assert results["base"] == report_of(first)["base"]
    assert "exact_match" in results["paired"]
    systems = {row["system"] for row in pq.read_table(done.path / "items.parquet").to_pylist()}
    assert systems == {"base", "tuned 1", "tuned 2"}
    assert "Training seeds" in (done.path / "report.html").read_text()
    (verdict,) = check_criteria([f"exact_match >= {(one + two) / 2 - 0.01}"], [results, report_of(first)])
    assert verdict.observed == pytest.approx((one + two) / 2)


def test_one_adapter_twice_and_unlike_evaluations_are_refused(evaluations):
    first, second = (report_of(item) for item in evaluations)
    check_alike([first, second])
    with pytest.raises(DataError, match="same adapter"):
        check_alike([first, copy.deepcopy(first)])
    with pytest.raises(DataError, match="same questions") as caught:
        check_alike([first, {**second, "prompts_sha256": "0" * 64}])
    assert caught.value.where == "prompts_sha256 of evaluation 2"
    with pytest.raises(DataError, match="base alone"):
        check_alike([first, {**second, "systems": ["base"]}])
