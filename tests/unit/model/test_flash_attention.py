"""FlashAttention's lengths, keys of shared prefixes and proof, with its kernels written out in torch; and itself.

The kernels exist on GPUs only. What is ours (which keys a document reads, where gradients go, when the kernels are
refused) is tested everywhere with a kernel of ten lines; the last tests run where there is a GPU.
"""

import pytest
import torch

from tunesmith.model import flash_attention, torch_attention
from tunesmith.model.layout import DocumentLayout, Heads, Segment

CPU = torch.device("cpu")


def attention(q, k, v, lengths, *, scale, window, to_the_right=True, extra=0):
    """Attention document by document, as FlashAttention defines it: the last query stands at the last key."""
    out = []
    for document in range(len(lengths.query_ends) - 1):
        q_begin, q_end = lengths.query_ends[document : document + 2].tolist()
        k_begin, k_end = lengths.key_ends[document : document + 2].tolist()
        before = (k_end - k_begin) - (q_end - q_begin) if to_the_right else 0
        place = before + torch.arange(q_end - q_begin)[:, None]
        key = torch.arange(k_end - k_begin)[None]
        seen = (key <= place) if window is None else (key <= place) & (key > place - window - extra)
        group = q.shape[1] // k.shape[1]
        keys, values = (part[k_begin:k_end].repeat_interleave(group, 1).transpose(0, 1) for part in (k, v))
        scores = (q[q_begin:q_end].transpose(0, 1) @ keys.mT * scale).masked_fill(~seen, float("-inf"))
        out.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(out)


def install(monkeypatch, **changes):
    def forward(q, k, v, lengths, *, scale, window):
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        return [attention(q, k, v, lengths, scale=scale, window=window, **changes), torch.zeros(1)]

    def backward(grad_out, q, k, v, out, kept, lengths, *, scale, window):
        assert len(kept) == 1
        inputs = [part.detach().clone().requires_grad_() for part in (q, k, v)]
        with torch.enable_grad():
            again = attention(*inputs, lengths, scale=scale, window=window, **changes)
        assert torch.allclose(again, out, atol=1e-5)
        return torch.autograd.grad(again, inputs, grad_out)

    monkeypatch.setattr(flash_attention, "kernel_forward", forward)
    monkeypatch.setattr(flash_attention, "kernel_backward", backward)


LAYOUTS = {
    "alone": [Segment(start=0, stop=9), Segment(start=9, stop=10), Segment(start=10, stop=50)],
    "one prefix": list(flash_attention.PROOF_SEGMENTS),
    "two prefixes": [
        Segment(start=0, stop=4),
        Segment(start=4, stop=6, prefix_start=0, prefix_stop=4),
        Segment(start=6, stop=11, prefix_start=0, prefix_stop=4),
        Segment(start=11, stop=14),
        Segment(start=14, stop=30, prefix_start=11, prefix_stop=14),
    ],
}


def both(segments, heads, *, dtype=torch.float32, device=CPU, window=None, size=16):
    """Return output and gradient by `flash_attention`, then by torch in float32."""
    layout = DocumentLayout(segments, device)
    torch.manual_seed(0)
    qkv = torch.randn(layout.num_rows, heads.total, size).to(device, dtype)
    grad_out = torch.randn(layout.num_rows, heads.num_queries, size).to(device, dtype)
    # As in training: outputs and gradients are columns of wider buffers.
    out = torch.empty(layout.num_rows, heads.num_queries + 1, size, dtype=dtype, device=device)[:, 1:]
    grad = torch.empty(layout.num_rows, heads.total + 2, size, dtype=dtype, device=device)[:, :-2]
    options = {"scale": size**-0.5, "window": window}
    kept = flash_attention.forward_(qkv, layout, heads, out=out, **options)
    flash_attention.backward_(grad_out, qkv, out, kept, layout, heads, grad=grad, **options)
    exact, exact_kept = torch_attention.forward(qkv.float(), layout, heads, softcap=None, **options)
    exact_grad = torch_attention.backward(
        grad_out.float(), qkv.float(), exact_kept, layout, heads, softcap=None, **options
    )
    return (out, grad), (exact, exact_grad)


@pytest.mark.parametrize("segments", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize("heads", [Heads(num_queries=4, num_keys=4), Heads(num_queries=6, num_keys=2)], ids=str)
def test_documents_and_their_prefixes_get_the_outputs_and_gradients_of_torch(monkeypatch, segments, window, heads):
    install(monkeypatch)
    for found, exact in zip(*both(segments, heads, window=window), strict=True):
        assert torch.allclose(found, exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "windowed", "says"),
    [
        ({}, False, None),
        ({}, True, None),
        ({"to_the_right": False}, False, "outputs are off"),
        ({"extra": 1}, True, "outputs are off"),
    ],
)
def test_kernels_are_used_only_where_they_compute_what_torch_computes(monkeypatch, changes, windowed, says):
    install(monkeypatch, **changes)
    heads = Heads(num_queries=6, num_keys=2)
    found = flash_attention.why_not(CPU, torch.bfloat16, heads, 16, windowed=windowed)
    assert found is None if says is None else says in found


def test_wrong_gradients_alone_refuse_the_kernels(monkeypatch):
    install(monkeypatch)
    right = flash_attention.kernel_backward
    monkeypatch.setattr(
        flash_attention, "kernel_backward", lambda *given, **named: [1.1 * part for part in right(*given, **named)]
    )
    heads = Heads(num_queries=4, num_keys=2)
    assert "gradients are off by 1.0e-01" in flash_attention.why_not(CPU, torch.bfloat16, heads, 16, windowed=False)


def test_a_device_without_the_kernels_says_so():
    heads = Heads(num_queries=4, num_keys=2)
    found = flash_attention.why_not(CPU, torch.bfloat16, heads, 16, windowed=False)
    assert found is not None
    assert found.startswith("FlashAttention failed: ")
    assert not flash_attention.can_compute(
        torch.zeros(3, 8, 16, dtype=torch.bfloat16), heads, window=None, softcap=None
    )


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("segments", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("size", [64, 96, 128])
def test_the_kernels_of_a_gpu_compute_what_torch_computes(segments, window, size):
    heads = Heads(num_queries=6, num_keys=2)
    found, exact = both(segments, heads, dtype=torch.bfloat16, device=torch.device("cuda"), window=window, size=size)
    for mine, right in zip(found, exact, strict=True):
        assert float((mine.float() - right).norm()) <= 1e-2 * float(right.norm())


@needs_gpu
def test_a_gpu_takes_them():
    heads = Heads(num_queries=6, num_keys=2)
    rows = torch.zeros(3, 10, 64, dtype=torch.bfloat16, device="cuda")
    assert flash_attention.can_compute(rows, heads, window=None, softcap=None)
    assert not flash_attention.can_compute(rows.float(), heads, window=None, softcap=None)
