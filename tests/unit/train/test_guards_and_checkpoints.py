import json
import os
import shutil
import threading

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tunesmith.errors import StoreError, TrainingError
from tunesmith.train import checkpoint as checkpoint_module
from tunesmith.train import shards
from tunesmith.train.checkpoint import (
    CheckpointWriter,
    Counters,
    Identity,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from tunesmith.train.guards import (
    check_divergence,
    check_gradients,
    check_held_out,
    check_learned,
    check_measured,
    check_step,
    fingerprint_of,
)
from tunesmith.train.optim import adamw, parameter_groups
from tunesmith.train.scaling import LossScale
from tunesmith.train.world import World, whole

IDENTITY = Identity(data="d", settings="s")
COUNTERS = Counters(
    step=3,
    recent_losses=(1.0, 2.0),
    best={"val_loss": 1.5, "exact_match": 0.25},
    first={"val_loss": 2.5},
    loss_scale=LossScale(value=1024.0, dynamic=True, clean_steps=7),
)


def small_run(steps, *, seed=0, world=World()):
    torch.manual_seed(seed)
    tensors = {"a": torch.randn(3, 2), "b": torch.randn(3, 2), "norm": torch.ones(4)}
    if world.layout == "sharded":
        mesh = init_device_mesh("cpu", (1,))
        tensors = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in tensors.items()}
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    optimizer = adamw(parameter_groups(parameters, weight_decay=0.1))
    train(parameters, optimizer, steps)
    return parameters, optimizer


def train(parameters, optimizer, steps):
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for _ in range(steps):
        optimizer.zero_grad()
        for parameter in parameters.values():
            parameter.grad = shards.sliced_as(parameter, torch.randn(parameter.shape))
        optimizer.step()


def test_a_loaded_checkpoint_goes_on_bit_for_bit_random_numbers_included(tmp_path):
    parameters, optimizer = small_run(3)
    save_checkpoint(
        tmp_path,
        parameters=parameters,
        best={"a": torch.ones(3, 2)},
        optimizer=optimizer,
        counters=COUNTERS,
        identity=IDENTITY,
    )
    train(parameters, optimizer, 4)
    others, other_optimizer = small_run(0, seed=9)
    counters, best = load_checkpoint(
        latest_checkpoint(tmp_path), parameters=others, optimizer=other_optimizer, identity=IDENTITY
    )
    train(others, other_optimizer, 4)
    assert counters == COUNTERS
    assert torch.equal(best["a"], torch.ones(3, 2))
    for name, parameter in parameters.items():
        assert torch.equal(parameter, others[name])


def test_a_checkpoint_without_its_optimizer_is_refused(tmp_path):
    parameters, optimizer = small_run(1)
    path = save_checkpoint(
        tmp_path, parameters=parameters, best={}, optimizer=optimizer, counters=Counters(step=1), identity=IDENTITY
    )
    (path / "optimizer.safetensors").unlink()
    with pytest.raises(TrainingError, match="does not hold everything"):
        load_checkpoint(path, parameters=parameters, optimizer=optimizer, identity=IDENTITY)


@pytest.mark.parametrize(
    ("other", "named"),
    [(Identity(data="x", settings="s"), "other data"), (Identity(data="d", settings="x"), "other settings")],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, other, named):
    parameters, optimizer = small_run(1)
    path = save_checkpoint(
        tmp_path, parameters=parameters, best={}, optimizer=optimizer, counters=Counters(step=1), identity=IDENTITY
    )
    with pytest.raises(TrainingError, match=named):
        load_checkpoint(path, parameters=parameters, optimizer=optimizer, identity=other)


@pytest.mark.parametrize(
    ("world", "said"),
    [
        (World(layout="replicated", size=2), "another number of processes"),
        (World(layout="sharded", size=2), "another kind of run"),
    ],
)
def test_a_checkpoint_of_another_world_is_refused(tmp_path, world, said):
    parameters, optimizer = small_run(1)
    path = save_checkpoint(
        tmp_path, parameters=parameters, best={}, optimizer=optimizer, counters=Counters(step=1), identity=IDENTITY
    )
    with pytest.raises(TrainingError, match=said):
        load_checkpoint(path, parameters=parameters, optimizer=optimizer, identity=IDENTITY, world=world)


def test_a_checkpoint_is_divided_anew_where_the_recipe_says_so(tmp_path):
    parameters, optimizer = small_run(2)
    path = save_checkpoint(
        tmp_path, parameters=parameters, best={}, optimizer=optimizer, counters=Counters(step=2), identity=IDENTITY
    )
    others, other_optimizer = small_run(0, seed=9)
    world = World(layout="replicated", rank=1, size=2)
    load_checkpoint(
        path,
        parameters=others,
        optimizer=other_optimizer,
        identity=IDENTITY,
        world=world,
        other_world="reshard",
    )
    for name, parameter in parameters.items():
        assert torch.equal(parameter, others[name])


@pytest.fixture
def world(request):
    """A process alone, or the only one of a world that slices its weights."""
    if request.param == "alone":
        yield World()
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield World(layout="sharded")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", ["alone", "sharded"], indirect=True)
def test_what_is_written_while_training_goes_on_is_what_was_there_when_it_began(tmp_path, world, monkeypatch):
    parameters, optimizer = small_run(3, world=world)
    before = {name: whole(parameter.detach()).clone() for name, parameter in parameters.items()}
    best = {name: tensor * 2 for name, tensor in before.items()}
    trained = threading.Event()
    slow = shards.write_shards if world.layout == "sharded" else checkpoint_module.save_file

    def write_late(*these):
        assert trained.wait(timeout=60)
        return slow(*these)

    monkeypatch.setattr(shards, "write_shards", write_late)
    monkeypatch.setattr(checkpoint_module, "save_file", write_late)
    with CheckpointWriter(world) as writer:
        save_checkpoint(
            tmp_path,
            parameters=parameters,
            best=best,
            optimizer=optimizer,
            counters=Counters(step=3),
            identity=IDENTITY,
            world=world,
            writer=writer,
        )
        train(parameters, optimizer, 4)
        trained.set()
    held, other_optimizer = small_run(1, seed=9, world=world)
    newest = latest_checkpoint(tmp_path)
    _, kept = load_checkpoint(newest, parameters=held, optimizer=other_optimizer, identity=IDENTITY, world=world)
    for name, parameter in held.items():
        assert torch.equal(whole(parameter.detach()), before[name])
        assert torch.equal(kept[name], best[name])
    train(held, other_optimizer, 4)
    for name, parameter in parameters.items():
        assert torch.equal(whole(parameter.detach()), whole(held[name].detach()))


def test_an_error_of_the_writer_is_raised_by_the_next_checkpoint_and_at_the_end(tmp_path, monkeypatch):
    parameters, optimizer = small_run(1)
    keep = {"parameters": parameters, "best": {}, "optimizer": optimizer, "identity": IDENTITY}

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "_sync", no_space)

    def write(*steps):
        with CheckpointWriter() as writer:
            for step in steps:
                save_checkpoint(tmp_path, counters=Counters(step=step), writer=writer, **keep)
                started.append(step)

    started = []
    with pytest.raises(StoreError, match="cannot write a checkpoint"):
        write(1, 2)
    assert started == [1]
    with pytest.raises(StoreError, match="cannot write a checkpoint"):
        write(3)
    assert started == [1, 3]
    assert latest_checkpoint(tmp_path) is None


def test_leaving_the_writer_waits_and_keeps_the_error_that_was_on_its_way(tmp_path):
    parameters, optimizer = small_run(1)
    keep = {"parameters": parameters, "best": {}, "optimizer": optimizer, "identity": IDENTITY}

    def interrupted():
        with CheckpointWriter() as writer:
            save_checkpoint(tmp_path, counters=Counters(step=1), writer=writer, **keep)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert latest_checkpoint(tmp_path).name == "checkpoint-00000001"


def test_only_the_newest_checkpoints_stay(tmp_path):
    parameters, optimizer = small_run(1)
    for step in (1, 2, 10):
        save_checkpoint(
            tmp_path,
            parameters=parameters,
            best={},
            optimizer=optimizer,
            counters=Counters(step=step),
            identity=IDENTITY,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000002", "checkpoint-00000010"]


def test_a_half_written_checkpoint_is_never_found(tmp_path, monkeypatch):
    parameters, optimizer = small_run(1)
    keep = {"parameters": parameters, "best": {}, "optimizer": optimizer, "identity": IDENTITY}
    save_checkpoint(tmp_path, counters=Counters(step=1), **keep)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "_sync", no_space)
    with pytest.raises(StoreError, match="cannot write a checkpoint"):
        save_checkpoint(tmp_path, counters=Counters(step=2), **keep)
    assert latest_checkpoint(tmp_path).name == "checkpoint-00000001"
    shutil.rmtree(tmp_path / "checkpoint-00000001")
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_checkpoint_holds_no_pickle(tmp_path):
    parameters, optimizer = small_run(1)
    path = save_checkpoint(
        tmp_path, parameters=parameters, best={}, optimizer=optimizer, counters=Counters(step=1), identity=IDENTITY
    )
    assert sorted(os.listdir(path)) == ["optimizer.safetensors", "state.json", "weights.safetensors"]
    json.loads((path / "state.json").read_text())


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan"))])
def test_a_step_that_is_no_number_stops_the_run_and_names_its_rows(loss, norm):
    with pytest.raises(TrainingError, match="rows r1, r2"):
        check_step(7, loss=loss, grad_norm=norm, row_ids=["r1", "r2"])


def test_zero_gradients_stop_the_run():
    check_step(0, loss=1.0, grad_norm=0.1, row_ids=["r"])
    with pytest.raises(TrainingError, match="nothing is learned"):
        check_step(0, loss=1.0, grad_norm=0.0, row_ids=["r"])


def test_a_tensor_that_the_backward_does_not_reach_stops_the_run_at_its_first_step():
    parameters = {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.nn.Parameter(torch.ones(2))}
    (2 * parameters["a"]).sum().backward()
    with pytest.raises(TrainingError, match="1 of 2 trainable tensors get no gradient") as error:
        check_gradients(parameters)
    assert "b" in str(error.value)
    (0 * parameters["b"]).sum().backward()  # Zero is a gradient: A has that while B is zero.
    check_gradients(parameters)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_validation_that_is_no_number_stops_the_run(value):
    check_measured(4, {"val_loss": 1.0, "exact_match": 0.0})
    with pytest.raises(TrainingError, match="after step 4: val_loss is"):
        check_measured(4, {"exact_match": 0.5, "val_loss": value})


def test_a_loss_that_runs_away_stops_the_run_and_noise_does_not():
    early = [2.0] * 8
    check_divergence(20, early=early, recent=[2.9] * 8)
    check_divergence(20, early=[0.05] * 8, recent=[0.4] * 8)
    check_divergence(3, early=early[:4], recent=[9.0] * 4)
    with pytest.raises(TrainingError, match="diverges"):
        check_divergence(20, early=early, recent=[3.1] * 8)


def test_a_validation_loss_far_above_the_bases_stops_the_run_where_nothing_was_gained():
    check_held_out(20, base=2.0, now=2.9, gained=False)
    check_held_out(20, base=0.1, now=0.9, gained=False)
    check_held_out(4, base=2.0, now=9.0, gained=False)  # A first step too wide may be made good.
    check_held_out(20, base=2.0, now=9.0, gained=True)  # Overfitting: the best weights are kept.
    with pytest.raises(TrainingError, match="the validation loss diverges"):
        check_held_out(20, base=2.0, now=3.1, gained=False)


def test_a_tensor_that_did_not_move_is_no_success():
    parameters = {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.nn.Parameter(torch.ones(2))}
    initial = {name: fingerprint_of(parameter) for name, parameter in parameters.items()}
    with torch.no_grad():
        parameters["a"].add_(1e-6)
    with pytest.raises(TrainingError, match="1 of 2 trainable tensors did not move"):
        check_learned(parameters, initial)
    with torch.no_grad():
        parameters["b"][0] = float("nan")
    with pytest.raises(TrainingError, match="NaN"):
        check_learned(parameters, initial)
