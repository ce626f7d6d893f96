"""Take part in a run that another machine began.

    follow([sys.executable, "-m", "tunesmith.stages.training_rank", request], meeting=meeting, folder=folder, log=log)

What lives here: the agent of a machine that follows. What does not: finding the run (`train.meeting`), the decision
what is worth another try: the machine that began takes it (`train.launch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch._C._distributed_c10d import Store
from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError

from tunesmith.errors import TrainingError
from tunesmith.train.agents import MachineAgent, ends_of, run_agent
from tunesmith.train.meeting import Meeting
from tunesmith.types import Log

PATIENCE_SECONDS = 1_800.0


def follow(
    command: Sequence[str], *, meeting: Meeting, folder: Path, log: Log, patience: float = PATIENCE_SECONDS
) -> None:
    """Run this machine's share of the processes until the run has ended well.

    `folder` takes their logs. Raises `TrainingError` where the run ended otherwise: the machine that began says why.
    """
    agent = _Follower(command, meeting=meeting, folder=folder, log=log, patience=patience)
    try:
        result = run_agent(agent)
    except RendezvousTimeoutError as error:
        raise TrainingError(
            "the other machines of the run did not come",
            where=f"{meeting.host}:{meeting.port}",
            expected=f"{meeting.invitation.machines} machines within {patience / 60:,.0f} minutes",
        ) from error
    except (RendezvousError, DistError) as error:
        raise _ended(meeting) from error
    finally:
        agent.end()
    if result is None or result.is_failed():
        raise _ended(meeting)


def _ended(meeting: Meeting) -> TrainingError:
    return TrainingError(
        "the run that this machine took part in ended before its last step",
        where=f"{meeting.host}:{meeting.port}",
        hint="the machine that began the run says why",
    )


class _Follower(MachineAgent):
    """The agent of a machine that follows: it reports what was lost here, and begins again when all do."""

    def __init__(self, command: Sequence[str], *, meeting: Meeting, folder: Path, log: Log, patience: float) -> None:
        super().__init__(command, meeting=meeting, folder=folder, patience=patience)
        self.log = log

    def end(self) -> None:
        """Stop telling the others that this machine lives, and let them go on: another may take its place.

        The thread that does so is joined here: one that still spoke to the store when Python ends would abort it, and
        torch's own does not join where that thread holds the last reference.
        """
        self.rendezvous_handler._stop_heartbeats()

    def agree(self, store: Store, group_rank: int) -> int:
        """Take the attempt from the machine that began."""
        return self.told(store)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        started: dict[int, int] = super()._start_workers(worker_group)
        ranks = [worker.global_rank for worker in worker_group.workers]
        self.log("processes_started", {"attempt": self.attempt, "ranks": ranks})
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED:
            self.report(result.failures)
            self.log("processes_lost", {"attempt": self.attempt, "reason": ends_of(result.failures)[1]})
        return result
