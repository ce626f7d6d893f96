"""The stage `benchmark`: every kind of task on a tiny base and its adapter, and on rows that are wrong."""

import json

import pyarrow.parquet as pq
import pytest

from tunesmith.errors import DataError, PlanError
from tunesmith.evals.gates import check_criteria
from tunesmith.stages.benchmark import BenchmarkSpec, check_tasks

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
    "number": [{"id": "n", "prompt": "refund now!!", "answer": "2 + 2\n#### 4"}],
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
    assert tuned["number.number_match"] == tuned["number.number_given"] == 0
    assert tuned["choice.mc1"] == 1
    assert tuned["choice.mc2"] > 0.99
    assert "code.pass_at_1" in tuned
    assert results["base"]["exact.exact_match"]["value"] == 0
    choice, code = results["tasks"]["choice"], results["tasks"]["code"]
    assert (choice["kind"], choice["n"], choice["stop_reasons"]) == ("choice", 2, {})
    assert sum(code["stop_reasons"]["tuned"].values()) == code["n"] == 1
    assert "refund now!!" in code["sample_prompt"]
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


def test_a_question_may_bring_its_own_system_prompt(world, run_stage, folder):
    tasks = [{"name": "own", "kind": "exact", "data": "exact.jsonl", "system": "own", "max_new_tokens": 3}]
    done = run_stage("benchmark", {**world.inputs, "adapter": None}, {"tasks": tasks, "dtype": "float32"}, folder)
    prompts = {item["row_id"]: item["prompt"] for item in pq.read_table(done.path / "items.parquet").to_pylist()}
    assert prompts["own/e2"].startswith("<|im_start|>system\ndropped<|im_end|>")
    assert "system" not in prompts["own/e1"]


def test_any_file_format_with_columns_of_any_name(world, run_stage, folder):
    (folder / "ours.csv").write_text('question,label\nrefund now!!,"{""intent"":""refund"",""urgent"":true}"\n')
    (folder / "ours.json").write_text(json.dumps([{"question": "where is my refund", "label": {"intent": "refund", "urgent": False}}]))  # fmt: skip
    columns = {"prompt": "question", "answer": "label"}
    tasks = [{"name": kind, "kind": "exact", "data": f"ours.{kind}", "columns": columns} for kind in ("csv", "json")]
    done = run_stage("benchmark", world.inputs, {"tasks": tasks, "dtype": "float32"}, folder)
    tuned = results_of(done)["tuned"]
    assert tuned["csv.exact_match"]["value"] == tuned["json.exact_match"]["value"] == 1


def test_a_question_that_stands_in_the_training_rows_is_named(world, run_stage, folder):
    lines = [{"id": "old", "prompt": world.rows[3].conversation.messages[0].content, "label": "safe"}, {"id": "new", "prompt": "how tall is the tower at the harbour", "label": "safe"}]  # fmt: skip
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tasks = [{"name": "asked", "kind": "refusal", "data": "asked.jsonl", "max_new_tokens": 2}]
    done = run_stage("benchmark", {**world.inputs, "adapter": None}, {"tasks": tasks, "dtype": "float32"}, folder)
    results = results_of(done)
    assert results["seen_in_training"] == {"asked/old": world.rows[3].id}
    assert results["tasks"]["asked"]["seen_in_training"] == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [("{", "not JSON|cannot be read"), ("[]", "cannot be read"), ('{"id": 1}', "lacks 'prompt'"), ('{"id": 1, "prompt": "x"}', "no answer"), (json.dumps(FILES["exact"][0]), "one id")],
)  # fmt: skip
def test_a_record_of_another_shape_is_named_with_its_line_and_refused_by_the_plan(
    world, run_stage, folder, line, words
):
    (folder / "exact.jsonl").write_text(json.dumps(FILES["exact"][0]) + "\n" + line)
    tasks = [{"name": "exact", "kind": "exact", "data": "exact.jsonl"}]
    with pytest.raises(DataError, match=words) as caught:
        run_stage("benchmark", world.inputs, {"tasks": tasks}, folder)
    assert "line 2" in str(caught.value)
    spec = BenchmarkSpec.model_validate({"tasks": [{**tasks[0], "data": str(folder / "exact.jsonl")}]})
    with pytest.raises(PlanError, match="line 2"):
        check_tasks(spec, {})


def test_the_plan_accepts_tasks_that_can_be_asked(folder):
    tasks = [{"name": name, "kind": name, "data": str(folder / f"{name}.jsonl")} for name in FILES]
    assert check_tasks(BenchmarkSpec.model_validate({"tasks": tasks}), {}) == []


def test_an_empty_file_is_an_error(world, run_stage, folder):
    (folder / "exact.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no record"):
        run_stage("benchmark", world.inputs, {"tasks": [{"name": "e", "kind": "exact", "data": "exact.jsonl"}]}, folder)


def test_held_out_rows_can_be_scored_further(world, run_stage, folder):
    results = results_of(run_stage("evaluate", world.inputs, {"dtype": "float32", "scorers": ["text"]}, folder))
    assert results["tuned"]["rougeL"]["value"] == 1
    assert results["better"]["rougeL"] == "higher"
    with pytest.raises(DataError, match="declares no table"):
        run_stage("evaluate", world.inputs, {"dtype": "float32", "scorers": ["sql"]}, folder)


def test_several_answers_to_a_question_are_one_group_and_give_pass_at_k(world, run_stage, folder):
    problem = {"id": "c", "prompt": "refund now!!", "tests": ["assert True"]}
    (folder / "code.jsonl").write_text("\n".join(json.dumps({**problem, "id": f"c{n}"}) for n in range(3)))
    task = {
        "name": "code",
        "kind": "code",
        "data": "code.jsonl",
        "answers": 4,
        "temperature": 1.5,
        "pass_at": [1, 2, 4],
    }
    done = run_stage("benchmark", world.inputs, {"tasks": [task], "dtype": "float32"}, folder)
    results = results_of(done)
    for system in ("base", "tuned"):
        one, two, four = (results[system][f"code.pass_at_{k}"] for k in (1, 2, 4))
        assert (one["n"], one["clusters"]) == (12, 3)
        assert two["n"] == four["n"] == 3
        assert one["value"] <= two["value"] <= four["value"]
    assert results["tasks"]["code"]["n"] == 3
    assert results["tasks"]["code"]["answers"] == 4
    table = [row for row in pq.read_table(done.path / "items.parquet").to_pylist() if row["system"] == "base"]
    assert [row["row_id"] for row in table[:4]] == [f"code/c0#{n}" for n in range(1, 5)]
    assert len({row["output"] for row in table[:4]}) > 1, "samples are drawn, not copied"
    assert {row["cluster"] for row in table} == {"code/c0", "code/c1", "code/c2"}


def test_samples_that_would_be_copies_and_too_few_samples_are_refused(world, folder):
    task = {"name": "code", "kind": "code", "data": str(folder / "code.jsonl"), "answers": 4}
    spec = BenchmarkSpec.model_validate({"tasks": [task]})
    with pytest.raises(PlanError, match="all the same"):
        check_tasks(spec, {"contract": world.contract})
    for wrong in ({"pass_at": [5]}, {"kind": "exact", "pass_at": [1]}, {"kind": "choice"}):
        with pytest.raises(ValueError, match=r"pass|choice"):
            BenchmarkSpec.model_validate({"tasks": [{**task, **wrong}]})
