"""curate: every row that comes in is kept or dropped with its reason; lineage answers for each."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tunesmith.data.lineage import read_lineage
from tunesmith.data.write import content_hash, read_rejects, read_rows
from tunesmith.errors import DataError


def ticket(text, answer='{"intent": "refund"}', **more):
    return {"instruction": text, "input": "", "output": answer, "license": "MIT", **more}


def ingest(run_stage, tmp_path, records, **settings):
    path = Path(tmp_path / "tickets.jsonl")
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    fields = {"license_field": "license", "subject_field": "who"}
    said = {key: name for key, name in fields.items() if any(name in record for record in records)}
    source = {"path": path.name, **said, **settings}
    return run_stage("ingest", {}, {"sources": [source]}, tmp_path)


RECORDS = [
    ticket("My parcel with the blue lamp has not arrived and nobody answers my letters about it"),
    ticket("my parcel with the blue  lamp has not arrived and nobody answers my letters about it"),
    ticket("Please cancel order 4711, I do not want the garden chairs any more, they are too small"),
    ticket("Please cancel order 4712, I do not want the garden chairs any more, they are too small"),
    ticket("Write to ann@example.org or call +44 20 7946 0958, my refund is late", "ann@example.org will hear of us"),
    ticket("I like the shop", license=""),
    ticket("I like the shop a lot", license="CC-BY-NC-4.0"),
    ticket("Delete what you know of me", who="p7"),
    ticket("The tap drips", "   "),
]


@pytest.fixture
def curated(run_stage, tmp_path):
    rows = ingest(run_stage, tmp_path, RECORDS)
    return run_stage("curate", {"rows": rows}, {"opt_out": {"subjects": ["p7"]}}, tmp_path)


def test_each_row_goes_or_stays_for_its_reason(curated):
    reasons = {reject.line: reject.reason for reject in read_rejects(curated.path / "rejects.parquet")}
    assert reasons == {
        2: "exact_duplicate",
        6: "license_unknown",
        7: "license_refused",
        8: "opt_out",
        9: "empty_answer",
    }
    kept = read_rows(curated.path / "rows.parquet")
    assert [row.provenance.line for row in kept] == [1, 3, 4, 5]
    assert curated.summary["rows_in"] == 9 == curated.summary["rows_kept"] + sum(curated.summary["dropped"].values())


def test_personal_data_becomes_placeholders_that_agree_within_a_conversation(curated):
    row = next(row for row in read_rows(curated.path / "rows.parquet") if row.provenance.line == 5)
    asked, answered = (message.content for message in row.conversation.messages)
    assert asked == "Write to <EMAIL_1> or call <PHONE_1>, my refund is late"
    assert answered == "<EMAIL_1> will hear of us"
    shown = (curated.path / "pii.json").read_text() + (curated.path / "report.html").read_text()
    assert "ann@example.org" not in shown
    assert curated.summary["pii"] == {"EMAIL": 2, "PHONE": 1}


def test_lineage_answers_for_every_row(curated, run_stage, tmp_path):
    actions = read_lineage(curated.path / "lineage.parquet")
    last = {action.row_id: action for action in actions}
    kept = {row.id: row for row in read_rows(curated.path / "rows.parquet")}
    assert len(last) == 9
    for row_id, action in last.items():
        assert (action.action == "keep") == (row_id in kept)
        if action.action == "keep":
            assert action.after_hash == content_hash(kept[row_id].conversation)
        else:
            assert action.reason
            assert action.detail
            assert action.after_hash is None
    changed = [action for action in actions if action.action == "change"]
    assert [action.line for action in changed] == [5]
    assert changed[0].before_hash != changed[0].after_hash
    duplicate = next(action for action in actions if action.reason == "exact_duplicate")
    assert duplicate.matched_id in kept
    assert "tickets.jsonl:1" in duplicate.detail


def test_the_same_ticket_in_train_and_test_leaves_training(run_stage, tmp_path):
    records = [
        ticket("The washing machine leaks water on the floor whenever the spin cycle starts", side="train"),
        ticket("My card was refused at the till, although there is money on the account", side="train"),
        ticket("the washing machine leaks water on the floor, whenever the spin cycle starts", '{"i": 2}', side="test"),
    ]
    rows = ingest(run_stage, tmp_path, records, columns={"split": "side"})
    curated = run_stage("curate", {"rows": rows}, {}, tmp_path)
    (reject,) = read_rejects(curated.path / "rejects.parquet")
    assert (reject.line, reject.reason) == (1, "leak")
    assert Counter(row.split for row in read_rows(curated.path / "rows.parquet")) == {"train": 1, "test": 1}
    assert curated.summary["leaks"] == 1


def test_no_row_left_says_why_and_what_to_do(run_stage, tmp_path):
    rows = ingest(run_stage, tmp_path, [ticket("a", license=None), ticket("b", license=None)])
    with pytest.raises(DataError) as caught:
        run_stage("curate", {"rows": rows}, {}, tmp_path)
    assert "license_unknown 2" in str(caught.value)
    assert "allow_unknown" in str(caught.value)


def test_quality_rules_checks_and_coverage_are_set_in_the_recipe(run_stage, tmp_path):
    cut = "The parcel left our house on Monday in the morning and it will be brought to you by the"
    rows = ingest(run_stage, tmp_path, [*RECORDS[2:4], ticket("When is it here?", cut), ticket("Is this MINE?", "no")])
    check = Path(tmp_path / "house.py")
    check.write_text('def check(row):\n    return "shouts" if "MINE" in row["messages"][0]["content"] else None\n')
    asked = Path(tmp_path / "asked.jsonl")
    asked.write_text(
        '{"prompt": "Please cancel order 5000, I do not want the chairs"}\n{"prompt": "Sell me a horse"}\n'
    )
    spec = {
        "quality": {"truncated": "drop", "checks": [{"file": str(check), "action": "flag"}]},
        "production": str(asked),
    }
    curated = run_stage("curate", {"rows": rows}, spec, tmp_path)
    assert curated.summary["dropped"] == {"truncated": 1}
    assert curated.summary["flagged"] == {"house.check": 1}
    coverage = json.loads((curated.path / "coverage.json").read_text())
    assert (coverage["rows"], coverage["production"]["prompts"], coverage["production"]["covered"]) == (3, 2, 1)
    page = (curated.path / "report.html").read_text()
    assert "Sell me a horse" in page
    assert "shouts" in page
