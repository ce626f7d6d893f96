"""Run the train stage by hand on a world of `training_world`: `train_in(root, spec)`.

As a program, `python training_process.py ROOT SPEC_JSON STEP` sends itself SIGKILL while it reports STEP: nothing is
flushed, closed or cleaned up. With a fourth argument it does so in the thread that writes STEP's checkpoint, which is
written and not complete yet.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
from training_world import artifact

from tunesmith.core.stage import Context
from tunesmith.stages.train import TrainInputs, train
from tunesmith.stages.training import TrainSpec
from tunesmith.train import checkpoint
from tunesmith.types import LOCAL_ENGINE


def train_in(root: Path, spec: dict, *, log=lambda name, fields: None, engine=LOCAL_ENGINE) -> dict:
    contract = artifact(root / "contract", "contract")
    inputs = TrainInputs(
        base=artifact(root / "base", "base"),
        contract=contract,
        examples=artifact(root / "examples", "examples", inputs={"contract": contract.fingerprint}),
    )
    for folder in (root / "out", root / "work"):
        folder.mkdir(exist_ok=True)
    context = Context(
        out=root / "out",
        work=root / "work",
        log=log,
        progress=lambda *_, **__: None,
        workers=1,
        device="cpu",
        engine=engine,
    )
    return train(inputs, TrainSpec.model_validate(spec), context)


def kill_at(step: int):
    def log(name, fields):
        if name == "train_step" and fields["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return log


def kill_in_the_checkpoint_of(step: int) -> None:
    honest = checkpoint._commit

    def commit(partial, final, **keep):
        if final.name == f"checkpoint-{step:08d}":
            os.kill(os.getpid(), signal.SIGKILL)
        honest(partial, final, **keep)

    checkpoint._commit = commit


if __name__ == "__main__":
    if len(sys.argv) > 4:
        kill_in_the_checkpoint_of(int(sys.argv[3]))
        train_in(Path(sys.argv[1]), json.loads(sys.argv[2]))
    train_in(Path(sys.argv[1]), json.loads(sys.argv[2]), log=kill_at(int(sys.argv[3])))
