import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tunesmith.model import products


@pytest.mark.parametrize("onednn", [True, False], ids=["oneDNN", "torch's choice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_over_columns_of_wider_buffers_are_those_of_torch(monkeypatch, onednn, dtype):
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("torch is built without oneDNN")
    monkeypatch.setattr(products, "_prefers_onednn", lambda: onednn)
    torch.manual_seed(0)
    matrix = torch.randn(200, 150, dtype=dtype)
    wide, grad, bias = (torch.randn(*size, dtype=dtype) for size in ((70, 150), (70, 200), (180,)))
    weight, columns = matrix[:180], matrix[:, :140]
    torch.testing.assert_close(products.linear(wide, weight, bias), wide @ weight.T + bias, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(products.product(grad, columns), grad @ columns, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(products.product(grad.T, wide), grad.T @ wide, rtol=1e-5, atol=1e-4)


def test_only_an_amd_processor_sends_float32_to_onednn(tmp_path):
    (tmp_path / "intel").write_text("vendor_id : GenuineIntel\n")
    assert not products._prefers_onednn(tmp_path / "intel")
    assert not products._prefers_onednn(tmp_path / "nowhere")


def test_onednn_never_sees_columns_of_a_wider_matrix(monkeypatch):
    """It computes those in reference loops: 6.2 seconds were measured where 3 milliseconds are enough."""
    seen = []

    def spy(x, weight, bias, *rest):
        seen.append(weight)
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(products, "_prefers_onednn", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spy)
    matrix, wide = torch.randn(200, 150), torch.randn(70, 200)
    torch.testing.assert_close(products.product(wide, matrix[:, :140]), wide @ matrix[:, :140])
    torch.testing.assert_close(products.linear(wide[:, :140], matrix[:, :140]), wide[:, :140] @ matrix[:, :140].T)
    torch.testing.assert_close(products.product(wide.T, wide[:, :140]), wide.T @ wide[:, :140])
    assert len(seen) == 3
    assert all(weight.is_contiguous() or weight.t().is_contiguous() for weight in seen)


MANY_SHAPES = """
import resource
import torch
from tunesmith.memory import release_free_memory
from tunesmith.model import products

def resident():
    release_free_memory()
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
weight = torch.zeros(608, 512, dtype=torch.bfloat16)
def multiply(rows):
    torch.ones(rows, 608, dtype=torch.bfloat16) @ weight
for rows in range(1, 200):
    multiply(rows)
before = resident()
for rows in range(200, 400):
    multiply(rows)
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads /proc")
def test_products_of_many_shapes_leave_little_behind():
    given = {name: text for name, text in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    ran = subprocess.run([sys.executable, "-c", MANY_SHAPES], capture_output=True, text=True, check=True, env=given)
    assert int(ran.stdout) < 50e6
