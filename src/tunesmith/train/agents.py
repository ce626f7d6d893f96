"""One machine's part of a run: torch's elastic agent (what `torchrun` runs), inside this process.

    agent = SomeAgent(command, meeting=meeting, folder=work, patience=600)
    run_agent(agent)

What lives here: starting and watching the processes of one machine, and their ranks: those of the machine that began
the run come first, so that the process that writes stands on it. What does not: the decision what is worth another try
(`train.launch`, on the machine that began), what other machines do (`train.follow`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch._C._distributed_c10d import Store
from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from tunesmith.train.join import ATTEMPT
from tunesmith.train.meeting import Meeting

MONITOR_SECONDS = 0.1
ALWAYS = 1_000_000
"""Restarts that torch's agent allows: the machine that began the run counts them."""
_PLACE = "attempt-and-first-machine"
_OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""torch's rendezvous would open a second store for the processes, which listens on every interface."""


class MachineAgent(LocalElasticAgent):
    """torch's agent, with the attempts and ranks of all machines said by the one that began the run."""

    def __init__(self, command: Sequence[str], *, meeting: Meeting, folder: Path, patience: float) -> None:
        self.rendezvous_handler = meeting.rendezvous(patience=patience)
        spec = WorkerSpec(
            role="rank",
            local_world_size=meeting.invitation.processes,
            entrypoint=command[0],
            args=tuple(command[1:]),
            rdzv_handler=self.rendezvous_handler,
            max_restarts=ALWAYS,
            monitor_interval=MONITOR_SECONDS,
            local_addr=meeting.own_address,
            master_addr=meeting.host,
            master_port=meeting.port,
        )
        super().__init__(spec, logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs"), redirects=Std.ALL))
        self.meeting = meeting
        self.attempt = -1
        """How often the processes were started again."""

    @property
    def num_others(self) -> int:
        """How many machines beside this one take part."""
        return self.meeting.invitation.machines - 1

    def tell(self, store: Store, group_rank: int) -> None:
        """Tell the other machines the attempt, and which of them began the run."""
        store.set(_PLACE, json.dumps([self.attempt, group_rank]))

    def told(self, store: Store) -> int:
        """Set `attempt` to what the machine that began says, and return its group rank."""
        self.attempt, first = json.loads(store.get(_PLACE))
        return int(first)

    def report(self, failures: Mapping[int, ProcessFailure]) -> None:
        """Tell the machine that began how processes of this one ended."""
        self.meeting.store.set(self._report_of(self.get_worker_group().group_rank), json.dumps(ends_of(failures)))

    def reports(self) -> list[tuple[bool, str]]:
        """Return how processes of other machines ended in this attempt, as `ends_of` says it."""
        store, own = self.meeting.store, self.get_worker_group().group_rank
        keys = [self._report_of(group_rank) for group_rank in range(self.num_others + 1) if group_rank != own]
        lines = [json.loads(store.get(key)) for key in keys if store.check([key])]
        return [(bool(lost), str(words)) for lost, words in lines]

    def _report_of(self, group_rank: int | None) -> str:
        return f"ended/{self.attempt}/{group_rank}"

    @abstractmethod
    def agree(self, store: Store, group_rank: int) -> int:
        """Set `attempt`, and return the group rank of the machine that began; `store` is new in each attempt."""

    def _assign_worker_ranks(
        self, store: Store, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        first = self.agree(store, group_rank)
        os.environ[ATTEMPT] = str(self.attempt)
        own = {first: 0, 0: first}.get(group_rank, group_rank)
        workers: list[Worker] = super()._assign_worker_ranks(store, own, group_world_size, spec)
        return workers


def ends_of(failures: Mapping[int, ProcessFailure]) -> tuple[bool, str]:
    """Return whether a process did not end by itself, and how each did that an agent did not end."""
    # The agent itself sends SIGTERM to those that a lost process left behind.
    own = {rank: failure for rank, failure in failures.items() if failure.exitcode != -signal.SIGTERM} or failures
    lost = any(failure.exitcode < 0 for failure in own.values())
    return lost, ", ".join(_words_of(rank, failure) for rank, failure in sorted(own.items()))


def _words_of(rank: int, failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"rank {rank} was ended by {failure.signal_name()}"
    return f"rank {rank} ended with status {failure.exitcode}"


def run_agent(agent: MachineAgent) -> RunResult | None:
    """Run a machine's processes until they have ended; `None` where the rendezvous ended the agent.

    Raises `RendezvousError` and `DistError` where the store is gone, or the other machines do not come.
    """
    with _own_signal_handlers(), _own_environment(), _quiet_agent():
        try:
            result: RunResult | None = agent.run()
        except SignalException as error:
            if error.sigval is signal.SIGINT:
                raise KeyboardInterrupt from error
            raise
    return result


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """Set what the agent and its processes read, and restore it."""
    names = (ATTEMPT, *_OWN_STORE)
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(_OWN_STORE)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


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
