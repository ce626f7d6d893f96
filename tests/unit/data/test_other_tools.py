"""Records as other tools write them load with the right turns, or are refused; no field that belongs to a row is lost."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.data.files import read_records
from tunesmith.data.read import Origin, rows_of
from tunesmith.data.tables import read_query
from tunesmith.data.write import Reject
from tunesmith.errors import DataError
from tunesmith.types import Row

USER = {"role": "user", "content": "hi"}
OK = {"role": "assistant", "content": "ok"}
NO = {"role": "assistant", "content": "no"}


def read(tmp_path, *records, name="a.jsonl", **origin):
    path = tmp_path / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(rows_of(read_records(path), Origin(name="a", **origin), name=path.name)[1])


def turns(row):
    assert isinstance(row, Row), row
    return [(message.role, message.content) for message in row.conversation.messages]


ASKED = [("user", "hi"), ("assistant", "ok")]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"system": "s", "query": "hi", "response": "ok", "history": [["q", "a"]]},  # ms-swift
            [("system", "s"), ("user", "q"), ("assistant", "a"), *ASKED],
        ),
        ({"prompt": "hi", "completion": "ok", "history": [USER, NO]}, [*[("user", "hi"), ("assistant", "no")], *ASKED]),
        ({"instruction": "hi", "context": "c", "response": "ok"}, [("user", "hi\nc"), ("assistant", "ok")]),  # Dolly
        ({"instruction": "hi", "context": "", "response": "ok"}, ASKED),
        ({"system_prompt": "s", "question": "hi", "response": "ok"}, [("system", "s"), *ASKED]),  # OpenOrca
        ({"messages": [{"role": "human", "content": "hi"}, {"role": "ai", "content": "ok"}]}, ASKED),
        ({"conversations": {"from": ["human", "gpt"], "value": ["hi", "ok"]}}, ASKED),  # a Sequence of `datasets`
        (
            {"messages": [USER, {"role": "tool", "content": {"t": 3}}, OK]},
            [("user", "hi"), ("tool", '{"t": 3}'), ("assistant", "ok")],
        ),
        (
            {"system": [{"type": "text", "text": "s"}], "messages": [USER, OK]},  # Anthropic
            [("system", "s"), *ASKED],
        ),
        (
            {  # TensorZero
                "input": {"system": "s", "messages": [{"role": "user", "content": [{"type": "text", "value": "hi"}]}]},
                "output": [{"type": "thought", "text": "hm"}, {"type": "text", "text": "ok"}],
            },
            [("system", "s"), *ASKED],
        ),
        (
            {"input": json.dumps({"messages": [USER]}), "output": json.dumps([{"type": "text", "text": "ok"}])},
            ASKED,
        ),
        (
            {
                "request": {"input": "hi"},
                "response": {"output": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "ok"}]}]},
            },
            ASKED,
        ),
        ({"images": [], "messages": [USER, OK]}, ASKED),
    ],
)
def test_records_of_other_tools_give_the_turns_that_were_put_in(tmp_path, record, said):
    (row,) = read(tmp_path, record)
    assert turns(row) == said


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, OK], "rejected_response": "no"},
        {"query": "hi", "response": "ok", "rejected_response": "no"},
        {"messages": [USER, OK], "rejected_response": [NO]},
    ],
)
def test_a_rejected_response_beside_a_conversation_makes_a_pair(tmp_path, record):
    (row,) = read(tmp_path, record)
    assert turns(row) == ASKED
    assert [message.content for message in row.rejected] == ["no"]


def test_reasoning_in_details_is_kept(tmp_path):
    answer = {**OK, "reasoning_details": [{"type": "reasoning.text", "text": "hm"}, {"type": "reasoning.encrypted"}]}
    (row,) = read(tmp_path, {"messages": [USER, answer]})
    assert row.conversation.messages[1].reasoning == "hm"


@pytest.mark.parametrize(
    ("record", "reason", "said"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": "1"}, "unread_field", "'choices'"),
        ({"question": "q", "context": "c", "answer": "1"}, "unread_field", "{input: context}"),
        (
            {"messages": [{"role": "user", "content": "<image>?"}, OK], "images": ["a.png"]},
            "unsupported_media",
            "'images'",
        ),
        ({"request": {"input": "hi"}, "response": {"output": []}}, "no_answer", "response.output"),
        (
            {
                "request": {"messages": [USER]},
                "response": 'data: {"choices": [{"delta": {"content": "o"}}]}\n\ndata: {"ch',
            },
            "cut_answer",
            "finish_reason",
        ),
        ({"messages": str([USER, OK])}, "wrong_type", "json.dumps"),
        (
            {"request": {"input": "hi"}, "response": {"output": [{"type": "web_search_call", "id": "w"}]}},
            "unsupported_part",
            "web_search_call",
        ),
    ],
)
def test_what_would_be_lost_is_a_reject_with_the_field(tmp_path, record, reason, said):
    (reject,) = read(tmp_path, record)
    assert isinstance(reject, Reject)
    assert (reject.reason, said in reject.detail) == (reason, True), reject.detail


def test_a_field_beside_the_prompt_is_added_where_it_is_mapped_and_left_where_the_shape_is_named(tmp_path):
    record = {"question": "q", "context": "c", "answer": "a"}
    (added,) = read(tmp_path, record, columns={"input": "context"})
    assert turns(added) == [("user", "q\nc"), ("assistant", "a")]
    from tunesmith.data.shapes import Shape

    (left,) = read(tmp_path, record, shape=Shape.COMPLETION)
    assert turns(left) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": "great film", "label": "pos"}, "completion: label"),
        ({"text": "great film", "label": 1}, "completion: label"),
        ({"prompt": ["a", "b"], "completion": ["c", "d"]}, "orient='records'"),
        ({"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}}, "orient='records'"),
        ({"document": "d", "summary": "s"}, "{prompt: document, completion: summary}"),
        ({"custom_id": "r1", "response": {"body": {"choices": []}}, "error": None}, "join them by custom_id"),
        ({"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}, "Gemini"),
        ({"id": 1, "prompt": "hi", "label": "safe"}, "prompts alone train nothing"),
        ({"prompt": [USER]}, "prompts alone train nothing"),
        ({"prompt": "hi", "completion": "ok", "label": 0}, "columns: {label: label}"),
        ({"segments": [{"label": True, "text": "x"}]}, "template"),
    ],
)
def test_a_file_that_would_lose_something_is_refused_with_what_to_do(tmp_path, record, said):
    with pytest.raises(DataError) as error:
        read(tmp_path, record)
    assert said in str(error.value)


def test_plain_texts_with_other_fields_stay_plain_texts(tmp_path):
    (row,) = read(tmp_path, {"text": "once", "spans": [], "template": "x"})
    assert turns(row) == [("assistant", "once")]


def test_a_query_without_rows_is_refused(tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("create table t(prompt text, completion text)")
    with pytest.raises(DataError, match="gives no records"):
        rows_of(read_query(f"sqlite:///{tmp_path}/x.db", "select * from t"), Origin(name="q"), name="q")


def test_turns_that_arrow_turned_on_their_side_are_read(tmp_path):
    sideways = pa.array([{"role": ["user", "assistant"], "content": ["hi", "ok"]}])
    pq.write_table(pa.table({"messages": sideways}), tmp_path / "a.parquet")
    (row,) = rows_of(read_records(tmp_path / "a.parquet"), Origin(name="a"), name="a")[1]
    assert turns(row) == ASKED


def test_numbers_as_labels_are_read_where_it_is_said_and_classes_are_left_alone(tmp_path):
    from tunesmith.data.shapes import Shape

    pair = {"prompt": "hi", "completion": "ok"}
    (row,) = read(tmp_path, {**pair, "label": 0}, columns={"label": "label"})
    assert row.desirable is False
    (row,) = read(tmp_path, {**pair, "label": 0}, shape=Shape.COMPLETION)
    assert row.desirable is None
    assert len(read(tmp_path, {**pair, "label": 0}, {**pair, "label": 7})) == 2
