import json
import sqlite3

import pytest

from tunesmith.errors import DataError, ServeError
from tunesmith.serve.traces import open_closed_span
from tunesmith.stages.rehearsal_client import same_answer
from tunesmith.stages.rehearse import OUT_OF_SCOPE, RehearseSpec, plan_requests


def read(artifact):
    return json.loads((artifact.path / "rehearsal.json").read_text())


def test_the_rehearsal_reached_a_real_server_and_all_of_it_is_in_the_traces(world, bundle, traces):
    report = read(traces)
    found, feedback = open_closed_span(traces.path / "traces.sqlite")
    answered = [trace for trace in found if trace.status == 200]
    assert len(answered) == report["answers"] == 24 == traces.summary["answers"]
    assert {trace.adapter_sha256 for trace in answered} == {bundle.summary["adapter_sha256"]}
    assert {trace.contract_sha256 for trace in found} == {bundle.summary["contract_sha256"]}
    assert sum(trace.streamed for trace in answered) == report["streamed"] == 8
    assert report["origins"]["out_of_scope"] == len(OUT_OF_SCOPE)
    assert report["health"]["golden_vectors"] == bundle.summary["golden_vectors"]
    assert report["health"]["status"] == "ok"
    assert len(feedback) == report["feedback"] == report["ratings"]["good"] + report["ratings"]["bad"]
    assert report["latency"]["p50_ms"]["n"] == 24


def test_everything_that_must_be_refused_was(traces):
    for name, entry in read(traces)["refusals"].items():
        assert entry["expected"] == entry["found"], name
        assert entry["code"], name


def test_a_wrong_answer_is_corrected_by_the_known_one(traces):
    found, feedback = open_closed_span(traces.path / "traces.sqlite")
    answers = {trace.id: trace for trace in found}
    bad = [item for item in feedback if item.rating == -1]
    assert bad, "a random model answered rightly"
    for item in bad:
        assert json.loads(item.correction)["intent"]
        assert not same_answer(answers[item.trace_id].completion, item.correction)


def test_what_was_sent_as_private_was_not_kept(traces):
    found, _ = open_closed_span(traces.path / "traces.sqlite")
    private = [trace for trace in found if trace.consent is False]
    assert len(private) == read(traces)["private"] == 3
    assert all(trace.messages is None is trace.completion for trace in private)
    assert all(trace.messages for trace in found if trace.consent)


def test_the_span_is_closed_and_nothing_runs_any_more(traces):
    assert sorted(path.name for path in traces.path.iterdir()) == ["rehearsal.json", "server.log", "traces.sqlite"]
    with sqlite3.connect(f"file:{traces.path / 'traces.sqlite'}?mode=ro", uri=True) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("delete",)
    assert "Traceback" not in (traces.path / "server.log").read_text()


def test_a_damaged_bundle_fails_the_rehearsal_with_the_servers_own_words(run, world, bundle, tmp_path):
    import dataclasses
    import shutil

    shutil.copytree(bundle.root, tmp_path / "damaged")
    (tmp_path / "damaged" / "data" / "golden.jsonl").write_text("{}\n")
    damaged = dataclasses.replace(bundle, root=tmp_path / "damaged")
    inputs = {"bundle": damaged, "base": world.base, "splits": world.splits}
    with pytest.raises(ServeError, match="refused to start") as caught:
        run("rehearse", inputs, {}, tmp_path)
    assert "golden.jsonl was changed by hand" in str(caught.value)


def test_requests_are_planned_from_held_out_rows_in_a_fixed_order(world):
    spec = RehearseSpec(requests=20)
    asks = plan_requests(world.splits.path, spec)
    assert asks == plan_requests(world.splits.path, spec)
    assert len(asks) == 20
    assert {ask.origin for ask in asks} == {"test", "val", "out_of_scope"}
    assert all((ask.expected is None) == (ask.origin == "out_of_scope") for ask in asks)
    assert all(message["role"] != "system" for ask in asks for message in ask.messages)


def test_fresh_messages_take_the_place_of_validation_rows(world, tmp_path):
    path = tmp_path / "fresh.jsonl"
    messages = [{"role": "user", "content": "a new matter"}, {"role": "assistant", "content": "{}"}]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    asks = plan_requests(world.splits.path, RehearseSpec(requests=20, fresh=str(path)))
    assert [ask.expected for ask in asks if ask.origin == "fresh"] == ["{}"]
    assert not any(ask.origin == "val" for ask in asks)
    path.write_text(json.dumps({"messages": messages}) + "\n{broken\n")
    with pytest.raises(DataError, match="fresh message"):
        plan_requests(world.splits.path, RehearseSpec(fresh=str(path)))


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}', True),
        ("yes ", "yes", True),
        ("{", "{}", False),
        (None, "{}", False),
        ("1", "1.5", False),
    ],
)
def test_answers_are_compared_as_json_or_as_text(answer, expected, same):
    assert same_answer(answer, expected) is same
