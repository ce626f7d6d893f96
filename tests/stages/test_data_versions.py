"""Two data versions are told apart row by row, and any row can be asked for its fate."""

import json

import pytest
from typer.testing import CliRunner

import tunesmith.api as api
from tunesmith.cli.main import make_app
from tunesmith.core.runs import RunRecord, StageRecord, create_run
from tunesmith.core.store import Store
from tunesmith.data.write import read_rows
from tunesmith.errors import PlanError, StoreError

ASKED = {
    1: ("The blue lamp of my last order flickers since it was hung up in the hall of our house by the sea", "a"),
    2: ("The blue lamp of my last order flickers since it was hung up in the hall of our home by the sea", "p"),
    3: ("Write to ann@example.org about the coffee machine with the steel jug, please, as soon as you can", "p"),
    4: ("Where do I find the invoice of the garden chairs that I bought in spring for our terrace", "p"),
    5: ("My password is refused although the mail with the link came twice today, what can I do now", "q"),
    6: ("Is the parcel with the two winter coats and the red scarf on its way to Graz by now", "p"),
    7: ("I like the shop a lot and wish you a merry Christmas from the mountains of Norway", "p"),
    8: ("i like the shop a lot  and wish you a merry Christmas from the mountains of Norway", "p"),
}


def record(line, **changes):
    text, who = ASKED[line]
    return {
        "instruction": text,
        "input": "",
        "output": f"Answer {({2: 1, 8: 7}).get(line, line)}.",
        "lic": "MIT",
        "who": who,
        **changes,
    }


class Bench:
    def __init__(self, run_stage, root):
        self.run_stage, self.root, self.store = run_stage, root, Store(root / ".tunesmith")

    def version(self, records, **settings):
        (self.root / "desk.jsonl").write_text("".join(json.dumps(value) + "\n" for value in records))
        source = {"path": "desk.jsonl", "license_field": "lic", "subject_field": "who"}
        if any("side" in value for value in records):
            source["columns"] = {"split": "side"}
        self.rows = self.run_stage("ingest", {}, {"sources": [source], "max_bad_share": 0.5}, self.root)
        return self.run_stage("curate", {"rows": self.rows}, settings, self.root)

    def diff(self, before, after):
        return api.diff(before.fingerprint[:12], str(after.root), store=self.store.root)


@pytest.fixture
def bench(run_stage, tmp_path):
    return Bench(run_stage, tmp_path)


def told(rows):
    return {int(row.place.rsplit(":", 1)[1]): row.reason for row in rows}


def test_a_row_that_a_rule_took_is_removed_with_its_reason_and_back_with_it(bench):
    records = [record(line) for line in (1, 3, 4, 5)]
    one = bench.version(records)
    two = bench.version(records, opt_out={"subjects": ["q"]})
    found = bench.diff(one, two)
    assert (found.rows_before, found.rows_after) == (4, 3)
    assert told(found.removed) == {4: "B dropped it: opt_out: the subject 'q' opted out"}
    assert (found.added, found.changed, found.moved) == ((), (), 0)
    back = bench.diff(two, one)
    assert told(back.added) == {4: "A dropped it: opt_out: the subject 'q' opted out"}
    assert back.sources == {"desk": (3, 4)}


def test_new_gone_moved_and_edited_rows_are_told_apart(bench):
    one = bench.version([record(line) for line in (1, 4, 5)])
    two = bench.version([record(6), record(1), record(4, output="Another answer.")])
    found = bench.diff(one, two)
    assert told(found.added) == {1: "new: A never read it"}
    assert told(found.removed) == {3: "gone: B never read it"}
    assert told(found.changed) == {3: "text differs"}
    assert found.moved == 1
    three = bench.version([record(1), record(4, output="Another answer."), record(5, lic="Apache-2.0")])
    found = bench.diff(one, three)
    assert (found.added, found.removed, found.moved) == ((), (), 0)
    assert told(found.changed)[2].startswith("text differs")
    assert told(found.changed)[3] == "licence: MIT is now Apache-2.0"


def test_a_change_by_a_rule_names_the_rule(bench):
    records = [record(line) for line in (1, 3, 4)]
    found = bench.diff(bench.version(records, redact=[]), bench.version(records))
    assert told(found.changed)[2].startswith("text differs; personal_data:")


def test_splits_are_compared_with_their_sides(bench, run_stage):
    sides = ["train", "train", "test"]
    made = []
    for swap in (sides, ["train", "test", "test"]):
        curated = bench.version([record(line, side=side) for line, side in zip((1, 4, 5), swap, strict=True)])
        made.append(run_stage("split", {"rows": curated}, {"shares": {"train": 1, "val": 0, "test": 0}}, bench.root))
    found = bench.diff(*made)
    assert told(found.changed) == {2: "side: train is now test"}
    with pytest.raises(StoreError, match="one kind"):
        bench.diff(made[0], curated)


def test_the_command_tells_rows_and_reasons(bench):
    records = [record(line) for line in (1, 3, 4, 5)]
    one, two = bench.version(records), bench.version(records, opt_out={"subjects": ["q"]})
    call = ["diff", one.fingerprint, two.fingerprint, "--store", str(bench.store.root)]
    shown = CliRunner().invoke(make_app(), call)
    assert shown.exit_code == 0, shown.output
    assert "1 removed" in shown.stdout
    assert "opt_out" in shown.stdout
    value = json.loads(CliRunner().invoke(make_app(), [*call, "--json"]).stdout)
    assert value["removed"][0]["place"] == "desk.jsonl:4"


def test_any_row_can_be_asked_for_its_fate(bench, run_stage):
    records = [
        record(1), record(2), record(3), record(4, lic=None), record(5, who="gone"), record(6), record(7), record(8),
        record(1, instruction="Please tell me the way to the shop from the station in Oslo", output=" "),
        {"messages": "none"},
        record(6, instruction="Do you sell umbrellas for two people with a wooden handle and a case?", side="test"),
    ]  # fmt: skip
    (bench.root / "exam.jsonl").write_text(json.dumps({"prompt": ASKED[6][0]}) + "\n")
    curated = bench.version(records, opt_out={"subjects": ["gone"]}, evaluations={"exam": "exam.jsonl"})
    split = run_stage("split", {"rows": curated}, {"shares": {"train": 1, "val": 0, "test": 0}}, bench.root)
    stages = {
        name: StageRecord(
            stage=name, version=1, kind=made.kind, status="done", fingerprint=made.fingerprint, inputs={}, spec={}
        )
        for name, made in (("ingest", bench.rows), ("curate", curated), ("split", split))
    }
    create_run(
        bench.store,
        RunRecord(run="r", recipe="desk", recipe_path="desk.yaml", started="", overrides=(), stages=stages),
        recipe_text="",
    )

    def story(line):
        facts = api.explain(f"desk:{line}", store=bench.store.root).facts
        return {fact.where: fact.fields for fact in facts}, json.dumps([dict(fact.fields) for fact in facts])

    for line, words in {
        2: "near_duplicate",
        4: "license_unknown",
        5: "opted out",
        8: "exact_duplicate",
        9: "empty_answer",
        10: "messages",
    }.items():
        facts, text = story(line)
        assert words in text, (line, text)
        assert "split: train.parquet" not in facts
    for line, words in {1: "keep", 3: "personal_data", 6: "contaminated", 7: "keep"}.items():
        facts, text = story(line)
        assert words in text, (line, text)
        assert "split: train.parquet" in facts
    assert story(2)[0]["in short"]["fate"] == "dropped by curate: near_duplicate"
    assert story(4)[0]["in short"]["fate"] == "dropped by curate: license_unknown"
    assert story(1)[0]["in short"]["fate"] == "kept; last seen in split: train.parquet"
    facts, _ = story(11)
    assert "split: test.parquet" in facts
    near, _ = story(2)
    row = next(row for row in read_rows(bench.rows.path / "rows.parquet") if row.provenance.line == 2)
    assert near["curate: lineage.parquet"]["fate"] == "drop"
    assert near["curate: lineage.parquet"]["actions"][0]["score"] > 0.6
    assert near["ingest: rows.parquet"]["id"] == row.id
    with pytest.raises(PlanError):
        api.explain("desk:99", store=bench.store.root)
