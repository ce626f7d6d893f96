"""Start the processes of a run on this machine, watch them, and start them again where one was lost.

    launch([sys.executable, "-m", "tunesmith.stages.training_rank", str(request)], processes=4, folder=work, ...)

What lives here: torch's elastic agent (what `torchrun` runs) inside this process, the decision what is worth another
try, and the words of a process that failed. What does not: what the processes do (`stages.training_rank`).

    this process:  agent ── starts ──> rank 0 .. rank n-1, each with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
                   agent <── messages.jsonl (events and progress of rank 0), failure-<attempt>-<rank>.json

A process that dies by a signal (killed, out of memory, lost with its machine) is worth another try: all start again and
continue from the newest checkpoint. One that raised is not, unless the run had made steps since it began: the same
error would come again. What a user can act on (`TunesmithError`) is never tried again.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed.elastic.rendezvous.registry as rendezvous
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousParameters

from tunesmith.errors import TrainingError
from tunesmith.train.messages import Failure, Mailbox, first_failure
from tunesmith.types import Log

MAX_RESTARTS = 3
"""As torchrun's users mostly set it: a machine that loses processes more often needs a person."""

MONITOR_SECONDS = 0.1
TRACEBACK_LINES = 12
"""Lines of a failed process's traceback that its error shows."""


def launch(
    command: Sequence[str],
    *,
    processes: int,
    folder: Path,
    mailbox: Mailbox,
    log: Log,
    max_restarts: int = MAX_RESTARTS,
) -> int:
    """Run `command` in `processes` processes until all have ended well; return how often they were started again.

    `folder` takes their logs and errors, `mailbox` is emptied while they run. Each process finds its place in the
    environment, as under `torchrun`. Raises the error of the process that failed, as its own class where it was a
    `TunesmithError`, else as `TrainingError`.
    """
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint="127.0.0.1:0",
        run_id=uuid.uuid4().hex,
        min_nodes=1,
        max_nodes=1,
        local_addr="127.0.0.1",
    )
    spec = WorkerSpec(
        role="rank",
        local_world_size=processes,
        entrypoint=command[0],
        args=tuple(command[1:]),
        rdzv_handler=rendezvous.get_rendezvous_handler(parameters),
        max_restarts=max_restarts,
        monitor_interval=MONITOR_SECONDS,
        local_addr="127.0.0.1",
    )
    agent = _Agent(spec, folder=folder, mailbox=mailbox, log=log)
    with _own_signal_handlers(), _quiet_agent():
        try:
            result = agent.run()
        except SignalException as error:
            if error.sigval is signal.SIGINT:
                raise KeyboardInterrupt from error
            raise
        finally:
            spec.rdzv_handler.shutdown()
            mailbox.empty()
    if result.is_failed():
        raise lost_too_often(agent.reason, attempts=agent.restarts + 1, folder=folder)
    return agent.restarts


class _Agent(LocalElasticAgent):
    """torchrun's agent, which also empties the mailbox, and which gives up where another try is worth nothing."""

    def __init__(self, spec: WorkerSpec, *, folder: Path, mailbox: Mailbox, log: Log) -> None:
        logs = DefaultLogsSpecs(log_dir=str(folder / "logs"), redirects=Std.ALL)
        super().__init__(spec, logs_specs=logs)
        self.folder = folder
        self.mailbox = mailbox
        self.log = log
        self.restarts = 0
        self.reason = ""
        """Why processes were lost, the last time."""

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.restarts = worker_group.spec.max_restarts - self._remaining_restarts
        self.mailbox.steps = 0
        started: dict[int, Any] = super()._start_workers(worker_group)
        self.log("processes_started", {"attempt": self.restarts, "pids": list(started.values())})
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self.mailbox.empty()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED:
            self.mailbox.empty()
            self._judge(result.failures)
        return result

    def _judge(self, failures: Mapping[int, ProcessFailure]) -> None:
        """Log what was lost; raise where the same would happen again."""
        # The agent itself sends SIGTERM to those that a lost process left behind.
        own = {rank: failure for rank, failure in failures.items() if failure.exitcode != -signal.SIGTERM} or failures
        self.reason = ", ".join(_words_of(rank, failure) for rank, failure in sorted(own.items()))
        lost = any(failure.exitcode < 0 for failure in own.values())
        judge(self.folder, attempt=self.restarts, steps=self.mailbox.steps, lost=lost, reason=self.reason)
        self.log("processes_lost", {"attempt": self.restarts, "reason": self.reason, "steps": self.mailbox.steps})


def judge(folder: Path, *, attempt: int, steps: int, lost: bool, reason: str) -> None:
    """Raise what an attempt failed of, unless another try is worth it.

    `lost` says that a process did not end by itself, `steps` how many steps the attempt made, `reason` what is known of
    each process that ended.
    """
    said = first_failure(folder, attempt=attempt)
    if said is not None and said.error is not None:
        raise said.error
    if lost or steps:
        return
    lines = _last_lines(said)
    raise TrainingError(
        f"a process of the run failed: {lines[-1] if lines else reason}",
        where=str(folder / "logs"),
        found="\n".join([reason, *lines]),
    )


def _last_lines(failure: Failure | None) -> list[str]:
    return [] if failure is None else failure.traceback.strip().splitlines()[-TRACEBACK_LINES:]


def _words_of(rank: int, failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"rank {rank} was ended by {failure.signal_name()}"
    return f"rank {rank} ended with status {failure.exitcode}"


def lost_too_often(reason: str, *, attempts: int, folder: Path) -> TrainingError:
    """Return the error of a run whose last attempt failed for `reason`, with what its processes said."""
    lines = _last_lines(first_failure(folder, attempt=attempts - 1))
    return TrainingError(
        f"processes of the run were lost {attempts} times",
        where=str(folder / "logs"),
        found="\n".join([reason, *lines]),
        hint="a process ended by SIGKILL is often out of memory; the next run continues from the newest checkpoint",
    )


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers that the agent replaces."""
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {name: signal.getsignal(name) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            if signal.getsignal(name) != handler:
                signal.signal(name, handler)


@contextlib.contextmanager
def _quiet_agent() -> Iterator[None]:
    """Keep the agent's own lines out of the terminal: what matters of them are events of the run."""
    logger = logging.getLogger("torch.distributed.elastic")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
