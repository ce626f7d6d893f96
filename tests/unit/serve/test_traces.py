import os
import threading
import time

import pytest
import sqlalchemy as sa

from tunesmith.errors import ServeError
from tunesmith.serve.traces import TraceStore, leak_key, new_trace_id, open_closed_span
from tunesmith.types import Feedback, Trace


def make_trace(**changes):
    values = dict(
        id=new_trace_id(),
        time=time.time(),
        model="m",
        contract_sha256="c" * 64,
        adapter_sha256="a" * 64,
        status=200,
        messages=({"role": "user", "content": "hällo"},),
        completion='{"a": 1}',
        guard_flags=("input:pii",),
        deviation={"temperature": {"contract": 0.0, "request": 0.5}},
        consent=True,
        leak_key=leak_key("hällo"),
        tags={"team": "x"},
    )
    return Trace(**{**values, **changes})


@pytest.fixture
def store(tmp_path):
    store = TraceStore(f"sqlite:///{tmp_path}/t.sqlite")
    yield store
    store.close()


def test_a_trace_reads_back_as_it_was_written(store):
    trace = make_trace()
    store.add_trace(trace)
    assert store.find(trace.id) == trace
    assert list(store.traces()) == [trace]


def test_not_kept_is_none_and_never_an_empty_value(store):
    trace = make_trace(messages=None, completion=None, schema_ok=None, consent=None)
    store.add_trace(trace)
    back = store.find(trace.id)
    assert back.messages is None
    assert back.schema_ok is None
    assert back.consent is None
    with store._engine.connect() as connection:
        assert connection.execute(sa.text("select messages is null from traces")).scalar() == 1


def test_feedback_on_an_unknown_trace_is_refused(store):
    assert not store.add_feedback(Feedback(trace_id="nope", time=0.0, rating=1.0))
    assert list(store.feedback()) == []


def test_a_span_holds_its_start_and_not_its_end(store):
    for second in (1.0, 2.0, 3.0):
        trace = make_trace(time=second)
        store.add_trace(trace)
        store.add_feedback(Feedback(trace_id=trace.id, time=99.0, rating=second / 10))
    assert [trace.time for trace in store.traces(since=1.0, until=3.0)] == [1.0, 2.0]
    assert [item.rating for item in store.feedback(since=2.0)] == [0.2, 0.3]


def test_a_closed_span_is_one_file_that_reading_does_not_change(store, tmp_path):
    trace = make_trace()
    store.add_trace(trace)
    store.add_feedback(Feedback(trace_id=trace.id, time=5.0, correction="x", tags={"by": "qa"}))
    folder = tmp_path / "closed"
    folder.mkdir()
    target = folder / "traces.sqlite"
    assert store.copy_span(target) == (1, 1)
    before = target.read_bytes()
    target.chmod(0o444)
    folder.chmod(0o555)
    try:
        traces, feedback = open_closed_span(target)
        assert traces == [trace]
        assert feedback[0].correction == "x"
        assert [file.name for file in folder.iterdir()] == ["traces.sqlite"]
        assert target.read_bytes() == before
    finally:
        folder.chmod(0o755)


def test_threads_write_at_once_and_nothing_is_lost(store):
    def write():
        for _ in range(20):
            store.add_trace(make_trace())

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(store.traces())) == 80


def test_a_database_of_another_version_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/t.sqlite"
    store = TraceStore(url)
    with store._engine.begin() as connection:
        connection.execute(sa.text("update tunesmith_meta set value='99'"))
    store.close()
    with pytest.raises(ServeError, match="version 99"):
        TraceStore(url)


def test_a_database_that_cannot_be_opened_says_so_without_its_password(tmp_path):
    with pytest.raises(ServeError, match="cannot be opened") as caught:
        TraceStore(f"sqlite:///{tmp_path}/no/such/folder/t.sqlite")
    assert "--traces" in str(caught.value)
    with pytest.raises(ServeError) as caught:
        TraceStore("postgresql+psycopg://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_trace_database_is_named(tmp_path):
    path = tmp_path / "x.sqlite"
    path.write_text("not a database at all, but long enough to be read as one")
    with pytest.raises(ServeError, match="no trace database"):
        open_closed_span(path)


def test_ids_sort_by_arrival_and_are_version_7():
    ids = []
    for _ in range(3):
        ids.append(new_trace_id())
        time.sleep(0.002)
    assert ids == sorted(ids)
    assert all(item.removeprefix("chatcmpl-")[12] == "7" for item in ids)


def test_the_leak_key_ignores_case_and_punctuation_but_not_digits():
    assert leak_key("Order 12, please!") == leak_key("order 12  PLEASE")
    assert leak_key("Order 12, please!") != leak_key("Order 13, please!")


@pytest.mark.skipif("TUNESMITH_TEST_DATABASE" not in os.environ, reason="TUNESMITH_TEST_DATABASE names no database")
def test_another_database_keeps_the_same_promises(tmp_path):
    url = os.environ["TUNESMITH_TEST_DATABASE"]
    store = TraceStore(url)
    first = time.time()
    trace = make_trace(time=first, messages=None, schema_ok=None)
    store.add_trace(trace)
    store.add_trace(make_trace(time=first + 1))
    assert store.add_feedback(Feedback(trace_id=trace.id, time=first, rating=-1.0, tags={"a": "ü"}))
    assert not store.add_feedback(Feedback(trace_id="nope", time=0.0, rating=1.0))
    assert store.find(trace.id) == trace
    assert [found.id for found in store.traces(since=first, until=first + 0.5)] == [trace.id]
    assert store.copy_span(tmp_path / "closed.sqlite", since=first) == (2, 1)
    assert open_closed_span(tmp_path / "closed.sqlite")[0][0] == trace
    store.close()
    again = TraceStore(url)
    assert again.find(trace.id) == trace
    again.close()
