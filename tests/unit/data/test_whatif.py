"""Another threshold is answered from the stored pairs as a new run would answer it."""

import random
from dataclasses import replace

import pytest

from tunesmith.data.curation import Rules, curate_rows
from tunesmith.data.dedup import find_duplicates
from tunesmith.data.whatif import at_threshold, write_pairs
from tunesmith.data.write import row_id
from tunesmith.errors import DataError
from tunesmith.types import Conversation, Message, Provenance, Row

WORDS = [a + b for a in ("ba", "ko", "ri", "su", "te", "mo", "li", "na") for b in ("dan", "fel", "gor", "hut", "jim")]


def rows_with_edits():
    chance = random.Random(3)
    texts = [chance.choices(WORDS, k=45) for _ in range(40)]
    for text in texts[:30]:
        texts.append([chance.choice(WORDS) if chance.random() < chance.random() / 3 else word for word in text])
    rows = []
    for line, text in enumerate(texts, start=1):
        said = Message(role="user", content=" ".join(text)), Message(role="assistant", content="ok")
        conversation = Conversation(messages=said)
        rows.append(
            Row(
                id=row_id(conversation, source="s", path="p", line=line),
                conversation=conversation,
                provenance=Provenance(source="s", path="p", line=line, license="MIT"),
                split="test" if line % 9 == 0 else None,
            )
        )
    return rows


def curated(rows, threshold):
    return curate_rows(rows, Rules(near_threshold=threshold, redact=frozenset()), lint=None)


def test_any_threshold_gives_what_a_run_with_it_gives(tmp_path):
    rows = rows_with_edits()
    compared = curated(rows, 0.6).compared
    path = tmp_path / "near_pairs.parquet"
    write_pairs(path, compared.pairs, compared.standing, compared.rows, pinned=compared.pinned)
    sizes = set()
    for threshold in (0.5, 0.6, 0.75, 0.9, 1.0):
        kept = {row.id for row in curated(rows, threshold).rows}
        outcome = at_threshold(path, threshold)
        assert {row.id for row in rows} - kept == outcome.dropped_ids
        assert sum(outcome.dropped.values()) == len(outcome.dropped_ids)
        sizes.add(len(outcome.dropped_ids))
    assert len(sizes) >= 3


def test_a_threshold_below_the_stored_pairs_is_refused(tmp_path):
    compared = curated(rows_with_edits(), 0.6).compared
    path = tmp_path / "near_pairs.parquet"
    write_pairs(path, compared.pairs, compared.standing, compared.rows, pinned=compared.pinned)
    with pytest.raises(DataError, match=r"0\.3"):
        at_threshold(path, 0.3)


def test_results_do_not_depend_on_order_or_on_the_size_of_chunks(monkeypatch):
    rows = [replace(row, split=None) for row in rows_with_edits()]
    first = len(find_duplicates(rows, threshold=0.6))
    monkeypatch.setattr("tunesmith.data.wordtable._ROWS_PER_CHUNK", 7)
    monkeypatch.setattr("tunesmith.data.near._BANDS_PER_TASK", 3)
    found = find_duplicates(rows, threshold=0.6)
    assert len(found) == first > 10
    assert {(d.row, d.keeper, d.score) for d in found} == {
        (d.row, d.keeper, d.score) for d in find_duplicates(rows, threshold=0.6)
    }
