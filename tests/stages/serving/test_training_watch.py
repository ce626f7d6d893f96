"""While it trains a model answers validation rows and reads general text, and that may decide what is kept."""

import json

import pytest

from tunesmith.chat.contract import load_contract
from tunesmith.errors import PlanError
from tunesmith.stages.training import TrainSpec, check
from tunesmith.stages.training_watch import GeneralWatch, answers_of, general_warnings, items_of
from tunesmith.train.examples import read_examples

SPEC = {
    "learning_rate": 2e-2,
    "num_train_epochs": 2,
    "batch_size": 10,
    "adapter": {"kind": "lora", "rank": 4, "alpha": 8},
    "dtype": "float32",
    "evals_per_epoch": 1,
}
METRIC = {"metric": "json_parse", "max_rows": 4}


@pytest.fixture(scope="module")
def inputs(run, world):
    examples = run("encode", {"splits": world.splits, "contract": world.contract}, {}, world.folder)
    return {"base": world.base, "contract": world.contract, "examples": examples}


@pytest.fixture(scope="module")
def watched(run, inputs, world):
    spec = {**SPEC, "task_metric": METRIC, "general_watch": {"max_rise": 1e-3}}
    return run("train", inputs, spec, world.folder)


def evaluations(made):
    records = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "eval_seconds" in record]


def test_every_figure_is_in_metrics_curve_and_summary(watched):
    found = evaluations(watched)
    assert [record["step"] for record in found] == [0, 3, 6]
    assert all({"val_loss", "general_loss", "json_parse"} <= set(record) for record in found)
    curve = json.loads((watched.path / "curve.json").read_text())["figures"]
    assert curve["json_parse"] == {"step": [0, 3, 6], "value": [record["json_parse"] for record in found]}
    assert set(watched.summary["figures"]) == {"val_loss", "general_loss", "json_parse"}
    assert watched.summary["figures"]["general_loss"]["base"] == found[0]["general_loss"]


def test_measuring_changes_nothing_of_what_is_learned(run, inputs, watched, world):
    plain = run("train", inputs, SPEC, world.folder)
    weights = "adapter/adapter_model.safetensors"
    assert (plain.path / weights).read_bytes() == (watched.path / weights).read_bytes()


def test_questions_are_the_prompts_that_the_server_sends_and_answers_end_before_their_stop(inputs, world):
    from tunesmith.data.write import read_rows

    contract = load_contract(world.contract.path)
    rows = {row.id: row for row in read_rows(world.splits.path / "val.parquet")}
    items = items_of(read_examples(inputs["examples"].path / "val.parquet"), contract, most=5)
    assert len(items) == 5
    for item in items:
        conversation = rows[item.row_id].conversation
        assert item.prompt_ids == tuple(contract.render_prompt(conversation.prompt).ids)
        assert item.expected == conversation.messages[-1].content


def test_the_metric_is_what_evaluate_counts_on_the_same_rows(run, inputs, watched, world):
    """The base before its first step, on all validation rows, against the evaluate stage."""
    every = run("train", inputs, {**SPEC, "task_metric": {**METRIC, "max_rows": 100}, "max_steps": 3}, world.folder)
    asked = {name: getattr(world, name) for name in ("base", "contract", "splits")}
    evaluation = run("evaluate", asked, {"side": "val", "dtype": "float32"}, world.folder)
    expected = json.loads((evaluation.path / "results.json").read_text())["base"]["json_parse"]["value"]
    assert evaluations(every)[0]["json_parse"] == pytest.approx(expected, abs=1e-9)


def test_the_metric_may_decide_which_weights_are_kept_and_when_to_stop(run, inputs, world):
    spec = {
        **SPEC,
        "learning_rate": 1e-3,
        "num_train_epochs": 8,
        "task_metric": METRIC,
        "metric_for_best_model": "task_metric",
        "early_stopping_patience": 2,
    }
    made = run("train", inputs, spec, world.folder)
    found = evaluations(made)
    after = [record for record in found if record["step"] > 0]
    best = max(after, key=lambda record: record["json_parse"])
    assert made.summary["best_by"] == "json_parse"
    assert made.summary["best_step"] == best["step"]
    assert made.summary["best_val_loss"] == best["val_loss"]
    assert [record["best"] for record in found].count(True) >= 1
    assert made.summary["stopped_early"]
    assert made.summary["steps_done"] < made.summary["steps"]
    assert len([record for record in after if record["step"] > best["step"]]) == 2
    losses = [record["val_loss"] for record in after]
    assert losses == sorted(losses, reverse=True), "the validation loss alone would have gone on"


def test_a_metric_at_fewer_validations_is_measured_at_some_of_them(run, inputs, world):
    spec = {**SPEC, "evals_per_epoch": 3, "task_metric": {**METRIC, "evals_per_epoch": 1}}
    found = evaluations(run("train", inputs, spec, world.folder))
    assert [record["step"] for record in found] == [0, 1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in found if "json_parse" in record] == [0, 3, 6]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metric_for_best_model": "task_metric"}, "is not measured"),
        ({"task_metric": {"metric": "exact_match"}, "metric_for_best_model": "task_metric"}, None),
        ({"task_metric": {"metric": "schema_adherence"}}, None),
    ],
)
def test_a_metric_that_decides_and_is_not_measured_is_refused(inputs, change, said):
    spec = TrainSpec.model_validate({**SPEC, **change})
    if said is None:
        check(spec, inputs)
    else:
        with pytest.raises(PlanError, match=said):
            check(spec, inputs)


@pytest.mark.parametrize(("allowed", "warned"), [(24, True), (96, False)])
def test_answers_that_the_contract_would_cut_are_warned_of(run, inputs, world, allowed, warned):
    settings = {**world.contract_settings, "decoding": {"max_new_tokens": allowed}}
    contract = run("contract", {"base": world.base}, settings, world.folder)
    examples = run("encode", {"splits": world.splits, "contract": contract}, {}, world.folder)
    said = check(TrainSpec.model_validate(SPEC), {**inputs, "contract": contract, "examples": examples})
    longest = max(read_examples(examples.path / "train.parquet").num_supervised_each)
    cut = f"answers of up to {longest} tokens, and the contract stops at decoding.max_new_tokens {allowed}"
    assert any(cut in warning for warning in said) is warned


def test_a_probe_measures_what_the_run_will_measure_of_itself(inputs, monkeypatch):
    from tunesmith.stages import training_probe

    honest, asked = training_probe.metric_of, []

    def counting(spec, *rest):
        asked.append(spec.metric)
        return honest(spec, *rest)

    monkeypatch.setattr(training_probe, "metric_of", counting)
    spec = TrainSpec.model_validate({**SPEC, "task_metric": METRIC, "general_watch": {}})
    folders = {name: inputs[name].path for name in ("base", "examples", "contract")}
    found = training_probe.measure(spec, **folders, device="cpu")
    assert asked == [METRIC["metric"]]
    assert found["seconds"] > 0


def test_a_plan_says_on_which_card_the_base_fits(inputs):
    from tunesmith.stages.train import estimate

    (note,) = estimate(TrainSpec.model_validate(SPEC), {"base": inputs["base"], "examples": None}, "cpu").notes
    assert "LoRA fits on 8 GB without gradient checkpointing" in note


def test_general_text_that_got_worse_is_warned_of_with_what_helps():
    watch = GeneralWatch(max_rise=0.1)
    assert general_warnings(watch, {"general_loss": 2.0}, {"general_loss": 2.05}) == []
    (said,) = general_warnings(watch, {"general_loss": 2.0}, {"general_loss": 2.3})
    assert "rose by 0.300 nats" in said
    assert "train.mix" in said
    assert general_warnings(None, {"general_loss": 2.0}, {"general_loss": 9.0}) == []


def test_answering_draws_no_random_numbers_of_the_run(inputs, world):
    import torch

    from tunesmith.model.load import load_model

    contract = load_contract(world.contract.path)
    model = load_model(world.base.path / "model", dtype="float32")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    answers_of(model, contract, [[5, 6, 7]])
    assert torch.equal(torch.get_rng_state(), before)
