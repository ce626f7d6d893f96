"""Names, refs and live traffic: `promote`, `rollback`, `monitor` and `harvest` over a store with two bundles."""

import json
import shutil
import time

import pytest
from typer.testing import CliRunner

from tunesmith.api import deployment, traffic
from tunesmith.cli.main import make_app
from tunesmith.core.refs import ref_history
from tunesmith.core.runs import RunRecord, StageRecord, create_run
from tunesmith.core.store import Store
from tunesmith.errors import GateError, PlanError, StoreError
from tunesmith.serve.traces import TraceStore, new_trace_id
from tunesmith.types import Feedback, Trace


@pytest.fixture
def good(bundle):
    return bundle


@pytest.fixture(scope="session")
def second(run, world):
    return run("bundle", world.bundle_inputs(), {"name": "second"}, world.folder)


@pytest.fixture(scope="session")
def failing(run, world):
    settings = {**world.contract_settings, "criteria": ["schema_adherence >= 0.97 with 95% confidence"]}
    contract = run("contract", {"base": world.base}, settings, world.folder)
    inputs = {**world.bundle_inputs(), "contract": contract}
    inputs["evaluation"] = run(
        "evaluate",
        {name: inputs[name] for name in ("base", "contract", "splits", "adapter")},
        {"dtype": "float32"},
        world.folder,
    )
    return run("bundle", inputs, {"name": "failing"}, world.folder)


@pytest.fixture
def store(world, good, second, failing):
    """The store, without refs or runs of another test."""
    root = world.folder / ".tunesmith"
    for name in ("refs", "runs"):
        shutil.rmtree(root / name, ignore_errors=True)
    return Store(root)


def record_run(store, name, **artifacts):
    stages = {
        table: StageRecord(
            stage=made.manifest.stage,
            version=1,
            kind=made.kind,
            status="done",
            fingerprint=made.fingerprint,
            inputs={},
            spec={},
        )
        for table, made in artifacts.items()
    }
    return create_run(
        store,
        RunRecord(
            run=name,
            recipe="desk",
            recipe_path="desk.yaml",
            started="2025-01-01T00:00:00Z",
            overrides=(),
            stages=stages,
        ),
        recipe_text="name: desk\n",
    ).run


def test_a_bundle_is_found_by_run_recipe_ref_fingerprint_and_folder(store, good, second):
    name = record_run(store, "2025-01-01-0000-desk", bundle=good)
    deployment.promote(second.fingerprint[:10], to="staging", store=store.root)
    for target, expected in (
        (name, good),
        ("desk", good),
        (None, good),
        ("staging", second),
        (good.fingerprint[:8], good),
        (good.path, good),
        (good.root, good),
    ):
        found = deployment.find_deployable(target, store=store.root)
        assert found.bundle == expected.path, target
        assert (found.base / "config.json").is_file()


def test_without_a_name_production_is_served_once_it_was_promoted(store, good, second):
    record_run(store, "2025-01-01-0000-desk", bundle=good)
    deployment.promote(second.fingerprint, store=store.root)
    assert deployment.find_deployable(store=store.root).bundle == second.path


@pytest.mark.parametrize("target", ["nothing", None])
def test_a_name_that_means_nothing_says_what_to_do(store, target):
    with pytest.raises(StoreError, match="tunesmith run"):
        deployment.find_deployable(target, store=store.root)


def test_a_run_without_a_bundle_is_named(store, world):
    record_run(store, "2025-01-01-0000-desk", evaluate=world.evaluation)
    with pytest.raises(StoreError, match="no finished bundle"):
        deployment.find_deployable(store=store.root)


def test_a_bundle_whose_gates_fail_is_not_promoted_and_the_gate_is_named(store, failing):
    with pytest.raises(GateError) as caught:
        deployment.promote(failing.fingerprint, store=store.root)
    assert "schema_adherence >= 0.97" in str(caught.value)
    assert "fail" in str(caught.value)
    assert ref_history(store, "production") == ()


def test_promotion_moves_the_ref_and_rollback_moves_it_back_with_a_history(store, good, second):
    deployment.promote(good.fingerprint, note="first", store=store.root)
    deployment.promote(second.fingerprint, store=store.root)
    assert deployment.find_deployable("production", store=store.root).bundle == second.path
    entry = deployment.rollback(store=store.root)
    assert entry.fingerprint == good.fingerprint
    assert second.fingerprint[:12] in entry.note
    history = ref_history(store, "production")
    assert [past.fingerprint for past in history] == [good.fingerprint, second.fingerprint, good.fingerprint]
    assert history[0].report == good.manifest.inputs["evaluation"]
    assert all(past.who and past.when for past in history)


def test_rollback_with_nothing_behind_it_is_refused(store, good):
    with pytest.raises(StoreError, match="no ref"):
        deployment.rollback(store=store.root)
    deployment.promote(good.fingerprint, store=store.root)
    with pytest.raises(StoreError, match="nothing to go back to"):
        deployment.rollback(store=store.root)


def test_a_folder_has_no_history_and_is_not_promoted(store, good):
    with pytest.raises(StoreError, match="folder cannot be promoted"):
        deployment.promote(good.path, store=store.root)


def test_the_command_line_promotes_refuses_and_rolls_back(store, good, second, failing):
    app, cli = make_app(), CliRunner()

    def call(*words):
        return cli.invoke(app, [*words, "--store", str(store.root)])

    assert call("promote", good.fingerprint[:12]).exit_code == 0
    assert call("promote", second.fingerprint[:12], "--note", "better").exit_code == 0
    refused = call("promote", failing.fingerprint[:12])
    assert refused.exit_code == 2
    assert "may not be promoted" in refused.output
    back = call("rollback")
    assert back.exit_code == 0
    assert good.fingerprint[:12] in back.output


# --- live traffic -------------------------------------------------------------------------------------------------


@pytest.fixture
def live(store, world, good, tmp_path):
    """A database with a good answer, a broken one that was corrected, and a broken one; a run to compare with."""
    record_run(
        store, "2025-01-01-0000-desk", bundle=good, evaluate=world.evaluation, split=split_in_store(store, world)
    )
    url = f"sqlite:///{tmp_path}/live.sqlite"
    database = TraceStore(url)
    now = time.time()
    for number, (ok, correction) in enumerate(
        [(True, None), (False, '{"intent":"other","urgent":true}'), (False, None)]
    ):
        trace = Trace(
            id=new_trace_id(),
            time=now - 3600 * number,
            model="desk-triage",
            contract_sha256="c",
            adapter_sha256="a",
            status=200,
            messages=({"role": "user", "content": f"a zebra of kind {'abc'[number]} came without ears"},),
            completion='{"intent":"refund","urgent":false}' if ok else "{",
            schema_ok=ok,
            parse_ok=ok,
            consent=True,
            latency_ms=5.0,
        )
        database.add_trace(trace)
        if correction:
            database.add_feedback(Feedback(trace_id=trace.id, time=now, rating=-1, correction=correction))
    database.close()
    return url


def split_in_store(store, world):
    """The splits of this world were made by hand: put them where a run's artifact stands."""
    from tunesmith.core.artifact import Artifact, Manifest

    target = store.place("splits", world.splits.fingerprint)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(world.splits.root, target)
    manifest = world.splits.manifest
    body = {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}
    (target / "manifest.json").write_text(json.dumps({**body, "outputs": []}, default=dict))
    return Artifact(root=target, manifest=manifest)


def test_a_live_database_is_monitored_against_the_runs_evaluation(store, live):
    report = traffic.monitor(live, store=store.root)
    assert report["totals"]["answers"] == 3
    assert report["kpis"]["schema_adherence"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert report["reference"]["prompts"] == 18
    young = traffic.monitor(live, store=store.root, since=traffic.read_age("30m"))
    assert young["totals"]["answers"] == 1


def test_a_live_database_is_harvested_into_lines_that_ingest_reads(run, store, live, tmp_path):
    done = traffic.harvest(live, tmp_path / "new.jsonl", license="CC0-1.0", store=store.root)
    assert (done.account["rows"], done.account["to_label"]) == (1, 1)
    assert [path.name for path in done.files] == ["new.jsonl", "new.review.jsonl", "new.excluded.jsonl"]
    line = json.loads(done.files[0].read_text())
    assert line["messages"][-1] == {"role": "assistant", "content": '{"intent":"other","urgent":true}'}
    assert line["model_answer"] == "{"
    source = {"name": "new", "path": "new.jsonl", "license_field": "license", "kind": "log"}
    assert run("ingest", {}, {"sources": [source]}, tmp_path).summary["rows_kept"] == 1


def test_the_command_line_watches_and_harvests(store, live, tmp_path):
    app, cli = make_app(), CliRunner()
    shown = cli.invoke(
        app, ["monitor", "--traces", live, "--store", str(store.root), "--html", str(tmp_path / "m.html")]
    )
    assert shown.exit_code == 0, shown.output
    assert "schema_adherence" in shown.output
    assert (tmp_path / "m.html").read_text().startswith("<!doctype html>")
    as_json = cli.invoke(app, ["monitor", "--traces", live, "--store", str(store.root), "--json"])
    assert json.loads(as_json.output)["totals"]["requests"] == 3
    taken = cli.invoke(
        app, ["harvest", "--traces", live, "--store", str(store.root), "--out", str(tmp_path / "n.parquet")]
    )
    assert taken.exit_code == 0, taken.output
    assert (tmp_path / "n.review.parquet").exists()
    missing = cli.invoke(app, ["monitor", "--traces", str(tmp_path / "none.sqlite"), "--store", str(store.root)])
    assert missing.exit_code == 2
    assert "no trace database" in missing.output


def test_spans_of_time_are_read_or_refused():
    assert traffic.read_age("2d", now=10 * 86400.0) == 8 * 86400.0
    for text in ("2", "d", "2y", "-1d", ""):
        with pytest.raises(PlanError):
            traffic.read_age(text)
