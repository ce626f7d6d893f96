"""The stage `lm_eval`: tasks run by the real harness where it is installed, its files read, and what goes wrong.

The harness lives in a Python of its own: `TUNESMITH_LM_EVAL_PYTHON=/path/to/python` runs the tests that need it.
"""

import json
import os
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tunesmith.chat.contract import load_contract
from tunesmith.errors import ContractError, DataError, PlanError, TunesmithError
from tunesmith.evals.gates import check_criteria
from tunesmith.evals.lm_eval_read import metric_name, read_run
from tunesmith.stages.lm_eval import LmEvalSpec, check_contract_kept, check_lm_eval, check_same_questions
from tunesmith.stages.outside import find_program, run_program
from tunesmith.types import sha256_hex

CAPTURED = Path(__file__).parent / "lm_eval_0_4_13"
"""What lm-eval 0.4.13 wrote for SmolLM2-135M-Instruct and the tasks below; machine facts taken out."""
PYTHON = os.environ.get("TUNESMITH_LM_EVAL_PYTHON", sys.executable)
CHOICE = """task: desk_choice
dataset_path: json
dataset_kwargs: {data_files: {test: desk.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""
ANSWER = """task: desk-answer
dataset_path: json
dataset_kwargs: {data_files: {test: desk.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["<|im_end|>"], max_gen_toks: 48, do_sample: false}
filter_list:
  - {name: whole, filter: [{function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
  - {metric: bleu, aggregation: bleu, higher_is_better: true}
metadata: {version: 1}
"""


def has_lm_eval():
    try:
        find_program("lm_eval", python=PYTHON, where="x", install="x")
    except PlanError:
        return False
    return True


needs_lm_eval = pytest.mark.skipif(not has_lm_eval(), reason="TUNESMITH_LM_EVAL_PYTHON names no Python with lm-eval")


@pytest.fixture
def tasks(tmp_path, world):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "choice.yaml").write_text(CHOICE)
    (folder / "answer.yaml").write_text(ANSWER)
    lines = []
    for row in world.rows:
        right = row.conversation.answer
        wrong = right.replace("refund", "login") if "refund" in right else right.replace("login", "refund")
        text = row.conversation.messages[0].content
        lines.append(json.dumps({"text": text, "choices": [wrong, right], "answer": 1}))
    (folder / "desk.jsonl").write_text("\n".join(lines))
    return folder


@needs_lm_eval
def test_base_and_tuned_are_asked_under_the_contract_and_their_figures_gate(world, run_stage, tasks, tmp_path):
    settings = {
        "tasks": ["desk_choice", "desk-answer"],
        "include_path": "tasks",
        "python": PYTHON,
        "dtype": "float32",
        "max_minutes": 5,
    }
    done = run_stage("lm_eval", world.inputs, settings, tmp_path)
    results = json.loads((done.path / "results.json").read_text())
    tuned, base = results["tuned"], results["base"]
    assert tuned["desk_choice.acc"]["value"] == 1
    assert tuned["desk_answer.exact_match/whole"]["value"] == 1
    assert base["desk_answer.exact_match/whole"]["value"] < 1
    assert tuned["desk_choice.acc"]["low"] < 1
    assert results["paired"]["desk_answer.exact_match/whole"]["n"] == len(world.rows)
    # A corpus metric has no items of its own: the harness's figure is kept, and no interval is made up
    assert "desk_answer.bleu/whole" not in tuned
    assert results["reported"]["tuned"]["desk_answer.bleu/whole"]["value"] > 99
    contract = load_contract(world.contract.path)
    asked = contract.render_prompt(world.rows[0].conversation.prompt).text
    assert results["sample_prompt"] == asked
    table = pq.read_table(done.path / "items.parquet").to_pylist()
    assert len(table) == 2 * 2 * len(world.rows)
    assert (done.path / "lm_eval" / "tuned" / "lm_eval.log").stat().st_size > 0
    assert (done.path / "report.html").stat().st_size > 1000
    (verdict,) = check_criteria(["desk_choice.acc >= 0.9"], results)
    assert verdict.verdict == "pass"


@needs_lm_eval
def test_an_unknown_task_says_what_lm_eval_said(world, run_stage, tmp_path):
    settings = {"tasks": ["no_such_task_anywhere"], "python": PYTHON, "dtype": "float32"}
    with pytest.raises(TunesmithError, match="lm-eval on base ended with status") as caught:
        run_stage("lm_eval", world.inputs, settings, tmp_path)
    assert "no_such_task_anywhere" in caught.value.found


def test_captured_files_become_items_scores_and_facts():
    run = read_run(CAPTURED)
    by_id = {sample.item_id: sample for sample in run.samples}
    assert sorted(by_id) == sorted([f"caps_mc/{n}" for n in range(4)] + [f"caps_gen/{n}" for n in range(4)])
    choice, answer = by_id["caps_mc/0"], by_id["caps_gen/0"]
    assert choice.scores == {"caps_mc.acc": 1.0, "caps_mc.acc_norm": 1.0}
    assert choice.output.splitlines()[0] == "-4.5 Paris"
    assert answer.scores == {"caps_gen.exact_match/first": 0.0}
    assert (answer.output, answer.expected) == ("The capital of France is Paris.", "Paris")
    assert run.better["caps_gen.exact_match/first"] == "higher"
    assert run.reported["caps_mc.acc"] == {"value": 1.0, "stderr": 0.0}
    assert run.facts["version"] == "0.4.13"
    assert run.facts["output_types"] == {"caps_gen": "generate_until", "caps_mc": "multiple_choice"}


def test_names_of_metrics_can_stand_in_criteria():
    assert metric_name("mmlu-pro.bio", "acc,norm", "none") == "mmlu_pro_bio.acc_norm"
    assert metric_name("gsm8k", "exact_match", "strict-match") == "gsm8k.exact_match/strict_match"


def test_another_template_and_another_prompt_than_the_contracts_are_refused(world):
    run = read_run(CAPTURED)
    contract = load_contract(world.contract.path)
    with pytest.raises(ContractError, match="another chat template"):
        check_contract_kept(run, contract)
    agreed = type(run)(
        samples=run.samples,
        better=run.better,
        reported=run.reported,
        facts={
            **run.facts,
            "chat_template_sha": sha256_hex(contract.template.text),
        },
    )
    with pytest.raises(ContractError, match="another prompt"):
        check_contract_kept(agreed, contract)


def test_systems_that_were_not_asked_the_same_are_not_compared():
    run = read_run(CAPTURED)
    fewer = type(run)(samples=run.samples[1:], better=run.better, reported=run.reported, facts=run.facts)
    check_same_questions({"base": run, "tuned": run})
    with pytest.raises(DataError, match="same questions"):
        check_same_questions({"base": fewer, "tuned": run})


def test_files_of_another_shape_are_refused(tmp_path):
    with pytest.raises(DataError, match="no single results file"):
        read_run(tmp_path)
    (tmp_path / "results_x.json").write_text(json.dumps({"lm_eval_version": "9.0"}))
    (tmp_path / "samples_a_2026-01-01T00-00-00.1.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="another shape") as caught:
        read_run(tmp_path)
    assert "9.0" in caught.value.found


def test_a_python_without_lm_eval_is_refused_when_planning(tmp_path):
    with pytest.raises(PlanError, match="no such Python"):
        check_lm_eval(LmEvalSpec(tasks=("a",), python=str(tmp_path / "python")), {})
    with pytest.raises(PlanError, match="has no lm_eval_that_is_not_there") as caught:
        find_program("lm_eval_that_is_not_there", python=None, where="lm_eval.python", install="lm-eval[hf]")
    assert "pip install 'lm-eval[hf]'" in caught.value.hint


def test_a_program_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path, stage_context):
    child = "import os, subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    log = tmp_path / "log"
    with pytest.raises(TunesmithError, match="was not done after 1 s"):
        run_program([sys.executable, "-c", child], name="it", cwd=tmp_path, log=log, max_seconds=1, ctx=stage_context)
    started = int(log.read_text())
    for _ in range(100):  # a killed process stands in the table until its parent has looked
        state = Path(f"/proc/{started}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError(f"process {started} lives on")


def test_a_program_that_fails_says_its_last_words(tmp_path, stage_context):
    argv = [sys.executable, "-c", "print('step 1'); print('out of luck'); raise SystemExit(3)"]
    with pytest.raises(TunesmithError, match="it ended with status 3") as caught:
        run_program(argv, name="it", cwd=tmp_path, log=tmp_path / "log", max_seconds=60, ctx=stage_context)
    assert caught.value.found == "step 1 | out of luck"
