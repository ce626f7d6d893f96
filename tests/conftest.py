"""What holds for every test: no network (see `offline/sitecustomize.py`), no deadline for properties."""

import atexit
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

_OFFLINE = Path(__file__).parent / "offline"
_ATTEMPTS = Path(tempfile.mkdtemp(prefix="tunesmith-tests-")) / "network.txt"
atexit.register(shutil.rmtree, _ATTEMPTS.parent, ignore_errors=True)

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1"})
os.environ["TUNESMITH_NETWORK_ATTEMPTS"] = str(_ATTEMPTS)
os.environ["PYTHONPATH"] = os.pathsep.join([str(_OFFLINE), *filter(None, [os.environ.get("PYTHONPATH")])])

_spec = importlib.util.spec_from_file_location("tunesmith_offline", _OFFLINE / "sitecustomize.py")
assert _spec is not None
assert _spec.loader is not None
_spec.loader.exec_module(importlib.util.module_from_spec(_spec))

# A property that takes long on a busy machine is not wrong: speed is measured in benchmarks/, never asserted here.
settings.register_profile("tunesmith", deadline=None)
settings.load_profile("tunesmith")


@pytest.fixture
def network_attempts() -> Path:
    """The file that lists attempts to reach the network; a test that makes them on purpose removes it."""
    return _ATTEMPTS


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """Fail a test in which anything, a child process included, tried to reach the network, even if it caught the error."""
    yield
    if _ATTEMPTS.exists():
        text = _ATTEMPTS.read_text(encoding="utf-8")
        _ATTEMPTS.unlink()
        pytest.fail(f"the network was tried:\n{text}")
