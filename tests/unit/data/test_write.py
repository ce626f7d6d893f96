"""Rows and rejected rows come back from disk as they went in."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.write import (
    Reject,
    content_hash,
    read_rejects,
    read_rows,
    row_id,
    write_rejects,
    write_rows,
)
from tunesmith.errors import DataError
from tunesmith.types import Conversation, Message, Provenance, Row, RowKind, ToolCall

text = st.text(st.characters(codec="utf-8"), max_size=20)
messages = st.builds(
    Message,
    role=st.sampled_from(["user", "assistant", "tool"]),
    content=st.none() | text,
    reasoning=st.none() | text,
    tool_calls=st.lists(
        st.builds(ToolCall, name=text, arguments=st.dictionaries(text, st.integers() | text, max_size=2) | text),
        max_size=2,
    ).map(tuple),
    train=st.none() | st.booleans(),
    weight=st.none() | st.floats(0, 2),
)


@st.composite
def rows(draw):
    conversation = Conversation(
        messages=tuple(draw(st.lists(messages, min_size=1, max_size=3))),
        tools=tuple(draw(st.lists(st.dictionaries(text, text, max_size=2), max_size=2))),
    )
    line = draw(st.integers(1, 10**12))
    return Row(
        id=row_id(conversation, source="s", path="p", line=line),
        conversation=conversation,
        provenance=Provenance(
            source="s", path="p", line=line, license=draw(st.none() | text), kind=draw(st.sampled_from(RowKind))
        ),
        labels=draw(st.dictionaries(text, text, max_size=2)),
        group=draw(st.none() | text),
        split=draw(st.sampled_from([None, "train", "test"])),
        rejected=tuple(draw(st.lists(messages, max_size=1))),
        desirable=draw(st.none() | st.booleans()),
    )


@given(st.lists(rows(), max_size=5))
@settings(max_examples=40, deadline=None)
def test_rows_survive_the_disk(tmp_path_factory, given_rows):
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    write_rows(path, given_rows)
    assert read_rows(path) == given_rows


@given(st.lists(rows(), max_size=3))
@settings(max_examples=20, deadline=None)
def test_a_dropped_row_keeps_its_reason(tmp_path_factory, given_rows):
    path = tmp_path_factory.mktemp("rejects") / "rejects.parquet"
    rejects = [
        Reject(
            stage="curate",
            reason="near_duplicate",
            detail="of row x",
            source="s",
            path="p",
            line=row.provenance.line,
            row=row,
            matched_id="x",
            score=0.5,
        )
        for row in given_rows
    ]
    rejects.append(Reject(stage="ingest", reason="bad_json", detail="cut", source="s", path="p", line=3, raw='{"a'))
    write_rejects(path, rejects)
    assert read_rejects(path) == rejects


def test_more_rows_than_a_batch_are_all_written(tmp_path):
    conversation = Conversation(messages=(Message(role="user", content="hi"),))
    given_rows = [
        Row(
            id=row_id(conversation, source="s", path="p", line=line),
            conversation=conversation,
            provenance=Provenance(source="s", path="p", line=line),
        )
        for line in range(1, 9001)
    ]
    write_rows(tmp_path / "rows.parquet", given_rows)
    assert read_rows(tmp_path / "rows.parquet") == given_rows
    assert len({row.id for row in given_rows}) == 9000


def test_the_content_hash_does_not_know_the_place_but_the_id_does():
    conversation = Conversation(messages=(Message(role="user", content="hi"),))
    assert content_hash(conversation) == content_hash(Conversation.from_json(conversation.to_json()))
    first = row_id(conversation, source="a", path="p", line=1)
    assert first != row_id(conversation, source="b", path="p", line=1)
    assert first != row_id(conversation, source="a", path="p", line=2)


def test_another_parquet_file_is_refused_by_name_of_the_missing_columns(tmp_path):
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="no column messages"):
        read_rows(tmp_path / "rows.parquet")
    (tmp_path / "not.parquet").write_text("no")
    with pytest.raises(DataError, match="cannot read rows"):
        read_rows(tmp_path / "not.parquet")


def test_the_order_of_tool_arguments_is_kept(tmp_path):
    call = ToolCall(name="f", arguments={"zulu": 1, "alpha": 2})
    conversation = Conversation(
        messages=(Message(role="assistant", tool_calls=(call,)),), tools=({"type": "function", "a": 1},)
    )
    row = Row(id="a", conversation=conversation, provenance=Provenance(source="s", path="p", line=1))
    write_rows(tmp_path / "rows.parquet", [row])
    (back,) = read_rows(tmp_path / "rows.parquet")
    assert list(back.conversation.messages[0].tool_calls[0].arguments) == ["zulu", "alpha"]
    assert list(back.conversation.tools[0]) == ["type", "a"]


def test_what_many_rows_say_is_in_memory_once(tmp_path):
    one = Conversation(messages=(Message(role="user", content="q"), Message(role="assistant", content="a")))
    written = [
        Row(
            id=row_id(one, source="tickets", path="tickets.jsonl", line=line),
            conversation=one,
            provenance=Provenance(source="tickets", path="tickets.jsonl", line=line, license="CC0-1.0"),
            labels={"intent": "refund"},
        )
        for line in (1, 2)
    ]
    write_rows(tmp_path / "rows.parquet", written)
    first, second = read_rows(tmp_path / "rows.parquet")
    assert first.labels is second.labels
    for name in ("source", "path", "license"):
        assert getattr(first.provenance, name) is getattr(second.provenance, name)
    assert first.conversation.messages[0].role is second.conversation.messages[0].role
