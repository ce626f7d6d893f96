"""Cluster: a Ray cluster to work on, started on this machine or joined, and refused where strangers could join it too.

What lives here: the check before work starts, the start, the welcome and the end. What does not: what is done there
(`data.engines`).

    check_cluster(choice)                         # at plan time: nothing is sent to a cluster that is refused
    with cluster(choice, num_workers=2) as num_workers:
        ...                                       # `ray.remote` works here

A cluster that is started here listens on loopback only, asks for a token of its own, has no dashboard, sends no usage
statistics, and ends with the block. Whoever can reach a cluster can run code on all of its machines, so one that is
not on loopback must ask for a token as well: Ray's clients send theirs to any cluster, so the cluster itself is tried
without one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import ipaddress
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import EngineError, MissingExtra
from tunesmith.types import EngineChoice

OBJECT_STORE_BYTES = 256 * 2**20
"""Shared memory for parts on their way: a few MB for each of the few that are at work."""
MAX_TEMP_CHARS = 40
"""Ray's sockets lie 66 characters below its folder, and a Unix socket's path holds 107 (sockaddr_un)."""
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 60.0
_SHOWN_LOG_CHARS = 400
_LOGS = ("gcs_server.err", "gcs_server.out", "raylet.err", "raylet.out", "dashboard_agent.err", "runtime_env_agent.err")
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray takes 127.0.0.1 for the address of another interface unless it believes that this system has no clusters."""
_ON_LOOPBACK = {
    _LOOPBACK: "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Usage statistics off or not, Ray's head asks the metadata servers of three clouds which one it runs in (2.60,
    # `_common.usage.usage_lib`): plain HTTP ends at a closed port.
    **dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost"),
}
_ASKS, _OPEN = "asks for a token", "open"
_ASK = f"""
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).internal_kv_keys(b"", namespace=b"session", timeout=5)
except AuthenticationError:
    print("{_ASKS}")
else:
    print("{_OPEN}")
"""


def check_cluster(choice: EngineChoice) -> None:
    """Refuse what is known to fail, or to be unsafe, before work starts.

    Raises `MissingExtra` without Ray, and `EngineError` for an address that is none, that leaves this machine without
    a token, where nothing listens, or whose cluster asks for no token, or for one that is not here.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", extra="ray", needed_for="engine: ray")
    if choice.address is None:
        return
    host, port = _host_and_port(choice)
    if not is_loopback(host) and not _has_token():
        raise _refused(choice, f"RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE', 'not set')!r}, or no token is here")
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise EngineError(
            f"no Ray cluster can be reached at {choice.address}",
            where=choice.where,
            expected="the address that `ray start --head` prints (its port is 6379 unless another is said)",
            found=str(error),
            hint="start the cluster, or leave the address out to start one on this machine",
        ) from error
    asks = cluster_asks_for_token(choice.address)
    if not is_loopback(host) and asks is not True:
        raise _refused(choice, "it answers without a token, or not as a Ray cluster does")
    if asks and not (_has_token() and _answer(choice.address, os.environ) == _OPEN):
        raise EngineError(
            f"the cluster at {choice.address} asks for a token, and turns this process away",
            where=choice.where,
            expected="RAY_AUTH_MODE=token, and its token in RAY_AUTH_TOKEN or the file RAY_AUTH_TOKEN_PATH",
            found="another token" if _has_token() else "no token, or another RAY_AUTH_MODE",
        )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine only, by its name or number: nothing is looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _host_and_port(choice: EngineChoice) -> tuple[str, int]:
    assert choice.address is not None
    host, colon, port = choice.address.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise EngineError(
            "the engine's address is none", where=choice.where, expected="HOST:PORT", found=repr(choice.address)
        )
    return host, int(port)


def _has_token() -> bool:
    """Whether this process would show a token: what Ray reads, in its order."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return False
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(path).expanduser() if path else Path.home() / ".ray" / "auth_token"
    return bool(os.environ.get("RAY_AUTH_TOKEN", "").strip()) or (file.is_file() and file.stat().st_size > 0)


def _refused(choice: EngineChoice, found: str) -> EngineError:
    return EngineError(
        f"the cluster at {choice.address} is refused: whoever reaches it could read the data and run code",
        where=choice.where,
        expected="an address on loopback, or a cluster and a client with token authentication",
        found=found,
        hint="set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, here and where the cluster starts",
    )


def cluster_asks_for_token(address: str) -> bool | None:
    """Return whether a cluster refuses a client without a token; None where it gives no clear answer."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return {_ASKS: True, _OPEN: False}.get(_answer(address, {**env, "RAY_AUTH_MODE": "disabled"}))


def _answer(address: str, env: Mapping[str, str]) -> str:
    """Return what a cluster says to a client with this environment: Ray reads it once, so a new process asks."""
    command = [sys.executable, "-c", _ASK, address]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "nothing"
    return done.stdout.strip()


@contextlib.contextmanager
def cluster(choice: EngineChoice, *, num_workers: int) -> Iterator[int]:
    """Start a cluster of this machine, or join the one that is named; yield how many parts it works on at a time.

    `num_workers` is for a cluster that is started here and says none itself. Raises what `check_cluster` raises, and
    `EngineError` with the end of Ray's log where the cluster does not start.
    """
    check_cluster(choice)
    if choice.address is None:
        with _started(choice.num_workers or num_workers) as count:
            yield count
    else:
        with _joined(choice) as count:
            yield count


@contextlib.contextmanager
def _started(num_workers: int, *, object_store_bytes: int = OBJECT_STORE_BYTES) -> Iterator[int]:
    folder = Path(tempfile.mkdtemp(prefix="ts-ray-", dir=_short_temp()))
    with _environment({**_ON_LOOPBACK, "RAY_AUTH_TOKEN": _token()}):
        import ray

        _read_environment_again_()
        try:
            ray.init(
                address="local",
                num_cpus=num_workers,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=object_store_bytes,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=str(folder),
                _node_ip_address="127.0.0.1",
            )
            _refuse_beyond_loopback(ray.util.get_node_ip_address())
        except Exception as error:
            ray.shutdown()
            raise _not_started(error, folder) from error
        try:
            yield num_workers
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_beyond_loopback(ip: str) -> None:
    if not is_loopback(ip):
        raise EngineError(
            "the local Ray cluster would listen beyond this machine",
            expected="a node on loopback",
            found=ip,
            hint="leave RAY_ settings of the network out of the environment",
        )


def _short_temp() -> str:
    """Return a folder for temporary files whose name leaves room for Ray's sockets."""
    for folder in (tempfile.gettempdir(), "/tmp"):
        if len(folder) <= MAX_TEMP_CHARS - len("/ts-ray-12345678") and os.access(folder, os.W_OK):
            return folder
    raise EngineError(
        "there is no folder for the sockets of a local Ray cluster",
        expected=f"a writable folder of at most {MAX_TEMP_CHARS - 16} characters",
        found=tempfile.gettempdir(),
        hint="set TMPDIR to a short path",
    )


@functools.cache
def _token() -> str:
    """A token of this process: Ray reads its token once."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Hold environment variables, which the processes of the cluster inherit, as long as the block lasts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _read_environment_again_() -> None:
    """Let Ray read two settings again, which it did when it was imported: that may have been long ago, or elsewhere.

    The first is what `ray._private.authentication` does where it turns tokens on; the second has no other way in
    (ray 2.60, `_private.services.get_node_ip_address`).
    """
    from ray._private import ray_constants

    importlib.import_module("ray._raylet").Config.initialize("")
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(_LOOPBACK) != "0"


def _not_started(error: Exception, folder: Path) -> EngineError:
    said = str(error).strip().splitlines() or [type(error).__name__]
    ends = [_end_of(path) for name in _LOGS for path in sorted(folder.glob(f"session_*/logs/{name}"))]
    tail = next((end for end in ends if end), "nothing was logged")
    return EngineError(
        "the local Ray cluster did not start",
        where=str(folder),
        expected=f"room for {OBJECT_STORE_BYTES // 2**20} MB in shared memory, and processes that may be started",
        found=f"{said[0][:_SHOWN_LOG_CHARS]}; the end of its log: {tail}",
        hint="the folder above keeps all logs; engine: local needs no cluster",
    )


def _end_of(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " / ".join(line.strip() for line in lines[-3:])[-_SHOWN_LOG_CHARS:]


@contextlib.contextmanager
def _joined(choice: EngineChoice) -> Iterator[int]:
    # Ray takes an address on loopback for that of another interface, where such a cluster does not listen.
    on_loopback = is_loopback(_host_and_port(choice)[0])
    with _environment({_LOOPBACK: "0"} if on_loopback else {}):
        import ray

        _read_environment_again_()
        try:
            ray.init(address=choice.address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            raise EngineError(
                f"the Ray cluster at {choice.address} cannot be joined",
                where=choice.where,
                expected="this process on a machine of the cluster, with its versions of Ray and Python, and its token",
                found=(str(error).strip().splitlines() or [type(error).__name__])[0][:_SHOWN_LOG_CHARS],
                hint="run tunesmith on a node of the cluster, with the address that `ray start` printed there",
            ) from error
        try:
            _refuse_other_code(choice)
            yield choice.num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        finally:
            ray.shutdown()


def _refuse_other_code(choice: EngineChoice) -> None:
    """Raise where a node of a cluster would run another tunesmith than this one: its results could differ."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = code_version()
    ask = ray.remote(num_cpus=0, max_retries=0)(_code_version_there)
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        on_node = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        try:
            there: Any = ray.get(ask.options(scheduling_strategy=on_node).remote(), timeout=PROBE_SECONDS)
        except RayError as error:
            there = (str(error).strip().splitlines() or [type(error).__name__])[-1][:_SHOWN_LOG_CHARS]
        if there != here:
            raise EngineError(
                f"the node {node['NodeManagerAddress']} of the cluster at {choice.address} runs other code",
                where=choice.where,
                expected=", ".join(here),
                found=there if isinstance(there, str) else ", ".join(there),
                hint="install the same tunesmith, with its constraints, on every node",
            )


@functools.cache
def code_version() -> tuple[str, ...]:
    """Return what results depend on: this package's source as a hash, and the libraries that read text."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    libraries = ("daft", "numpy", "py3langid", "pyarrow")
    return (
        f"tunesmith {digest.hexdigest()[:12]}",
        "python " + ".".join(map(str, sys.version_info[:2])),
        *(f"{name} {importlib.metadata.version(name)}" for name in libraries),
    )


def _code_version_there() -> tuple[str, ...]:
    """What a node is asked: Ray takes plain functions only."""
    return code_version()
