"""takedown: an opt-out is followed from the rows to what was made of them; dropped rows are told apart; bundles are refused."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

import tunesmith.api as api
from tunesmith.api import deployment
from tunesmith.api.survey import Fate, Use
from tunesmith.cli.main import make_app
from tunesmith.core.artifact import Manifest
from tunesmith.core.refs import move_ref
from tunesmith.core.runs import RunRecord, StageRecord, create_run
from tunesmith.core.store import Attempt, Store
from tunesmith.data.policy import OptOut
from tunesmith.data.takedown import read_opt_out
from tunesmith.data.write import ParquetWriter, content_hash, read_rows
from tunesmith.errors import DataError, GateError, PlanError, StoreError

ASKED = [
    "The blue lamp of my last order flickers since it was hung up in the hall",
    "Where do I find the invoice of the garden chairs that I bought in spring",
    "My password is refused although the mail with the link came twice today",
    "the Blue lamp of my last order flickers since it was hung up in the hall",  # exact duplicate of the first
    "Please send the parcel to my neighbour, I am away until the end of July",
    "Is the coffee machine with the steel jug still made, mine is from 2011",
]
SIDES = ["train", "train", "test", "train", "val", "train"]
PEOPLE = ["p1", "p2", "p3", "p4", "p5", "p6"]


def put(store, kind, fingerprint, *, inputs, files=None, stage=None):
    """Finish an artifact as a stage would, with the files given."""
    with store.attempt(kind, fingerprint, on_wait=lambda holder: None) as attempt:
        assert isinstance(attempt, Attempt)
        for name, content in (files or {}).items():
            path = attempt.data / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_text(content, encoding="utf-8")
        manifest = Manifest(
            stage=stage or kind, version=1, kind=kind, fingerprint=fingerprint, digest="", spec={},
            inputs={role: made.fingerprint for role, made in inputs.items()}, outputs=(), summary={},
        )  # fmt: skip
        return store.finish(attempt, manifest)


def examples(ids):
    import pyarrow as pa

    schema = pa.schema([("row_id", pa.string()), ("ids", pa.list_(pa.int32()))])

    def write(path):
        with ParquetWriter(path, schema) as writer:
            for row_id in ids:
                writer.write({"row_id": row_id, "ids": [1, 2]})

    return write


class World:
    """Real rows up to the splits, then weights and a bundle as manifests name them."""

    def __init__(self, run_stage, root):
        self.root = root
        self.store = Store(root / ".tunesmith")
        records = [
            {
                "instruction": text,
                "input": "",
                "output": f"answer {i}" if i != 3 else "answer 0",
                "who": who,
                "side": side,
            }
            for i, (text, who, side) in enumerate(zip(ASKED, PEOPLE, SIDES, strict=True))
        ]
        (root / "shop.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[:5]))
        (root / "club.jsonl").write_text(json.dumps(records[5]) + "\n")
        source = {"license": "MIT", "subject_field": "who", "columns": {"split": "side"}}
        self.ingest = run_stage(
            "ingest", {}, {"sources": [{"path": "shop.jsonl", **source}, {"path": "club.jsonl", **source}]}, root
        )
        self.curate = run_stage("curate", {"rows": self.ingest}, {}, root)
        self.splits = run_stage("split", {"rows": self.curate}, {"shares": {"train": 1, "val": 0, "test": 0}}, root)
        self.by_person = {row.provenance.subject: row for row in read_rows(self.ingest.path / "rows.parquet")}
        sides = {side: read_rows(self.splits.path / f"{side}.parquet") for side in ("train", "val")}
        self.examples = put(
            self.store, "examples", "e" * 64, inputs={"splits": self.splits}, stage="encode",
            files={f"{side}.parquet": examples([row.id for row in rows]) for side, rows in sides.items()},
        )  # fmt: skip
        self.adapter = self.make_adapter("a" * 64, self.examples)
        golden = sides["val"][0].conversation.prompt
        self.bundle = self.make_bundle("b" * 64, self.adapter, self.splits, golden=golden)

    def make_adapter(self, fingerprint, made_of):
        weights = {"adapter/adapter_model.safetensors": fingerprint}
        return put(self.store, "adapter", fingerprint, inputs={"examples": made_of}, stage="train", files=weights)

    def make_bundle(self, fingerprint, adapter, splits, golden=None):
        vectors = [] if golden is None else [{**golden.to_json(), "ids": [1]}]
        files = {
            "bundle.json": json.dumps({"adapter_sha256": fingerprint[::-1]}),
            "base.json": "{}",
            "golden.jsonl": "".join(json.dumps(vector) + "\n" for vector in vectors),
            "gates.json": json.dumps({"promotable": True, "verdicts": [], "reason": ""}),
        }
        return put(self.store, "bundle", fingerprint, inputs={"adapter": adapter, "splits": splits}, files=files)

    def curate_without(self, person):
        """Examples of every row that trains but one person's."""
        rows = read_rows(self.splits.path / "train.parquet")
        ids = [row.id for row in rows if row.provenance.subject != person]
        return put(self.store, "examples", "7" * 64, inputs={}, files={"train.parquet": examples(ids)})

    def take(self, **what):
        done = api.takedown(store=self.store.root, **what)
        return done, {part.artifact.fingerprint: part.use for part in done.found.touched}

    def fates(self, done):
        return {item.row.row_id: item.fate for item in done.found.rows}


@pytest.fixture
def world(run_stage, tmp_path):
    return World(run_stage, tmp_path)


def test_a_row_that_trained_is_followed_to_the_weights_the_bundle_and_the_ref(world):
    move_ref(world.store, "production", world.bundle, who="ada")
    done, uses = world.take(subjects=["p2"], dry_run=True)
    assert world.fates(done) == {world.by_person["p2"].id: Fate.TRAINED}
    assert uses == {
        world.ingest.fingerprint: Use.TEXT,
        world.curate.fingerprint: Use.TEXT,
        world.splits.fingerprint: Use.TEXT,
        world.examples.fingerprint: Use.TEXT,
        world.adapter.fingerprint: Use.TRAINED,
        world.bundle.fingerprint: Use.CARRIES,
    }
    assert [(entry.ref, entry.now) for entry in done.refs] == [("production", True)]
    assert done.mark is None
    assert api.takedowns(store=world.store.root) == []


def test_a_row_dropped_before_training_touches_no_weights_and_names_its_twin(world):
    done, uses = world.take(subjects=["p4"])
    (row,) = done.found.rows
    assert row.fate is Fate.DROPPED
    assert row.reasons == ("curate: exact_duplicate",)
    assert row.twins == (world.by_person["p1"].id,)
    assert uses[world.curate.fingerprint] is Use.REJECTED
    assert world.adapter.fingerprint not in uses
    assert world.bundle.fingerprint not in uses
    deployment.promote(world.bundle.fingerprint, store=world.store.root)


def test_a_held_out_row_was_never_trained_on_but_a_bundle_may_quote_it(world):
    done, uses = world.take(subjects=["p5"])
    assert world.fates(done) == {world.by_person["p5"].id: Fate.CHOSEN}
    assert uses[world.adapter.fingerprint] is Use.CHOSEN
    assert uses[world.bundle.fingerprint] is Use.TEXT  # its golden vectors hold the prompt
    done, uses = world.take(subjects=["p3"])
    assert world.fates(done) == {world.by_person["p3"].id: Fate.USED}
    assert world.adapter.fingerprint not in uses


@pytest.mark.parametrize(
    ("what", "people"),
    [
        ({"sources": ["club"]}, {"p6"}),
        ({"subjects": ["p1", "p6"]}, {"p1", "p6"}),
        ({"sources": ["shop"], "subjects": ["p6"]}, set(PEOPLE)),
        ({"subjects": ["nobody"]}, set()),
    ],
)
def test_rows_are_named_by_source_and_by_person(world, what, people):
    done, _ = world.take(dry_run=True, **what)
    assert set(world.fates(done)) == {world.by_person[person].id for person in people}


def test_a_content_is_named_by_its_hash_before_or_after_it_was_changed(run_stage, tmp_path):
    record = {"instruction": "Write to ann@example.org about my late refund", "input": "", "output": "We did."}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    ingest = run_stage("ingest", {}, {"sources": [{"path": "a.jsonl", "license": "MIT"}]}, tmp_path)
    curate = run_stage("curate", {"rows": ingest}, {}, tmp_path)
    before, after = (read_rows(made.path / "rows.parquet")[0] for made in (ingest, curate))
    assert before.conversation != after.conversation
    for row in (before, after):
        digest = content_hash(row.conversation)
        done = api.takedown(content_hashes=[digest], dry_run=True, store=tmp_path / ".tunesmith")
        assert {part.artifact.kind for part in done.found.touched} == {"rows"}
        assert len(done.found.touched) == 2


def test_a_marked_bundle_is_neither_promoted_nor_served_nor_rolled_back_to(world):
    clean = world.make_bundle("c" * 64, world.make_adapter("d" * 64, world.curate_without("p2")), world.curate)
    for bundle in (clean, world.bundle):
        deployment.promote(bundle.fingerprint, store=world.store.root)
    world.take(subjects=["p2"], note="letter of 3 May")
    with pytest.raises(GateError, match="letter of 3 May") as caught:
        deployment.promote(world.bundle.fingerprint, store=world.store.root)
    assert f"promote {clean.fingerprint[:12]}" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    with pytest.raises(GateError, match="may not be served"):
        deployment.serve(world.bundle.fingerprint, store=world.store.root, on_ready=lambda listening: None)
    with pytest.raises(GateError, match="may not be served"):
        deployment.serve(world.bundle.path, store=world.store.root, on_ready=lambda listening: None)
    deployment.promote(clean.fingerprint, store=world.store.root)
    with pytest.raises(GateError):
        deployment.rollback(store=world.store.root)


def test_a_copy_of_a_marked_bundle_is_known_by_its_adapter(world, tmp_path):
    import shutil

    world.take(subjects=["p2"])
    copy = shutil.copytree(world.bundle.path, tmp_path / "elsewhere")
    with pytest.raises(GateError, match="may not be served"):
        deployment.serve(copy, store=world.store.root, on_ready=lambda listening: None)


def test_a_takedown_holds_for_bundles_that_are_made_after_it(world):
    world.take(subjects=["p2"])
    later = world.make_bundle("f" * 64, world.make_adapter("9" * 64, world.examples), world.splits)
    with pytest.raises(GateError, match="trained on"):
        deployment.promote(later.fingerprint, store=world.store.root)
    clean = world.make_bundle("c" * 64, world.make_adapter("d" * 64, world.curate_without("p2")), world.curate)
    deployment.promote(clean.fingerprint, store=world.store.root)


def test_a_lifted_takedown_refuses_nothing_and_needs_a_reason(world):
    done, _ = world.take(subjects=["p2"])
    with pytest.raises(PlanError):
        api.lift_takedown(done.mark.id, note=" ", store=world.store.root)
    with pytest.raises(StoreError):
        api.lift_takedown("nothing", note="x", store=world.store.root)
    api.lift_takedown(done.mark.id[-8:], note="the wrong person", store=world.store.root)
    deployment.promote(world.bundle.fingerprint, store=world.store.root)
    assert api.takedowns(store=world.store.root) == []


def test_a_training_that_stopped_is_named_for_its_checkpoints(world):
    stage = StageRecord(
        stage="train", version=1, kind="adapter", status="failed", fingerprint="5" * 64, spec={},
        inputs={"examples": {"table": "encode", "fingerprint": world.examples.fingerprint}},
    )  # fmt: skip
    record = RunRecord(run="r", recipe="x", recipe_path="x", started="", overrides=(), stages={"train": stage})
    create_run(world.store, record, recipe_text="")
    assert world.take(subjects=["p2"], dry_run=True)[0].unfinished == ()
    (world.store.partials / f"{'5' * 64}.work").mkdir(parents=True)
    (found,) = world.take(subjects=["p2"], dry_run=True)[0].unfinished
    assert (found.fingerprint, found.run) == ("5" * 64, "r")
    assert world.take(subjects=["p4"], dry_run=True)[0].unfinished == ()


def test_the_same_takedown_again_adds_nothing_and_more_of_it_does(world):
    first, _ = world.take(subjects=["p2"])
    again, _ = world.take(subjects=["p2"])
    assert again.mark == first.mark
    world.make_bundle("f" * 64, world.make_adapter("9" * 64, world.examples), world.splits)
    more, _ = world.take(subjects=["p2"])
    assert more.mark != first.mark
    assert len(list((world.store.root / "marks").iterdir())) == 2


def test_an_opt_out_file_serves_curate_and_takedown(world, run_stage):
    path = world.root / "out.yaml"
    path.write_text("sources: [club]\nsubjects: [p1, 0042]\n")
    assert read_opt_out(path) == OptOut(sources=frozenset({"club"}), subjects=frozenset({"p1", "0042"}))
    done, _ = world.take(file=path, dry_run=True)
    named = {item.row.row_id for item in done.found.rows}
    assert named == {world.by_person["p1"].id, world.by_person["p6"].id}
    curate = run_stage("curate", {"rows": world.ingest}, {"opt_out": {"file": "out.yaml"}}, world.root)
    assert curate.summary["dropped"]["opt_out"] == 2
    for wrong in ("subject: [p1]\n", "subjects: p1\n", "", "sources: [\n"):
        path.write_text(wrong)
        with pytest.raises(DataError):
            read_opt_out(path)
    with pytest.raises(DataError, match="content hash"):
        api.takedown(content_hashes=["abc"], store=world.store.root)


def test_the_command_lists_marks_and_speaks_json(world):
    def call(*words, status=0):
        result = CliRunner().invoke(make_app(), ["takedown", *words, "--store", str(world.store.root)])
        assert result.exit_code == status, result.output
        return result.stdout

    assert "no takedown is in force" in call()
    shown = call("--subject", "p2", "--dry-run")
    assert "1 rows trained on" in shown
    assert "nothing was marked" in shown
    value = json.loads(call("--subject", "p2", "--note", "letter", "--json"))
    assert value["refused"] == [world.bundle.fingerprint]
    assert value["rows"][0]["fate"] == "trained on"
    assert 'subjects: ["p2"]' in call()
    assert json.loads(call("--json"))[0]["note"] == "letter"
    assert "shop" in call("--source", "shopp", "--dry-run")


def test_a_takedown_killed_at_any_moment_leaves_a_whole_mark_or_none(world):
    code = "import sys, tunesmith.api as api; api.takedown(subjects=['p2'], store=sys.argv[1])"
    for wait in (0.05, 0.6, 0.9, 1.2):
        child = subprocess.Popen([sys.executable, "-c", code, str(world.store.root)])
        time.sleep(wait)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert len(api.takedowns(store=world.store.root)) <= 1
    world.take(subjects=["p2"])
    assert len(api.takedowns(store=world.store.root)) == 1
