"""The stages `contract` and `encode`, through the kernel, on a small base."""

import importlib.util
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tunesmith.chat.contract import load_contract
from tunesmith.core.artifact import Artifact, Manifest
from tunesmith.data.write import read_rejects, row_id, write_rows
from tunesmith.errors import ContractError, DataError, PlanError, RecipeError
from tunesmith.stages.contract import ContractSpec, check
from tunesmith.types import Conversation, Provenance, Row

_spec = importlib.util.spec_from_file_location("chat_world", Path(__file__).parents[1] / "unit/chat/chat_world.py")
chat_world = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("chat_world", chat_world)
_spec.loader.exec_module(chat_world)


def artifact(root, kind, fingerprint="f" * 64):
    (root / "data").mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        stage=kind, version=1, kind=kind, fingerprint=fingerprint, digest="0" * 64, spec={}, inputs={}, outputs=(), summary={}
    )  # fmt: skip
    return Artifact(root=root, manifest=manifest)


@pytest.fixture
def base(tmp_path):
    made = artifact(tmp_path / "base", "base")
    (made.path / "model").symlink_to(chat_world.small_base())
    return made


def row(text, answer, index=0, **fields):
    messages = [{"role": "user", "content": text}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer, **fields})
    conversation = Conversation.from_json({"messages": messages})
    origin = Provenance(source="s", path="s.jsonl", line=index + 1)
    return Row(
        id=row_id(conversation, source="s", path="s.jsonl", line=index), conversation=conversation, provenance=origin
    )


def splits(root, train, val=()):
    made = artifact(root / "splits", "splits")
    for name, rows in (("train", train), ("val", val), ("test", ())):
        write_rows(made.path / f"{name}.parquet", rows)
    return made


ROWS = [row(f"message number {i}", f'{{"intent": "i{i % 3}"}}', i) for i in range(12)]
SPEC = {"system": "Reply with JSON.", "criteria": ["schema_adherence >= 0.97 with 95% confidence"]}


def test_a_contract_is_made_from_the_recipe_and_the_base(run_stage, base, tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    made = run_stage("contract", {"base": base}, {**SPEC, "output_schema": "schema.json"}, tmp_path)
    contract = load_contract(made.path)
    assert made.summary["sha256"] == contract.sha256
    assert contract.output_schema == {"type": "object"}
    assert contract.criteria == tuple(SPEC["criteria"])
    assert (made.path / "tokenizer/chat_template.jinja").is_file()


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"criteria": ["be good"]}, RecipeError),
        ({"template": "qwen-3"}, RecipeError),
        ({"output_schema": {"type": "objekt"}}, RecipeError),
        ({"guardrails": {"unknown": 1}}, ContractError),
    ],
)
def test_what_cannot_hold_is_refused_before_anything_runs(spec, error):
    with pytest.raises(error):
        check(ContractSpec.model_validate(spec), {})


@pytest.mark.parametrize(
    "spec", [{"sistem": "x"}, {"template_date": "2025-02-30"}, {"loss": {"train_on": "some"}}, {"input_schema": {}}]
)
def test_keys_and_values_that_mean_nothing_are_refused(spec):
    with pytest.raises(ValidationError):
        ContractSpec.model_validate(spec)


@pytest.mark.parametrize(
    ("criterion", "meant"),
    [
        ("template_mach - base >= 0.1", "template_match"),
        ("schema_adherance >= 0.97 with 95% confidence", "schema_adherence"),
        ("schema_adherence >= 0.97", None),
        ("bfcl.tool_call_match >= 0.1", None),
        ("pass_at_7 >= 0.1", None),
        ("tone_of_our_own >= 0.5", None),
    ],
)
def test_a_misspelt_metric_is_told_before_anything_is_trained(criterion, meant):
    told = check(ContractSpec.model_validate({"criteria": [criterion]}), {})
    assert [f"did you mean {meant!r}?" in warning for warning in told] == ([] if meant is None else [True])


def test_a_contract_without_criteria_warns():
    assert any("criteria" in warning for warning in check(ContractSpec.model_validate({}), {}))


def test_a_base_without_a_template_asks_for_one(run_stage, tmp_path):
    made = artifact(tmp_path / "base", "base")
    (made.path / "model").mkdir()
    with pytest.raises(PlanError, match="no chat template"):
        run_stage("contract", {"base": made}, SPEC, tmp_path)


def test_system_prompts_are_text_none_or_the_rows_own():
    assert ContractSpec.model_validate({}).system.source == "rows"
    assert ContractSpec.model_validate({"system": None}).system is None
    identities = [ContractSpec.model_validate(spec).identity() for spec in ({}, {"system": None}, {"system": ""})]
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == 3


def test_a_family_enters_identity_by_its_text():
    from tunesmith.chat.families import family_template

    identity = ContractSpec.model_validate({"template": "chatml"}).identity()
    assert identity["template"]["sha256"] == family_template("chatml").sha256
    with pytest.raises(ValidationError, match="has the hash"):
        ContractSpec.model_validate({"template": {"kind": "family", "name": "chatml", "sha256": "0" * 64}})


def encoded(run_stage, base, tmp_path, train, val=(), **spec):
    contract = run_stage("contract", {"base": base}, {**SPEC, **spec}, tmp_path)
    return run_stage("encode", {"splits": splits(tmp_path, train, val), "contract": contract}, {}, tmp_path), contract


def test_examples_are_what_the_contract_encodes_and_the_arithmetic_adds_up(run_stage, base, tmp_path):
    made, contract_artifact = encoded(run_stage, base, tmp_path, ROWS, ROWS[:2])
    contract = load_contract(contract_artifact.path)
    table = pq.read_table(made.path / "train.parquet").to_pylist()
    for record, source in zip(table, ROWS, strict=True):
        (example,) = contract.encode(source.conversation, row_id=source.id)
        encoded_as = {"row_id": source.id, "ids": list(example.ids), "weights": list(example.weights)}
        assert record == {**encoded_as, "source": source.provenance.source, "role": "task"}
    arithmetic = json.loads((made.path / "arithmetic.json").read_text())["train"]
    assert arithmetic["rows"] == arithmetic["kept_rows"] == arithmetic["examples"] == 12
    assert arithmetic["tokens"] == sum(len(record["ids"]) for record in table)
    assert arithmetic["supervised_tokens"] == sum(weight > 0 for record in table for weight in record["weights"])
    assert arithmetic["lengths"]["max"] == max(len(record["ids"]) for record in table)
    assert sum(arithmetic["roles"]["tokens"].values()) == arithmetic["tokens"]
    prefix = arithmetic["shared_prefix_tokens"]
    assert {tuple(record["ids"][:prefix]) for record in table} == {tuple(table[0]["ids"][:prefix])}
    assert made.summary["train"]["kept_rows"] == 12


def test_long_rows_are_dropped_counted_and_kept_with_their_length(run_stage, base, tmp_path):
    long = row("word " * 200, "ok", 99)
    made, _ = encoded(run_stage, base, tmp_path, [*ROWS, long], loss={"max_tokens": 80})
    (reject,) = read_rejects(made.path / "rejects.parquet")
    assert (reject.reason, reject.row_id, reject.stage) == ("overlong", long.id, "encode")
    assert "tokens" in reject.detail
    assert made.summary["rejects"] == {"overlong": 1}
    assert made.summary["train"]["kept_rows"] + 1 == made.summary["train"]["rows"]


def test_a_long_row_can_be_an_error_that_names_it(run_stage, base, tmp_path):
    long = row("word " * 200, "ok", 99)
    with pytest.raises(DataError, match=long.id):
        encoded(run_stage, base, tmp_path, [*ROWS, long], loss={"max_tokens": 80, "overlong": "error"})


def test_a_row_without_a_target_is_an_error_that_names_it(run_stage, base, tmp_path):
    silent = row("nobody answers", None, 99)
    with pytest.raises(DataError, match=silent.id):
        encoded(run_stage, base, tmp_path, [*ROWS, silent])


def test_a_row_without_a_target_is_dropped_and_counted_where_the_policy_says_so(run_stage, base, tmp_path):
    made, _ = encoded(run_stage, base, tmp_path, [*ROWS, row("nobody", None, 99)], loss={"no_target": "drop"})
    assert made.summary["rejects"] == {"no_target": 1}


def test_a_training_side_without_examples_is_an_error(run_stage, base, tmp_path):
    with pytest.raises(DataError, match="no row of the training side"):
        encoded(run_stage, base, tmp_path, [], ROWS[:1])


def test_plan_time_imports_nothing_heavy():
    import subprocess

    code = "import sys, tunesmith.stages.contract, tunesmith.stages.encode; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
