"""`attention.c` in bfloat16 against torch's operations in float32, on the same rounded inputs."""

import pytest
import torch

from tunesmith.model import compiled_attention, kernels
from tunesmith.model.attention import document_attention
from tunesmith.model.layout import DocumentLayout, Segment

if kernels.attention_library() is None:
    pytest.skip("the compiled attention needs a C compiler and AVX512-BF16", allow_module_level=True)


def laid_out(lengths, prefix):
    segments = [Segment(start=0, stop=prefix)] if prefix else []
    at = prefix
    for length in lengths:
        segments.append(Segment(start=at, stop=at + length, prefix_start=0, prefix_stop=prefix))
        at += length
    return segments


def attention_and_gradients(inputs, segments, upstream, *, window):
    q, k, v = (part.clone().requires_grad_() for part in inputs)
    out = document_attention(q, k, v, DocumentLayout(segments), scale=q.shape[-1] ** -0.5, window=window)
    return [out, *torch.autograd.grad(out, (q, k, v), upstream)]


@pytest.mark.parametrize(("heads", "key_heads", "size"), [(9, 3, 64), (4, 4, 32), (2, 1, 128), (4, 2, 96)])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(
    ("lengths", "prefix"), [([1, 3], 0), ([5, 64, 65], 0), ([70, 1, 130], 24), ([2, 150], 31), ([1200], 0)], ids=str
)
def test_documents_attend_as_in_float32(heads, key_heads, size, window, lengths, prefix):
    segments = laid_out(lengths, prefix)
    torch.manual_seed(0)
    total = segments[-1].stop
    inputs = [torch.randn(total, number, size).to(torch.bfloat16) for number in (heads, key_heads, key_heads)]
    upstream = torch.randn(total, heads, size).to(torch.bfloat16)
    assert compiled_attention.can_compute(inputs[0], softcap=None)
    mine = attention_and_gradients(inputs, segments, upstream, window=window)
    exact = attention_and_gradients([part.float() for part in inputs], segments, upstream.float(), window=window)
    for found, expected in zip(mine, exact, strict=True):
        # One rounding to bfloat16 of probabilities and one of the result: 2^-9 each, in the norm of the whole.
        assert float((found.detach().float() - expected.detach()).norm()) <= 5e-3 * float(expected.detach().norm())


@pytest.mark.parametrize("change", [{"dtype": torch.float32}, {"size": 24}, {"softcap": 30.0}], ids=str)
def test_what_it_cannot_compute_goes_through_torch(change):
    rows = torch.zeros(3, 4, change.get("size", 64), dtype=change.get("dtype", torch.bfloat16))
    assert not compiled_attention.can_compute(rows, softcap=change.get("softcap"))


def test_two_threads_compute_what_one_computes():
    segments = laid_out([70, 1, 130], 24)
    torch.manual_seed(0)
    inputs = [torch.randn(225, number, 64).to(torch.bfloat16) for number in (9, 3, 3)]
    upstream = torch.randn(225, 9, 64).to(torch.bfloat16)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(attention_and_gradients(inputs, segments, upstream, window=None))
    torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)
