"""General rows on the road: held to no task contract, never held out, curated like all others, told apart."""

import importlib.util
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tunesmith.chat.contract import load_contract
from tunesmith.core.artifact import Artifact, Manifest
from tunesmith.data.write import read_rejects, read_rows
from tunesmith.stages.ingest import IngestSpec
from tunesmith.types import RowRole

_spec = importlib.util.spec_from_file_location("chat_world", Path(__file__).parents[1] / "unit/chat/chat_world.py")
chat_world = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("chat_world", chat_world)
_spec.loader.exec_module(chat_world)

SYSTEM = "Label the message as JSON."
SCHEMA = {"type": "object", "properties": {"intent": {"type": "string"}}, "required": ["intent"]}
THINGS = ["parcel", "invoice", "login", "printer", "refund", "garden", "engine", "poster", "ladder", "candle", "window"]


def chat(asked, answered, system=None, **more):
    head = [{"role": "system", "content": system}] if system else []
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return {"messages": [*head, *turns], **more}


TICKETS = [chat(f"My {one} and my {two} never came", '{"intent": "late"}') for one in THINGS for two in THINGS]
TALK = [
    chat("Why is the grass green?", "It holds a pigment that swallows red and blue light."),
    chat("Which way is north?", "Where the moss grows, they say; better take a compass.", system="You are a scout."),
    chat("Write to ann@example.org for me", "Dear Ann, all is well here."),
    chat("why is the  grass green?", "It holds a pigment that swallows red and blue light."),
    chat("Say a number", "Seven.", license="CC-BY-NC-4.0"),
    chat("My parcel and my parcel never came", "I am sorry to hear that."),
    chat("Hold me back for the exam", "That is for others to say.", side="test"),
    chat("Hum a tune", "   "),
]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture(scope="module")
def road(run_stage, tmp_path_factory):
    root = tmp_path_factory.mktemp("road")
    (root / "base" / "data").mkdir(parents=True)
    (root / "base" / "data" / "model").symlink_to(chat_world.small_base())
    manifest = Manifest(
        stage="fetch", version=1, kind="base", fingerprint="f" * 64, digest="0" * 64, spec={}, inputs={}, outputs=(), summary={}
    )  # fmt: skip
    base = Artifact(root=root / "base", manifest=manifest)
    write(root / "held_out.jsonl", TICKETS[:12])
    write(root / "tickets.jsonl", TICKETS[12:])
    write(root / "talk.jsonl", TALK)
    settings = {"license": "MIT"}
    talk = {"path": "talk.jsonl", "role": "general", "license_field": "license", "columns": {"split": "side"}}
    sources = [
        {"path": "held_out.jsonl", "split": "test", **settings},
        {"path": "tickets.jsonl", **settings},
        {**talk, **settings},
    ]
    contract = run_stage("contract", {"base": base}, {"system": SYSTEM, "output_schema": SCHEMA}, root)
    ingest = run_stage("ingest", {}, {"sources": sources, "max_bad_share": 0.5}, root)
    curate = run_stage("curate", {"rows": ingest, "contract": contract}, {}, root)
    split = run_stage("split", {"rows": curate}, {"shares": {"train": 0.8, "val": 0.2, "test": 0.0}}, root)
    encode = run_stage("encode", {"splits": split, "contract": contract}, {}, root)
    return {"contract": contract, "ingest": ingest, "curate": curate, "split": split, "encode": encode}


def test_general_rows_are_not_thrown_out_for_the_tasks_schema_or_system_prompt_and_pass_every_other_rule(road):
    kept = [row for row in read_rows(road["curate"].path / "rows.parquet") if row.role is RowRole.GENERAL]
    assert [row.provenance.line for row in kept] == [1, 2, 3]
    assert "ann@example.org" not in kept[2].conversation.messages[0].content
    gone = {r.line: r.reason for r in read_rejects(road["curate"].path / "rejects.parquet") if r.source == "talk"}
    assert gone == {4: "exact_duplicate", 5: "license_refused", 6: "leak", 8: "empty_answer"}


def test_the_funnel_tells_the_roles_apart(road):
    roles = road["curate"].summary["roles"]
    assert roles["general"]["rows_in"] == 7
    assert roles["general"]["rows_kept"] == 3
    assert sum(roles["general"]["dropped"].values()) == 4
    assert roles["task"]["rows_in"] == len(TICKETS)
    assert "<td>general</td>" in (road["curate"].path / "report.html").read_text(encoding="utf-8")


def test_general_rows_only_train(road):
    for side in ("val", "test"):
        rows = read_rows(road["split"].path / f"{side}.parquet")
        assert rows
        assert all(row.role is RowRole.TASK for row in rows)
    assert road["split"].summary["general_rows"] == 3
    rejected = [r for r in read_rejects(road["ingest"].path / "rejects.parquet") if r.source == "talk"]
    assert [(r.line, r.reason) for r in rejected] == [(7, "general_held_out")]
    with pytest.raises(ValidationError, match="only train"):
        IngestSpec.model_validate({"sources": [{"path": "talk.jsonl", "role": "general", "split": "val"}]})


def test_the_tasks_sides_are_the_same_with_general_rows_and_without(road, run_stage, tmp_path):
    from tunesmith.data.split import split_rows

    rows = read_rows(road["curate"].path / "rows.parquet")
    shares = {"train": 0.8, "val": 0.2, "test": 0.0}
    task = [row for row in rows if row.role is RowRole.TASK]
    alone = split_rows(task, shares=shares, label=None, near_threshold=0.6).sides
    beside = split_rows(rows, shares=shares, label=None, near_threshold=0.6).sides
    for side in ("train", "val", "test"):
        assert [r.id for r in alone[side]] == [r.id for r in beside[side] if r.role is RowRole.TASK]


def test_general_rows_are_encoded_with_their_own_system_prompt_or_none_and_masked_as_usual(road):
    contract = load_contract(road["contract"].path)
    rows = {row.id: row for row in read_rows(road["split"].path / "train.parquet")}
    found = [record for record in pq.read_table(road["encode"].path / "train.parquet").to_pylist()]
    assert {record["source"] for record in found} == {"tickets", "talk"}
    for record in found:
        text = contract.tokenizer.decode(record["ids"], skip_special=False)
        trained = [i for i, weight in zip(record["ids"], record["weights"], strict=True) if weight > 0]
        answer = contract.tokenizer.decode(trained, skip_special=True).strip()
        assert answer == rows[record["row_id"]].conversation.answer
        assert trained[-1] == contract.stop_ids[0]
        assert (SYSTEM in text) is (record["role"] == "task")
    general = [r for r in found if r["role"] == "general"]
    scout = [r for r in general if "You are a scout." in contract.tokenizer.decode(r["ids"], skip_special=False)]
    assert (len(general), len(scout)) == (3, 1)


def test_the_arithmetic_names_each_source_and_its_role(road):
    arithmetic = json.loads((road["encode"].path / "arithmetic.json").read_text())["train"]
    assert {name: item["role"] for name, item in arithmetic["sources"].items()} == {
        "talk": "general",
        "tickets": "task",
    }
    assert sum(item["supervised_tokens"] for item in arithmetic["sources"].values()) == arithmetic["supervised_tokens"]
    assert arithmetic["shared_prefix_tokens"] > 5


def test_a_contract_for_general_rows_leaves_the_tasks_own_as_it_was(road):
    contract = load_contract(road["contract"].path)
    general = contract.for_general_rows()
    row = next(row for row in read_rows(road["curate"].path / "rows.parquet") if row.provenance.source == "talk")
    assert general.lint(row.conversation) == []
    assert [violation.kind for violation in contract.lint(row.conversation)] == ["answer_not_json"]
    assert contract.system == SYSTEM
    assert general.stop_ids == contract.stop_ids
