import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tunesmith.errors import GateError, RecipeError, ServeError
from tunesmith.serve.bundle import check_base, load_bundle


def read(artifact, name):
    return json.loads((artifact.path / name).read_text())


def test_a_bundle_reads_back_and_knows_its_base(world, bundle):
    loaded = load_bundle(bundle.path)
    check_base(loaded, world.base.path / "model")
    assert loaded.name == "desk-triage" == bundle.summary["name"]
    assert loaded.base.fingerprint == world.base.fingerprint
    assert loaded.contract.sha256 == world.contract.summary["sha256"]
    assert loaded.dtype == "float32"
    assert len(loaded.golden) == len(loaded.contract.golden) + 8
    assert sum(bool(golden.next_tokens) for golden in loaded.golden) == 8 == bundle.summary["golden_probabilities"]


def test_the_base_itself_is_not_copied(bundle):
    weights = [path.name for path in bundle.path.rglob("*.safetensors")]
    assert weights == ["adapter_model.safetensors"]


def test_gates_that_hold_make_it_promotable(bundle):
    gates = read(bundle, "gates.json")
    assert gates["promotable"] is True is bundle.summary["promotable"]
    assert [verdict["verdict"] for verdict in gates["verdicts"]] == ["pass", "pass"]


@pytest.mark.parametrize(
    ("criteria", "verdict"),
    [
        (["schema_adherence >= 0.97 with 95% confidence"], "fail"),
        (["cut <= 1", "exact_match - base > 0 with 95% confidence"], None),
        ([], None),
    ],
)
def test_a_gate_that_fails_forbids_promotion_and_not_the_bundle(run, world, criteria, verdict):
    settings = {**world.contract_settings, "criteria": criteria}
    contract = run("contract", {"base": world.base}, settings, world.folder)
    inputs = {"base": world.base, "contract": contract, "splits": world.splits, "adapter": world.adapter}
    evaluation = run("evaluate", inputs, {"dtype": "float32"}, world.folder)
    made = run("bundle", {**inputs, "evaluation": evaluation}, {}, world.folder)
    gates = read(made, "gates.json")
    assert gates["promotable"] is False
    assert "Not promotable" in gates["reason"]
    if verdict is not None:
        assert gates["verdicts"][0]["verdict"] == verdict
    assert not load_bundle(made.path).promotable


def test_criteria_may_speak_of_tasks_and_the_card_shows_them(run, world):
    questions = [{"prompt": f"Is {number} safe?", "label": "safe"} for number in range(8)]
    (world.folder / "asked.jsonl").write_text("\n".join(map(json.dumps, questions)))
    settings = {**world.contract_settings, "criteria": ["asked.over_refusal <= base"]}
    contract = run("contract", {"base": world.base}, settings, world.folder)
    inputs = {"base": world.base, "contract": contract, "splits": world.splits, "adapter": world.adapter}
    evaluation = run("evaluate", inputs, {"dtype": "float32"}, world.folder)
    tasks = [{"name": "asked", "kind": "refusal", "data": "asked.jsonl", "max_new_tokens": 4}]
    benchmark = run("benchmark", inputs, {"tasks": tasks, "dtype": "float32"}, world.folder)
    made = run("bundle", {**inputs, "evaluation": evaluation, "benchmark": benchmark}, {}, world.folder)
    (verdict,) = read(made, "gates.json")["verdicts"]
    assert verdict["observed"] == read(benchmark, "results.json")["paired"]["asked.over_refusal"]["difference"]
    assert "| asked.over_refusal |" in (made.path / "README.md").read_text()
    with pytest.raises(RecipeError, match="nothing measured"):
        run("bundle", {**inputs, "evaluation": evaluation}, {}, world.folder)


def test_several_seeds_gate_the_bundle_of_one_of_them_and_of_no_other(run, world, refingerprint):
    settings = {**world.contract_settings, "criteria": ["exact_match - base >= -1 with 95% confidence"]}
    contract = run("contract", {"base": world.base}, settings, world.folder)
    inputs = {"base": world.base, "contract": contract, "splits": world.splits}
    one, two, third = (world.adapter, refingerprint(world.adapter, "two"), refingerprint(world.adapter, "third"))
    first, second = (run("evaluate", {**inputs, "adapter": a}, {"dtype": "float32"}, world.folder) for a in (one, two))
    seeds = run("seeds", {"first": first, "second": second}, {}, world.folder)
    made = run("bundle", {**inputs, "adapter": two, "evaluation": second, "seeds": seeds}, {}, world.folder)
    (verdict,) = read(made, "gates.json")["verdicts"]
    joint = read(seeds, "results.json")["paired"]["exact_match"]
    assert (verdict["low"], verdict["high"]) == (joint["low"], joint["high"])
    alone = run("evaluate", {**inputs, "adapter": third}, {"dtype": "float32"}, world.folder)
    with pytest.raises(GateError, match="measured another adapter"):
        run("bundle", {**inputs, "adapter": third, "evaluation": alone, "seeds": seeds}, {}, world.folder)


def test_the_card_has_front_matter_and_every_figure_with_its_interval(world, bundle):
    text = (bundle.path / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["base_model"] == world.base.summary["id"]
    assert (meta["base_model_relation"], meta["library_name"]) == ("adapter", "peft")
    metrics = {metric["type"]: metric for metric in meta["model-index"][0]["results"][0]["metrics"]}
    results = read(world.evaluation, "results.json")
    assert metrics["schema_adherence"]["value"] == round(results["tuned"]["schema_adherence"]["value"], 4)
    assert "95% interval" in metrics["schema_adherence"]["name"]
    for name in results["tuned"]:
        assert re.search(rf"^\| {re.escape(name)} \|", body, re.MULTILINE)
    assert "Routing." in body
    assert "30 train, 12 val, 18 test" in body
    assert "| desk | 30 | CC0-1.0 | human |" in body
    assert "Attacks, leaks and general ability were not measured." in body


def test_the_adapter_is_a_plain_peft_folder(world, bundle):
    base = AutoModelForCausalLM.from_pretrained(world.base.path / "model")
    model = PeftModel.from_pretrained(base, bundle.path / "adapter")
    assert model.peft_config["default"].r == 4


def test_a_cold_start_in_a_clean_process_reads_and_checks_it(world, bundle):
    code = (
        "import sys; from pathlib import Path; from tunesmith.serve.bundle import load_bundle, check_base\n"
        "loaded = load_bundle(Path(sys.argv[1])); check_base(loaded, Path(sys.argv[2])); loaded.contract.replay()\n"
        "assert 'torch' not in sys.modules; print(loaded.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle.path), str(world.base.path / "model")], capture_output=True, text=True
    )
    assert done.stdout.strip() == "desk-triage", done.stderr


def test_figures_of_another_adapter_are_refused(run, world, refingerprint):
    other = refingerprint(world.adapter, "another")
    with pytest.raises(GateError, match="measured another adapter"):
        run("bundle", world.bundle_inputs(adapter=other), {}, world.folder)


def test_an_adapter_that_changes_nothing_is_refused(run, world, tmp_path, refingerprint):
    from safetensors.torch import load_file, save_file

    copied = tmp_path / "inert"
    shutil.copytree(world.adapter.root, copied)
    path = copied / "data" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor * (0 if "lora_B" in name else 1) for name, tensor in tensors.items()}, path)
    inert = type(world.adapter)(root=copied, manifest=world.adapter.manifest)
    with pytest.raises(ServeError, match="changes nothing"):
        run("bundle", world.bundle_inputs(adapter=inert), {"name": "inert"}, world.folder)


def test_a_name_that_is_no_model_id_is_refused(run, world):
    with pytest.raises(ValueError, match="model id"):
        run("bundle", world.bundle_inputs(), {"name": "a b"}, world.folder)
