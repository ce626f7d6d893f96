"""The ledger: what was done to each row, in an order that says how it went."""

from tunesmith.data.lineage import Ledger, read_lineage, write_lineage
from tunesmith.types import Conversation, Message, Provenance, Row


def row(number):
    said = Message(role="user", content=f"question {number}"), Message(role="assistant", content="answer")
    return Row(
        id=f"row{number}",
        conversation=Conversation(messages=said),
        provenance=Provenance(source="s", path="p.jsonl", line=number),
    )


def test_each_row_has_one_record_and_a_keep_is_its_last_action(tmp_path):
    rows = [row(number) for number in range(5)]
    ledger = Ledger("curate")
    ledger.flag(rows[3], reason="repetition", detail="says it twice")
    ledger.drop(rows[1], reason="near_duplicate", detail="of row 0", matched_id="row0", score=0.9)
    for kept in (0, 2, 3, 4):
        ledger.keep(rows[kept])
    ledger.balance(5)
    write_lineage(tmp_path / "lineage.parquet", ledger)
    told = [(action.row_id, action.action) for action in read_lineage(tmp_path / "lineage.parquet")]
    assert told == [
        ("row3", "flag"),
        ("row3", "keep"),
        ("row1", "drop"),
        ("row0", "keep"),
        ("row2", "keep"),
        ("row4", "keep"),
    ]


def test_lineage_is_the_same_in_batches_of_any_size(tmp_path, monkeypatch):
    ledger = Ledger("curate")
    for number in range(7):
        ledger.keep(row(number))
    told = []
    for size in (1, 3, 7, 100):
        monkeypatch.setattr("tunesmith.data.lineage._BATCH_ROWS", size)
        write_lineage(tmp_path / f"{size}.parquet", ledger)
        told.append(read_lineage(tmp_path / f"{size}.parquet"))
    assert all(one == told[0] for one in told)
    assert len(told[0]) == 7


def test_a_ledger_without_rows_is_a_readable_file(tmp_path):
    write_lineage(tmp_path / "lineage.parquet", Ledger("curate"))
    assert read_lineage(tmp_path / "lineage.parquet") == []
