"""A second run of real stages runs nothing, loads nothing heavy, and shows the same figures."""

import json
import os
import subprocess
import sys

import pytest

COMMAND = """
import sys
sys.argv = ['tunesmith', *sys.argv[1:]]
from tunesmith.cli.main import main
try:
    main()
except SystemExit as end:
    status = end.code
heavy = [name for name in ('torch', 'transformers', 'daft', 'pyarrow', 'numpy', 'matplotlib') if name in sys.modules]
print('STATUS', status, 'HEAVY', heavy)
"""


@pytest.fixture
def tunesmith(tmp_path):
    def call(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=True,
            env={**os.environ, "COLUMNS": "200"},
        )
        return done.stdout

    return call


def test_a_cached_run_of_real_stages_loads_nothing_heavy(tunesmith, tmp_path):
    rows = [
        {
            "instruction": f"What is the capital number {n} of the land of {n * 7}?",
            "output": f"It is the town {n * 13}.",
        }
        for n in range(200)
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(
        "ingest: {sources: [{path: x.jsonl, license: Apache-2.0}]}\ncurate: {}\nsplit: {}\n"
    )
    assert "STATUS 0" in tunesmith("run", "r.yaml")
    first = json.loads(tunesmith("show", "--json").split("STATUS")[0])
    assert [stage["status"] for stage in first["stages"].values()] == ["done"] * 3
    assert "STATUS 0 HEAVY []" in tunesmith("run", "r.yaml")
    assert "STATUS 0 HEAVY []" in tunesmith("plan", "r.yaml")
    second = json.loads(tunesmith("show", "--json").split("STATUS")[0])
    for name, stage in second["stages"].items():
        assert stage == {**first["stages"][name], "status": "cached"}
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write("\n")
    plan = tunesmith("plan", "r.yaml")
    assert "content changed" in plan
    assert "3 of 3 stages to run" in plan
