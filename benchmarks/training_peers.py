"""The trainers that `benchmarks/training.py` measures beside this engine, each in a virtual environment of its own.

    python = peer_python("trl", folder)       # None where it cannot be installed

What lives here: versions and installation. What does not: what they train (`training_worker.py`).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
TRL, LLAMA_FACTORY = "trl==1.16.0", "llamafactory==0.9.5"
PEERS = {"trainer": "trl", "trl": "trl", "llama-factory": "llama-factory"}
"""The virtual environment that each kind of peer runs in."""


def peer_python(name: str, folder: Path) -> Path | None:
    """Return the Python of a peer's environment, made where it is not there yet; `None` where it cannot be made."""
    python, ready = folder / name / "bin" / "python", folder / name / "ready"
    if ready.is_file():
        return python
    import torch

    pinned = CONSTRAINTS.read_text("utf-8").splitlines()
    exact = f"torch=={torch.__version__.partition('+')[0]}"
    libraries = [line for line in pinned if line.partition("==")[0] in ("peft", "transformers", "accelerate")]
    pip = [str(python), "-m", "pip", "-qq"]
    commands = [[sys.executable, "-m", "venv", str(folder / name)], [*pip, "install", exact]]
    if name == "trl":
        commands += [[*pip, "install", *libraries, TRL, "datasets"]]
    else:
        # Text needs neither of the two, which do not load beside this torch; the second is imported all the same.
        commands += [
            [*pip, "install", LLAMA_FACTORY],
            [*pip, "install", "--no-deps", exact],
            [*pip, "uninstall", "--yes", "torchvision", "torchaudio"],
        ]
    try:
        for command in commands:
            subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{name} cannot be installed, so it is left out: {error}", flush=True)
        return None
    if name == "llama-factory":
        packages = next((folder / name / "lib").glob("python*")) / "site-packages"
        (packages / "torchaudio").mkdir(exist_ok=True)
        (packages / "torchaudio" / "__init__.py").touch()
    ready.touch()
    return python
