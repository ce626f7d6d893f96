import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

sys.path.append(str(Path(__file__).parent))
from training_process import train_in
from training_world import artifact, examples, tiny_base, training_inputs, write_examples

from tunesmith.errors import ContractError, PlanError, TrainingError
from tunesmith.model import kernels
from tunesmith.model.load import load_model
from tunesmith.stages import training
from tunesmith.stages.training import TrainSpec, check
from tunesmith.stages.training_optimizers import AdamW

SPEC = {
    "learning_rate": 5e-3,
    "num_train_epochs": 2,
    "batch_size": 8,
    "adapter": {"kind": "lora", "rank": 4, "alpha": 8},
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return training_inputs(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """One finished run of SPEC, never interrupted."""
    root = copy_of(world, tmp_path_factory.mktemp("trained"))
    (root / "summary.json").write_text(json.dumps(train_in(root, SPEC)))
    return root


def copy_of(world, root):
    for kind, made in world.items():
        shutil.copytree(made.root, root / kind)
    return root


class Interrupted(Exception):
    pass


def interrupt_at(step, event):
    def log(name, fields):
        if name == event and fields["step"] == step:
            raise Interrupted

    return log


def adapter_bytes(root):
    return (root / "out" / "adapter" / "adapter_model.safetensors").read_bytes()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_learns_and_accounts_for_every_step(trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["best_val_loss"] < summary["base_val_loss"]
    assert summary["steps"] == summary["steps_done"] == 10
    metrics = lines(trained / "out" / "metrics.jsonl")
    steps = [record for record in metrics if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 11))
    assert sum(record["tokens"] for record in steps) == summary["tokens"] == 2 * summary["tokens_per_epoch"]
    assert all(record["computed_tokens"] < record["tokens"] for record in steps)
    assert all(math.isfinite(record["grad_norm"]) and record["tokens_per_second"] > 0 for record in steps)
    evals = [record["step"] for record in metrics if "val_loss" in record]
    assert evals == [0, 2, 4, 6, 8, 10]
    curve = json.loads((trained / "out" / "curve.json").read_text())
    assert curve["loss"] == [record["loss"] for record in steps]
    assert curve["figures"]["val_loss"]["step"] == evals


def test_the_adapter_is_a_plain_peft_folder(trained, world):
    folder = trained / "out" / "adapter"
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tests/tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    base = AutoModelForCausalLM.from_pretrained(world["base"].path / "model")
    ids = torch.tensor([examples(1, seed=5)[0]["ids"]])
    plain = base(ids).logits
    tuned = PeftModel.from_pretrained(base, str(folder))(ids).logits
    assert not torch.allclose(plain, tuned)
    assert all(
        tensor.abs().max() > 0
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
        if "lora_B" in name
    )


def assert_resumes_to_the_same(root, trained):
    assert not (root / "out" / "adapter").exists()
    summary = train_in(root, SPEC)
    assert summary["resumed_from_step"] is not None
    assert adapter_bytes(root) == adapter_bytes(trained)
    again, once = (
        [{key: record[key] for key in ("step", "loss", "val_loss") if key in record} for record in lines(path)]
        for path in (root / "out" / "metrics.jsonl", trained / "out" / "metrics.jsonl")
    )
    assert again == once


def test_a_run_killed_with_sigkill_ends_with_the_same_weights_bit_for_bit(world, trained, tmp_path):
    root = copy_of(world, tmp_path / "killed")
    program = str(Path(__file__).with_name("training_process.py"))
    done = subprocess.run(
        [sys.executable, program, str(root), json.dumps(SPEC), "5"], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr[-2000:]
    assert_resumes_to_the_same(root, trained)


def test_a_run_killed_while_its_checkpoint_is_written_goes_on_from_the_one_before(world, trained, tmp_path):
    root = copy_of(world, tmp_path / "killed")
    program = str(Path(__file__).with_name("training_process.py"))
    command = [sys.executable, program, str(root), json.dumps(SPEC), "6", "in its checkpoint"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr[-2000:]
    assert (root / "work" / ".partial-00000006" / "state.json").exists()
    assert not (root / "work" / "checkpoint-00000006").exists()
    assert_resumes_to_the_same(root, trained)


@pytest.mark.parametrize(
    ("step", "event"), [(1, "train_step"), (2, "train_eval"), (3, "train_step"), (10, "train_step"), (10, "train_eval")]
)
def test_a_run_that_stops_anywhere_ends_with_the_same_weights_bit_for_bit(world, trained, tmp_path, step, event):
    root = copy_of(world, tmp_path / "stopped")
    with pytest.raises(Interrupted):
        train_in(root, SPEC, log=interrupt_at(step, event))
    assert_resumes_to_the_same(root, trained)


def test_dropout_resumes_with_its_random_state(world, tmp_path):
    spec = {**SPEC, "adapter": {**SPEC["adapter"], "dropout": 0.2}}
    once, again = copy_of(world, tmp_path / "once"), copy_of(world, tmp_path / "again")
    train_in(once, spec)
    with pytest.raises(Interrupted):
        train_in(again, spec, log=interrupt_at(5, "train_step"))
    assert train_in(again, spec)["resumed_from_step"] == 4
    assert adapter_bytes(again) == adapter_bytes(once)


def test_two_runs_of_one_recipe_give_the_same_bytes(world, trained, tmp_path):
    root = copy_of(world, tmp_path / "again")
    train_in(root, SPEC)
    assert adapter_bytes(root) == adapter_bytes(trained)


def test_data_or_settings_that_changed_under_a_checkpoint_are_refused(world, tmp_path):
    root = copy_of(world, tmp_path / "changed")
    with pytest.raises(Interrupted):
        train_in(root, SPEC, log=interrupt_at(5, "train_step"))
    with pytest.raises(TrainingError, match="made with other settings"):
        train_in(root, {**SPEC, "weight_decay": 0.5})
    write_examples(root / "examples" / "data" / "train.parquet", examples(40, seed=7))
    with pytest.raises(TrainingError, match="made with other data"):
        train_in(root, SPEC)


def test_examples_of_another_contract_are_refused(run_stage, world, tmp_path):
    other = artifact(tmp_path / "other", "contract", fingerprint="another")
    with pytest.raises(ContractError, match="another contract"):
        check(TrainSpec.model_validate(SPEC), {**world, "contract": other})
    with pytest.raises(ContractError, match="another contract"):
        run_stage("train", {**world, "contract": other}, SPEC, tmp_path)


def test_a_learning_rate_that_explodes_stops_the_run_with_the_reason(run_stage, world, tmp_path):
    with pytest.raises(TrainingError, match="the loss is nan") as error:
        run_stage("train", world, {**SPEC, "learning_rate": 1e38, "evals_per_epoch": 0.1}, tmp_path)
    assert "learning_rate" in str(error.value)


@pytest.mark.parametrize(
    ("validated", "said"), [(True, "the validation loss diverges"), (False, "step 7: the loss diverges")]
)
def test_a_run_that_diverges_in_its_first_steps_stops_and_leaves_no_artefact(run_stage, tmp_path, validated, said):
    """At a rate of 10 a base that knows its rows has forgotten them before any training loss could be called usual."""
    world = training_inputs(tmp_path / "world")
    shutil.copyfile(world["examples"].path / "train.parquet", world["examples"].path / "val.parquet")
    taught = {
        **SPEC,
        "adapter": {"kind": "full"},
        "learning_rate": 1e-2,
        "num_train_epochs": 12,
        "evals_per_epoch": 0.1,
    }
    knowing = run_stage("train", world, taught, tmp_path / "taught").path / "adapter"
    shutil.rmtree(world["base"].path / "model")
    shutil.copytree(knowing, world["base"].path / "model")
    if not validated:
        write_examples(world["examples"].path / "val.parquet", [])
    with pytest.raises(TrainingError, match=said):
        run_stage("train", world, {**SPEC, "learning_rate": 10.0}, tmp_path / "run")
    assert not list((tmp_path / "run" / ".tunesmith" / "store").glob("adapter/*"))


def test_gradients_that_are_zero_stop_the_run(run_stage, world, tmp_path):
    """A base of zeros: whatever the adapter is, every hidden state is zero."""
    base = tiny_base(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base.path / "model")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model.save_pretrained(base.path / "model")
    with pytest.raises(TrainingError, match="step 0: every gradient is zero"):
        run_stage("train", {**world, "base": base}, SPEC, tmp_path)


def test_a_trained_tensor_that_no_loss_depends_on_stops_the_run_at_its_first_step(
    run_stage, world, tmp_path, monkeypatch
):
    from tunesmith.model import full

    honest = full.train_all_

    def with_an_idle_tensor(model):
        parameters, publish = honest(model)
        parameters["idle"] = torch.nn.Parameter(torch.zeros(3))
        return parameters, publish

    monkeypatch.setattr(full, "train_all_", with_an_idle_tensor)
    with pytest.raises(TrainingError, match="1 of 22 trainable tensors get no gradient") as error:
        run_stage("train", world, {**SPEC, "adapter": {"kind": "full"}}, tmp_path)
    assert "idle" in str(error.value)


def test_a_validation_loss_that_is_no_number_is_no_success(run_stage, tmp_path):
    """Only a validation row reads the token whose embedding is infinite: every training step looks healthy."""
    world = training_inputs(tmp_path / "world")
    model = AutoModelForCausalLM.from_pretrained(world["base"].path / "model")
    model.get_input_embeddings().weight.data[9] = float("inf")
    model.save_pretrained(world["base"].path / "model")
    write_examples(
        world["examples"].path / "val.parquet", [{"row_id": "val", "ids": [3, 9, 4], "weights": [0.0, 0.0, 1.0]}]
    )
    with pytest.raises(TrainingError, match="after step 0: val_loss is nan"):
        run_stage("train", world, SPEC, tmp_path)


def test_a_run_that_is_all_warm_up_is_no_success(run_stage, world, tmp_path):
    with pytest.raises(TrainingError, match="did not move"):
        run_stage("train", world, {**SPEC, "max_steps": 1, "warmup_ratio": 0.5}, tmp_path)


def test_an_adapter_that_saves_other_weights_is_no_success(run_stage, world, tmp_path, monkeypatch):
    from tunesmith.model import lora

    honest = lora.save_adapter

    def inert(model, folder, *, base_name=None, quantisation=None):
        honest(model, folder, base_name=base_name)
        if folder.name == "adapter":
            tensors = load_file(folder / "adapter_model.safetensors")
            from safetensors.torch import save_file

            save_file({name: tensor * 0.5 for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")

    monkeypatch.setattr(lora, "save_adapter", inert)
    with pytest.raises(TrainingError, match="do not compute what the trained model computes"):
        run_stage("train", world, SPEC, tmp_path)


def test_patience_stops_early_and_the_best_weights_are_kept(run_stage, tmp_path):
    world = training_inputs(tmp_path / "world")
    # Validation rows whose answers contradict the training rows: their loss rises as training goes on.
    rows = examples(8, seed=1)
    for row in rows:
        row["ids"] = [*row["ids"][:-4], *[(token + 7) % 64 for token in row["ids"][-4:]]]
    write_examples(world["examples"].path / "val.parquet", rows)
    spec = {**SPEC, "learning_rate": 3e-2, "num_train_epochs": 12, "early_stopping_patience": 2}
    made = run_stage("train", world, spec, tmp_path)
    assert made.summary["stopped_early"]
    assert made.summary["steps_done"] < made.summary["steps"]
    metrics = [record for record in lines(made.path / "metrics.jsonl") if "val_loss" in record and record["step"] > 0]
    best = min(metrics, key=lambda record: record["val_loss"])
    assert (best["step"], best["val_loss"]) == (made.summary["best_step"], made.summary["best_val_loss"])
    assert len([record for record in metrics if record["step"] > best["step"]]) == 2


def test_without_validation_rows_the_last_weights_are_kept(run_stage, tmp_path):
    world = training_inputs(tmp_path / "world", num_val=0)
    assert any("no validation rows" in warning for warning in check(TrainSpec.model_validate(SPEC), world))
    made = run_stage("train", world, SPEC, tmp_path)
    assert made.summary["best_val_loss"] is None
    assert made.summary["best_step"] == 10
    with pytest.raises(PlanError, match="early stopping needs validation rows"):
        check(TrainSpec.model_validate({**SPEC, "early_stopping_patience": 1}), world)


def test_auto_measures_both_formats_and_says_so(run_stage, world, tmp_path):
    made = run_stage("train", world, {**SPEC, "dtype": "auto", "max_steps": 3}, tmp_path)
    assert made.summary["dtype"] in ("float32", "bfloat16")
    assert "GFLOP/s" in made.summary["dtype_measured"]


FLIPS = {
    "learning_rate": 1e-3,
    "num_train_epochs": 1.5,
    "max_steps": 4,
    "batch_size": 4,
    "max_tokens_per_batch": 60,
    "warmup_ratio": 0.5,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.3,
    "optimizer": {"kind": "sgd", "momentum": 0.5},
    "optimizer.beta1": {"kind": "adamw", "beta1": 0.5},
    "optimizer.beta2": {"kind": "adamw", "beta2": 0.9},
    "optimizer.epsilon": {"kind": "adamw", "epsilon": 1e-2},
    "optimizer.muon": {"kind": "muon"},
    "optimizer.adafactor": {"kind": "adafactor"},
    "optimizer.torch": {"kind": "torch", "name": "NAdam"},
    "optimizer.arguments": {"kind": "torch", "name": "AdamW", "arguments": {"amsgrad": True, "eps": 1e-2}},
    "neftune_noise_alpha": 5.0,
    "max_grad_norm": 0.01,
    "adapter": {"kind": "lora", "rank": 2, "alpha": 8},
    "adapter.alpha": {"kind": "lora", "rank": 4, "alpha": 4},
    "adapter.dropout": {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.3},
    "adapter.scaling": {"kind": "lora", "rank": 4, "alpha": 8, "scaling": "rslora"},
    "adapter.lora_plus_ratio": {"kind": "lora", "rank": 4, "alpha": 8, "lora_plus_ratio": 4},
    "adapter.dora": {"kind": "dora", "rank": 4, "alpha": 8},
    "adapter.quantization": {"kind": "lora", "rank": 4, "alpha": 8, "quantization": {"kind": "nf4"}},
    "adapter.int8": {"kind": "lora", "rank": 4, "alpha": 8, "quantization": {"kind": "int8"}},
    "adapter.full": {"kind": "full"},
    "adapter.targets": {"kind": "lora", "rank": 4, "alpha": 8, "targets": ["q_proj"]},
    "dtype": "bfloat16",
    "dtype.float16": "float16",
    "evals_per_epoch": 1,
    "seed": 5,
}


@pytest.mark.parametrize("key", FLIPS)
def test_every_key_changes_what_training_does(run_stage, world, trained, tmp_path, key):
    flipped = {**SPEC, key.split(".")[0]: FLIPS[key]}
    if key == "optimizer":
        flipped["learning_rate"] = 1.0  # gradient descent moves by the gradient itself, which is small
    made = run_stage("train", world, flipped, tmp_path)
    ours = [(r["step"], r.get("loss"), r.get("val_loss"), r.get("passes")) for r in lines(made.path / "metrics.jsonl")]
    once = [
        (r["step"], r.get("loss"), r.get("val_loss"), r.get("passes")) for r in lines(trained / "out" / "metrics.jsonl")
    ]
    assert ours != once


def test_states_in_eight_bits_change_what_is_learned(run_stage, world, tmp_path):
    """Tensors below 4,096 elements keep 32 bits, so that the rank here makes the adapter's larger."""
    spec = {**SPEC, "adapter": {**SPEC["adapter"], "rank": 128}}
    exact, rough = (
        run_stage("train", world, {**spec, "optimizer": {"kind": kind}}, tmp_path).summary
        for kind in ("adamw", "adamw_8bit")
    )
    assert rough["best_val_loss"] != exact["best_val_loss"]
    assert rough["best_val_loss"] == pytest.approx(exact["best_val_loss"], rel=1e-2)


def test_the_scales_of_the_blocks_may_stay_in_32_bits(run_stage, world, tmp_path):
    losses = [
        run_stage(
            "train",
            world,
            {**SPEC, "adapter": {**SPEC["adapter"], "quantization": {"kind": "nf4", "double_quant": double}}},
            tmp_path,
        ).summary["base_val_loss"]
        for double in (True, False)
    ]
    assert losses[0] != losses[1]


def test_an_adapter_on_a_quantised_base_says_so_beside_its_weights(run_stage, world, tmp_path):
    spec = {**SPEC, "adapter": {**SPEC["adapter"], "quantization": {"kind": "nf4"}}}
    made = run_stage("train", world, spec, tmp_path)
    assert made.summary["pass"] == "fused"
    assert made.summary["base_stored_in"] == "nf4, scales in 8 bits"
    assert json.loads((made.path / "adapter" / "base_quantization.json").read_text()) == {"kind": "nf4", "double": True}


def test_a_quantised_base_without_its_kernels_is_refused_before_the_run(world, monkeypatch):
    from importlib import util

    honest = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "bitsandbytes" else honest(name))
    spec = {**SPEC, "adapter": {**SPEC["adapter"], "quantization": {"kind": "nf4"}}}
    with pytest.raises(PlanError, match="needs bitsandbytes") as error:
        check(TrainSpec.model_validate(spec), world)
    assert "tunesmith[qlora]" in str(error.value)


def test_gradient_checkpointing_keeps_no_activations_and_the_same_weights(
    run_stage, world, trained, tmp_path, monkeypatch
):
    from tunesmith.model import fused

    kept = []
    honest = fused._Decoder.apply

    def spy(embedded, decoder, shared, rows, keep, *parameters):
        kept.append(keep)
        return honest(embedded, decoder, shared, rows, keep, *parameters)

    monkeypatch.setattr(fused._Decoder, "apply", spy)
    made = run_stage("train", world, {**SPEC, "gradient_checkpointing": True}, tmp_path)
    assert set(kept) == {fused.Keep.NORMED, fused.Keep.NOTHING}
    assert (made.path / "adapter" / "adapter_model.safetensors").read_bytes() == adapter_bytes(trained)


def test_every_key_of_the_settings_is_flipped_above():
    flipped = {key.split(".")[0] for key in FLIPS}
    flipped |= {
        "gradient_checkpointing",
        "early_stopping_patience",
        "mix",
        "max_source_epochs",
        "parallel",
        "task_metric",
        "metric_for_best_model",
        "checkpoints",
        "general_watch",
    }  # own tests
    assert flipped == set(training.TrainSpec.model_fields)
    nested = {key.split(".")[1] for key in FLIPS if "." in key} | {"kind", "rank"}
    assert set(training.Lora.model_fields) | set(AdamW.model_fields) <= nested


@pytest.mark.parametrize(("kind", "rate"), [("muon", 5e-3), ("sgd", 1.0)])
def test_momentum_of_other_optimizers_counts(run_stage, world, tmp_path, kind, rate):
    made = [
        run_stage(
            "train", world, {**SPEC, "learning_rate": rate, "optimizer": {"kind": kind, "momentum": momentum}}, tmp_path
        )
        for momentum in (0.5, 0.9)
    ]
    assert made[0].summary["last_loss"] != made[1].summary["last_loss"]


@pytest.mark.parametrize(
    "spec",
    [
        {"optimizer": {"kind": "muon"}, "adapter": {"kind": "full"}},
        {"optimizer": {"kind": "adafactor"}},
        {"optimizer": {"kind": "adamw_8bit"}},
        {"dtype": "float16"},
        {"adapter": {"kind": "dora", "rank": 4, "alpha": 8}},
        {"adapter": {"kind": "full"}, "dtype": "bfloat16"},
        {"adapter": {"kind": "lora", "rank": 4, "alpha": 8, "quantization": {"kind": "nf4"}}, "dtype": "bfloat16"},
        {"adapter": {"kind": "dora", "rank": 4, "alpha": 8, "quantization": {"kind": "int8"}}},
        {"neftune_noise_alpha": 5.0},
        {"optimizer": {"kind": "sgd"}, "learning_rate": 1.0},
        {"optimizer": {"kind": "torch", "name": "NAdam", "arguments": {"decoupled_weight_decay": True}}},
        {"adapter": {"kind": "lora", "rank": 4, "alpha": 8, "lora_plus_ratio": 16}, "weight_decay": 0.1},
        {"adapter": {"kind": "dora", "rank": 4, "alpha": 8}, "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_every_way_of_training_resumes_bit_for_bit(world, tmp_path, spec):
    once, again = copy_of(world, tmp_path / "once"), copy_of(world, tmp_path / "again")
    train_in(once, {**SPEC, **spec})
    with pytest.raises(Interrupted):
        train_in(again, {**SPEC, **spec}, log=interrupt_at(5, "train_step"))
    assert train_in(again, {**SPEC, **spec})["resumed_from_step"] == 4
    for file in (once / "out" / "adapter").iterdir():
        assert (again / "out" / "adapter" / file.name).read_bytes() == file.read_bytes()


def test_an_optimizer_of_ones_own_trains_and_resumes(world, tmp_path):
    own = tmp_path / "lion.py"
    own.write_text(
        "import torch\n\n"
        "class Sign(torch.optim.Optimizer):\n"
        "    def __init__(self, groups, beta):\n"
        "        super().__init__(groups, {'beta': beta})\n\n"
        "    @torch.no_grad()\n"
        "    def step(self):\n"
        "        for group in self.param_groups:\n"
        "            for p in group['params']:\n"
        "                mean = self.state[p].setdefault('mean', torch.zeros_like(p))\n"
        "                mean.lerp_(p.grad, 1 - group['beta'])\n"
        "                p.sub_(group['lr'] * mean.sign())\n\n"
        "def optimizer(groups, *, beta=0.9):\n"
        "    return Sign(groups, beta)\n",
        "utf-8",
    )
    spec = {**SPEC, "optimizer": {"kind": "file", "path": str(own), "arguments": {"beta": 0.8}}}
    once, again = copy_of(world, tmp_path / "once"), copy_of(world, tmp_path / "again")
    made = train_in(once, spec)
    assert made["best_val_loss"] < made["base_val_loss"]
    with pytest.raises(Interrupted):
        train_in(again, spec, log=interrupt_at(5, "train_step"))
    assert train_in(again, spec)["resumed_from_step"] == 4
    for file in (once / "out" / "adapter").iterdir():
        assert (again / "out" / "adapter" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (3, [3, 4, 5])])
def test_so_many_checkpoints_are_kept_as_the_recipe_says(world, tmp_path, keep, left):
    run = copy_of(world, tmp_path / "run")
    spec = {**SPEC, "checkpoints": {"every_seconds": 0, "keep": keep}}
    with pytest.raises(Interrupted):
        train_in(run, spec, log=interrupt_at(6, "train_step"))
    found = sorted(int(path.name.rpartition("-")[2]) for path in (run / "work").glob("checkpoint-*"))
    assert found == left


def test_a_run_that_resumes_without_its_compiled_loops_says_so(world, tmp_path, monkeypatch):
    if kernels.why_not_compiled() is not None:
        pytest.skip("no compiled loops here")
    run = copy_of(world, tmp_path / "run")
    with pytest.raises(Interrupted):
        train_in(run, SPEC, log=interrupt_at(5, "train_step"))
    monkeypatch.setattr(kernels, "why_not_compiled", lambda: "no C compiler was found")
    notes = train_in(run, SPEC)["pass_notes"]
    assert any("begun with compiled loops, now without (no C compiler was found)" in note for note in notes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_fine_tuning_leaves_a_whole_model_that_loads_anywhere(run_stage, world, tmp_path, dtype):
    spec = {**SPEC, "adapter": {"kind": "full"}, "dtype": dtype, "learning_rate": 1e-3, "num_train_epochs": 4}
    made = run_stage("train", world, spec, tmp_path)
    assert made.summary["best_val_loss"] < made.summary["base_val_loss"]
    assert made.summary["pass"] == "fused"
    outside = AutoModelForCausalLM.from_pretrained(made.path / "adapter")
    ours = load_model(world["base"].path / "model", dtype=dtype, adapter_dir=made.path / "adapter")
    ids = torch.tensor([examples(1, seed=5)[0]["ids"]])
    torch.testing.assert_close(outside(ids).logits, ours(ids).logits)
    base = AutoModelForCausalLM.from_pretrained(world["base"].path / "model")
    moved = [
        name
        for name, tensor in outside.state_dict().items()
        if not torch.equal(tensor.float(), base.state_dict()[name])
    ]
    assert len(moved) == len(base.state_dict())
    assert "tunesmith" not in (made.path / "adapter" / "config.json").read_text()


def test_float16_leaves_out_steps_that_overflow_and_learns_all_the_same(run_stage, world, tmp_path, monkeypatch):
    from tunesmith.train import scaling

    monkeypatch.setattr(scaling, "FIRST_SCALE", 2.0**24)
    made = run_stage("train", world, {**SPEC, "dtype": "float16", "num_train_epochs": 4}, tmp_path)
    steps = [record for record in lines(made.path / "metrics.jsonl") if "loss" in record]
    skipped = [record for record in steps if record["grad_norm"] is None]
    assert 0 < len(skipped) == made.summary["skipped_steps"] < len(steps) / 2
    assert [record["loss_scale"] for record in steps[:2]] == [2.0**24, 2.0**23]
    assert any("steps changed nothing" in warning for warning in made.summary["warnings"])
    assert made.summary["best_val_loss"] < made.summary["base_val_loss"] - 0.01


def test_small_steps_on_bfloat16_weights_are_not_lost(run_stage, world, tmp_path):
    """At a rate of 1e-5 no bf16 weight would move in one step; the float32 masters add the steps up."""
    spec = {**SPEC, "adapter": {"kind": "full"}, "learning_rate": 1e-5, "num_train_epochs": 10, "warmup_ratio": 0}
    exact = run_stage("train", world, {**spec, "dtype": "float32"}, tmp_path).summary
    rounded = run_stage("train", world, {**spec, "dtype": "bfloat16"}, tmp_path).summary
    gained, expected = (run["base_val_loss"] - run["best_val_loss"] for run in (rounded, exact))
    assert expected > 0
    assert gained == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 2e-4}, None),
        ({"learning_rate": 2e-5}, "learning_rate 2e-05 lies outside"),
        ({"learning_rate": 2e-4, "warmup_ratio": 0}, "warmup_ratio is 0"),
        ({"learning_rate": 2e-5}, "hardly leaves it"),
        ({"learning_rate": 1e-3}, "apt to run away"),
        ({"learning_rate": 2e-4, "adapter": {"kind": "full"}}, "pretrained weights are overwritten"),
        ({"learning_rate": 2e-5, "adapter": {"kind": "full"}}, None),
        ({"learning_rate": 2e-4, "num_train_epochs": 20}, "20 epochs over 40 rows"),
        ({"learning_rate": 2e-4, "num_train_epochs": 5}, None),
        ({"learning_rate": 2e-4, "num_train_epochs": 20, "max_steps": 25}, None),
        ({"learning_rate": 2e-4, "max_steps": 5}, "5 steps are few"),
        ({"learning_rate": 2e-4, "batch_size": 40}, "steps are few"),
        ({"learning_rate": 2e-4, "max_tokens_per_batch": 10}, "makes a pass of its own"),
    ],
)
def test_settings_that_rarely_do_well_are_warned_of_with_the_reason(world, change, said):
    warnings = check(TrainSpec.model_validate({**SPEC, **change}), world)
    assert (warnings == []) if said is None else any(said in warning for warning in warnings)


def test_a_row_longer_than_the_base_reads_is_refused(tmp_path):
    world = training_inputs(tmp_path / "world")
    write_examples(
        world["examples"].path / "train.parquet",
        [{"row_id": "long", "ids": [3] * 200, "weights": [0.0] * 199 + [1.0]}],
    )
    with pytest.raises(PlanError, match="longer than the base model can read"):
        check(TrainSpec.model_validate(SPEC), world)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"row_id": "none", "ids": [3, 4], "weights": [0.0, 0.0]}, "no supervised token"),
        ({"row_id": "first", "ids": [3, 4], "weights": [1.0, 1.0]}, "supervises its first token"),
        ({"row_id": "negative", "ids": [3, 4], "weights": [0.0, -1.0]}, "below zero"),
    ],
)
def test_an_example_that_cannot_train_is_refused_by_its_id(run_stage, tmp_path, row, said):
    world = training_inputs(tmp_path / "world")
    write_examples(world["examples"].path / "train.parquet", [*examples(4, seed=3), row])
    with pytest.raises(TrainingError, match=said) as error:
        run_stage("train", world, SPEC, tmp_path)
    assert row["row_id"] in str(error.value)
