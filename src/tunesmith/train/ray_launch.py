"""Run the processes of a training run as workers of Ray Train, with the same rules for what is tried again.

    with cluster(choice, num_workers=4):
        launch_on_ray(take_part, {...}, processes=4, folder=work, ...)

What lives here: `ray.train.torch.TorchTrainer` around one function, one attempt at a time. What does not: the cluster
(`tunesmith.cluster`), what a process does (`stages.training_rank`), the rules (`train.launch.judge`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.train.agents import MONITOR_SECONDS
from tunesmith.train.launch import MAX_RESTARTS, judge, lost_too_often
from tunesmith.train.messages import Mailbox, left_failure
from tunesmith.types import JSON, Log

WORKER_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo"}
"""For a cluster on loopback: else gloo asks the network for this machine's name."""


def launch_on_ray(
    work: Callable[[dict[str, JSON]], None],
    config: Mapping[str, JSON],
    *,
    processes: int,
    use_gpu: bool,
    on_loopback: bool,
    folder: Path,
    mailbox: Mailbox,
    log: Log,
    max_restarts: int = MAX_RESTARTS,
) -> int:
    """Call `work({**config, "attempt": n})` in `processes` workers of the cluster that this process has joined.

    `work` is a plain function of this package. Returns how often the workers were started again; raises as
    `train.launch.launch` does. `folder` must be the same folder on every machine of the cluster.
    """
    for attempt in range(max_restarts + 1):
        log("processes_started", {"attempt": attempt, "workers": processes})
        mailbox.steps = 0
        trainer = _trainer(
            work, {**config, "attempt": attempt}, processes, use_gpu=use_gpu, on_loopback=on_loopback, folder=folder
        )
        error = _fit(trainer, mailbox)
        if error is None:
            return attempt
        lost, reason = _words_of(error, folder, attempt=attempt)
        judge(folder, attempt=attempt, steps=mailbox.steps, lost=lost, reason=reason)
        log("processes_lost", {"attempt": attempt, "reason": reason, "steps": mailbox.steps})
        log("say", {"text": f"{reason}: all processes start again from the newest checkpoint"})
    raise lost_too_often(reason, attempts=max_restarts + 1, folder=folder)


def _trainer(
    work: Callable[[dict[str, JSON]], None],
    config: dict[str, JSON],
    processes: int,
    *,
    use_gpu: bool,
    on_loopback: bool,
    folder: Path,
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        work,
        train_loop_config=config,
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=processes, use_gpu=use_gpu),
        run_config=RunConfig(
            name="training",
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=0),  # what is worth another try is decided here
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT if on_loopback else {}},
        ),
    )


def _fit(trainer: Any, mailbox: Mailbox) -> Exception | None:
    """Run an attempt beside the mailbox; return what it failed of."""
    from ray.train import TrainingFailedError

    failed: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except TrainingFailedError as error:
            failed.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        mailbox.empty()
        time.sleep(MONITOR_SECONDS)
    mailbox.empty()
    return failed[0] if failed else None


def _words_of(error: BaseException, folder: Path, *, attempt: int) -> tuple[bool, str]:
    """Return whether a process was lost, and what is known of each. Raises what is no failure of the processes.

    A process that fails leaves its error in `folder`; one that left none was lost.
    """
    from ray.exceptions import RayError
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, WorkerGroupError):
        ranks = sorted(error.worker_failures)
        lost = [rank for rank in ranks if not left_failure(folder, attempt=attempt, rank=rank)]
        return bool(lost), ", ".join(f"rank {rank} {'was lost' if rank in lost else 'failed'}" for rank in ranks)
    if isinstance(error, ControllerError):
        error = error.controller_failure
    if isinstance(error, RayError):
        return True, f"Ray lost its controller: {str(error).splitlines()[0]}"
    raise error
