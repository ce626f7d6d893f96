import itertools

import pytest
import torch

from tunesmith.errors import TrainingError
from tunesmith.model import attention, layout, torch_attention
from tunesmith.model.attention import document_attention
from tunesmith.model.layout import DocumentLayout, Heads, Segment

HEADS, KEY_HEADS, SIZE = 6, 2, 8

LAYOUTS = {
    "one document": [Segment(start=0, stop=9)],
    "documents of several lengths": [Segment(start=0, stop=1), Segment(start=1, stop=8), Segment(start=8, stop=10)],
    "a shared prefix": [
        Segment(start=0, stop=5),
        Segment(start=5, stop=12, prefix_start=0, prefix_stop=5),
        Segment(start=12, stop=13, prefix_start=0, prefix_stop=5),
    ],
    "two prefixes and a document alone": [
        Segment(start=0, stop=3),
        Segment(start=3, stop=7, prefix_start=0, prefix_stop=3),
        Segment(start=7, stop=9, prefix_start=0, prefix_stop=3),
        Segment(start=9, stop=11),
        Segment(start=11, stop=14, prefix_start=9, prefix_stop=11),
        Segment(start=14, stop=20),
    ],
}


def plain_attention(q, k, v, segments, *, scale, window=None, softcap=None):
    """Written from the definition: one query row at a time."""
    group = q.shape[1] // k.shape[1]
    out = torch.zeros_like(q)
    rows_out = list(out.unbind(0))
    for segment in segments:
        rows = [*range(segment.prefix_start, segment.prefix_stop), *range(segment.start, segment.stop)]
        for place, row in enumerate(rows):
            if row < segment.start:
                continue
            first = 0 if window is None else max(0, place - window + 1)
            seen = rows[first : place + 1]
            heads = []
            for head in range(q.shape[1]):
                scores = k[seen, head // group] @ q[row, head] * scale
                if softcap is not None:
                    scores = torch.tanh(scores / softcap) * softcap
                heads.append(torch.softmax(scores, 0) @ v[seen, head // group])
            rows_out[row] = torch.stack(heads)
    return torch.stack(rows_out)


def random_qkv(segments, *, dtype=torch.float64):
    torch.manual_seed(0)
    total = max(segment.stop for segment in segments)
    return tuple(
        torch.randn(total, heads, SIZE, dtype=dtype, requires_grad=True) for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )


@pytest.mark.parametrize("segments", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (None, 1.5)])
@pytest.mark.parametrize("long_keys", [1024, 4], ids=["in one batch", "block by block"])
def test_documents_attend_as_if_each_stood_alone(monkeypatch, segments, window, softcap, long_keys):
    monkeypatch.setattr(layout, "LONG_KEYS", long_keys)
    monkeypatch.setattr(torch_attention, "QUERY_BLOCK", 2)
    q, k, v = random_qkv(segments)
    ours = document_attention(q, k, v, DocumentLayout(segments), scale=0.3, window=window, softcap=softcap)
    plain = plain_attention(q, k, v, segments, scale=0.3, window=window, softcap=softcap)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(ours)
    # Log-sums of long documents and sums over shared prefixes are float32.
    for mine, theirs in zip(
        torch.autograd.grad(ours, (q, k, v), upstream), torch.autograd.grad(plain, (q, k, v), upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_document_does_not_move_when_another_changes():
    segments = LAYOUTS["documents of several lengths"]
    q, k, v = random_qkv(segments, dtype=torch.float32)
    before = document_attention(q, k, v, DocumentLayout(segments), scale=1.0)
    with torch.no_grad():
        for rows in (q, k, v):
            rows[1:8] += 1.0
    after = document_attention(q, k, v, DocumentLayout(segments), scale=1.0)
    assert torch.equal(before[0:1], after[0:1])
    assert torch.equal(before[8:10], after[8:10])
    assert not torch.equal(before[1:8], after[1:8])


def test_every_row_is_computed_once_whatever_the_lengths():
    for lengths in itertools.product([1, 2, 7, 30], repeat=3):
        stops = list(itertools.accumulate(lengths))
        segments = [Segment(start=stop - length, stop=stop) for stop, length in zip(stops, lengths, strict=True)]
        heads = Heads(num_queries=HEADS, num_keys=KEY_HEADS)
        buckets, long = DocumentLayout(segments).plan(heads, None, torch.float32)
        written = sorted(index for bucket in buckets for index in bucket.outputs.tolist() if index < stops[-1] * HEADS)
        assert written == list(range(stops[-1] * HEADS))
        assert not long


def test_a_mask_or_dropout_that_would_be_ignored_is_refused():
    query = torch.zeros(1, 2, 3, 4)
    layout = DocumentLayout([Segment(start=0, stop=3)])
    for extra in ({"dropout": 0.1}, {"s_aux": torch.zeros(2)}, {"document_layout": None}):
        arguments = {"document_layout": layout, **extra}
        with pytest.raises(TrainingError, match="do not compute"):
            attention._interface(torch.nn.Linear(1, 1), query, query, query, None, **arguments)
    with pytest.raises(TrainingError, match="mask=True"):
        attention._interface(torch.nn.Linear(1, 1), query, query, query, torch.ones(1), document_layout=layout)
