"""Several processes train as one does: FAILURES.md 18 to 20 and 29. Float32, gloo, a tiny Llama.

All runs of four processes, then all of two, are made by one set of processes each (`training_ranks`): starting them is
what takes the time.
"""

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent))
from training_process import train_in
from training_ranks import ranks_do
from training_world import examples, training_inputs, write_examples

from tunesmith.core.stage import Estimate
from tunesmith.errors import PlanError
from tunesmith.stages.training import TrainSpec
from tunesmith.stages.training_parallel import Replicated, Sharded, check_parallel, in_processes
from tunesmith.types import EngineChoice

LORA = {
    "learning_rate": 5e-3,
    "num_train_epochs": 3,
    "max_steps": 7,
    "batch_size": 7,  # 40 rows: steps of 7 and a ragged one of 5
    "max_tokens_per_batch": 60,
    "adapter": {"kind": "lora", "rank": 4, "alpha": 8},
    "dtype": "float32",
}
KINDS_OF_RUN = {
    "lora": LORA,
    "full": {**LORA, "adapter": {"kind": "full"}, "learning_rate": 1e-3},
    "few": {**LORA, "batch_size": 2, "max_steps": 4, "gradient_checkpointing": True},  # two of four processes are idle
    "gradient": {  # one step of plain descent: the weights move by the gradient itself
        **LORA,
        "adapter": {"kind": "full"},
        "optimizer": {"kind": "sgd", "momentum": 0},
        "learning_rate": 1.0,
        "max_grad_norm": None,
        "warmup_ratio": 0,
        "max_steps": 1,
    },
}
RELATIVE = 1e-5


def jobs(processes):
    return [
        {"name": f"{name}-{kind}-{processes}", "spec": {**spec, "parallel": {"kind": kind, "processes": processes}}}
        for name, spec in KINDS_OF_RUN.items()
        for kind in ("replicated", "sharded")
    ]


def continued(name, source, kind, **parallel):
    """A run of two processes that goes on from the first half of another."""
    spec = {**LORA, "parallel": {"kind": kind, "processes": 2, **parallel}}
    return {"name": name, "spec": spec, "checkpoint": str(Path(source, "work", f"checkpoint-{MIDDLE:08d}"))}


MIDDLE = 6
"""Step of the last checkpoint but one: validations are every three steps."""


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """The folder of all runs, made once for all workers of a test session."""
    shared = tmp_path_factory.getbasetemp().parent / f"runs-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "done").exists():
            make_runs(shared)
            (shared / "done").touch()
    return shared


def uneven(rows):
    """Rows of which some train on one token and some on nearly all."""
    for index, row in enumerate(rows):
        trained = 1 + 3 * index % (len(row["ids"]) - 1)
        row["weights"] = [0.0] * (len(row["ids"]) - trained) + [1.0] * trained
    return rows


def make_runs(root):
    training_inputs(root)
    write_examples(root / "examples" / "data" / "train.parquet", uneven(examples(40, seed=1)))
    for name, spec in KINDS_OF_RUN.items():
        alone = root / f"{name}-alone-1"
        for part in ("base", "contract", "examples"):
            shutil.copytree(root / part, alone / part)
        train_in(alone, spec)
    ranks_do(root, jobs(4), processes=4)
    more = [
        continued("same", "lora-sharded-2", "sharded"),
        continued("same-replicated", "lora-replicated-2", "replicated"),
        continued("refused", "lora-sharded-4", "sharded"),
        continued("resharded", "lora-sharded-4", "sharded", other_world="reshard"),
        continued("resharded-replicated", "lora-replicated-4", "replicated", other_world="reshard"),
        continued("other-kind", "lora-replicated-4", "sharded", other_world="reshard"),
    ]
    ranks_do(root, [*jobs(2), *more], processes=2)


def metrics(run, *keys):
    records = [json.loads(line) for line in (run / "out" / "metrics.jsonl").read_text().splitlines()]
    return [{key: record[key] for key in ("step", *keys) if key in record} for record in records]


def weights(run):
    (file,) = (run / "out" / "adapter").glob("*.safetensors")
    return load_file(file)


def adapter_bytes(run):
    return {file.name: file.read_bytes() for file in (run / "out" / "adapter").iterdir()}


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
@pytest.mark.parametrize("name", KINDS_OF_RUN)
def test_the_loss_curve_is_that_of_one_process(runs, name, kind, processes):
    once = metrics(runs / f"{name}-alone-1", "loss", "val_loss", "grad_norm", "tokens", "supervised_tokens")
    ours = metrics(runs / f"{name}-{kind}-{processes}", "loss", "val_loss", "grad_norm", "tokens", "supervised_tokens")
    assert len(ours) == len(once) > 1
    for mine, theirs in zip(ours, once, strict=True):
        assert mine == pytest.approx(theirs, rel=RELATIVE, abs=0)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_uneven_targets_give_the_gradient_of_one_process(runs, kind, processes):
    """FAILURES.md 19 and 20: a mean of means would weigh a row's tokens by the process that it fell to."""
    once, ours = weights(runs / "gradient-alone-1"), weights(runs / f"gradient-{kind}-{processes}")
    start = load_file(runs / "base" / "data" / "model" / "model.safetensors")
    assert ours.keys() == once.keys() == start.keys()
    for name, tensor in once.items():
        gradient = tensor - start[name]
        assert gradient.norm() > 0
        assert (ours[name] - tensor).norm() <= RELATIVE * gradient.norm(), name


def test_a_step_with_fewer_rows_than_processes_still_counts_each_row_once(runs):
    for kind in ("replicated", "sharded"):
        passes = metrics(runs / f"few-{kind}-4", "passes", "loss")
        assert [record["passes"] for record in passes if "loss" in record] == [2, 2, 2, 2]


def test_what_several_processes_save_is_read_back_and_compared(runs):
    for kind in ("replicated", "sharded"):
        summary = json.loads((runs / f"lora-{kind}-4" / "summary.json").read_text())
        assert summary["verified"]["logit_difference"] == 0
        assert summary["verified"]["loss_live"] == pytest.approx(summary["verified"]["loss_float32"], rel=RELATIVE)
        assert summary["pass"] == {"replicated": "fused", "sharded": "flat"}[kind]


@pytest.mark.parametrize(("name", "once"), [("same", "lora-sharded-2"), ("same-replicated", "lora-replicated-2")])
def test_a_run_that_continues_with_as_many_processes_ends_with_the_same_bytes(runs, name, once):
    assert json.loads((runs / name / "summary.json").read_text())["resumed_from_step"] == MIDDLE
    assert adapter_bytes(runs / name) == adapter_bytes(runs / once)


def test_a_checkpoint_of_another_number_of_processes_is_refused(runs):
    for rank in range(2):
        said = (runs / "refused" / f"error-{rank}.txt").read_text()
        assert "written by another number of processes" in said
        assert "expected: 2 (sharded)" in said
        assert "found:    4 (sharded)" in said
        assert "train.parallel.other_world" in said


def test_a_checkpoint_of_another_kind_of_run_is_refused_even_so(runs):
    said = (runs / "other-kind" / "error-0.txt").read_text()
    assert "the interrupted run used the fused pass" in said
    assert "its weights are sharded" in said
    assert "train.parallel as it was" in said


@pytest.mark.parametrize("name", ["resharded", "resharded-replicated"])
def test_a_checkpoint_that_is_divided_anew_goes_on_with_the_same_loss(runs, name):
    summary = json.loads((runs / name / "summary.json").read_text())
    assert summary["resumed_from_step"] == MIDDLE
    once, ours = (metrics(run, "loss", "val_loss", "grad_norm") for run in (runs / "lora-alone-1", runs / name))
    for mine, theirs in zip(ours, once, strict=True):
        assert mine == pytest.approx(theirs, rel=RELATIVE, abs=0)


def test_a_sharded_checkpoint_holds_a_slice_for_each_process_and_no_pickle(runs):
    checkpoint = runs / "lora-sharded-4" / "work" / "checkpoint-00000007"
    names = sorted(path.name for path in checkpoint.rglob("*") if path.is_file())
    assert names == [*(f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2, 3, 4)), "state.json"]
    assert json.loads((checkpoint / "state.json").read_text())["world"] == {"layout": "sharded", "size": 4}
    whole = sum(path.stat().st_size for path in checkpoint.rglob("*.safetensors"))
    assert max(path.stat().st_size for path in checkpoint.rglob("*.safetensors")) < whole / 2


NEEDS_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=NEEDS_RAY)])
def test_a_run_that_loses_a_process_continues_by_itself_and_ends_with_the_same_bytes(runs, tmp_path, engine):
    for part in ("base", "contract", "examples"):
        shutil.copytree(runs / part, tmp_path / part)
    events = []

    def kill_once(name, fields):
        events.append((name, dict(fields)))
        joined = events_of("processes_joined")
        if name == "train_step" and fields["step"] == MIDDLE and len(joined) == 1:
            os.kill(joined[0]["pids"][1], signal.SIGKILL)

    def events_of(name):
        return [fields for event, fields in events if event == name]

    spec = {**LORA, "parallel": {"kind": "sharded", "processes": 2}}
    summary = train_in(tmp_path, spec, log=kill_once, engine=EngineChoice(kind=engine))
    assert (summary["restarts"], summary["processes"], summary["weights"]) == (1, 2, "sharded")
    (lost,) = events_of("processes_lost")
    assert ("rank 1 was ended by SIGKILL" if engine == "local" else "rank 1 was lost") in lost["reason"]
    assert summary["resumed_from_step"] in (3, MIDDLE)
    assert adapter_bytes(tmp_path) == adapter_bytes(runs / "lora-sharded-2")
    assert metrics(tmp_path, "loss", "val_loss") == metrics(runs / "lora-sharded-2", "loss", "val_loss")


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_machines_end_with_the_bytes_of_two_processes_of_one(runs, tmp_path, kind):
    """The other machine is a process that runs `tunesmith join`; it loses its part of the run once."""
    for part in ("base", "contract", "examples"):
        shutil.copytree(runs / part, tmp_path / part)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joining = [sys.executable, "-m", "tunesmith", "join", address]
    other = subprocess.Popen(joining, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    joined = []

    def kill_once(name, fields):
        if name == "processes_joined":
            joined.append(fields["pids"])
        if name == "train_step" and fields["step"] == MIDDLE and len(joined) == 1:
            os.kill(joined[0][1], signal.SIGKILL)

    machines = {"count": 2, "address": address}
    spec = {**LORA, "parallel": {"kind": kind, "processes": 2, "machines": machines}}
    summary = train_in(tmp_path, spec, log=kill_once)
    said = other.communicate(timeout=60)[0]
    assert (summary["restarts"], summary["processes"]) == (1, 2)
    assert adapter_bytes(tmp_path) == adapter_bytes(runs / f"lora-{kind}-2")
    assert said.splitlines() == [
        f"waiting for a training at {address}",
        "joined a training of 2 machines with 1 processes each",
        "started ranks 1",
        "rank 1 was ended by SIGKILL: waiting to start again",
        "started ranks 1",
        "took part in 1 training to the end",
    ]
    assert other.returncode == 0


@pytest.mark.parametrize(
    ("machines", "said"),
    [
        ({"count": 3, "address": "10.0.0.1:29500"}, "cannot share the processes equally"),
        ({"count": 2, "address": "10.0.0.1"}, "this is no address"),
    ],
)
def test_machines_that_cannot_share_a_run_are_refused_before_it(machines, said):
    parallel = {"kind": "sharded", "processes": 4, "machines": machines}
    with pytest.raises(PlanError, match=said):
        check_parallel(TrainSpec.model_validate({**LORA, "parallel": parallel}))


def test_machines_of_our_own_are_not_for_a_cluster_of_ray(runs, tmp_path):
    for part in ("base", "contract", "examples"):
        shutil.copytree(runs / part, tmp_path / part)
    parallel = {"kind": "sharded", "processes": 2, "machines": {"count": 2, "address": "127.0.0.1:29500"}}
    with pytest.raises(PlanError, match="engine: ray places the processes"):
        train_in(tmp_path, {**LORA, "parallel": parallel}, engine=EngineChoice(kind="ray"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer": {"kind": "muon"}}, "muon needs whole matrices"),
        ({"optimizer": {"kind": "adafactor"}}, "adafactor needs whole matrices"),
        ({"adapter": {"kind": "lora", "quantization": {"kind": "int8"}}}, "quantised base cannot be sliced"),
    ],
)
def test_what_slices_cannot_compute_is_refused_before_the_run(change, said):
    spec = TrainSpec.model_validate({**LORA, **change, "parallel": {"kind": "sharded", "processes": 2}})
    with pytest.raises(PlanError, match=said):
        check_parallel(spec)
    assert check_parallel(spec.model_copy(update={"parallel": Replicated(kind="replicated", processes=2)})) == []


def test_processes_without_rows_are_warned_of():
    spec = TrainSpec.model_validate({**LORA, "parallel": {"kind": "replicated", "processes": 9}})
    assert check_parallel(spec) == ["9 processes share steps of 7 rows: 2 of them have nothing to do"]


def test_a_plan_says_how_many_processes_and_what_each_needs():
    alone = Estimate(seconds=60.0, memory_bytes=10, basis="probe")
    replicated = in_processes(alone, Replicated(kind="replicated", processes=2))
    assert (replicated.seconds, replicated.memory_bytes) == (None, 10)
    assert replicated.basis == "2 processes, weights replicated, memory of each; one alone 60 s: probe"
    assert in_processes(alone, Sharded(kind="sharded", processes=4)).memory_bytes is None
    assert in_processes(alone, None) == alone
