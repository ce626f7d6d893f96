"""The command line: exit statuses, JSON for programs, five lines for people, and nothing that loads torch."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tunesmith.api
from tunesmith.cli import main as main_module
from tunesmith.cli.main import BUG, INTERRUPTED, OK, USER_ERROR, error_text, make_app
from tunesmith.core.store import Store
from tunesmith.errors import RecipeError

_spec = importlib.util.spec_from_file_location("core_toys", Path(__file__).parents[1] / "core" / "conftest.py")
core_toys = importlib.util.module_from_spec(_spec)
sys.modules["core_toys"] = core_toys
_spec.loader.exec_module(core_toys)
toys = core_toys.toys
recipe_file = core_toys.recipe_file
store = core_toys.store


@pytest.fixture
def command(toys, recipe_file, monkeypatch, tmp_path):
    """The command over the toy stages, in the folder of the toy recipe."""
    monkeypatch.setattr(tunesmith.api, "stages", lambda: toys)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNESMITH_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments, status=OK):
        result = CliRunner().invoke(make_app(), list(arguments))
        assert result.exit_code == status, (result.output, result.exception)
        return result

    return call


def test_the_figures_for_programs_are_exactly_these(command):
    command("run", "toy.yaml")
    shown = json.loads(command("show", "--json").stdout)
    assert set(shown) == {"run", "recipe", "stages"}
    assert shown["recipe"] == "toy"
    assert list(shown["stages"]) == ["number", "double", "add"]
    double = shown["stages"]["double"]
    assert set(double) == {"stage", "status", "fingerprint", "artifact", "seconds", "summary"}
    assert double["summary"] == {"value": 6.0, "tries": 1}
    assert (Path(double["artifact"]) / "data" / "number.txt").read_text() == "6.0"
    assert json.loads(command("show", "toy", "--json").stdout) == shown
    assert list(json.loads(command("show", shown["run"], "double", "--json").stdout)["stages"]) == ["double"]
    assert list(json.loads(command("show", "double", "--json").stdout)["stages"]) == ["double"]


def test_a_cached_stage_shows_the_same_figures(command):
    command("run", "toy.yaml")
    first = json.loads(command("show", "--json").stdout)
    command("run", "toy.yaml")
    second = json.loads(command("show", "--json").stdout)
    assert {stage["status"] for stage in second["stages"].values()} == {"cached"}
    for name in first["stages"]:
        for key in ("stage", "fingerprint", "artifact", "seconds", "summary"):
            assert first["stages"][name][key] == second["stages"][name][key]


def test_a_failed_run_can_be_shown(command):
    result = CliRunner().invoke(make_app(), ["run", "toy.yaml", "--set", "double.fail=error"])
    assert isinstance(result.exception, ValueError)
    stages = json.loads(command("show", "--json").stdout)["stages"]
    assert [stage["status"] for stage in stages.values()] == ["done", "failed", "waiting"]
    assert stages["double"]["artifact"] is None
    assert "this toy fails" in command("show").stdout


def test_people_see_a_table_of_stages_and_one_stage_in_full(command):
    out = command("run", "toy.yaml").stdout
    assert re.search(r"double\s+done", out)
    assert re.search(r"tries\s+1", command("show", "double").stdout)
    assert "cached" in command("run", "toy.yaml").stdout


def test_a_plan_says_what_runs_and_why(command):
    assert "never run" in command("plan", "toy.yaml").stdout
    command("run", "toy.yaml")
    assert "nothing to run" in command("plan", "toy.yaml").stdout
    out = command("plan", "toy.yaml", "--set", "double.rate=1e-4").stdout
    assert "rate 0.001 -> 0.0001" in out
    assert "2 of 3 stages to run" in out
    assert "adds one number only" in command("plan", "toy.yaml", "--set", "add.right=null").stdout


def test_a_users_error_is_five_lines_at_most_and_status_2(command):
    for arguments in (
        ["run", "none.yaml"],
        ["plan", "toy.yaml", "--set", "double.rat=1"],
        ["plan", "toy.yaml", "--set", "add.forbid=true"],
        ["run", "toy.yaml", "--only", "double"],
        ["run", "toy.yaml", "--device", "tpu"],
        ["show", "nothing"],
        ["explain", "nothing"],
        ["diff", "a", "b"],
    ):
        result = command(*arguments, status=USER_ERROR)
        assert result.stderr.startswith("error: "), arguments
        assert 1 <= len(result.stderr.strip().splitlines()) <= 5, result.stderr
        assert "Traceback" not in result.output
    for usage in (["run", "toy.yaml", "--nope"], ["nope"], ["run"]):
        command(*usage, status=USER_ERROR)


def test_a_long_error_is_folded_into_five_lines():
    error = RecipeError("one\ntwo\nthree", where="w", expected="e", found="f", hint="h")
    assert error_text(error).splitlines()[0] == "error: one two three"
    assert len(error_text(error).splitlines()) == 5


def test_an_interrupt_says_that_finished_stages_are_kept(command):
    result = command("run", "toy.yaml", "--set", "double.fail=interrupt", status=INTERRUPTED)
    assert "finished stages are kept" in result.stderr


def test_a_terminated_run_ends_as_an_interrupted_one(command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tunesmith", "run", "toy.yaml", "--set", "double.fail=term"])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            main_module.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert caught.value.code == INTERRUPTED
    assert json.loads(command("show", "--json").stdout)["stages"]["double"]["status"] == "interrupted"


def test_a_bug_shows_its_traceback_and_where_the_events_are(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tunesmith", "run", "toy.yaml", "--set", "double.fail=error"])
    with pytest.raises(SystemExit) as caught:
        main_module.main()
    assert caught.value.code == BUG
    shown = capsys.readouterr().err
    assert "ValueError: this toy fails" in shown
    path = re.search(r"events of this stage: (\S+)", shown).group(1)
    assert "stage_failed" in Path(path).read_text()


def test_a_diff_shows_settings_then_figures(command):
    command("run", "toy.yaml")
    first = json.loads(command("show", "--json").stdout)["run"]
    command("run", "toy.yaml", "--set", "number.value=5", "--set", "double.note=x")
    second = json.loads(command("show", "--json").stdout)["run"]
    lines = [re.split(r"\s{2,}", line.strip()) for line in command("diff", first, second).stdout.splitlines()]
    assert ["number", "setting", "value", "3", "5"] in lines
    assert ["number", "figure", "value", "3", "5"] in lines
    assert ["double", "setting", "note", "x"] in lines
    assert ["add", "figure", "value", "9", "15"] in lines
    assert "no difference" in command("diff", first, first).stdout


def test_a_diff_takes_recipe_files(command, tmp_path):
    (tmp_path / "other.yaml").write_text("number: {value: 3}\ndouble: {rate: 2e-3}\n")
    out = command("diff", "toy.yaml", "other.yaml").stdout
    assert re.search(r"double\s+setting\s+rate\s+0.001\s+0.002", out)
    assert re.search(r"add\s+only in A", out)
    command("run", "toy.yaml")
    assert "no difference" in command("diff", "toy", "toy.yaml").stdout


def test_gc_lists_and_deletes_only_when_told(command, tmp_path):
    command("run", "toy.yaml")
    assert "nothing to delete" in command("gc").stdout
    for run in (tmp_path / ".tunesmith" / "runs").iterdir():
        for file in [*run.rglob("*")]:
            file.unlink()
        run.rmdir()
    assert "tunesmith gc --yes" in command("gc").stdout
    assert len(list(Store(tmp_path / ".tunesmith").all())) == 3
    assert "freed" in command("gc", "--yes").stdout
    assert not list(Store(tmp_path / ".tunesmith").all())


def test_a_store_is_named_by_option_or_environment(command, tmp_path, monkeypatch):
    command("run", "toy.yaml", "--store", "elsewhere")
    assert (tmp_path / "elsewhere" / "runs").is_dir()
    monkeypatch.setenv("TUNESMITH_STORE", str(tmp_path / "elsewhere"))
    assert json.loads(command("show", "--json").stdout)["recipe"] == "toy"
    assert not (tmp_path / ".tunesmith").exists()


# ---------------------------------------------------------------------------------------------------------- explain


def test_a_key_explains_itself(command):
    out = command("explain", "double.rate").stdout
    assert "A rate." in out
    assert "number > 0" in out
    assert "0.0002" in out
    out = command("explain", "double.how.factor").stdout
    assert "Multiplier." in out
    assert "whole number" in out
    assert "table that makes number" in command("explain", "double.number").stdout
    assert "rate" in command("explain", "double.rat", status=USER_ERROR).stderr
    assert "Which way." in command("explain", "double").stdout
    assert "for each copy" in command("explain", "double.each").stdout
    assert "no key 'seeds'" in command("explain", "double.seeds", status=USER_ERROR).stderr  # It has no seed.


def test_a_stage_explains_what_made_it_and_why_it_would_rerun(command, recipe_file):
    command("run", "toy.yaml")
    out = command("explain", "double").stdout
    assert "double version 1" in out
    assert "nothing changed" in out
    recipe_file.write_text(recipe_file.read_text().replace("1e-3", "5e-3"))
    assert "rate 0.001 -> 0.005" in command("explain", "double").stdout
    recipe_file.unlink()
    assert "nothing changed" in command("explain", "double").stdout


def test_a_row_is_followed_through_every_table(command, toys, monkeypatch):
    def write(inputs, spec, ctx):
        rows = [
            {
                "row_id": "aaaaaaaa11111111",
                "action": "drop",
                "matched_id": "bbbbbbbb22222222",
                "source": "faq",
                "line": 3,
            },
            {"row_id": "bbbbbbbb22222222", "action": "keep", "matched_id": None, "source": "faq", "line": 4},
        ]
        pq.write_table(pa.Table.from_pylist(rows), ctx.out / "lineage.parquet")
        table = pa.table({"id": ["bbbbbbbb22222222"], "ids": [list(range(30))], "path": ["faq.jsonl"], "line": [4]})
        pq.write_table(table, ctx.out / "rows.parquet")
        return {}

    import dataclasses

    changed = {**toys, "number": dataclasses.replace(toys["number"], function=write)}
    monkeypatch.setattr(tunesmith.api, "stages", lambda: changed)
    command("run", "toy.yaml", "--only", "number")
    by_id = command("explain", "aaaaaaaa11111111").stdout
    assert re.search(r"action\s+drop", by_id)
    assert "rows.parquet" not in by_id
    kept = command("explain", "bbbbbbbb22222222").stdout
    assert kept.count("lineage.parquet") == 2  # its own line, and that of the row dropped as its duplicate
    assert "30 values" in kept
    assert command("explain", "faq:4").stdout.count("parquet") == kept.count("parquet")
    assert "rows.parquet" in command("explain", "faq.jsonl:4").stdout
    command("explain", "faq:99", status=USER_ERROR)


def test_the_help_lists_the_verbs_and_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['tunesmith', '--help']\n"
        "from tunesmith.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: print('status', end.code)\n"
        "print([name for name in ('torch', 'daft', 'pydantic', 'pyarrow', 'tunesmith.api') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["status 0", "[]"]
    for verb in ("plan", "run", "show", "diff", "explain", "gc"):
        assert f" {verb} " in done.stdout
