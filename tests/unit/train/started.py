"""Programs that launchers start in tests, and waiting for what they do."""

import os
import time
from pathlib import Path

PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
from tunesmith.errors import TrainingError
from tunesmith.stages.training_rank import end_with_parent
from tunesmith.train.messages import Voice, write_failure
folder, rank, attempt = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["TUNESMITH_ATTEMPT"])
"""

FAIL = """
try:
    if rank == {rank}: raise {error}
    time.sleep(60)
except BaseException as error:
    write_failure(folder, error, attempt=attempt, rank=rank)
    raise
"""


def events(said, name):
    return [fields for event, fields in said if event == name]


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until(holds, *, seconds=120):
    for _ in range(seconds * 10):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError(
        f"it did not come true in {seconds} s, with OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}"
    )
