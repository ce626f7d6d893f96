"""review: decisions are kept by content, hold over rebuilds, overrule what they may, and travel through Label Studio."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from tunesmith.api.review import decide, export_tasks, import_annotations, open_board
from tunesmith.cli.main import make_app
from tunesmith.core.runs import RunRecord, StageRecord, create_run
from tunesmith.core.store import Store
from tunesmith.data.labelstudio import read_annotations
from tunesmith.data.review import Decision, append_decisions, read_decisions, settle
from tunesmith.data.write import content_hash, read_rejects, read_rows
from tunesmith.errors import DataError, PlanError

ASKED = {
    1: ("The blue lamp of my last order flickers since it was hung up in the hall of our house by the sea", "Sorry."),
    2: ("The blue lamp of my last order flickers since it was hung up in the hall of our home by the sea", "Sorry."),
    3: ("Write to ann@example.org about the coffee machine with the steel jug, please, as soon as you can", "We will."),
    4: ("Where do I find the invoice of the garden chairs that I bought in spring for our terrace", "   "),
    5: ("My password is refused although the mail with the link came twice today, what can I do now", "Wait."),
    6: ("Is the parcel with the two winter coats and the red scarf on its way to Graz by now", "Yes."),
    7: ("I like the shop a lot and wish you a merry Christmas from the mountains of Norway", "Thanks."),
}


class World:
    def __init__(self, run_stage, root):
        self.root, self.run_stage = root, run_stage
        self.store = Store(root / ".tunesmith")
        self.path = root / "decisions.jsonl"
        self.records = [
            {"instruction": text, "input": "", "output": answer, "lic": "GPL-3.0-only" if line == 7 else "MIT"}
            for line, (text, answer) in ASKED.items()
        ]
        self.build()

    def build(self, **settings):
        """Ingest and curate, and record the run as the newest."""
        (self.root / "desk.jsonl").write_text("".join(json.dumps(record) + "\n" for record in self.records))
        source = {"path": "desk.jsonl", "license_field": "lic"}
        self.rows = self.run_stage("ingest", {}, {"sources": [source]}, self.root)
        if self.path.exists():
            settings["decisions"] = self.path.name
        self.curated = self.run_stage("curate", {"rows": self.rows}, settings, self.root)
        stage = StageRecord(
            stage="curate", version=1, kind="rows", status="done", fingerprint=self.curated.fingerprint, inputs={}, spec={}
        )  # fmt: skip
        record = RunRecord(
            run="2025-01-01-0000-desk", recipe="desk", recipe_path="desk.yaml", started="", overrides=(),
            stages={"curate": stage},
        )  # fmt: skip
        create_run(self.store, record, recipe_text="")
        return self.curated

    def hash_of(self, line):
        rows = read_rows(self.rows.path / "rows.parquet")
        return next(content_hash(row.conversation) for row in rows if row.provenance.line == line)

    def say(self, line, decision, *, reviewer="ada", time="2025-01-01T00:00:00Z", **more):
        made = Decision(
            content_hash=self.hash_of(line), decision=decision, reason="because", reviewer=reviewer, time=time, **more
        )
        append_decisions(self.path, [made])
        return made

    def kept(self):
        return {row.provenance.line: row for row in read_rows(self.curated.path / "rows.parquet")}

    def dropped(self):
        return {reject.line: reject.reason for reject in read_rejects(self.curated.path / "rejects.parquet")}


@pytest.fixture
def world(run_stage, tmp_path):
    return World(run_stage, tmp_path)


def test_machine_verdicts_are_overruled_and_the_account_stays_even(world):
    assert world.dropped() == {2: "near_duplicate", 4: "empty_answer", 7: "license_refused"}
    first = world.curated.fingerprint
    world.say(2, "keep")
    world.say(5, "drop")
    old = next(row for row in read_rows(world.rows.path / "rows.parquet") if row.provenance.line == 4)
    messages = (
        old.conversation.messages[0],
        dataclasses.replace(old.conversation.messages[1], content="In your account."),
    )
    world.say(4, "edit", messages=messages)
    world.build()
    assert world.curated.fingerprint != first
    assert world.dropped() == {5: "review_drop", 7: "license_refused"}
    assert world.kept()[4].conversation.answer == "In your account."
    assert world.kept()[4].id == old.id
    summary = world.curated.summary
    assert summary["rows_in"] == summary["rows_kept"] + sum(summary["dropped"].values())
    assert summary["changed"]["review_edit"] == 1
    assert summary["flagged"]["review_keep"] == 1


def test_licence_opt_out_and_personal_data_are_not_overruled(world):
    world.say(7, "keep")
    world.say(3, "keep")
    world.say(6, "keep")
    world.build(opt_out={"content_hashes": [world.hash_of(6)]})
    assert world.dropped()[7] == "license_refused"
    assert world.dropped()[6] == "opt_out"
    assert "<EMAIL_1>" in world.kept()[3].conversation.messages[0].content


def test_an_exact_duplicate_and_a_leak_are_not_overruled(world):
    world.records.append(dict(world.records[4]))
    world.records.append({**world.records[5], "side": "test"})
    world.build()
    world.say(5, "keep")
    world.say(6, "keep")
    (world.root / "desk.jsonl").write_text("".join(json.dumps(record) + "\n" for record in world.records))
    source = {"path": "desk.jsonl", "license_field": "lic", "columns": {"split": "side"}}
    rows = world.run_stage("ingest", {}, {"sources": [source]}, world.root)
    world.curated = world.run_stage("curate", {"rows": rows}, {"decisions": world.path.name}, world.root)
    assert world.dropped()[8] == "exact_duplicate"
    assert world.dropped()[6] == "leak"


def test_a_decision_holds_though_the_row_moved_and_other_rows_came(world):
    world.say(5, "drop")
    world.records.insert(
        0, {"instruction": "Do you open on Sundays in May?", "input": "", "output": "No.", "lic": "MIT"}
    )
    world.build()
    assert world.dropped()[6] == "review_drop"
    del world.records[5]
    world.build()
    assert world.curated.summary["review_unused"] == 1


def test_reviewers_who_disagree_change_nothing_until_it_is_settled(world):
    world.say(5, "drop", reviewer="ada")
    world.say(5, "keep", reviewer="bob")
    world.build()
    assert 5 in world.kept()
    assert world.curated.summary["flagged"]["review_conflict"] == 1
    board = open_board(world.path, store=world.store)
    assert board.counts()["conflicts"] == 1
    assert board.items[0].content_hash in {item.content_hash for item in board.items}
    assert world.hash_of(5) in {item.content_hash for item in board.items}
    world.say(5, "drop", reviewer="cy", time="2025-01-02T00:00:00Z", final=True)
    world.build()
    assert world.dropped()[5] == "review_drop"


def test_the_newest_word_of_a_reviewer_counts(world):
    one = world.say(5, "drop")
    two = world.say(5, "keep", time="2025-01-02T00:00:00Z")
    assert settle([two, one]).current == {one.content_hash: two}
    assert settle([two, one]).conflicts == {}


def test_the_queue_holds_each_part_and_never_what_had_to_go(world):
    board = open_board(world.path, store=world.store)
    parts = {}
    for item in board.items:
        parts.setdefault(item.stratum, []).append(int(item.place.split(":")[1]))
    assert parts == {"borderline": [2], "dropped": [4], "kept": parts["kept"]}
    assert sorted(parts["kept"]) == [1, 3, 5, 6]
    assert "ann@example.org" not in json.dumps([item.to_json() for item in board.items])
    twin = next(item for item in board.items if item.stratum == "borderline").twin
    assert "house" in twin.messages[0].content
    assert len(open_board(world.path, store=world.store, per_stratum=1).items) == 3
    decide(world.path, board.items[0], decision="keep", reason="", reviewer="ada")
    left = open_board(world.path, store=world.store)
    assert board.items[0].content_hash not in {item.content_hash for item in left.items}
    with pytest.raises(PlanError):
        open_board(world.path, store=world.store, strata=["all"])


def annotate(task, *, choice, answer=None, who, **more):
    """A task as Label Studio exports it after one annotation."""
    result = [{"from_name": "decision", "to_name": "conversation", "type": "choices", "value": {"choices": [choice]}}]
    if answer is not None:
        result.append(
            {"from_name": "answer", "to_name": "conversation", "type": "textarea", "value": {"text": [answer]}}
        )
    result.append({"from_name": "reason", "to_name": "conversation", "type": "textarea", "value": {"text": ["why"]}})
    annotation = {
        "id": 1, "completed_by": who, "was_cancelled": False, "created_at": "2025-03-01T10:00:00Z",
        "updated_at": "2025-03-01T10:05:00Z", "lead_time": 3.5, "result": result, **more,
    }  # fmt: skip
    return {**task, "id": 7, "annotations": [annotation]}


def test_a_round_through_label_studio_comes_to_the_same_rows(world, tmp_path):
    board = open_board(world.path, store=world.store)
    assert export_tasks(board, tmp_path / "tasks.json") == len(board.items)
    tasks = {task["data"]["place"]: task for task in json.loads((tmp_path / "tasks.json").read_text())}
    export = [
        annotate(tasks["desk.jsonl:2"], choice="keep", who={"email": "ada@shop.example"}),
        annotate(tasks["desk.jsonl:4"], choice="edit", answer="In your account.", who=3),
        annotate(tasks["desk.jsonl:5"], choice="drop", who=3, was_cancelled=True),
        annotate(tasks["desk.jsonl:6"], choice="drop", who=3),
    ]
    (tmp_path / "export.json").write_text(json.dumps(export))
    assert import_annotations(tmp_path / "export.json", world.path) == (3, 3)
    assert import_annotations(tmp_path / "export.json", world.path) == (3, 0)
    assert {decision.reviewer for decision in read_decisions(world.path)} == {"ada@shop.example", "labelstudio:3"}
    world.build()
    assert set(world.kept()) == {1, 2, 3, 4, 5}
    assert world.kept()[4].conversation.answer == "In your account."


@pytest.mark.parametrize(
    ("export", "words"),
    [
        ({"a": 1}, "list of tasks"),
        ([{"data": {"text": "x"}, "annotations": []}], "not made by tunesmith"),
        ([{"data": {"content_hash": "a"}, "annotations": 2}], "no annotations"),
        ([annotate({"data": {"content_hash": "a"}}, choice="maybe", who=1)], "decides nothing"),
        ([annotate({"data": {"content_hash": "a"}}, choice="edit", who=1)], "gives no answer"),
    ],
)
def test_an_export_of_something_else_is_refused_by_name(tmp_path, export, words):
    (tmp_path / "export.json").write_text(json.dumps(export))
    with pytest.raises(DataError, match=words):
        read_annotations(tmp_path / "export.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decision": "maybe"}, "no decision"),
        ({"reviewer": ""}, "lacks a field"),
        ({"reviewed": "x"}, "nobody reads"),
        ({"decision": "edit"}, "an edit"),
        ({"messages": []}, "an edit"),
    ],
)
def test_a_broken_decision_is_named_with_its_line(tmp_path, change, words):
    good = {"content_hash": "a", "decision": "keep", "reason": "", "reviewer": "ada", "time": "t"}
    path = tmp_path / "decisions.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, **change}) + "\n")
    with pytest.raises(DataError, match=words) as caught:
        read_decisions(path)
    assert ":2" in caught.value.where
    path.write_text(json.dumps(good) + "\n" + '{"content_ha')
    with pytest.raises(DataError, match="no decision"):
        read_decisions(path)


def test_the_command_asks_and_writes(world, monkeypatch):
    def call(*words, keys=""):
        options = ["review", "--store", str(world.store.root), "--decisions", str(world.path)]
        result = CliRunner().invoke(make_app(), [*options, *words], input=keys)
        assert result.exit_code == 0, result.output
        return result.stdout

    monkeypatch.setattr("click.edit", lambda text: "In your account.\n")
    assert "3 decisions were added" in call(keys="k\nboth are good\ne\n\ns\nd\nno\nq\n")
    made = read_decisions(world.path)
    assert [decision.decision for decision in made] == ["keep", "edit", "drop"]
    assert made[0].reason == "both are good"
    assert made[1].messages[-1].content == "In your account."
    assert "decided 3" in call("--status")
    assert json.loads(call("--json"))["counts"]["decided_edit"] == 1
    call("--export", str(world.root / "tasks.json"))
    assert "<Choices" in (world.root / "tasks.config.xml").read_text()


def test_semantic_duplicates_are_borderline_in_turn_with_near_ones(tmp_path):
    from tunesmith.data.curation import Rules, curate_rows
    from tunesmith.data.lineage import write_lineage
    from tunesmith.data.review_queue import make_queue
    from tunesmith.data.write import row_id, write_rejects, write_rows
    from tunesmith.types import Conversation, Message, Provenance, Row

    rows = []
    for line, (text, answer) in enumerate(ASKED.values(), start=1):
        said = Conversation(messages=(Message(role="user", content=text), Message(role="assistant", content=answer)))
        place = Provenance(source="s", path="p", line=line, license="MIT")
        rows.append(Row(id=row_id(said, source="s", path="p", line=line), conversation=said, provenance=place))
    result = curate_rows(rows, Rules(), lint=None)
    entries = list(result.duplicates)
    assert [entry["kind"] for entry in entries] == ["near_duplicate"]
    for score, row, partner in ((0.86, result.rows[1], result.rows[2]), (0.97, result.rows[3], result.rows[4])):
        result.ledger.flag(
            row, reason="semantic_duplicate", detail="may say the same", matched_id=partner.id, score=score
        )
        entries.append({**entries[0], "row_id": row.id, "keeper_id": partner.id, "kind": "semantic_duplicate"})
    write_rows(tmp_path / "rows.parquet", result.rows)
    write_rejects(tmp_path / "rejects.parquet", result.ledger.rejects)
    write_lineage(tmp_path / "lineage.parquet", result.ledger)
    (tmp_path / "duplicates.json").write_text(json.dumps(entries))
    queue = make_queue(tmp_path, per_stratum=2, strata=("borderline",))
    assert [item.score for item in queue if item.machine == "flagged: semantic_duplicate"] == [0.97]
    assert {item.machine for item in queue} == {"dropped: near_duplicate", "flagged: semantic_duplicate"}
    assert all(item.twin is not None for item in queue)
