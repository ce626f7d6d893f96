import json

import pytest

from tunesmith.data.write import read_rejects, read_rows
from tunesmith.errors import ServeError
from tunesmith.serve.traces import TraceStore, leak_key, new_trace_id, open_closed_span
from tunesmith.types import Feedback, RowKind, Trace

ANSWER = '{"intent":"refund","urgent":false}'


def read(artifact):
    return (
        read_rows(artifact.path / "rows.parquet"),
        read_rejects(artifact.path / "review.parquet"),
        read_rejects(artifact.path / "excluded.parquet"),
        json.loads((artifact.path / "account.json").read_text()),
    )


@pytest.fixture
def traffic(world, make_artifact, tmp_path):
    """Make a closed span: `traffic([(text, {changes}, correction), ...])`."""
    count = 0

    def make(requests):
        nonlocal count
        count += 1
        span = make_artifact(tmp_path / f"span{count}", "traces", fingerprint=f"{tmp_path.name}{count}")
        store = TraceStore(f"sqlite:///{tmp_path}/live{count}.sqlite")
        for number, (text, changes, correction) in enumerate(requests):
            values = dict(
                id=new_trace_id(),
                time=1000.0 + number,
                model="desk-triage",
                contract_sha256="c" * 64,
                adapter_sha256="a" * 64,
                status=200,
                messages=({"role": "user", "content": text},),
                completion="no json",
                finish_reason="stop",
                parse_ok=False,
                schema_ok=False,
                consent=True,
                leak_key=leak_key(text),
            )
            trace = Trace(**{**values, **changes})
            store.add_trace(trace)
            if correction is not None:
                store.add_feedback(Feedback(trace_id=trace.id, time=2000.0, rating=-1, correction=correction))
        store.copy_span(span.path / "traces.sqlite")
        store.close()
        return span

    return make


def test_after_a_rehearsal_nothing_of_the_held_out_rows_can_be_trained_on(run, world, traces):
    made = run("harvest", {"traces": traces, "splits": world.splits}, {}, world.folder)
    rows, review, excluded, account = read(made)
    reasons = {reject.reason for reject in excluded}
    assert {"overlaps_test", "overlaps_val", "no_consent"} <= reasons
    held_out = {
        row.conversation.messages[0].content
        for side in ("test", "val")
        for row in read_rows(world.splits.path / f"{side}.parquet")
    }
    assert not held_out & {row.conversation.messages[0].content for row in rows}
    assert not held_out & {reject.row.conversation.messages[0].content for reject in review}
    assert account["candidates"] == len(rows) + len(review) + len(excluded)
    assert review, "messages out of scope have no known answer"


def test_a_corrected_failure_becomes_a_row_with_its_provenance_and_its_worse_answer(run, world, traffic):
    span = traffic([("the zebra statue arrived without ears", {"tags": {"customer": "c9", "ticket": "t1"}}, ANSWER)])
    settings = {"license": "CC-BY-4.0", "subject_tag": "customer", "group_tag": "ticket"}
    rows, _, _, account = read(run("harvest", {"traces": span, "splits": world.splits}, settings, world.folder))
    (row,) = rows
    assert [message.role for message in row.conversation.messages] == ["user", "assistant"]
    assert row.conversation.answer == ANSWER
    assert row.provenance.kind is RowKind.LOG
    assert (row.provenance.license, row.provenance.subject, row.group) == ("CC-BY-4.0", "c9", "t1")
    assert row.rejected[0].content == "no json"
    assert "schema_broken" in row.labels["why"]
    assert account["rows"] == 1


def test_a_failure_without_a_correction_waits_for_a_label_and_has_no_answer(run, world, traffic):
    span = traffic([("the zebra statue arrived without ears", {}, None)])
    rows, review, _, _ = read(run("harvest", {"traces": span, "splits": world.splits}, {}, world.folder))
    assert rows == []
    assert review[0].reason == "needs_label"
    assert review[0].row.conversation.answer is None


def test_equal_and_nearly_equal_held_out_messages_stay_out_by_name(run, world, traffic):
    held_out = read_rows(world.splits.path / "test.parquet")[4]
    text = held_out.conversation.messages[0].content
    redacted = {
        "messages": ({"role": "user", "content": "something else entirely <EMAIL_1>"},),
        "leak_key": leak_key(text),
    }
    span = traffic([(text.upper() + " !!", {}, ANSWER), (text + " thanks", {}, ANSWER), ("a lamp", redacted, ANSWER)])
    rows, _, excluded, _ = read(run("harvest", {"traces": span, "splits": world.splits}, {}, world.folder))
    assert rows == []
    assert [reject.reason for reject in excluded] == ["overlaps_test"] * 3
    assert {reject.matched_id for reject in excluded} == {held_out.id}


def test_without_consent_the_content_is_not_even_written(run, world, traffic):
    span = traffic([("my very private matter", {"consent": None}, ANSWER)])
    made = run("harvest", {"traces": span, "splits": world.splits}, {}, world.folder)
    _, _, excluded, account = read(made)
    assert (excluded[0].reason, excluded[0].row) == ("no_consent", None)
    assert account["reasons"] == {"no_consent": 1}
    for path in made.path.iterdir():
        assert b"private matter" not in path.read_bytes()


def test_harvested_rows_can_be_ingested_as_the_next_data_version(run, world, traffic, tmp_path):
    span = traffic(
        [("the zebra statue arrived without ears", {}, ANSWER), ("where can I buy a second zebra", {}, ANSWER)]
    )
    made = run("harvest", {"traces": span, "splits": world.splits}, {"license": "CC0-1.0"}, world.folder)
    source = {
        "name": "traces",
        "path": str(made.path / "rows.parquet"),
        "kind": "log",
        "columns": {"license": "license"},
    }
    next_rows = read_rows(run("ingest", {}, {"sources": [source]}, tmp_path).path / "rows.parquet")
    assert [row.conversation.messages for row in next_rows] == [
        row.conversation.messages for row in read_rows(made.path / "rows.parquet")
    ]
    assert {row.provenance.license for row in next_rows} == {"CC0-1.0"}


def test_a_file_that_is_no_span_is_refused(run, world, make_artifact, tmp_path):
    span = make_artifact(tmp_path / "span", "traces")
    (span.path / "traces.sqlite").write_bytes(b"not a database, though long enough to look like one ......")
    with pytest.raises(ServeError, match="no trace database"):
        run("harvest", {"traces": span, "splits": world.splits}, {}, world.folder)


def test_reading_a_span_twice_gives_the_same(traces):
    assert open_closed_span(traces.path / "traces.sqlite") == open_closed_span(traces.path / "traces.sqlite")
