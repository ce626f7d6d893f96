"""A Ray cluster is started on loopback with a token, or joined where strangers cannot; all else is refused first."""

import contextlib
import importlib.util
import ipaddress
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import cluster as cluster_module
from tunesmith.cluster import check_cluster, cluster_asks_for_token, code_version, is_loopback
from tunesmith.data.engines import PARTS_PER_WORKER, LocalEngine, check_engine, open_engine, parts_of
from tunesmith.errors import DataError, EngineError, MissingExtra, PlanError
from tunesmith.types import LOCAL_ENGINE, EngineChoice

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
RAY = EngineChoice(kind="ray")


# What workers run is found by name: it stands in a module that they can import, as the package's own functions do.
FUNCTIONS = """
import os, signal, time
from pathlib import Path
from tunesmith.errors import DataError

def twice(part):
    return [2 * number for number in part]

def later_first(number):
    time.sleep(0.05 * (3 - number))
    return number, os.getpid()

def refuse(part):
    raise DataError("no part is good", where=f"part {part}", hint="give another one")

def die_once(part):
    marker = Path(part)
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"

def die(part):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """The module of functions, importable here and, by PYTHONPATH, in workers."""
    on_workers = tmp_path_factory.mktemp("functions")
    (on_workers / "part_functions.py").write_text(FUNCTIONS)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(on_workers), before])
    sys.path.insert(0, str(on_workers))
    yield importlib.import_module("part_functions")
    sys.path.remove(str(on_workers))
    os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def engine(functions):
    with open_engine(RAY, num_workers=2) as started:
        yield started


def listening(pids):
    """Addresses on which processes listen, from the kernel's tables."""
    inodes = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                name = os.readlink(handle)
            except OSError:
                continue
            if name.startswith("socket:["):
                inodes.add(name[8:-1])
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                raw = bytes.fromhex(fields[1].split(":")[0])
                words = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
                found.add(ipaddress.ip_address(socket.inet_ntop(family, words)))
    return found


def processes_of_cluster():
    """Every process below this one: Ray's servers, and what they started."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid", "--no-headers"], capture_output=True, text=True, check=True)
    parents = dict(line.split() for line in listed.stdout.splitlines())
    below = {str(os.getpid())}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return below


def test_a_local_cluster_listens_on_loopback_only_and_asks_for_a_token(engine, functions):
    import ray

    list(engine.map(functions.twice, [[1]]))
    pids = processes_of_cluster()
    assert len(pids) >= 5
    addresses = listening(pids)
    assert addresses
    for address in addresses:
        mapped = getattr(address, "ipv4_mapped", None)
        assert (mapped or address).is_loopback, addresses
    assert cluster_asks_for_token(ray.get_runtime_context().gcs_address) is True


def test_results_come_in_the_order_of_the_parts_and_parts_are_taken_as_needed(engine, functions):
    taken = []

    def numbers():
        for number in range(8):
            taken.append(number)
            yield number % 4

    results = engine.map(functions.later_first, numbers())
    first = next(results)
    assert first[0] == 0
    assert len(taken) <= 2 * PARTS_PER_WORKER
    rest = list(results)
    assert [number for number, _ in (first, *rest)] == [0, 1, 2, 3] * 2
    assert os.getpid() not in {pid for _, pid in rest}
    assert list(engine.map(functions.twice, parts_of([1, 2, 3], 2))) == [[2, 4], [6]]
    assert list(engine.map(functions.twice, [])) == []


def test_what_a_function_raises_is_raised_here(engine, functions):
    with pytest.raises(DataError) as caught:
        list(engine.map(functions.refuse, [1]))
    assert caught.value.where == "part 1"
    assert caught.value.hint == "give another one"


def test_a_worker_that_is_killed_costs_nothing_but_time(engine, functions, tmp_path):
    parts = [str(tmp_path / f"{number}") for number in range(3)]
    assert list(engine.map(functions.die_once, parts)) == ["done"] * 3


def test_a_part_that_kills_every_worker_ends_the_run_with_a_clear_error(engine, functions):
    with pytest.raises(EngineError, match="died over a part"):
        list(engine.map(functions.die, [1]))
    assert list(engine.map(functions.twice, [[1]])) == [[2]]


@contextlib.contextmanager
def running(mode, token="0" * 64):
    """A cluster of another process, with or without authentication; yields its address."""
    start = (
        "import ray, sys; c = ray.init(address='local', num_cpus=1, include_dashboard=False, logging_level='ERROR',"
        " object_store_memory=80 * 2**20, _node_ip_address='127.0.0.1');"
        " print(c.address_info['gcs_address'], flush=True); sys.stdin.read()"
    )
    env = {**os.environ, **cluster_module._ON_LOOPBACK, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}
    process = subprocess.Popen(
        [sys.executable, "-c", start],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(30)


def test_a_cluster_without_authentication_is_found_out(monkeypatch):
    """A client in token mode is served by it all the same: only asking without a token tells."""
    with running("disabled") as address:
        assert cluster_asks_for_token(address) is False
        check_cluster(EngineChoice(kind="ray", address=address))
        monkeypatch.setattr(cluster_module, "is_loopback", lambda host: False)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        with pytest.raises(EngineError, match="is refused"):
            check_cluster(EngineChoice(kind="ray", address=address))


JOIN = """
import sys
from tunesmith.data.engines import open_engine
from tunesmith.errors import EngineError
from tunesmith.types import EngineChoice
try:
    with open_engine(EngineChoice(kind="ray", address=sys.argv[1]), num_workers=9) as engine:
        print(list(engine.map(len, [[1], [2, 3]])))
except EngineError as error:
    print(error)
"""


def test_a_running_cluster_is_joined_with_its_token_and_the_same_code(tmp_path):
    package = Path(cluster_module.__file__).parent
    shutil.copytree(package, tmp_path / "tunesmith", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tunesmith" / "more.py").write_text('"""Not in the cluster\'s copy."""\n')

    def join(address, **env):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        done = subprocess.run(
            [sys.executable, "-c", JOIN, address],
            env={**clean, "HOME": str(tmp_path), **env},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    other_code = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])}
    with running("token", token="a" * 64) as address:
        assert join(address, **token) == "[1, 2]\n"
        assert "no token" in join(address)
        assert "another token" in join(address, **token | {"RAY_AUTH_TOKEN": "b" * 64})
        assert "runs other code" in join(address, **token, **other_code)


@pytest.mark.parametrize("mode", [None, "disabled", "token"])
def test_an_address_elsewhere_without_a_token_is_refused_before_anything_is_sent(mode, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    choice = EngineChoice(kind="ray", address="ray-head.example.invalid:6379", where="recipe.yaml:2")
    for check in (check_cluster, check_engine, lambda choice: open_engine(choice, num_workers=1).__enter__()):
        with pytest.raises(EngineError) as caught:
            check(choice)
        assert "is refused" in str(caught.value)
        assert "RAY_AUTH_MODE" in str(caught.value)
        assert "recipe.yaml:2" in str(caught.value)


def test_with_a_token_the_address_is_tried(monkeypatch, tmp_path, network_attempts):
    token = tmp_path / "token"
    token.write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    with pytest.raises(AssertionError, match="resolve no names"):
        check_cluster(EngineChoice(kind="ray", address="ray-head.example.invalid:6379"))
    network_attempts.unlink()


def test_an_address_where_nothing_listens_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(EngineError, match="no Ray cluster can be reached"):
            check_cluster(EngineChoice(kind="ray", address=f"127.0.0.1:{taken.getsockname()[1]}"))


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(EngineError, match="HOST:PORT"):
        check_cluster(EngineChoice(kind="ray", address=address))


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("[::1]", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("127.0.0.1.example.com", False),
    ],
)
def test_only_loopback_is_this_machine(host, local):
    assert is_loopback(host) is local


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(cluster_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"tunesmith\[ray\]"):
        check_engine(RAY)


def test_unknown_engines_and_settings_without_effect_are_refused():
    with pytest.raises(PlanError, match="nearest: ray"):
        check_engine(EngineChoice(kind="rays"))
    for choice in (EngineChoice(num_workers=2), EngineChoice(address="127.0.0.1:1")):
        with pytest.raises(PlanError, match="has no address and no workers"):
            check_engine(choice)
    check_engine(LOCAL_ENGINE)


def test_a_cluster_that_does_not_start_says_why_and_where_its_logs_are():
    with pytest.raises(EngineError, match="did not start") as caught, cluster_module._started(1, object_store_bytes=1):
        pass
    folder = Path(caught.value.where)
    assert folder.is_dir()
    assert "memory" in str(caught.value)
    shutil.rmtree(folder)


def test_the_end_of_a_log_is_its_last_lines(tmp_path):
    log = tmp_path / "session_1" / "logs" / "gcs_server.out"
    log.parent.mkdir(parents=True)
    log.write_text("started\nlistening\nno space\ngone\n")
    error = cluster_module._not_started(OSError("Failed to start GCS\nmore"), tmp_path)
    assert error.found == "Failed to start GCS; the end of its log: listening / no space / gone"
    assert len(str(error).splitlines()) <= 5


def test_a_long_folder_for_temporary_files_leaves_room_for_sockets(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster_module.tempfile, "gettempdir", lambda: str(tmp_path / ("long" * 20)))
    assert cluster_module._short_temp() == "/tmp"


def test_what_results_depend_on_is_said_and_the_same_each_time():
    version = code_version()
    assert version[0].startswith("tunesmith ")
    assert any(part.startswith("daft ") for part in version)
    code_version.cache_clear()
    assert code_version() == version


def test_the_local_engine_runs_here_and_takes_parts_as_needed():
    parts = iter([1, 2, 3])
    results = LocalEngine().map(lambda part: part + 1, parts)
    assert next(results) == 2
    assert next(parts) == 2
