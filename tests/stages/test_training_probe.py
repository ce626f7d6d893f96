import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from training_world import training_inputs

from tunesmith.stages.train import estimate
from tunesmith.stages.training import TrainSpec
from tunesmith.stages.training_probe import estimate_by_probe, measure

SPEC = {"batch_size": 8, "adapter": {"kind": "lora", "rank": 4, "alpha": 8}, "dtype": "float32"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return training_inputs(tmp_path_factory.mktemp("probe"))


def test_nothing_is_predicted_before_the_rows_are_encoded(world):
    found = estimate(TrainSpec.model_validate(SPEC), {"base": world["base"], "examples": None}, "cpu")
    assert (found.seconds, found.memory_bytes) == (None, None)
    assert "until encode" in found.basis


def test_the_probe_runs_in_a_process_of_its_own_and_says_what_it_rests_on(world):
    found = estimate(TrainSpec.model_validate(SPEC), world, "cpu")
    assert found.seconds > 0
    assert found.memory_bytes > 50e6
    assert "fused pass in float32 on cpu" in found.basis


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what a machine without the device says")
def test_the_probe_measures_on_the_device_of_the_run_or_says_why_not(world):
    found = estimate(TrainSpec.model_validate(SPEC), world, "cuda")
    assert (found.seconds, found.memory_bytes) == (None, None)
    assert "the probe failed" in found.basis
    assert "CUDA" in found.basis


def test_a_probe_that_fails_says_so_and_never_guesses(world, tmp_path):
    found = estimate_by_probe(
        TrainSpec.model_validate(SPEC), base=tmp_path, examples=world["examples"].path, device="cpu"
    )
    assert (found.seconds, found.memory_bytes) == (None, None)
    assert "the probe failed" in found.basis


def test_more_epochs_take_longer_and_the_longest_pass_is_measured(world):
    def measured(**change):
        spec = TrainSpec.model_validate({**SPEC, **change})
        return measure(spec, base=world["base"].path, examples=world["examples"].path, device="cpu")

    short, long = measured(), measured(num_train_epochs=40)
    assert long["seconds"] > short["seconds"]
    assert short["passes"] == 10
    cut = measured(max_tokens_per_batch=30)
    assert cut["passes"] > 10
    assert cut["longest_rows"] < short["longest_rows"]
