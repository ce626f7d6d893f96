"""Real rows for parity tests: data of other people, which lies beside the checkout and not in it."""

import json
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "../shared/data"


def rows_of(name, number):
    """The first rows of a file; the test is skipped where the data is not there."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()[:number]]
