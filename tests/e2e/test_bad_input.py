"""What a user sees who hands in something wrong: exit status 2, at most five lines, the place, and what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = """name: bad
ingest:
  sources: [{{path: {file}, license: Apache-2.0}}]
curate: {{}}
split: {{}}
"""
GOOD_ROW = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}


def tunesmith(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunesmith", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refused(result: subprocess.CompletedProcess[str], *words: str) -> str:
    """Assert that this is a user's error, worded as one, and return its text."""
    error = result.stderr[result.stderr.index("error: ") :] if "error: " in result.stderr else result.stderr
    assert result.returncode == 2, f"status {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    assert len(error.strip().splitlines()) <= 5, error
    for word in words:
        assert word in error, f"{word!r} not in:\n{error}"
    return error


def ingest(tmp_path: Path, name: str, content: bytes) -> subprocess.CompletedProcess[str]:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(file=name))
    return tunesmith("run", "recipe.yaml", "--until", "ingest", cwd=tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(file="nowhere.jsonl"))
    refused(tunesmith("run", "recipe.yaml", cwd=tmp_path), "nowhere.jsonl")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(file="rows.jsonl"))
    refused(tunesmith("run", "recipe.yaml", "--until", "ingest", cwd=tmp_path), "rows.jsonl")


@pytest.mark.parametrize("line", [1, 3])
def test_invalid_utf8_names_file_and_line(tmp_path: Path, line: int) -> None:
    rows = [json.dumps(GOOD_ROW).encode()] * 4
    rows[line - 1] = b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}'
    refused(ingest(tmp_path, "rows.jsonl", b"\n".join(rows)), f"rows.jsonl:{line}", "UTF-8")


def test_latin1_is_refused_unless_it_is_said(tmp_path: Path) -> None:
    row = json.dumps(
        {"messages": [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "groß"}]},
        ensure_ascii=False,
    ).encode("latin-1")
    refused(ingest(tmp_path, "rows.jsonl", row), "rows.jsonl", "encoding")
    (tmp_path / "recipe.yaml").write_text(
        RECIPE.format(file="rows.jsonl").replace("license:", "encoding: latin-1, license:")
    )
    assert tunesmith("run", "recipe.yaml", "--until", "ingest", cwd=tmp_path).returncode == 0


def test_an_empty_file_is_an_error_and_not_an_empty_data_set(tmp_path: Path) -> None:
    refused(ingest(tmp_path, "rows.jsonl", b""), "rows.jsonl")


def test_one_half_line_among_many_is_a_reject_with_its_reason(tmp_path: Path) -> None:
    rows = [json.dumps({**GOOD_ROW, "id": i}).encode() for i in range(200)]
    rows[150] = rows[150][: len(rows[150]) // 2]
    result = ingest(tmp_path, "rows.jsonl", b"\n".join(rows))
    assert result.returncode == 0, result.stderr
    shown = json.loads(tunesmith("show", "--json", cwd=tmp_path).stdout)["stages"]["ingest"]["summary"]
    assert shown["records_in"] == 200
    assert shown["rows_kept"] == 199
    assert shown["dropped"] == {"bad_json": 1}


def test_a_file_of_halves_aborts(tmp_path: Path) -> None:
    rows = [json.dumps({**GOOD_ROW, "id": i}).encode()[:30] for i in range(50)]
    refused(ingest(tmp_path, "rows.jsonl", b"\n".join(rows)), "rows.jsonl")


def test_rows_without_an_assistant_turn_are_counted_or_refused(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "hello?"}]}
    refused(ingest(tmp_path, "rows.jsonl", json.dumps(row).encode()), "rows.jsonl", "assistant")


def test_an_unknown_key_names_line_and_nearest_key(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD_ROW))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(file="rows.jsonl") + "encode: {}\nspilt: {}\n")
    refused(tunesmith("plan", "recipe.yaml", cwd=tmp_path), "spilt", "split", "recipe.yaml:7")
    (tmp_path / "recipe.yaml").write_text(
        RECIPE.format(file="rows.jsonl").replace("curate: {}", "curate: {licences: [MIT]}")
    )
    refused(tunesmith("plan", "recipe.yaml", cwd=tmp_path), "licences", "licenses", "recipe.yaml:4")


def test_a_wrong_type_names_expected_and_found(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD_ROW))
    (tmp_path / "recipe.yaml").write_text(
        RECIPE.format(file="rows.jsonl").replace("curate: {}", "curate: {near_duplicates: high}")
    )
    refused(tunesmith("plan", "recipe.yaml", cwd=tmp_path), "recipe.yaml:4", "near_duplicates", "number", "high")


def test_a_recipe_that_is_not_yaml_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: bad\ningest: [unclosed\n")
    refused(tunesmith("plan", "recipe.yaml", cwd=tmp_path), "recipe.yaml")


def test_a_model_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (model / "model.safetensors").write_bytes(b"\0" * 16)
    (tmp_path / "recipe.yaml").write_text("name: bad\nfetch: {model: model}\n")
    refused(tunesmith("run", "recipe.yaml", cwd=tmp_path), "tokenizer")


def test_a_read_only_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({**GOOD_ROW, "id": i}) for i in range(5)))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(file="rows.jsonl"))
    (tmp_path / ".tunesmith").write_text("a file where the store should be")
    refused(tunesmith("run", "recipe.yaml", cwd=tmp_path), ".tunesmith")


def test_no_run_to_show_is_a_clear_error(tmp_path: Path) -> None:
    refused(tunesmith("show", cwd=tmp_path))
