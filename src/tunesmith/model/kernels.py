"""Element-wise passes between the matrix products of a decoder layer: one compiled loop each, or torch's operations.

    inverse = add_norm_(stream, branch, weight, eps, normal=normal, wide=wide)

What lives here: the functions, their torch form (which says what each computes), and the loops of `kernels.c`, compiled
by the machine's own C compiler at first use and cached. What does not: products (`model.folded`), attention.

Why: torch runs SwiGLU's backward as six passes over [T, 2F], and rounds after each; one loop reads and writes once.
The loops serve bfloat16 and float32 on the CPU. Elsewhere, and where no compiler is found (`why_not_compiled`), torch's
operations run: slower, the same to rounding.

Shapes: T rows, E columns. `wide` and `product` are columns of wider buffers: only their rows are contiguous.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
CPUINFO = Path("/proc/cpuinfo")

FLAGS = (
    *("-O3", "-march=native", "-shared", "-fPIC", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
"""Sums may be taken in any order, which vectors need; NaN and infinity keep their meaning."""

ELEMENTS = {torch.bfloat16: "BFLOAT16", torch.float32: "FLOAT32"}
COMPILE_SECONDS = 60
HEAD_SIZES = (16, 32, 64, 128)
"""What the attention of answers is compiled for."""

_no_kernels_because: list[str] = []


def why_not_compiled() -> str | None:
    """Return why torch's operations run on the CPU in place of the compiled loops, or `None` where they are there."""
    return None if _library(torch.bfloat16) is not None else "; ".join(_no_kernels_because)


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the compiled loops for an element type; compile them where the cache has none."""
    return _loaded("kernels.c", f"-DELEMENT_{ELEMENTS[dtype]}") if dtype in ELEMENTS else None


@functools.cache
def attention_library() -> ctypes.CDLL | None:
    """Return `attention.c`, compiled, or `None` where the processor lacks its instructions or there is no compiler."""
    if not CPUINFO.is_file() or "avx512_bf16" not in CPUINFO.read_text("utf-8", errors="replace").split():
        return None
    return _loaded("attention.c", "-mprefer-vector-width=512")


def _loaded(source: str, option: str) -> ctypes.CDLL | None:
    if os.environ.get("TUNESMITH_KERNELS") == "torch":
        _no_kernels_because.append("TUNESMITH_KERNELS=torch is set")
        return None
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or platform.system() != "Linux":
        _no_kernels_because.append("no C compiler was found" if compiler is None else "the system is not Linux")
        return None
    _share_threads_with_torch()
    try:
        return ctypes.CDLL(str(_compiled(compiler, FOLDER / source, option)))
    except (OSError, subprocess.SubprocessError) as error:
        _no_kernels_because.append(f"the C compiler failed: {str(error).splitlines()[0]}")
        return None


def _compiled(compiler: str, source: Path, option: str) -> Path:
    """Return the shared library, from the cache where source, flags, compiler and processor are the same."""
    cpu = CPUINFO.read_text("utf-8", errors="replace").partition("\n\n")[0]
    features = [line for line in cpu.splitlines() if line.startswith(("flags", "Features", "model name"))]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    texts = [(FOLDER / name).read_text("utf-8") for name in (source.name, "numbers.h")]
    identity = "\n".join((*texts, option, *FLAGS, version, *features))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith" / "kernels"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        cache = Path(tempfile.mkdtemp(prefix="tunesmith-kernels-"))
    target = cache / f"{source.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if not target.is_file():
        partial = target.with_suffix(f".{os.getpid()}.partial")
        command = [compiler, *FLAGS, option, "-o", str(partial), str(source), "-lm"]
        subprocess.run(command, capture_output=True, check=True, timeout=COMPILE_SECONDS)
        partial.replace(target)
    return target


def _share_threads_with_torch() -> None:
    """Make torch's OpenMP library the one that ours finds: two would be two pools of threads for one machine."""
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        name = line.rpartition(" ")[2]
        if "libgomp" in name or "libiomp" in name:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            return


def _loops(*tensors: torch.Tensor | None) -> ctypes.CDLL | None:
    """Return the loops for tensors of one element type in the CPU's memory, or `None` where torch must do."""
    given = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.device.type != "cpu" or tensor.dtype != given[0].dtype for tensor in given):
        return None
    assert all(tensor.stride(-1) == 1 for tensor in given)
    return _library(given[0].dtype)


def _at(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


def _size(number: int) -> ctypes.c_long:
    return ctypes.c_long(number)


def add_norm_(
    stream: torch.Tensor,
    branch: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    normal: torch.Tensor,
    wide: torch.Tensor,
) -> torch.Tensor:
    """Add `branch` to the float32 `stream`; write n = stream / rms(stream) to `normal`, n (offset + weight) to `wide`.

    Returns 1 / rms(stream) [T, 1], float32. Rounds where transformers' RMSNorm of Llama rounds: after the division, and
    after the product with the weight. `offset` is 1 in Gemma, whose norms round once.
    """
    rows, columns = stream.shape
    loops = _loops(normal, wide, weight, branch)
    if loops is not None:
        inverse = stream.new_empty(rows, 1)
        loops.add_norm(
            _size(rows), _size(columns), _at(stream), _at(branch), _at(weight), *map(ctypes.c_float, (offset, eps)),
            _at(normal), _at(wide), _size(wide.stride(0)), _at(inverse),
        )  # fmt: skip
        return inverse
    if branch is not None:
        stream.add_(branch)
    inverse = torch.rsqrt(stream.square().mean(-1, keepdim=True).add_(eps))
    normal.copy_(stream * inverse)
    wide.copy_(_scaled(normal, weight, offset))
    return inverse


def _scaled(normal: torch.Tensor, weight: torch.Tensor, offset: float) -> torch.Tensor:
    return normal * weight if offset == 0 else normal * (weight.float() + offset)


def scale_rows_(normal: torch.Tensor, weight: torch.Tensor, *, offset: float = 0.0, wide: torch.Tensor) -> None:
    """Write `normal * (offset + weight)` into `wide` once more: cheaper than to keep it for the backward."""
    loops = _loops(normal, weight, wide)
    if loops is None:
        wide.copy_(_scaled(normal, weight, offset))
        return
    rows, columns = normal.shape
    loops.scale_rows(
        _size(rows), _size(columns), _at(normal), _at(weight), ctypes.c_float(offset), _at(wide), _size(wide.stride(0))
    )  # fmt: skip


def norm_backward_(
    grad: torch.Tensor,
    grad_normed: torch.Tensor,
    normal: torch.Tensor,
    weight: torch.Tensor,
    inverse: torch.Tensor,
    *,
    offset: float = 0.0,
    rounded: torch.Tensor | None,
) -> None:
    """Add the gradient through `add_norm_` to the float32 `grad` of the stream; write it into `rounded` as well.

    With s = grad_normed * (offset + weight): grad += inverse * (s - normal * mean(s * normal)).
    """
    loops = _loops(grad_normed, normal, weight, rounded)
    if loops is not None:
        rows, columns = grad.shape
        loops.norm_backward(
            _size(rows), _size(columns), _at(grad), _at(grad_normed), _at(normal), _at(weight), ctypes.c_float(offset),
            _at(inverse), _at(rounded), _size(0 if rounded is None else rounded.stride(0)),
        )  # fmt: skip
        return
    scaled = grad_normed.float() * (weight.float() + offset)
    mean = (scaled * normal).mean(-1, keepdim=True)
    grad.add_(scaled.sub_(mean * normal).mul_(inverse))
    if rounded is not None:
        rounded.copy_(grad)


def glu_(gate_up: torch.Tensor, *, gelu: bool = False, product: torch.Tensor) -> None:
    """Write `silu(gate) * up` [T, F] into `product` (SwiGLU), or with gelu in its tanh form (GeGLU).

    `gate_up` [T, 2F] holds the gate's columns first.
    """
    loops = _loops(gate_up, product)
    rows, columns = product.shape
    if loops is not None:
        loops.glu(_size(rows), _size(columns), ctypes.c_int(gelu), _at(gate_up), _at(product), _size(product.stride(0)))
        return
    gate, up = torch.split(gate_up.float(), columns, dim=1)
    product.copy_(_activated(gate, gelu).mul_(up))


def _activated(gate: torch.Tensor, gelu: bool) -> torch.Tensor:
    return torch.nn.functional.gelu(gate, approximate="tanh") if gelu else torch.nn.functional.silu(gate)


def glu_backward_(
    gate_up: torch.Tensor,
    grad_product: torch.Tensor,
    *,
    gelu: bool = False,
    grads: torch.Tensor,
    product: torch.Tensor,
) -> None:
    """Write the gradients of gate and up into `grads` [T, 2F], and the product, which was not kept, into `product`."""
    loops = _loops(gate_up, grad_product, grads, product)
    rows, columns = product.shape
    if loops is not None:
        loops.glu_backward(
            _size(rows), _size(columns), ctypes.c_int(gelu), _at(gate_up), _at(grad_product), _at(grads),
            _size(grads.stride(0)), _at(product), _size(product.stride(0)),
        )  # fmt: skip
        return
    gate, up = torch.split(gate_up.float(), columns, dim=1)
    active, wide_grad = _activated(gate, gelu), grad_product.float()
    grads[:, columns:] = wide_grad * active
    if gelu:
        grads[:, :columns] = torch.ops.aten.gelu_backward(wide_grad * up, gate, approximate="tanh")
    else:
        grads[:, :columns] = torch.ops.aten.silu_backward(wide_grad * up, gate)
    product.copy_(active.mul_(up))


def rotate_(packed: torch.Tensor, num_heads: int, cos: torch.Tensor, sin: torch.Tensor, *, backward: bool) -> None:
    """Apply rotary positions, or their transpose, in place to the first heads of [T, heads, D].

    cos and sin are [T, D], float32; the two halves of D are the two coordinates.
    """
    rows, _, size = packed.shape
    loops = _loops(packed)
    if loops is not None:
        loops.rotate(
            _size(rows), _size(num_heads), _size(size), _at(packed), _size(packed.stride(0)), _at(cos), _at(sin),
            ctypes.c_float(-1.0 if backward else 1.0),
        )  # fmt: skip
        return
    half = size // 2
    left, right = packed[:, :num_heads, :half].float(), packed[:, :num_heads, half:].float()
    cos, sin = cos[:, None], sin[:, None]
    low, high = sin[..., :half], sin[..., half:]
    if backward:
        low, high = -high, -low
    turned = left * cos[..., :half] - right * low, right * cos[..., half:] + left * high
    packed[:, :num_heads] = torch.cat(turned, dim=-1)


def cross_entropy_(logits: torch.Tensor, labels: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each label, float32, and turn `logits` [T, V] into their gradient.

    The gradient of sum(coefficients * losses) is coefficient * (softmax - onehot(label)).
    """
    loops = _loops(logits)
    if loops is not None:
        losses = coefficients.new_empty(len(labels))
        rows, columns = logits.shape
        loops.cross_entropy(
            _size(rows), _size(columns), _at(logits), _at(labels), _at(coefficients), _at(losses)
        )  # fmt: skip
        return losses
    chosen = labels[:, None]
    log_probs = torch.log_softmax(logits, -1, dtype=torch.float32)
    losses = -log_probs.gather(1, chosen)[:, 0]
    slope = log_probs.exp_()
    slope.scatter_add_(1, chosen, torch.full_like(chosen, -1, dtype=torch.float32))
    logits.copy_(slope.mul_(coefficients[:, None]))
    return losses


def attend_step_(
    packed: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    now: int,
    *,
    shared: torch.Tensor | None,
    scale: float,
) -> torch.Tensor | None:
    """Write the new keys and values of B rows into their cache, and return what their queries attend to [B, H, D].

    `packed` is [B, H + 2K, D] (queries, keys, values), the cache [B, K, T, D]; row b owns the indices from `starts[b]`
    on, and the new one is `now`. `shared` [P, 2K, D] holds the keys, then the values, of positions that all rows see.
    Returns `None`, with nothing written, where there is no compiled loop.
    """
    loops = _attention_loops(packed, keys, values, shared)
    if loops is None:
        return None
    rows, total, size = packed.shape
    key_heads, capacity = keys.shape[1:3]
    out = packed.new_empty(rows, total - 2 * key_heads, size)
    failed = loops.attend_step(
        *map(_size, (rows, key_heads, total // key_heads - 2, size)), _at(packed), _at(keys), _at(values),
        _size(capacity), _at(starts), _size(now), _at(shared), _size(0 if shared is None else len(shared)),
        ctypes.c_float(scale), _at(out),
    )  # fmt: skip
    if failed:
        raise MemoryError("attention found no memory for its scores")
    return out


def attend_rows(
    packed: torch.Tensor, bounds: torch.Tensor, num_key_heads: int, *, shared: torch.Tensor | None, scale: float
) -> torch.Tensor | None:
    """Return causal attention [T, H, D] inside documents that lie end to end in `packed` [T, H + 2K, D].

    `bounds` [N, 2] int64 says where each begins and ends; `shared` is as in `attend_step_`. `None` where there is no
    compiled loop.
    """
    loops = _attention_loops(packed, shared)
    if loops is None:
        return None
    rows, total, size = packed.shape
    out = packed.new_empty(rows, total - 2 * num_key_heads, size)
    failed = loops.attend_rows(
        _size(len(bounds)), _at(bounds), *map(_size, (num_key_heads, total // num_key_heads - 2, size)), _at(packed),
        _at(shared), _size(0 if shared is None else len(shared)), ctypes.c_float(scale), _at(out),
    )  # fmt: skip
    if failed:
        raise MemoryError("attention found no memory for its scores")
    return out


def _attention_loops(packed: torch.Tensor, *others: torch.Tensor | None) -> ctypes.CDLL | None:
    assert all(tensor is None or tensor.is_contiguous() for tensor in (packed, *others))
    return _loops(packed, *others) if packed.shape[-1] in HEAD_SIZES else None
