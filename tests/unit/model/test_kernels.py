"""Each compiled loop against its form in torch, in both element types, over columns of wider buffers."""

import pytest
import torch

from tunesmith.model import kernels

compiled = pytest.mark.skipif(kernels.why_not_compiled() is not None, reason="no compiled loops here")
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-7, "atol": 2**-7}}

ROWS, COLUMNS, HEADS, SIZE, VOCAB = 70, 37, 3, 10, 301


def inputs(dtype):
    torch.manual_seed(0)

    def wide(columns):
        return torch.full((ROWS, columns + 5), 7.0, dtype=dtype)[:, :columns]

    def normal(*shape):
        return torch.randn(*shape).to(dtype)

    return wide, normal


def add_norm(dtype):
    wide, normal = inputs(dtype)
    stream, weight = torch.randn(ROWS, COLUMNS), normal(COLUMNS)
    written, out = torch.empty(ROWS, COLUMNS, dtype=dtype), wide(COLUMNS)
    inverse = kernels.add_norm_(stream, normal(ROWS, COLUMNS), weight, 1e-5, normal=written, wide=out)
    first = kernels.add_norm_(stream, None, weight, 1e-5, normal=written, wide=out)
    offset = wide(COLUMNS)
    kernels.add_norm_(stream, None, weight, 1e-5, offset=1.0, normal=written, wide=offset)
    return stream, inverse, first, written, out, offset


def norm_backward(dtype):
    wide, normal = inputs(dtype)
    grad, inverse, weight = torch.randn(ROWS, COLUMNS), torch.rand(ROWS, 1), normal(COLUMNS)
    streams = normal(ROWS, COLUMNS), normal(ROWS, COLUMNS)
    rounded, again = wide(COLUMNS), wide(COLUMNS)
    kernels.norm_backward_(grad, *streams, weight, inverse, rounded=rounded)
    kernels.norm_backward_(grad, *streams, weight, inverse, rounded=None)
    kernels.scale_rows_(streams[1], weight, wide=again)
    offset = wide(COLUMNS)
    kernels.norm_backward_(grad, *streams, weight, inverse, offset=1.0, rounded=None)
    kernels.scale_rows_(streams[1], weight, offset=1.0, wide=offset)
    return grad, rounded, again, offset


def glu(dtype, *, gelu):
    wide, normal = inputs(dtype)
    gate_up, grad_product = 4 * normal(ROWS, 2 * COLUMNS), normal(ROWS, COLUMNS)
    gate_up[0, 0], gate_up[1, 0] = 200.0, -200.0
    product, again, grads = wide(COLUMNS), wide(COLUMNS), wide(2 * COLUMNS)
    kernels.glu_(gate_up, gelu=gelu, product=product)
    kernels.glu_backward_(gate_up, grad_product, gelu=gelu, grads=grads, product=again)
    return product, again, grads


def swiglu(dtype):
    return glu(dtype, gelu=False)


def geglu(dtype):
    return glu(dtype, gelu=True)


def rotate(dtype):
    _, normal = inputs(dtype)
    packed, cos, sin = normal(ROWS, HEADS + 2, SIZE), torch.randn(ROWS, SIZE), torch.randn(ROWS, SIZE)
    turned, back = packed.clone(), packed.clone()
    kernels.rotate_(turned, HEADS, cos, sin, backward=False)
    kernels.rotate_(back, HEADS, cos, sin, backward=True)
    return turned, back


def cross_entropy(dtype):
    _, normal = inputs(dtype)
    logits = 5 * normal(ROWS, VOCAB)
    losses = kernels.cross_entropy_(logits, torch.arange(ROWS) * 4, torch.rand(ROWS))
    return losses, logits


@compiled
@pytest.mark.parametrize("function", [add_norm, norm_backward, swiglu, geglu, rotate, cross_entropy])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_compiled_loop_computes_what_torch_computes(monkeypatch, function, dtype):
    mine = function(dtype)
    monkeypatch.setattr(kernels, "_library", lambda dtype: None)
    for found, expected in zip(mine, function(dtype), strict=True):
        # A sum in another order may round to the neighbour in bfloat16; torch's gelu loses digits in 1 + tanh.
        tolerance = 2**-7 if found.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-5)


def test_rotating_back_is_the_transpose():
    packed, other = torch.randn(ROWS, HEADS, SIZE), torch.randn(ROWS, HEADS, SIZE)
    cos, sin = torch.randn(ROWS, SIZE), torch.randn(ROWS, SIZE)
    turned, back = packed.clone(), other.clone()
    kernels.rotate_(turned, HEADS, cos, sin, backward=False)
    kernels.rotate_(back, HEADS, cos, sin, backward=True)
    torch.testing.assert_close((turned * other).sum(), (packed * back).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(broken):
    gate_up = torch.ones(2, 2 * COLUMNS)
    gate_up[1, 3] = broken
    product = torch.empty(2, COLUMNS)
    kernels.glu_(gate_up, product=product)
    assert bool(torch.isfinite(product[0]).all())
    assert not bool(torch.isfinite(product[1]).all())
    logits = torch.ones(1, VOCAB)
    logits[0, 5] = broken
    assert not bool(torch.isfinite(kernels.cross_entropy_(logits, torch.tensor([1]), torch.ones(1))).all())


def test_without_a_compiler_torch_does_the_work_and_the_reason_is_told(monkeypatch):
    monkeypatch.setenv("CC", "a-compiler-that-is-not-there")
    kernels._library.cache_clear()
    kernels._no_kernels_because.clear()
    try:
        assert kernels.why_not_compiled() == "no C compiler was found"
        logits = torch.randn(2, VOCAB, dtype=torch.bfloat16)
        assert bool(torch.isfinite(kernels.cross_entropy_(logits, torch.tensor([1, 2]), torch.ones(2))).all())
    finally:
        kernels._library.cache_clear()
        kernels._no_kernels_because.clear()


def plainly(queries, keys, values, scale):
    """Attention of queries [H, D] over keys and values [L, K, D], in float32."""
    group = queries.shape[0] // keys.shape[1]
    keys, values = (part.float().repeat_interleave(group, dim=1) for part in (keys, values))
    chances = torch.softmax(torch.einsum("hd,lhd->hl", queries.float(), keys) * scale, dim=-1)
    return torch.einsum("hl,lhd->hd", chances, values)


def shared_rows(dtype, prefix, num_keys, size):
    return torch.randn(prefix, 2 * num_keys, size).to(dtype) if prefix else None


@compiled
@pytest.mark.parametrize("size", kernels.HEAD_SIZES)
@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_new_position_sees_the_shared_rows_and_what_its_row_owns(dtype, prefix, size):
    torch.manual_seed(0)
    rows, num_queries, num_keys, capacity, now = 7, 6, 2, 50, 40
    packed = torch.randn(rows, num_queries + 2 * num_keys, size).to(dtype)
    keys, values = (torch.randn(rows, num_keys, capacity, size).to(dtype) for _ in range(2))
    starts = torch.tensor([0, 3, 24, 25, 38, 39, 40])
    shared = shared_rows(dtype, prefix, num_keys, size)
    before = keys.clone(), values.clone()
    out = kernels.attend_step_(packed, keys, values, starts, now, shared=shared, scale=0.3)
    new_keys, new_values = packed[:, num_queries : num_queries + num_keys], packed[:, num_queries + num_keys :]
    for row, start in enumerate(starts.tolist()):
        seen = [
            torch.cat([*([] if shared is None else [shared[:, part]]), old[row, :, start:now].transpose(0, 1), new[row][None]])
            for old, new, part in (
                (before[0], new_keys, slice(0, num_keys)), (before[1], new_values, slice(num_keys, None)),
            )
        ]  # fmt: skip
        exact = plainly(packed[row, :num_queries], *seen, 0.3)
        torch.testing.assert_close(out[row].float(), exact, **CLOSE[dtype])
    for cache, old, new in ((keys, before[0], new_keys), (values, before[1], new_values)):
        assert torch.equal(cache[:, :, now], new)
        assert torch.equal(cache[:, :, :now], old[:, :, :now])
        assert torch.equal(cache[:, :, now + 1 :], old[:, :, now + 1 :])


@compiled
@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_new_rows_see_themselves_backwards_and_the_shared_rows(dtype, prefix):
    torch.manual_seed(0)
    num_queries, num_keys, size = 6, 2, 32
    bounds = torch.tensor([[0, 1], [1, 20], [20, 55]])
    packed = torch.randn(55, num_queries + 2 * num_keys, size).to(dtype)
    shared = shared_rows(dtype, prefix, num_keys, size)
    out = kernels.attend_rows(packed, bounds, num_keys, shared=shared, scale=0.3)
    together = packed[:, num_queries:]
    for start, stop in bounds.tolist():
        for at in range(start, stop):
            seen = torch.cat([*([] if shared is None else [shared]), together[start : at + 1]])
            exact = plainly(packed[at, :num_queries], seen[:, :num_keys], seen[:, num_keys:], 0.3)
            torch.testing.assert_close(out[at].float(), exact, **CLOSE[dtype])


def test_another_head_size_is_left_to_torch():
    assert kernels.attend_rows(torch.randn(4, 3, 24), torch.tensor([[0, 4]]), 1, shared=None, scale=1.0) is None
