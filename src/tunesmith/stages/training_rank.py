"""One process of a training run in several: `python -m tunesmith.stages.training_rank REQUEST.json`, or a Ray worker.

What lives here: from what its launcher told a process to its place in the world, and the way its result, words and
errors take back. What does not: the training (`stages.train.train_process`), starting it (`stages.training_parallel`).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.events import plain
from tunesmith.core.stage import Context
from tunesmith.stages.train import train_process
from tunesmith.stages.training import TrainSpec
from tunesmith.stages.training_parallel import RESULT
from tunesmith.types import JSON, ignore

if TYPE_CHECKING:
    from tunesmith.train.join import Place

PARENT_SECONDS = 0.2
"""How often a process looks whether the one that started it still lives."""


def main(path: Path) -> None:
    """Take part in the run that a request describes, in the place that the environment names."""
    import torch

    from tunesmith.train.join import Place

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(json.loads(path.read_text("utf-8"))["threads"])
    take_part(path, Place.from_environment())


def take_part_on_ray(config: dict[str, JSON]) -> None:
    """Do the same as a worker of Ray Train, which has made the group and says the place."""
    from ray.train import get_context

    from tunesmith.train.join import Place

    context = get_context()
    place = Place(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        attempt=config["attempt"],
        store=None,
    )
    take_part(Path(config["request"]), place)


def take_part(path: Path, place: Place) -> None:
    """Train as one of several processes; leave an error beside the request where that fails."""
    from tunesmith.train.messages import write_failure

    try:
        _train(json.loads(path.read_text("utf-8")), path.parent, place)
    except BaseException as error:
        write_failure(path.parent, error, attempt=place.attempt, rank=place.rank)
        raise


def _train(request: dict[str, JSON], folder: Path, place: Place) -> None:
    """Train in this process's place; the first process leaves the result, and what it has to say, in `folder`."""
    from tunesmith.train.join import joined
    from tunesmith.train.messages import Voice

    spec = TrainSpec.model_validate(request["spec"])
    assert spec.parallel is not None
    with joined(place, layout=spec.parallel.kind, device=request["device"]) as (world, device):
        voice = Voice(folder) if world.leads else None
        context = Context(
            out=Path(request["out"]),
            work=Path(request["work"]),
            log=ignore if voice is None else voice.log,
            progress=silent if voice is None else voice.progress,
            workers=request["workers"],
            device=device,
        )
        context.log("processes_joined", {"attempt": place.attempt, "pids": world.gathered(os.getpid())})
        summary = train_process(
            spec,
            base=Path(request["base"]),
            examples=Path(request["examples"]),
            contract=Path(request["contract"]),
            ctx=context,
            world=world,
        )
        if world.leads:
            partial = folder / f"{RESULT}.partial"
            partial.write_text(json.dumps(plain(summary)), "utf-8")
            partial.replace(folder / RESULT)


def silent(done: float, total: float | None, note: str = "", **fields: JSON) -> None:
    """Show no progress: the first process does."""


def end_with_parent() -> None:
    """End this process when its parent ends, however that ends: an orphan would write into a run that began anew."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    os.environ.setdefault("TQDM_DISABLE", "1")
    main(Path(sys.argv[1]))
