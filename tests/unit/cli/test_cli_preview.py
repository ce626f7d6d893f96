"""`tunesmith preview`: JSON lines for programs, colours for people, and errors that go on."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tunesmith.cli import preview
from tunesmith.errors import TunesmithError

HERE = Path(__file__).parents[1] / "chat"
_spec = importlib.util.spec_from_file_location("chat_world", HERE / "chat_world.py")
chat_world = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("chat_world", chat_world)
_spec.loader.exec_module(chat_world)

app = typer.Typer()
preview.register(app)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TWO = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": "two"},
]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def files(tmp_path):
    template, rows = tmp_path / "t.jinja", tmp_path / "rows.jsonl"
    template.write_text(TEMPLATE)
    rows.write_text(json.dumps({"messages": TWO}) + "\n")
    return template, rows


VARS = '{"bos_token": "<s>", "eos_token": "</s>"}'


def test_text_and_spans_without_a_tokenizer(files):
    template, rows = files
    result = run("--template", template, "--vars", VARS, "--messages", rows, "--json")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["text"].startswith("<s><|user|>\nq</s>\n")
    assert [found["text"][start:end] for start, end in found["spans"]] == ["one</s>", "two</s>"]
    assert found["examples"] == 1
    assert "ids" not in found


@pytest.mark.parametrize(("train_on", "expected"), [("all", ["one</s>", "two</s>"]), ("last", ["two</s>"])])
def test_train_on_chooses_turns(files, train_on, expected):
    template, rows = files
    result = run("--template", template, "--vars", VARS, "--train-on", train_on, "--messages", rows, "--json")
    found = json.loads(result.stdout)
    assert [found["text"][start:end] for start, end in found["spans"]] == expected


def test_ids_and_weights_with_a_tokenizer(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": TWO}) + "\n")
    result = run("--tokenizer", chat_world.small_base(), "--messages", rows, "--json")
    found = json.loads(result.stdout)
    assert len(found["ids"]) == len(found["weights"]) > 10
    assert set(found["weights"]) == {0.0, 1.0}


def test_errors_are_lines_and_the_rest_goes_on(tmp_path, files):
    template, _ = files
    rows = tmp_path / "mixed.jsonl"
    lines = [
        "{half",
        "[]",
        '{"messages": []}',
        '{"messages": [{"role": "user", "content": "q"}]}',
        '{"messages": [{"content": "q"}]}',
        '{"messages": "q"}',
        json.dumps({"messages": [{"role": "user", "content": [{"type": "image"}]}, TWO[1]]}),
        json.dumps({"messages": TWO, "tools": 3}),
        "",
        json.dumps({"messages": TWO}),
    ]
    rows.write_text("\n".join(lines) + "\n")
    result = run("--template", template, "--vars", VARS, "--messages", rows, "--json")
    assert result.exit_code == 0
    found = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [item["error"]["kind"] if "error" in item else "ok" for item in found]
    assert kinds == [
        "bad_input",
        "bad_input",
        "no_target",
        "no_target",
        "no_target",
        "bad_input",
        "unsupported_content",
        "bad_input",
        "ok",
    ]
    assert all(set(item["error"]) == {"kind", "message"} for item in found[:-1])


def test_a_template_that_cannot_be_prefix_stable_lists_its_sequences(tmp_path):
    from tunesmith.chat.families import family_template

    template, rows = tmp_path / "q.jinja", tmp_path / "rows.jsonl"
    template.write_text(family_template("qwen3").text)
    rows.write_text(json.dumps({"messages": TWO}) + "\n")
    found = json.loads(run("--template", template, "--messages", rows, "--json").stdout)
    assert found["examples"] == 2
    assert [len(item["spans"]) for item in found["sequences"]] == [1, 1]
    assert found["sequences"][-1]["text"] == found["text"]


def test_a_template_of_a_folder_for_tools_is_taken_where_there_are_tools(tmp_path):
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(chat_world.small_base(), folder)
    extra = folder / "additional_chat_templates"
    extra.mkdir()
    plain = (folder / "chat_template.jinja").read_text()
    (extra / "tool_use.jinja").write_text("{{ tools | tojson }}" + plain)
    rows = tmp_path / "rows.jsonl"
    tools = [{"type": "function", "function": {"name": "qf", "parameters": {}}}]
    rows.write_text(json.dumps({"messages": TWO, "tools": tools}) + "\n" + json.dumps({"messages": TWO}) + "\n")
    first, second = map(json.loads, run("--tokenizer", folder, "--messages", rows, "--json").stdout.splitlines())
    assert "qf" in first["text"]
    assert "qf" not in second["text"]


def test_the_terminal_shows_the_text_and_what_trains(files):
    template, rows = files
    result = run("--template", template, "--vars", VARS, "--messages", rows)
    assert result.exit_code == 0
    assert "one</s>" in result.stdout
    assert "characters" in result.stdout


def test_the_page_is_self_contained_and_escapes(tmp_path, files):
    template, _ = files
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": [{"role": "user", "content": "<script>"}, TWO[1]]}) + "\n{broken\n")
    page = tmp_path / "page.html"
    result = run("--template", template, "--vars", VARS, "--messages", rows, "--html", page)
    assert result.exit_code == 0
    text = page.read_text("utf-8")
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert "http" not in text
    assert "refused: bad_input" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--messages", "rows.jsonl"],
        ["--template", "none.jinja", "--messages", "rows.jsonl"],
        ["--template", "t.jinja", "--vars", "{", "--messages", "rows.jsonl"],
        ["--template", "t.jinja", "--vars", "[]", "--messages", "rows.jsonl"],
        ["--template", "t.jinja", "--train-on", "some", "--messages", "rows.jsonl"],
        ["--template", "t.jinja", "--messages", "none.jsonl", "--json"],
        ["--tokenizer", ".", "--messages", "rows.jsonl"],
    ],
)
def test_what_cannot_be_shown_is_the_users_error(files, monkeypatch, arguments):
    monkeypatch.chdir(files[0].parent)
    result = run(*arguments)
    assert isinstance(result.exception, TunesmithError)


def test_broken_bytes_and_half_characters_are_one_line_each_and_the_rest_goes_on(tmp_path, files):
    template, _ = files
    rows = tmp_path / "broken.jsonl"
    half = [{"role": "user", "content": "a\ud800"}, {"role": "assistant", "content": "b"}]
    lines = [b"\xff\xfe", json.dumps({"messages": half}).encode(), b'"\\ud800"', json.dumps({"messages": TWO}).encode()]
    rows.write_bytes(b"\n".join(lines) + b"\n")
    for source, text in ((rows, None), ("-", rows.read_bytes())):
        arguments = ["--template", str(template), "--vars", VARS, "--messages", str(source), "--json"]
        result = CliRunner().invoke(app, arguments, input=text)
        assert result.exit_code == 0
        found = [json.loads(line) for line in result.stdout.splitlines()]
        assert [item.get("error", {}).get("kind") for item in found] == ["bad_input", "bad_input", "bad_input", None]


def test_a_template_that_is_not_jinja_is_an_error_of_every_line(tmp_path, files):
    _, rows = files
    template = tmp_path / "broken.jinja"
    template.write_text("{% for m in messages %}{{ m.content }")
    result = run("--template", template, "--messages", rows, "--json")
    assert json.loads(result.stdout)["error"]["kind"] == "template_error"
