"""Start the processes of a run, watch them, and start them again where one was lost.

    launch([sys.executable, "-m", "tunesmith.stages.training_rank", str(request)], processes=4, folder=work, ...)

What lives here: the machine that begins a run, the decision what is worth another try, and the words of a process that
failed. What does not: watching one machine's processes (`train.agents`), the other machines (`train.follow`), what the
processes do (`stages.training_rank`).

    this process:  agent ── starts ──> rank 0 .. rank n-1, each with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
                   agent <── messages.jsonl (events and progress of rank 0), failure-<attempt>-<rank>.json
                   agent <── reports of other machines' agents, in the store where they met

A process that dies by a signal (killed, out of memory, lost with its machine) is worth another try: all start again and
continue from the newest checkpoint. One that raised is not, unless the run had made steps since it began: the same
error would come again. What a user can act on (`TunesmithError`) is never tried again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import Store
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousTimeoutError

from tunesmith.errors import TrainingError
from tunesmith.train.agents import MONITOR_SECONDS, MachineAgent, ends_of, run_agent
from tunesmith.train.meeting import Invitation, Meeting, opened
from tunesmith.train.messages import Failure, Mailbox, first_failure
from tunesmith.types import Log

MAX_RESTARTS = 3
"""As torchrun's users mostly set it: a machine that loses processes more often needs a person."""

PATIENCE_SECONDS = 1_800.0
"""How long a run waits for its machines to come, or to come again."""

REPORT_SECONDS = 10.0
"""How long an error here waits for the other machines: it may be the echo of a process that was lost there."""

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
    machines: int = 1,
    address: str | None = None,
    request: str = "",
    code: Sequence[str] = (),
    patience: float = PATIENCE_SECONDS,
) -> int:
    """Run `command` in `processes` processes until all have ended well; return how often they were started again.

    `folder` takes their logs and errors, `mailbox` is emptied while they run. Each process finds its place in the
    environment, as under `torchrun`. With several `machines` each runs an equal share of the processes: the others call
    `train.follow.follow` with `address`, `HOST:PORT` of this machine, and read `request` and `code` there.
    Raises the error of the process that failed, as its own class where it was a `TunesmithError`, else as
    `TrainingError`.
    """
    invitation = Invitation(
        run=uuid.uuid4().hex, machines=machines, processes=processes // machines, request=request, code=tuple(code)
    )
    with opened(invitation, address=address) as meeting:
        agent = _Agent(
            command,
            meeting=meeting,
            folder=folder,
            mailbox=mailbox,
            log=log,
            max_restarts=max_restarts,
            patience=patience,
        )
        try:
            run_agent(agent)
        except RendezvousTimeoutError as error:
            raise _missing_machines(meeting, patience) from error
        finally:
            agent.end()
            mailbox.empty()
    return agent.attempt


def _missing_machines(meeting: Meeting, patience: float) -> TrainingError:
    count = meeting.invitation.machines
    return TrainingError(
        "the other machines of the run did not come",
        where="train.parallel.machines",
        expected=f"{count} machines at {meeting.host}:{meeting.port} within {patience / 60:,.0f} minutes",
        hint=f"run `tunesmith join {meeting.host}:{meeting.port}` on each of the other {count - 1}",
    )


class _Agent(MachineAgent):
    """The agent of the machine that began: it empties the mailbox, and gives up where another try is worth nothing."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        meeting: Meeting,
        folder: Path,
        mailbox: Mailbox,
        log: Log,
        max_restarts: int,
        patience: float,
    ) -> None:
        super().__init__(command, meeting=meeting, folder=folder, patience=patience)
        self.folder = folder
        self.mailbox = mailbox
        self.log = log
        self.max_restarts = max_restarts
        self._judged = -1
        """The last attempt whose end was judged."""

    def end(self) -> None:
        """Turn away machines that would still join."""
        self.rendezvous_handler.shutdown()

    def agree(self, store: Store, group_rank: int) -> int:
        """Begin the next attempt, and tell the other machines."""
        self.attempt += 1
        self.tell(store, group_rank)
        return group_rank

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        invitation = self.meeting.invitation
        if invitation.machines > 1:
            text = f"{invitation.machines} machines meet at {self.meeting.host}:{self.meeting.port}"
            self.log("say", {"text": text})
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.mailbox.steps = 0
        started: dict[int, Any] = super()._start_workers(worker_group)
        self.log("processes_started", {"attempt": self.attempt, "pids": list(started.values())})
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self.mailbox.empty()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED:
            self._judge(result.failures)
        return result

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        if self._judged < self.attempt:  # The processes here are well: another machine wants to begin again.
            self._judge({})
        super()._restart_workers(worker_group)

    def _judge(self, failures: Mapping[int, ProcessFailure]) -> None:
        """Log what was lost; raise where the same would happen again, or where it happened too often."""
        self.mailbox.empty()
        self._judged = self.attempt
        lost, reason = ends_of(failures)
        deadline = time.monotonic() + (0 if lost or self.mailbox.steps else REPORT_SECONDS)
        reports = self.reports()
        while not any(there for there, _ in reports) and len(reports) < self.num_others and time.monotonic() < deadline:
            time.sleep(MONITOR_SECONDS)
            reports = self.reports()
        lost = lost or any(there for there, _ in reports) or not (failures or reports)
        reason = ", ".join(filter(None, [reason, *(words for _, words in reports)])) or "a machine was lost"
        judge(self.folder, attempt=self.attempt, steps=self.mailbox.steps, lost=lost, reason=reason)
        if self.attempt >= self.max_restarts:
            raise lost_too_often(reason, attempts=self.attempt + 1, folder=self.folder)
        self.log("processes_lost", {"attempt": self.attempt, "reason": reason, "steps": self.mailbox.steps})
        self.log("say", {"text": f"{reason}: all processes start again from the newest checkpoint"})


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


def lost_too_often(reason: str, *, attempts: int, folder: Path) -> TrainingError:
    """Return the error of a run whose last attempt failed for `reason`, with what its processes said."""
    lines = _last_lines(first_failure(folder, attempt=attempts - 1))
    return TrainingError(
        f"processes of the run were lost {attempts} times",
        where=str(folder / "logs"),
        found="\n".join([reason, *lines]),
        hint="a process ended by SIGKILL is often out of memory; the next run continues from the newest checkpoint",
    )
