"""What a run finds out about its machine and its checkout without importing torch."""

import subprocess
import types

import pytest

from tunesmith.api import machine as machine_module
from tunesmith.api.machine import num_cores, this_machine
from tunesmith.core.provenance import PeakMemory, git_commit, package_versions
from tunesmith.errors import PlanError


@pytest.fixture
def torch_build(tmp_path, monkeypatch):
    """Stand in for an installed torch: what its version.py says."""

    def install(cuda):
        (tmp_path / "version.py").write_text(f"from typing import Optional\ncuda: Optional[str] = {cuda!r}\n")
        spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(machine_module.importlib.util, "find_spec", lambda name: spec)

    return install


class Driver:
    """The calls of NVIDIA's driver library that are used."""

    def __init__(self, count, status=0):
        self.count, self.status = count, status

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = self.count
        return 0


@pytest.mark.parametrize(
    ("cuda", "driver", "device"),
    [
        (None, Driver(1), "cpu"),
        ("13.0", Driver(1), "cuda"),
        ("13.0", Driver(0), "cpu"),
        ("13.0", Driver(1, status=100), "cpu"),
        ("13.0", None, "cpu"),
    ],
)
def test_auto_is_cuda_where_torch_and_driver_both_have_it(cuda, driver, device, torch_build, monkeypatch):
    torch_build(cuda)

    def load(name):
        if driver is None:
            raise OSError(name)
        return driver

    monkeypatch.setattr(machine_module.ctypes, "CDLL", load)
    assert this_machine().device == device
    assert this_machine("cpu").device == "cpu"
    if device == "cpu":
        with pytest.raises(PlanError, match="no CUDA device"):
            this_machine("cuda")
    else:
        assert this_machine("cuda").device == "cuda"


def test_an_unknown_device_is_refused():
    with pytest.raises(PlanError, match="unknown device"):
        this_machine("tpu")


def test_a_container_with_a_quota_has_fewer_cores(tmp_path, monkeypatch):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(machine_module, "_CPU_MAX", quota)
    free = num_cores()
    for text, cores in (("max 100000", free), ("100000 100000", 1), ("50000 100000", 1)):
        quota.write_text(text)
        assert num_cores() == cores


def test_the_commit_of_the_users_checkout_is_known_and_whether_it_was_changed(tmp_path):
    def git(*words):
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *names, *words], check=True, capture_output=True)

    assert git_commit(tmp_path / "none") is None
    git("init", "-q")
    (tmp_path / "recipe.yaml").write_text("a: 1")
    git("add", ".")
    git("commit", "-qm", "first")
    git_commit.cache_clear()
    clean = git_commit(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "recipe.yaml").write_text("a: 2")
    git_commit.cache_clear()
    assert git_commit(tmp_path) == {"commit": clean["commit"], "dirty": True}


def test_versions_name_tunesmith_and_what_it_requires():
    versions = dict(package_versions())
    assert {"tunesmith", "pydantic", "torch", "typer"} <= set(versions)


def test_peak_memory_sees_what_was_let_go():
    memory = PeakMemory()
    before = memory.figures()
    block = bytearray(200 << 20)
    block[::4096] = b"x" * len(block[::4096])
    del block
    (name,) = before
    assert memory.figures()[name] - before[name] > 100 << 20 or name == "process_peak_rss_bytes"


def test_a_command_under_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(PlanError, match="starts its processes itself"):
        this_machine("cpu")
