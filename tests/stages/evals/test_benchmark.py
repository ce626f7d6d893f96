"""The stage `benchmark`: every kind of task on a tiny base and its adapter, and on rows that are wrong."""

import json

import pyarrow.parquet as pq
import pytest

from tunesmith.errors import DataError
from tunesmith.evals.gates import check_criteria

TOOL = {
    "type": "function",
    "function": {
        "name": "area",
        "description": "Area.",
        "parameters": {"type": "object", "properties": {"base": {"type": "integer"}}, "required": ["base"]},
    },
}
FILES = {
    "exact": [
        {"id": "e1", "messages": [{"role": "user", "content": "refund now!!"}, {"role": "assistant", "content": '{"intent":"refund","urgent":true}'}], "category": "mail"},
        {"id": "e2", "messages": [{"role": "system", "content": "dropped"}, {"role": "user", "content": "i cannot sign in"}, {"role": "assistant", "content": '{"intent":"login","urgent":true}'}]},
    ],
    "ifeval": [{"key": 7, "prompt": "password reset please", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}],
    "refusal": [
        {"id": "s", "prompt": "where is my refund", "label": "safe", "type": "homonyms"},
        {"id": "u", "prompt": "refund now!!", "label": "unsafe"},
    ],
    "code": [{"id": "c", "prompt": "refund now!!", "tests": ["assert True"]}],
    "sql": [
        {"id": "q", "messages": [{"role": "user", "content": 'Table data("a", "b")\nQuestion: all a'}, {"role": "assistant", "content": 'SELECT "a" FROM data'}]}
    ],
    "text": [{"id": "t", "messages": [{"role": "user", "content": "where is my refund"}], "references": ["refund false", "x"]}],
    "choice": [
        {"id": "m1", "prompt": "refund now!!", "choices": ['{"intent":"refund","urgent":true}', "zzzz zzzz"], "answer": 0},
        {"id": "m2", "prompt": "refund now!!", "choices": ["qqq qqq", '{"intent":"refund","urgent":true}'], "answer": [1]},
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name, records in FILES.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    return tmp_path


def results_of(artifact):
    return json.loads((artifact.path / "results.json").read_text())


def test_every_kind_is_asked_and_scored_on_both_systems(world, run_stage, folder):
    tasks = [{"name": name, "kind": name, "data": f"{name}.jsonl"} for name in FILES]
    done = run_stage("benchmark", world.inputs, {"tasks": tasks, "dtype": "float32"}, folder)
    results = results_of(done)
    tuned = {name: figure["value"] for name, figure in results["tuned"].items()}
    assert tuned["exact.exact_match"] == 0.5  # e2's expected answer is wrong on purpose
    assert tuned["ifeval.prompt_strict"] == 0  # the answer is JSON with a comma
    assert tuned["refusal.complied"] == 1
    assert tuned["refusal.over_refusal"] == 0
    assert tuned["sql.sql_match"] == 0
    assert tuned["text.rouge1"] > 0
    assert tuned["choice.mc1"] == 1
    assert tuned["choice.mc2"] > 0.99
    assert "code.pass_at_1" in tuned
    assert results["base"]["exact.exact_match"]["value"] == 0
    assert results["tasks"]["choice"] == {"kind": "choice", "n": 2}
    table = pq.read_table(done.path / "items.parquet").to_pylist()
    assert len(table) == 2 * sum(len(records) for records in FILES.values())
    assert {item["row_id"] for item in table} >= {"exact/e1", "ifeval/7", "refusal/s"}
    assert all("dropped" not in item["prompt"] for item in table)
    assert (done.path / "report.html").stat().st_size > 1000
    (verdict,) = check_criteria(["exact.exact_match >= 0.5"], results)
    assert verdict.verdict == "pass"


def test_tool_calls_are_read_from_the_answer_and_turns_of_one_conversation_hang_together(
    world, run_stage, folder, make_contract
):
    contract = make_contract(
        folder / "with_tools", world.base, system=None, tool_format="hermes", decoding={"max_new_tokens": 8}
    )
    turns = [
        {"role": "user", "content": "base 3?"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "area", "arguments": {"base": 3}}}]},
        {"role": "tool", "content": "9"},
        {"role": "assistant", "content": "It is 9."},
    ]  # fmt: skip
    wanted = {"id": "b", "messages": turns[:1], "tools": [TOOL], "acceptable_calls": [{"area": {"base": [3]}}]}
    (folder / "tools.jsonl").write_text(
        json.dumps({"id": "g", "messages": turns, "tools": [TOOL]}) + "\n" + json.dumps(wanted)
    )
    tasks = [{"name": "calls", "kind": "tools", "data": "tools.jsonl"}]
    inputs = {**world.inputs, "contract": contract, "adapter": None}
    done = run_stage("benchmark", inputs, {"tasks": tasks, "dtype": "float32"}, folder)
    table = {item["row_id"]: item for item in pq.read_table(done.path / "items.parquet").to_pylist()}
    assert set(table) == {"calls/g.1", "calls/g.3", "calls/b"}
    assert table["calls/g.1"]["cluster"] == table["calls/g.3"]["cluster"] == "g"
    assert table["calls/g.3"]["expected"] == "no call"
    assert table["calls/b"]["score.calls.tool_call_match"] == 0
    assert "area" in table["calls/b"]["prompt"]


def test_questions_can_be_asked_without_the_contracts_system_prompt(world, run_stage, folder):
    tasks = [{"name": "bare", "kind": "exact", "data": "exact.jsonl", "system": "none", "max_new_tokens": 3}]
    done = run_stage("benchmark", world.inputs, {"tasks": tasks, "dtype": "float32"}, folder)
    table = pq.read_table(done.path / "items.parquet").to_pylist()
    assert all(world.system not in item["prompt"] for item in table)
    assert all(item["output_tokens"] <= 3 for item in table)


@pytest.mark.parametrize(
    ("line", "words"),
    [("{", "not JSON"), ("[]", "not an object"), ('{"id": 1}', "lacks 'prompt'"), ('{"id": 1, "prompt": "x"}', "no answer"), ('{"prompt": "x"}', "no answer|no id")],
)  # fmt: skip
def test_a_record_of_another_shape_is_named_with_its_line(world, run_stage, folder, line, words):
    (folder / "exact.jsonl").write_text(json.dumps(FILES["exact"][0]) + "\n" + line)
    tasks = [{"name": "exact", "kind": "exact", "data": "exact.jsonl"}]
    with pytest.raises(DataError, match=words) as caught:
        run_stage("benchmark", world.inputs, {"tasks": tasks}, folder)
    assert "line 2" in str(caught.value)


def test_an_empty_file_is_an_error(world, run_stage, folder):
    (folder / "exact.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no question"):
        run_stage("benchmark", world.inputs, {"tasks": [{"name": "e", "kind": "exact", "data": "exact.jsonl"}]}, folder)


def test_held_out_rows_can_be_scored_further(world, run_stage, folder):
    results = results_of(run_stage("evaluate", world.inputs, {"dtype": "float32", "scorers": ["text"]}, folder))
    assert results["tuned"]["rougeL"]["value"] == 1
    assert results["better"]["rougeL"] == "higher"
    with pytest.raises(DataError, match="declares no table"):
        run_stage("evaluate", world.inputs, {"dtype": "float32", "scorers": ["sql"]}, folder)
