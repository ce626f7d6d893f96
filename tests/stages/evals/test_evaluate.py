"""The stage `evaluate`, on a tiny base and an adapter that knows its rows."""

import json

import pyarrow.parquet as pq
import pytest

from tunesmith.data.write import read_rows, write_rows
from tunesmith.errors import ContractError, DataError, RecipeError
from tunesmith.evals.gates import check_criteria
from tunesmith.stages import evaluate as evaluate_stage
from tunesmith.stages.endpoint import EndpointAnswer
from tunesmith.types import Completion, Conversation, FinishReason, Message

SPEC = {"dtype": "float32", "slices": ["intent", "length", "channel"]}


def results_of(artifact):
    return json.loads((artifact.path / "results.json").read_text())


def test_an_adapter_that_knows_its_rows_beats_the_base_on_every_figure(world, run_stage, tmp_path):
    done = run_stage("evaluate", world.inputs, SPEC, tmp_path)
    results = results_of(done)
    assert results["systems"] == ["base", "tuned"]
    assert results["n"] == len(world.rows)
    for metric in ("json_parse", "schema_adherence", "exact_match", "field_presence", "field.intent", "field.urgent"):
        assert results["tuned"][metric]["value"] == 1.0
        assert results["base"][metric]["value"] < 0.5
        assert results["paired"][metric]["difference"] > 0.5
        assert results["paired"][metric]["low"] <= results["paired"][metric]["difference"]
    assert results["tuned"]["macro_f1.intent"]["value"] == 1.0
    assert results["tuned"]["cut"]["value"] == 0
    assert results["stop_reasons"]["tuned"] == {"stop": len(world.rows)}
    assert results["unparsable"]["tuned"] == 0
    assert results["leakage_proof"] == {"overlap": 0}
    assert results["sample_prompt"].endswith("<|im_start|>assistant\n")
    assert results["decoding"]["max_new_tokens"] == 48
    assert set(results["slices"]) == {"intent", "length", "channel"}
    assert {value: entry["n"] for value, entry in results["slices"]["intent"].items()} == {"login": 4, "refund": 4}
    assert done.summary["tuned"]["exact_match"]["value"] == 1.0
    assert done.summary["timing"]["tuned"]["generated"] == len(world.rows)


def test_the_item_table_holds_one_row_for_each_item_and_system(world, run_stage, tmp_path):
    done = run_stage("evaluate", world.inputs, SPEC, tmp_path)
    table = pq.read_table(done.path / "items.parquet").to_pylist()
    assert {(item["row_id"], item["system"]) for item in table} == {
        (row.id, system) for row in world.rows for system in ("base", "tuned")
    }
    tuned = [item for item in table if item["system"] == "tuned"]
    assert all(item["output"] == item["expected"] for item in tuned)
    assert all(item["score.exact_match"] == 1 and item["finish_reason"] == "stop" for item in tuned)
    recomputed = sum(item["score.exact_match"] for item in tuned) / len(tuned)
    assert recomputed == results_of(done)["tuned"]["exact_match"]["value"]


def test_samples_stand_side_by_side(world, run_stage, tmp_path):
    done = run_stage("evaluate", world.inputs, {**SPEC, "samples": 3}, tmp_path)
    samples = json.loads((done.path / "samples.json").read_text())["samples"]
    assert len(samples) == 3
    assert all(set(sample["answers"]) == {"base", "tuned"} for sample in samples)
    assert {sample["outcome"] for sample in samples} == {"fixed"}


def test_without_an_adapter_only_the_base_is_measured(world, run_stage, tmp_path):
    inputs = {**world.inputs, "adapter": None}
    results = results_of(run_stage("evaluate", inputs, SPEC, tmp_path))
    assert results["systems"] == ["base"]
    assert results["paired"] == {}
    with pytest.raises(RecipeError, match="nothing measured"):
        check_criteria(["exact_match >= 0.5"], results)


def test_criteria_are_held_against_the_file_that_the_stage_writes(world, run_stage, tmp_path):
    results = results_of(run_stage("evaluate", world.inputs, SPEC, tmp_path))
    verdicts = check_criteria(
        ["exact_match - base >= 0.10 with 95% confidence", "exact_match >= 0.97 with 95% confidence", "cut <= base"],
        results,
    )
    assert [verdict.verdict for verdict in verdicts] == ["pass", "not_resolvable", "pass"]
    assert "8 items cannot tell" in verdicts[1].explanation


def test_at_most_max_items_are_asked_and_the_choice_repeats(world, run_stage, tmp_path):
    done = run_stage("evaluate", world.inputs, {**SPEC, "max_items": 3}, tmp_path)
    again = run_stage("evaluate", world.inputs, {**SPEC, "max_items": 3}, tmp_path / "again")
    assert results_of(done)["n"] == 3
    assert results_of(done)["prompts_sha256"] == results_of(again)["prompts_sha256"]


def test_a_row_that_the_contract_refuses_is_listed_not_dropped(world, run_stage, tmp_path):
    rows = read_rows(world.splits.path / "test.parquet")
    foreign = Conversation(messages=(Message(role="system", content="Be rude."), *rows[0].conversation.messages))
    from dataclasses import replace

    side = world.splits.path / "val.parquet"
    write_rows(side, [replace(rows[0], conversation=foreign), *rows[1:3]])
    results = results_of(run_stage("evaluate", world.inputs, {**SPEC, "side": "val"}, tmp_path))
    assert results["n"] == 2
    assert list(results["excluded"]) == [rows[0].id]
    assert "system prompt" in results["excluded"][rows[0].id]
    write_rows(side, [])
    with pytest.raises(DataError, match="nothing to evaluate on"):
        run_stage("evaluate", world.inputs, {**SPEC, "side": "val"}, tmp_path / "empty")
    write_rows(side, rows)


def test_an_unknown_slice_names_the_nearest(world, run_stage, tmp_path):
    with pytest.raises(RecipeError, match="intent"):
        run_stage("evaluate", world.inputs, {**SPEC, "slices": ["intnt"]}, tmp_path)


def test_bfloat16_and_float32_agree_on_a_model_that_is_sure(world, run_stage, tmp_path):
    results = results_of(run_stage("evaluate", world.inputs, {**SPEC, "dtype": "bfloat16"}, tmp_path))
    assert results["dtype"] == "bfloat16"
    assert results["tuned"]["exact_match"]["value"] >= 7 / 8


def test_a_base_that_babbles_adheres_when_held_inside_the_schema(world, run_stage, tmp_path):
    free = results_of(run_stage("evaluate", world.inputs, SPEC, tmp_path))
    held = results_of(run_stage("evaluate", world.inputs, {**SPEC, "constrain": "schema"}, tmp_path))
    assert free["base"]["schema_adherence"]["value"] < 0.5
    ended = held["stop_reasons"]["base"].get("stop", 0) / len(world.rows)
    assert held["base"]["schema_adherence"]["value"] == ended > 0.5  # those that were cut are checked, and fail
    assert held["tuned"]["exact_match"]["value"] == 1.0
    assert held["constrained"] == "schema"


def test_without_a_schema_there_is_nothing_to_hold_answers_to(world, run_stage, tmp_path, make_contract):
    bare = make_contract(tmp_path / "bare", world.base, system=None, decoding={"max_new_tokens": 4})
    with pytest.raises(ContractError, match="does not have"):
        run_stage("evaluate", {**world.inputs, "contract": bare}, {**SPEC, "constrain": "schema"}, tmp_path)


def test_a_further_system_is_compared_on_the_same_rows_and_criteria_may_name_it(
    world, run_stage, tmp_path, monkeypatch
):
    right = {row.conversation.messages[0].content: row.conversation.answer for row in world.rows}

    def ask(endpoint, conversations, contract, ctx):
        found = []
        for place, conversation in enumerate(conversations):
            text = right[conversation.messages[-1].content] if place else "no JSON"
            ids = tuple(contract.tokenizer.encode(text).ids)
            done = Completion(ids=ids, finish_reason=FinishReason.STOP, prompt_tokens=3, seconds=0.1)
            found.append(EndpointAnswer(text=text, calls=(), completion=done) if place != 1 else None)
        return found

    monkeypatch.setattr(evaluate_stage, "ask_endpoint", ask)
    endpoint = {"name": "production", "url": "http://127.0.0.1:9/v1", "model": "m", "snapshot": "today"}
    done = run_stage("evaluate", world.inputs, {**SPEC, "endpoints": [endpoint]}, tmp_path)
    results = results_of(done)
    assert results["systems"] == ["production", "base", "tuned"]
    pair = results["paired_production"]["exact_match"]
    assert (pair["n"], pair["only_challenger"], pair["only_reference"]) == (len(world.rows) - 1, 1, 0)
    assert len(results["endpoints"]["production"]["unanswered"]) == 1
    assert check_criteria(["exact_match - production > 0"], results)[0].verdict == "pass"
    assert done.summary["paired_production"]["exact_match"]["n"] == pair["n"]
    samples = json.loads((done.path / "samples.json").read_text())["samples"]
    assert {sample["outcome"] for sample in samples} == {"fixed"}
    assert "production" in (done.path / "report.html").read_text()
