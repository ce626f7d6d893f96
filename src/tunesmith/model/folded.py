"""Linear layers that read one input, with their low-rank adapters, as one matrix product each way.

    y  = [x | x A'] [W | s B]'           forward:  K grows by the ranks, no second pass over y
    dx = [dy | dy s B] [W ; A]           backward: likewise

What lives here: the folded matrix of a group of layers (q, k and v; gate and up; or one alone) and its two products.
What does not: what stands between the products (`model.fused`).

Why: PEFT adds the adapter's output to an already rounded bf16 `y`, which loses small updates; folded, both parts meet
in the product's float32 accumulator. Adapters stay float32 masters; the folded matrix holds their rounded copy, renewed
once for each step. The base weights live only here: the model's own layers become views of the matrix. Weights that are
stored in 4 or 8 bits stay so: their matrix is made for each product and dropped after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora import Linear as LoraLinear

from tunesmith.model.products import linear, product
from tunesmith.model.quantised import QuantisedLinear

LINEAR_TYPES = (torch.nn.Linear, QuantisedLinear)
"""Layers that can be folded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The low-rank update of one layer: `scale * B @ A`."""

    a: torch.nn.Parameter
    """[r, in] float32."""
    b: torch.nn.Parameter
    """[out, r] float32."""
    scale: float


def adapter_of(layer: torch.nn.Module) -> Adapter | None:
    """Return the active PEFT adapter of a linear layer, or `None` for a plain one."""
    if not isinstance(layer, LoraLinear):
        return None
    (name,) = layer.active_adapters
    return Adapter(a=layer.lora_A[name].weight, b=layer.lora_B[name].weight, scale=float(layer.scaling[name]))


def plain_of(layer: torch.nn.Module) -> torch.nn.Linear:
    """Return the linear layer under an adapter, or the layer itself."""
    plain = layer.base_layer if isinstance(layer, LoraLinear) else layer
    assert isinstance(plain, torch.nn.Linear)
    return plain


def _empty_like(layer: torch.nn.Linear) -> torch.Tensor:
    """Return an empty tensor of a layer's number format, on its device, without spreading a stored weight out."""
    if isinstance(layer, QuantisedLinear):
        return torch.empty(0, dtype=layer.dtype, device=layer.packed.device)
    return layer.weight.new_empty(0)


class FoldedLinear:
    """A group of linear layers over one input: `out` rows of all layers together, `rank` of all adapters together.

    `matrix` is [out + rank, in + rank]: `[[W, s B], [A, 0]]`, B block-diagonal over the layers.
    Trained are the adapters, or the weights themselves where they require gradients.
    """

    matrix: torch.Tensor | None
    """Held, unless the layers are quantised."""

    def __init__(self, layers: Sequence[torch.nn.Module]) -> None:
        plain = [plain_of(layer) for layer in layers]
        self.adapters = [adapter_of(layer) for layer in layers]
        self.num_inputs = plain[0].in_features
        self.sizes = [layer.out_features for layer in plain]
        self.num_outputs = sum(self.sizes)
        self.ranks = [adapter.a.shape[0] if adapter else 0 for adapter in self.adapters]
        self.rank = sum(self.ranks)
        self.layers = plain
        self.weights = [None if isinstance(layer, QuantisedLinear) else layer.weight for layer in plain]
        self.biases = [layer.bias for layer in plain]
        self.like = _empty_like(plain[0])
        self.matrix = None
        if None not in self.weights:
            self.matrix = self._spread()
            row = 0
            for layer, size in zip(plain, self.sizes, strict=True):
                layer.weight.data = self.matrix[row : row + size, : self.num_inputs]
                row += size
        self.bias = self.like.new_zeros(self.num_outputs) if any(bias is not None for bias in self.biases) else None
        self.refresh_()

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What trains, in the order in which `gradients` returns theirs: A, B, weight, bias of each layer."""
        out: list[torch.nn.Parameter] = []
        for adapter, weight, bias in zip(self.adapters, self.weights, self.biases, strict=True):
            candidates = [*([adapter.a, adapter.b] if adapter else []), weight, bias]
            out += [part for part in candidates if part is not None and part.requires_grad]  # type: ignore[misc]
        return out

    def refresh_(self) -> None:
        """Copy the float32 masters and the biases into the folded tensors: once after each optimizer step."""
        if self.matrix is not None:
            self._fold_into_(self.matrix)
        if self.bias is not None:
            row = 0
            with torch.no_grad():
                for bias, size in zip(self.biases, self.sizes, strict=True):
                    if bias is not None:
                        self.bias[row : row + size] = bias
                    row += size

    def _spread(self) -> torch.Tensor:
        """Return a new matrix that holds the weights of the layers, and room for the adapters."""
        matrix = self.like.new_zeros(self.num_outputs + self.rank, self.num_inputs + self.rank)
        row = 0
        for layer, size in zip(self.layers, self.sizes, strict=True):
            matrix[row : row + size, : self.num_inputs] = layer.weight.detach()
            row += size
        return matrix

    def _fold_into_(self, matrix: torch.Tensor) -> torch.Tensor:
        row, at = 0, 0
        with torch.no_grad():
            for adapter, size, rank in zip(self.adapters, self.sizes, self.ranks, strict=True):
                if adapter:
                    matrix[self.num_outputs + at : self.num_outputs + at + rank, : self.num_inputs] = adapter.a
                    matrix[row : row + size, self.num_inputs + at : self.num_inputs + at + rank] = (
                        adapter.b * adapter.scale
                    )
                row, at = row + size, at + rank
        return matrix

    def _folded(self) -> torch.Tensor:
        """Return the matrix: the one that is held, or one made from the stored bytes for this product alone."""
        return self.matrix if self.matrix is not None else self._fold_into_(self._spread())

    def wide_input(self, num_rows: int) -> torch.Tensor:
        """Return an empty [T, in + rank] buffer, whose first columns the caller fills with x."""
        return self.like.new_empty(num_rows, self.num_inputs + self.rank)

    def wide_output(self, num_rows: int) -> torch.Tensor:
        """Return an empty [T, out + rank] buffer, whose first columns the caller fills with dy."""
        return self.like.new_empty(num_rows, self.num_outputs + self.rank)

    def forward(self, wide: torch.Tensor) -> torch.Tensor:
        """Return y [T, out] of a wide input, and fill its last columns with `x A'`."""
        matrix = self._folded()
        if self.rank:
            down = matrix[self.num_outputs :, : self.num_inputs]
            wide[:, self.num_inputs :] = torch.nn.functional.linear(wide[:, : self.num_inputs], down)
        return linear(wide, matrix[: self.num_outputs], self.bias)

    def backward(self, wide_grad: torch.Tensor, *, needs_input: bool) -> torch.Tensor | None:
        """Return dx [T, in] of a wide dy, and fill its last columns with `dy s B`, which `gradients` needs."""
        matrix = self._folded()
        if self.rank:
            up = matrix[: self.num_outputs, self.num_inputs :]
            wide_grad[:, self.num_outputs :] = torch.mm(wide_grad[:, : self.num_outputs], up)
        return product(wide_grad, matrix[:, : self.num_inputs]) if needs_input else None

    def gradients(self, wide: torch.Tensor, wide_grad: torch.Tensor) -> list[torch.Tensor]:
        """Return the gradients of `parameters`, after `forward` and `backward` have filled both buffers."""
        grads: list[torch.Tensor] = []
        x = wide[:, : self.num_inputs]
        grad_a = torch.mm(wide_grad[:, self.num_outputs :].t(), x).float() if self.rank else None
        row, at = 0, 0
        for adapter, weight, bias, size, rank in zip(
            self.adapters, self.weights, self.biases, self.sizes, self.ranks, strict=True
        ):
            grad = wide_grad[:, row : row + size]
            if adapter and grad_a is not None:
                down = wide[:, self.num_inputs + at : self.num_inputs + at + rank]
                grads.append(grad_a[at : at + rank])
                grads.append(torch.mm(grad.t(), down).float().mul_(adapter.scale))
            if weight is not None and weight.requires_grad:
                grads.append(product(grad.t(), x))
            if bias is not None and bias.requires_grad:
                grads.append(grad.sum(0, dtype=torch.float32).to(bias.dtype))
            row, at = row + size, at + rank
        return grads
