"""What runs, why, what is left when it fails, and what nothing can lose."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.core import runs as runs_module
from tunesmith.core import store as store_module
from tunesmith.core.events import Silent, read_events
from tunesmith.core.plan import make_plan, with_estimates
from tunesmith.core.recipe import load_recipe
from tunesmith.core.run import Machine, execute
from tunesmith.core.runs import find_run, read_record
from tunesmith.core.stage import Estimate
from tunesmith.core.store import Store, verify
from tunesmith.errors import PlanError, StoreError

MACHINE = Machine(device="cpu", workers=1, argv=("tunesmith", "run"))
TOY_RUN = Path(__file__).with_name("toy_run.py")


def planned(path, toys, store, *overrides, **limits):
    return make_plan(load_recipe(path, toys, overrides=overrides), store, **limits)


def run(path, toys, store, *overrides, listener=None, **limits):
    plan = planned(path, toys, store, *overrides, **limits)
    return execute(plan, store, listener=listener or Silent(), machine=MACHINE)


def statuses(record):
    return {name: stage.status for name, stage in record.stages.items()}


def reasons(plan):
    return {stage.name: stage.reason for stage in plan.stages}


def complete(store):
    """Every directory of a kind is a whole artifact."""
    for kind in store.artifacts.iterdir():
        if kind.is_dir() and not kind.name.startswith("."):
            for root in kind.iterdir():
                assert (root / "manifest.json").exists(), root
    for artifact in store.all():
        verify(artifact)
    return True


# ---------------------------------------------------------------------------------------------------- what runs, why


def test_an_unchanged_recipe_runs_nothing(recipe_file, toys, store):
    assert set(statuses(run(recipe_file, toys, store)).values()) == {"done"}
    assert set(statuses(run(recipe_file, toys, store)).values()) == {"cached"}


def test_a_changed_setting_reruns_from_there_on_and_says_why(recipe_file, toys, store):
    first = run(recipe_file, toys, store)
    plan = planned(recipe_file, toys, store, "double.rate=1e-4")
    assert [(p.name, p.status.value) for p in plan.stages] == [("number", "cached"), ("double", "run"), ("add", "run")]
    assert reasons(plan)["double"] == f"rate 0.001 -> 0.0001 since run {first.run}"
    assert reasons(plan)["add"] == f"input right (double) changed since run {first.run}"


def test_one_changed_byte_of_content_reruns_and_a_moved_file_does_not(recipe_file, toys, store, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "n.txt").write_text("5")
    recipe_file.write_text("name: toy\nnumber: {file: a/n.txt}\n")
    first = run(recipe_file, toys, store)
    (tmp_path / "a").rename(tmp_path / "b")
    recipe_file.write_text("name: toy\nnumber: {file: b/n.txt}\n")
    assert statuses(run(recipe_file, toys, store)) == {"number": "cached"}
    (tmp_path / "b" / "n.txt").write_text("6")
    plan = planned(recipe_file, toys, store)
    assert plan.stages[0].status.value == "run"
    assert reasons(plan)["number"].startswith("file (b/n.txt): content changed since run ")
    assert first.run in reasons(plan)["number"] or first.run + "-2" in reasons(plan)["number"]


def test_a_setting_put_back_is_cached_again(recipe_file, toys, store):
    run(recipe_file, toys, store)
    run(recipe_file, toys, store, "double.rate=1e-4")
    plan = planned(recipe_file, toys, store)
    assert plan.to_run == ()
    assert reasons(plan)["double"] == "made before with these settings"


def test_a_new_version_of_a_stage_reruns_it_and_says_so(recipe_file, toys, store):
    import dataclasses

    record = run(recipe_file, toys, store)
    newer = {**toys, "double": dataclasses.replace(toys["double"], version=2)}
    plan = planned(recipe_file, newer, store)
    assert reasons(plan)["double"] == f"stage version 1 -> 2 since run {record.run}"


def test_what_never_ran_failed_or_was_removed_says_so(recipe_file, toys, store):
    assert set(reasons(planned(recipe_file, toys, store)).values()) == {"never run"}
    with pytest.raises(ValueError):
        run(recipe_file, toys, store, "double.fail=error")
    failed = find_run(store, None)
    plan = planned(recipe_file, toys, store, "double.fail=error")
    assert reasons(plan)["double"] == f"failed in run {failed.run}"
    assert reasons(plan)["add"] == f"not reached in run {failed.run}"
    done = run(recipe_file, toys, store)
    shutil.rmtree(store.place("sum", done.stages["add"].fingerprint))
    assert reasons(planned(recipe_file, toys, store))["add"] == f"its artifact of run {done.run} was removed"


def test_until_keeps_what_a_stage_needs_and_only_keeps_one(recipe_file, toys, store):
    assert statuses(run(recipe_file, toys, store, until="double")) == {"number": "done", "double": "done"}
    assert statuses(run(recipe_file, toys, store, only="add")) == {"add": "done"}


def test_only_refuses_where_an_input_is_not_made(recipe_file, toys, store):
    with pytest.raises(PlanError, match="needs number, which is not made"):
        planned(recipe_file, toys, store, only="double")
    with pytest.raises(PlanError, match="exclude each other"):
        planned(recipe_file, toys, store, only="double", until="add")
    with pytest.raises(PlanError, match="nearest: double"):
        planned(recipe_file, toys, store, until="duble")


def test_a_check_refuses_before_anything_runs_and_warns(recipe_file, toys, store):
    with pytest.raises(PlanError, match="forbidden"):
        planned(recipe_file, toys, store, "add.forbid=true")
    assert not store.artifacts.exists()
    plan = planned(recipe_file, toys, store, "add.right=null")
    assert plan.stages[-1].warnings == ("adds one number only",)


def test_an_estimate_falls_back_to_what_it_took_last_time(recipe_file, toys, store):
    plan = with_estimates(planned(recipe_file, toys, store), store, device="cpu")
    assert {stage.estimate.basis for stage in plan.stages} == {"never run here"}
    run(recipe_file, toys, store)
    plan = with_estimates(planned(recipe_file, toys, store, "double.rate=1e-4"), store, device="cpu")
    assert [stage.estimate and stage.estimate.basis for stage in plan.stages] == [
        None, "last time", "last time",
    ]  # fmt: skip
    assert plan.stages[1].estimate.seconds >= 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_estimate_is_for_the_device_of_the_run(recipe_file, toys, store, device):
    def estimate(spec, inputs, device):
        return Estimate(seconds=1.0, memory_bytes=None, basis=device)

    toys["double"] = dataclasses.replace(toys["double"], estimate=estimate)
    plan = with_estimates(planned(recipe_file, toys, store), store, device=device)
    assert [stage.estimate.basis for stage in plan.stages if stage.name == "double"] == [device]


# ------------------------------------------------------------------------------------------------- what a run leaves


def test_a_run_keeps_the_recipe_word_for_word_and_locks_what_it_resolved(recipe_file, toys, store):
    record = run(recipe_file, toys, store, "double.rate=1e-4")
    folder = store.runs / record.run
    assert (folder / "recipe.yaml").read_text() == recipe_file.read_text()
    locked = json.loads((folder / "lock.json").read_text())
    assert locked["overrides"] == ["double.rate=1e-4"]
    assert locked["stages"]["double"]["spec"]["rate"] == 1e-4
    assert locked["stages"]["double"]["inputs"]["number"]["table"] == "number"


def test_a_manifest_says_what_made_the_artifact(recipe_file, toys, store):
    record = run(recipe_file, toys, store)
    artifact = store.find("number", record.stages["double"].fingerprint)
    manifest = artifact.manifest
    assert manifest.summary == {"value": 6.0, "tries": 1}
    assert manifest.spec["rate"] == 1e-3
    assert manifest.inputs == {"number": record.stages["number"].fingerprint}
    assert [file.path for file in manifest.outputs] == ["number.txt"]
    assert manifest.provenance["packages"]["pydantic"]
    assert manifest.provenance["argv"] == ["tunesmith", "run"]
    assert manifest.provenance["seconds"] >= 0
    assert manifest.provenance.get("peak_rss_bytes", 1) > 0
    events = [event["event"] for event in read_events(artifact.root / "events.jsonl")]
    assert events == ["stage_started", "doubling", "progress", "progress", "stage_finished"]


def test_the_same_outputs_have_the_same_digest_whatever_made_them(recipe_file, toys, store):
    digests = set()
    for override in ("double.note=a", "double.note=b"):
        record = run(recipe_file, toys, store, override)
        digests.add(store.find("number", record.stages["double"].fingerprint).manifest.digest)
    assert len(digests) == 1


def test_a_failing_stage_keeps_the_others_and_its_error(recipe_file, toys, store):
    with pytest.raises(ValueError, match="this toy fails") as caught:
        run(recipe_file, toys, store, "double.fail=error")
    record = find_run(store, None)
    assert statuses(record) == {"number": "done", "double": "failed", "add": "waiting"}
    assert record.stages["double"].error == "this toy fails"
    events_path = Path(caught.value.__notes__[0].removeprefix("events of this stage: "))
    last = list(read_events(events_path))[-1]
    assert last["event"] == "stage_failed"
    assert "this toy fails" in "".join(last["traceback"])
    assert complete(store)
    assert not list(store.partials.glob("*/data"))


def test_an_interrupted_run_says_so(recipe_file, toys, store):
    with pytest.raises(KeyboardInterrupt):
        run(recipe_file, toys, store, "double.fail=interrupt")
    assert statuses(find_run(store, None))["double"] == "interrupted"


def test_a_table_fed_by_an_artifact_changed_by_hand_is_refused(recipe_file, toys, store):
    record = run(recipe_file, toys, store)
    path = store.find("number", record.stages["number"].fingerprint).path / "number.txt"
    text = path.read_text()
    for tampered in (text + "0", text.replace("3", "4")):
        path.write_text(tampered)
        with pytest.raises(StoreError, match="changed after it was made"):
            planned(recipe_file, toys, store)
    path.write_text(text)
    assert planned(recipe_file, toys, store).to_run == ()
    path.unlink()
    with pytest.raises(StoreError, match="no file"):
        planned(recipe_file, toys, store)


# --------------------------------------------------------------------------------------------------- kill, and again


def child(recipe, store, *overrides, **options):
    return subprocess.Popen(
        [sys.executable, str(TOY_RUN), str(recipe), str(store.root), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_killed_stage_resumes_from_its_work_and_loses_no_other(recipe_file, toys, store):
    killed = child(recipe_file, store, "double.fail=kill")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    dead = find_run(store, None)
    assert statuses(dead) == {"number": "done", "double": "interrupted", "add": "waiting"}
    assert (
        reasons(planned(recipe_file, toys, store, "double.fail=kill"))["double"] == f"was interrupted in run {dead.run}"
    )
    record = run(recipe_file, toys, store, "double.fail=kill")
    assert statuses(record) == {"number": "cached", "double": "done", "add": "done"}
    double = store.find("number", record.stages["double"].fingerprint)
    assert double.summary["tries"] == 2
    assert [file.path for file in double.manifest.outputs] == ["number.txt"]
    assert not list(store.partials.iterdir())


@pytest.mark.parametrize("moment", range(1, 40, 2))
def test_a_kill_at_any_write_loses_no_finished_stage(moment, recipe_file, toys, store):
    """The child dies at its n-th call of fsync, rename or replace: every step of completing an artifact and a run."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def deadly(call):
            def counted(*args, **kwargs):
                nonlocal count
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return counted

        for name in ("fsync", "rename", "replace"):
            setattr(os, name, deadly(getattr(os, name)))
        try:
            run(recipe_file, toys, store)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    if store.artifacts.exists():
        assert complete(store)
    finished = {artifact.fingerprint for artifact in store.all()}
    record = run(recipe_file, toys, store)
    assert {stage.fingerprint for stage in record.stages.values() if stage.status == "cached"} == finished
    assert store.find("sum", record.stages["add"].fingerprint).summary == {"value": 9.0}
    assert complete(store)
    assert os.WIFSIGNALED(status) or moment > 30


def test_two_runs_at_once_make_each_artifact_once(recipe_file, toys, store, tmp_path):
    meet = tmp_path / "meet"
    meet.mkdir()
    override = f"double.meet={meet}"
    children = [child(recipe_file, store, override)]
    until(lambda: list(meet.glob("started-*")))
    children.append(child(recipe_file, store, override))
    assert children[1].stdout.readline().strip() == f"waits {children[0].pid}"
    (meet / "go").touch()
    outputs = [process.communicate(timeout=60) for process in children]
    assert [process.returncode for process in children] == [0, 0], outputs
    assert len(list(meet.glob("started-*"))) == 1
    assert "'double': 'done'" in outputs[0][0]
    assert "'double': 'cached'" in outputs[1][0]
    assert complete(store)
    assert not list(store.partials.iterdir())
    assert len(list(store.runs.iterdir())) == 2


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_a_run_at_work_is_running_and_a_dead_one_is_interrupted(recipe_file, toys, store, tmp_path):
    worker = child(recipe_file, store, f"double.meet={tmp_path}")
    until(lambda: list(tmp_path.glob("started-*")))
    name = runs_module.run_names(store)[0]
    assert read_record(store, name).stages["double"].status == "running"
    worker.kill()
    worker.communicate()
    assert read_record(store, name).stages["double"].status == "interrupted"


# -------------------------------------------------------------------------------------------------------- bad disks


def test_a_full_disk_in_a_stage_is_a_clear_error_and_leaves_nothing_half(recipe_file, toys, store):
    with pytest.raises(StoreError, match="the disk is full") as caught:
        run(recipe_file, toys, store, "double.fail=full")
    assert len(str(caught.value).splitlines()) <= 5
    assert complete(store)
    assert not list(store.partials.glob("*/data"))


def test_a_full_disk_while_completing_is_a_clear_error_and_leaves_nothing_half(recipe_file, toys, store, monkeypatch):
    run(recipe_file, toys, store, until="number")

    def full(path, text):
        if path.name == "manifest.json":
            raise OSError(28, "No space left on device", str(path))
        original(path, text)

    original = store_module.write_atomically
    monkeypatch.setattr(store_module, "write_atomically", full)
    with pytest.raises(StoreError, match="the disk is full"):
        run(recipe_file, toys, store)
    monkeypatch.undo()
    assert len(list(store.all())) == 1
    assert complete(store)


def sandboxed(script, *arguments):
    """Run a shell script in mount and user namespaces of its own; skip where the system allows none."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    probe = subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("this system lets a test make no mount of its own")
    return subprocess.run(
        ["unshare", "-Urm", "sh", "-euc", script, "sh", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_disk_that_is_really_full_is_a_clear_error(recipe_file, toys, store):
    script = """
        mkdir -p "$3"; mount -t tmpfs -o size=1500k tmpfs "$3"
        status=0; "$1" "$2" "$4" "$3" double.megabytes=4 || status=$?
        find "$3/store" -mindepth 3 -path '*number*' -name manifest.json | wc -l
        find "$3/store/.partial" -name big.bin | wc -l
        exit $status
    """
    done = sandboxed(script, sys.executable, TOY_RUN, store.root, recipe_file)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("the disk is full"), done.stderr
    assert done.stdout.split() == ["1", "0"]


def test_a_read_only_store_is_a_clear_error_and_can_still_be_planned(recipe_file, toys, store):
    run(recipe_file, toys, store)
    script = """
        mount --bind "$3" "$3"; mount -o remount,ro,bind "$3"
        exec "$1" "$2" "$4" "$3"
    """
    done = sandboxed(script, sys.executable, TOY_RUN, store.root, recipe_file)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("the store cannot be written"), done.stderr
    assert "Read-only file system" in done.stderr


def test_a_store_whose_place_is_taken_by_a_file_is_a_clear_error(recipe_file, toys, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be written"):
        run(recipe_file, toys, Store(tmp_path / "file"))
