"""Several training runs by one set of processes, for tests: starting processes costs more than the runs.

    python training_ranks.py ROOT JOBS.json       one rank, under the launcher's environment
    ranks_do(ROOT, jobs, processes=2)             start them; each job is a folder of ROOT with its out/ and work/

A job is `{name, spec, checkpoint}`: train under `spec`, whose `parallel.kind` says how the processes share the work. A job
that raises a `TrainingError` leaves it in `error.txt`. `checkpoint` names a checkpoint folder to continue from.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from tunesmith.core.stage import Context
from tunesmith.errors import TrainingError
from tunesmith.stages.train import train_process
from tunesmith.stages.training import TrainSpec
from tunesmith.train.join import Place, joined
from tunesmith.train.launch import launch
from tunesmith.train.messages import Mailbox
from tunesmith.types import ignore


def ranks_do(root: Path, jobs: list[dict], *, processes: int) -> None:
    folder = root / f"ranks-{processes}"
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps(jobs))
    launch(
        [sys.executable, __file__, str(root), str(folder / "jobs.json")],
        processes=processes,
        folder=folder,
        mailbox=Mailbox(folder, log=ignore, progress=lambda *_, **__: None),
        log=ignore,
        max_restarts=0,
    )


def prepare(root: Path, job: dict) -> tuple[Path, Path]:
    out, work = root / job["name"] / "out", root / job["name"] / "work"
    for folder in (out, work):
        folder.mkdir(parents=True)
    if source := job.get("checkpoint"):
        checkpoint = root / source
        shutil.copytree(checkpoint, work / checkpoint.name)
        for kept in ("metrics.jsonl", "choices.json"):
            shutil.copy(checkpoint.parent / kept, work / kept)
    return out, work


def main(root: Path, jobs: list[dict]) -> None:
    with joined(Place.from_environment(), layout="replicated", device="cpu") as (world, device):
        for job in jobs:
            if world.leads:
                prepare(root, job)
            world.wait()
            spec = TrainSpec.model_validate(job["spec"])
            out, work = root / job["name"] / "out", root / job["name"] / "work"
            context = Context(out=out, work=work, log=ignore, progress=lambda *_, **__: None, workers=1, device=device)
            try:
                summary = train_process(
                    spec,
                    base=root / "base" / "data",
                    examples=root / "examples" / "data",
                    contract=root / "contract" / "data",
                    ctx=context,
                    world=replace(world, layout=spec.parallel.kind),
                )
            except TrainingError as error:
                summary = {}
                (root / job["name"] / f"error-{world.rank}.txt").write_text(str(error))
            if world.leads:
                (root / job["name"] / "summary.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
