"""Every published file of shared data loads, or fails with an error that names file, line, field, expected and found."""

import json
from pathlib import Path

import pytest

from tunesmith.data.files import read_records
from tunesmith.data.inspection import inspect_source
from tunesmith.data.llamafactory import entry_of
from tunesmith.data.read import Origin, rows_of
from tunesmith.data.write import Reject
from tunesmith.errors import DataError

SHARED = Path(__file__).parents[2] / "../shared/data"
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not here")

FILES = sorted([*SHARED.glob("*.jsonl"), *(SHARED / "formats").glob("*")])
REFUSED = {
    "safety_advbench.jsonl": "the fields 'id', 'prompt', 'label'",
    "safety_bipia_text_attacks.jsonl": "the fields 'id', 'category', 'injection'",
    "safety_xstest.jsonl": "the fields 'id', 'prompt', 'label', 'type'",
    "json_lines_named.json": "the fields 'id', 'question', 'function' (a list of 1 objects)",
    "dataset_info.json": "dataset: NAME",
    "snips_latin1.json": "the byte 0xed",
}
"""Files that hold no training rows (prompts of evaluations, a nested export, another encoding) and what is said."""
REJECTED = {
    "tools_bfcl.jsonl": {"no_assistant_turn": 1098},
    "pref_llms_from_scratch.jsonl": {"same_answers": 6},
}
ROWS = {
    "identity.json": 91,
    "dpo_en_demo.json": 300,
    "kto_en_demo.json": 300,
    "glaive_toolcall_en_demo.json": 300,
    "reason_tool_use_demo_50.jsonl": 50,
    "v1_dpo_demo.jsonl": 10,
    "v1_sft_demo.jsonl": 500,
}


def load(path, **settings):
    return list(rows_of(read_records(path), Origin(name=path.stem, **settings), name=path.name)[1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_loads_or_says_what_is_wrong(path):
    if path.name in REFUSED:
        with pytest.raises(DataError) as caught:
            load(path)
        text = str(caught.value)
        assert path.name in text
        assert REFUSED[path.name] in text
        assert "expected:" in text
        return
    items = load(path)
    reasons = [item.reason for item in items if isinstance(item, Reject)]
    assert {reason: reasons.count(reason) for reason in reasons} == REJECTED.get(path.name, {})
    expected = ROWS.get(path.name) or sum(1 for line in path.open(encoding="utf-8") if line.strip())
    assert len(items) == expected
    assert len({item.row_id if isinstance(item, Reject) else item.id for item in items}) == len(items)


def test_messages_are_read_as_they_stand():
    path = SHARED / "intent_banking77.test.jsonl"
    lines = [json.loads(line) for line in path.open(encoding="utf-8")]
    for line, row in zip(lines, load(path), strict=True):
        assert [message.to_json() for message in row.conversation.messages] == line["messages"]


def test_the_published_tool_traces_keep_thoughts_and_calls():
    rows = load(SHARED / "formats/reason_tool_use_demo_50.jsonl")
    answers = [m for row in rows for m in row.conversation.messages if m.role == "assistant"]
    assert all(answer.reasoning for answer in answers)
    assert sum(len(answer.tool_calls) for answer in answers) == 41 + 2 * 9 + 3 * 3
    lines = [json.loads(line) for line in (SHARED / "formats/reason_tool_use_demo_50.jsonl").open(encoding="utf-8")]
    assert [list(row.conversation.tools) for row in rows] == [json.loads(line["tools"]) for line in lines]


def test_the_published_dataset_info_is_read_as_it_is():
    folder = SHARED / "formats"
    for name, count in (("identity", 91), ("glaive_toolcall_en_demo", 300), ("dpo_en_demo", 300), ("kto_en_demo", 300)):
        entry = entry_of(folder, name)
        items = load(entry.path, columns=entry.columns, prepare=entry.prepare())
        assert len(items) == count
        assert not any(isinstance(item, Reject) for item in items)
    kto = load(folder / "kto_en_demo.json")
    assert {row.desirable for row in kto} == {True, False}
    with pytest.raises(DataError, match="hub"):
        entry_of(folder, "alpaca_en")


def test_a_file_is_described_before_anything_is_said_of_it():
    report = inspect_source(SHARED / "intent_banking77.train.jsonl")
    assert (report.shape, report.rows, report.problems) == ("messages", 10003, {})
    assert {name: len(counts) for name, counts in report.labels.items()} == {"answer.intent": 77}
    assert 0 < report.median_chars < report.p95_chars
