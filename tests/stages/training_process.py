"""Run the train stage by hand on a world of `training_world`: `train_in(root, spec)`.

As a program, `python training_process.py ROOT SPEC_JSON STEP` sends itself SIGKILL while it reports STEP: nothing is
flushed, closed or cleaned up.
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


def train_in(root: Path, spec: dict, *, log=lambda name, fields: None) -> dict:
    contract = artifact(root / "contract", "contract")
    inputs = TrainInputs(
        base=artifact(root / "base", "base"),
        contract=contract,
        examples=artifact(root / "examples", "examples", inputs={"contract": contract.fingerprint}),
    )
    for folder in (root / "out", root / "work"):
        folder.mkdir(exist_ok=True)
    context = Context(
        out=root / "out", work=root / "work", log=log, progress=lambda *_, **__: None, workers=1, device="cpu"
    )
    return train(inputs, TrainSpec.model_validate(spec), context)


def kill_at(step: int):
    def log(name, fields):
        if name == "train_step" and fields["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return log


if __name__ == "__main__":
    train_in(Path(sys.argv[1]), json.loads(sys.argv[2]), log=kill_at(int(sys.argv[3])))
