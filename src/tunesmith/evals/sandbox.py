"""Run an untrusted Python program against tests, and believe only what the program cannot say itself.

    result = run_tests("def add(a, b):\\n    return a + b", ["assert add(1, 2) == 3"])
    result.verdict                     # Verdict.PASSED

What lives here: starting, watching and ending the two jails, and the verdict. What does not: how a jail is built
(`sandbox_jail`), what the two interpreters say to each other (`sandbox_wire`, `sandbox_candidate`, `sandbox_checker`),
pass@k (`code`).

Program and tests run in two interpreters, each in its own Linux namespaces (user or transient id, mount, process,
network, IPC), with a read-only file system, a private `/tmp`, no network and hard limits. The verdict comes over a pipe
that only the checker holds. Where the machine refuses namespaces, nothing runs and `PlanError` says why: there is no
unprotected mode.

This stops programs that cheat, break out by the usual means, or exhaust the machine. It is not a boundary against an
attacker with an unpatched kernel bug; for those, put the whole run into a virtual machine.
"""

from __future__ import annotations

import enum
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import PlanError
from tunesmith.types import JSON

_HERE = Path(__file__).parent
_START_SECONDS = 60.0
_KILL_SECONDS = 5.0
_CHUNK_BYTES = 1 << 16
_VERDICT_BYTES = 4 << 20


class Verdict(enum.StrEnum):
    """How a program did."""

    PASSED = "passed"
    """Every test held."""
    FAILED = "failed"
    """A test's assertion did not hold."""
    RAISED = "raised"
    """A test ended with another exception, from the program or from the test's use of its answer."""
    NOT_LOADED = "not_loaded"
    """The program has a syntax error, raised or ended while it was being loaded."""
    ENDED = "ended"
    """The program's interpreter ended during the tests: it exited, ran out of memory or was killed by a limit."""
    TIMEOUT = "timeout"
    """The time was over."""
    TOO_MUCH_OUTPUT = "too_much_output"
    """It printed more than the limit."""
    UNUSABLE_TEST = "unusable_test"
    """A test does not parse, or hands over an object that the sandbox cannot carry. Not the program's fault."""

    @property
    def scored(self) -> bool:
        """Whether this says something about the program; an unusable test does not."""
        return self is not Verdict.UNUSABLE_TEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use. Each interpreter has these for itself."""

    wall_seconds: float = 10.0
    """From the moment both interpreters are ready; their start does not count."""
    cpu_seconds: float = 10.0
    """Rounded up to whole seconds."""
    memory_bytes: int = 512 << 20
    """Address space of each process."""
    processes: int = 1
    """Processes and threads together. With 1 the program can start neither."""
    output_bytes: int = 1 << 20
    """Standard output and error together."""
    tmp_bytes: int = 16 << 20
    """Size of the private `/tmp`."""
    file_bytes: int = 8 << 20
    """Size of one file."""
    open_files: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedTest:
    """One test and how it ended: passed, failed, raised, gone, unusable."""

    index: int
    outcome: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResult:
    """What a run in the sandbox showed."""

    verdict: Verdict
    tests: tuple[CheckedTest, ...]
    """In order; tests that did not start are absent."""
    detail: str
    """Why the verdict is not `passed`; empty otherwise."""
    output: str
    """The program's standard output and error, at most `output_bytes`. Shown to people, never judged."""
    seconds: float

    def to_json(self) -> dict[str, JSON]:
        """Return plain JSON."""
        return {**asdict(self), "verdict": self.verdict.value}


@dataclass(kw_only=True)
class _Jail:
    """One jail's process and the pipes that come out of it. Mutable: it collects what it reads."""

    process: subprocess.Popen[bytes]
    status_fd: int
    status: bytearray = field(default_factory=bytearray)


def run_tests(program: str, tests: Sequence[str], *, setup: str = "", limits: Limits | None = None) -> SandboxResult:
    """Run `program`, then `setup` and each of `tests` against it, and return the verdict.

    `tests` are Python statements, such as MBPP's asserts, or HumanEval's `def check(candidate): ...` followed by
    `check(name)`. `setup` belongs to the tests: the program sees neither. All tests run, unless the program ends first.
    The program is a module named `candidate`, so an `if __name__ == "__main__":` block does not run; its standard input
    is empty; hashes are not randomised. Values cross to the tests as exact plain types (see `sandbox_checker`).

    Raises `PlanError` where this machine cannot protect itself.
    """
    limits = limits or Limits()
    started = time.monotonic()
    ours, theirs = socket.socketpair()
    verdict_read, verdict_write = os.pipe()
    output_read, output_write = os.pipe()
    jails: list[_Jail] = []
    try:
        candidate = _start(
            "candidate", {"program": program}, channel=theirs.fileno(), verdict=None, output=output_write, limits=limits
        )
        jails.append(candidate)
        checker = _start(
            "checker",
            {"tests": list(tests), "setup": setup},
            channel=ours.fileno(),
            verdict=verdict_write,
            output=None,
            limits=limits,
        )
        jails.append(checker)
        for end in (ours, theirs):
            end.close()
        for descriptor in (verdict_write, output_write):
            os.close(descriptor)
        verdict_write = output_write = -1
        watch = _watch(jails, verdict_fd=verdict_read, output_fd=output_read, limits=limits)
    finally:
        for jail in jails:
            _end(jail)
        ours.close()
        theirs.close()
        for descriptor in (verdict_read, verdict_write, output_read, output_write):
            if descriptor >= 0:
                os.close(descriptor)
    for jail in jails:
        said = bytes(jail.status).decode(errors="replace")
        if said != "ready":
            raise _refusal(said or bytes(watch.output[-500:]).decode(errors="replace"))
    return _judge(watch, num_tests=len(tests), seconds=time.monotonic() - started, limits=limits)


@functools.cache
def require_sandbox() -> None:
    """Run a trivial program once, so that a plan fails before the work starts. Raises `PlanError`, see `run_tests`."""
    result = run_tests("def one():\n    return 1", ["assert one() == 1"])
    if result.verdict is not Verdict.PASSED:
        raise _refusal(f"a trivial program gave {result.verdict.value}: {result.detail}")


def _refusal(reason: str) -> PlanError:
    return PlanError(
        "this machine cannot run untrusted code safely, so it does not run",
        where="sandbox",
        expected="Linux 5.14 or newer with user, mount, process and network namespaces",
        found=reason or "the jail ended before it was ready",
        hint="outside Linux use a virtual machine; in Docker add --security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined (or --privileged); on Ubuntu 24.04 set "
        "kernel.apparmor_restrict_unprivileged_userns=0; or leave the code metrics out of the recipe",
    )


def _start(
    part: str, parcel: dict[str, Any], *, channel: int, verdict: int | None, output: int | None, limits: Limits
) -> _Jail:
    """Start a fresh interpreter that becomes a jail. The parcel goes through its standard input, never through argv."""
    if not sys.platform.startswith("linux"):
        raise _refusal(f"this is {sys.platform}")
    status_read, status_write = os.pipe()
    parcel_fd = os.memfd_create("parcel", os.MFD_CLOEXEC)
    try:
        with open(parcel_fd, "wb", closefd=False) as file:
            file.write(json.dumps(parcel).encode("ascii"))
        os.lseek(parcel_fd, 0, os.SEEK_SET)
        order = {
            "part": part,
            "folder": str(_HERE),
            "status_fd": status_write,
            "channel_fd": channel,
            "verdict_fd": verdict,
            "limits": asdict(limits),
        }
        kept = [descriptor for descriptor in (channel, verdict, status_write) if descriptor is not None]
        libraries = {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}
        process = subprocess.Popen(
            [_interpreter(), "-S", "-s", "-P", "-u", "-B", str(_HERE / "sandbox_jail.py"), json.dumps(order)],
            stdin=parcel_fd,
            stdout=subprocess.DEVNULL if output is None else output,
            stderr=subprocess.DEVNULL if output is None else output,
            pass_fds=kept,
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", **libraries},
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        os.close(status_read)
        raise
    finally:
        os.close(parcel_fd)
        os.close(status_write)
    return _Jail(process=process, status_fd=status_read)


@functools.cache
def _interpreter() -> str:
    """Return the interpreter behind a virtual environment: its library folders are what the jail shows."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@dataclass(kw_only=True)
class _Watch:
    """What came out of the two jails. Mutable while it is collected."""

    verdict: bytearray = field(default_factory=bytearray)
    output: bytearray = field(default_factory=bytearray)
    timed_out: bool = False
    flooded: bool = False


def _watch(jails: list[_Jail], *, verdict_fd: int, output_fd: int, limits: Limits) -> _Watch:
    """Read until verdict and readiness are told and their pipes closed, the time is over, or a limit is passed."""
    watch = _Watch()
    sinks = {verdict_fd: watch.verdict, output_fd: watch.output, **{jail.status_fd: jail.status for jail in jails}}
    with selectors.DefaultSelector() as selector:
        for descriptor in sinks:
            selector.register(descriptor, selectors.EVENT_READ)
        awaited = sinks.keys() - {output_fd}
        deadline, began = time.monotonic() + _START_SECONDS, False
        while awaited & selector.get_map().keys():
            if not began and all(jail.status == b"ready" for jail in jails):
                deadline, began = time.monotonic() + limits.wall_seconds, True
            left = deadline - time.monotonic()
            if left <= 0:
                watch.timed_out = True
                break
            for key, _ in selector.select(timeout=left):
                chunk = os.read(key.fd, _CHUNK_BYTES)
                if not chunk:
                    selector.unregister(key.fd)
                    continue
                sinks[key.fd] += chunk
            if len(watch.output) > limits.output_bytes or len(watch.verdict) > _VERDICT_BYTES:
                watch.flooded = True
                break
    return watch


def _end(jail: _Jail) -> None:
    """End a jail and everything in it, and wait until it is gone."""
    if jail.process.poll() is None:
        jail.process.send_signal(signal.SIGTERM)
        try:
            jail.process.wait(timeout=_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            jail.process.kill()
            jail.process.wait()
    os.close(jail.status_fd)


def _judge(watch: _Watch, *, num_tests: int, seconds: float, limits: Limits) -> SandboxResult:
    """Turn the checker's lines into a verdict. Only a complete report with every test passed is a pass."""
    events = []
    for line in bytes(watch.verdict).split(b"\n")[:-1]:
        events.append(json.loads(line))
    tests = tuple(
        CheckedTest(index=event["index"], outcome=event["outcome"], detail=event["detail"])
        for event in events
        if event["event"] == "test" and event["index"] >= 0
    )
    verdict, detail = _conclude(events, watch=watch, num_tests=num_tests, limits=limits)
    output = bytes(watch.output[: limits.output_bytes]).decode(errors="replace")
    return SandboxResult(verdict=verdict, tests=tests, detail=detail, output=output, seconds=seconds)


_BY_OUTCOME = {
    "failed": Verdict.FAILED,
    "raised": Verdict.RAISED,
    "gone": Verdict.ENDED,
    "unusable": Verdict.UNUSABLE_TEST,
}


def _conclude(events: list[dict[str, Any]], *, watch: _Watch, num_tests: int, limits: Limits) -> tuple[Verdict, str]:
    """Return the verdict and its reason. The first test that did not pass names it; an unusable test outranks all."""
    for event in events:
        if event["event"] == "not_loaded":
            return Verdict.NOT_LOADED, event["detail"]
    reported = [event for event in events if event["event"] == "test"]
    for event in reported:
        if event["outcome"] == "unusable" or (event["index"] < 0 and event["outcome"] in ("failed", "raised")):
            return Verdict.UNUSABLE_TEST, event["detail"]
    if watch.flooded:
        return Verdict.TOO_MUCH_OUTPUT, f"more than {limits.output_bytes} bytes"
    for event in reported:
        if event["outcome"] != "passed":
            return _BY_OUTCOME[event["outcome"]], f"test {event['index']}: {event['detail']}"
    if watch.timed_out:
        return Verdict.TIMEOUT, f"more than {limits.wall_seconds} s"
    if not events or events[-1]["event"] != "done" or len(reported) != num_tests + 1:
        return Verdict.ENDED, "the tests were cut short by a limit on time or memory"
    return Verdict.PASSED, ""
