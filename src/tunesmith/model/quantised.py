"""Linear layers of a frozen base in 4 or 8 bits (QLoRA), spread out anew for each product.

    how = Quantisation(kind="nf4", double=True)
    quantise_(model, how)                 # every linear layer but the head
    layer.weight                          # [out, in] in the model's number format, made when it is read
    dequantise_(model)                    # plain layers again, holding exactly what the quantised ones computed with

What lives here: the layer, its two directions, and the record that an adapter carries of the base it was trained on.
What does not: loading (`model.load`), the adapter on top (`model.lora`), folded products (`model.folded`).

The formats are bitsandbytes' (Dettmers et al. 2023: NF4 in blocks of 64, block scales in 8 bits; 2022: int8 with a
scale for each output), made and read by its kernels, on CPU and GPU. Its own modules are not used: on a CPU with
AVX512-BF16 `bitsandbytes.nn.Linear4bit` rearranges its weight in place at the first forward without gradients, and
whoever merges, dequantises or saves it afterwards gets noise (0.50.2, bitsandbytes#2078). Here the stored bytes never
change, so a layer computes the same before and after anything else.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from tunesmith.errors import PlanError, TrainingError
from tunesmith.memory import release_free_memory
from tunesmith.types import JSON

RECORD_FILE = "base_quantization.json"
"""Stands in the adapter's folder and says on which base the adapter was trained."""
BLOCK = 64
"""Weights that share a scale (Dettmers et al. 2023, section 4)."""
PIECE = 1 << 18
"""Weights of an int8 matrix that a CPU goes through at a time: what it computes with then stays in the cache, and two
float32 copies of the whole matrix are never made. 4,096 x 11,008 weights spread out 3 to 5 times faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How the linear layers of a base are stored."""

    kind: Literal["nf4", "int8"]
    double: bool = False
    """nf4: the scales of the blocks are in 8 bits themselves, which saves 0.4 bits a weight."""

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, scales included; a scale for each output of int8 is left out."""
        if self.kind == "int8":
            return 8.0
        return 4.0 + (8.0 + 32.0 / 256) / BLOCK if self.double else 4.0 + 32.0 / BLOCK

    def __str__(self) -> str:
        return f"{self.kind}, scales in 8 bits" if self.double else self.kind


def read_record(adapter_dir: Path) -> Quantisation | None:
    """Return how the base under an adapter was stored when it was trained, or `None` for a plain base."""
    file = adapter_dir / RECORD_FILE
    if not file.is_file():
        return None
    try:
        return Quantisation(**json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise TrainingError("the adapter does not say what base it belongs to", where=str(file)) from error


def write_record(how: Quantisation, adapter_dir: Path) -> None:
    """Leave in an adapter's folder what `read_record` reads."""
    record: dict[str, JSON] = asdict(how)
    (adapter_dir / RECORD_FILE).write_text(json.dumps(record) + "\n", "utf-8")


def kernels() -> ModuleType:
    """Return `bitsandbytes.functional`. Raises `PlanError` that names the extra where it is not installed."""
    try:
        functional: ModuleType = importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise PlanError(
            "a quantised base, or an optimizer in 8 bits, needs bitsandbytes, which is not installed",
            hint="pip install 'tunesmith[qlora]'",
        ) from error
    return functional


class _Product(torch.autograd.Function):
    """`apply(x, layer)` -> `x W' + b`, whose backward makes W again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantisedLinear) -> torch.Tensor:
        ctx.layer = layer
        return torch.nn.functional.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        return torch.matmul(grad_outputs[0], ctx.layer.weight), None


class QuantisedLinear(torch.nn.Linear):
    """A frozen linear layer that stores 4 or 8 bits a weight.

    `weight` is made anew at each reading: writing into it changes nothing. Use `dequantise_` before a merge.
    """

    packed: torch.Tensor
    """The stored bytes: int8 [out, in], or two weights of nf4 a byte."""

    def __init__(self, layer: torch.nn.Linear, how: Quantisation) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.how = layer.in_features, layer.out_features, how
        self.dtype = layer.weight.dtype
        self.bias = layer.bias
        packed, self.scales = _pack(layer.weight.detach(), how)
        self.register_buffer("packed", packed)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Return the weight [out, in] in the layer's number format."""
        functional = kernels()
        if self.how.kind == "nf4":
            self.scales.dtype = self.dtype
            made: torch.Tensor = functional.dequantize_4bit(self.packed, self.scales)
            return made
        spread = torch.empty(self.packed.shape, dtype=self.dtype, device=self.packed.device)
        for rows in _pieces(self.packed):
            spread[rows] = functional.int8_vectorwise_dequant(self.packed[rows], self.scales[rows])
        return spread

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return `input W' + b`."""
        out = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        assert isinstance(out, torch.Tensor)
        return out

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> QuantisedLinear:
        """Move to a device. A change of number format leaves bytes and scales as they are: set `dtype` for that."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self.scales.to(self.packed.device)
        self.scales = self.scales if moved is None else moved  # bitsandbytes' state moves itself and returns nothing
        return self


def _pieces(matrix: torch.Tensor) -> list[slice]:
    """Divide the rows of a matrix on a CPU into pieces of about `PIECE` weights; elsewhere one piece is all."""
    num_rows, num_columns = matrix.shape
    step = max(1, PIECE // num_columns) if matrix.is_cpu else num_rows
    return [slice(row, row + step) for row in range(0, num_rows, step)]


def _pack(weight: torch.Tensor, how: Quantisation) -> tuple[torch.Tensor, Any]:
    """Return the stored bytes and what they are scaled by: a tensor [out], or bitsandbytes' state of the blocks."""
    functional = kernels()
    if how.kind == "int8":
        packed = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
        for rows in _pieces(weight):
            packed[rows], scales[rows], _ = functional.int8_vectorwise_quant(weight[rows].to(torch.float16))
        return packed, scales
    packed, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, compress_statistics=how.double, quant_type="nf4"
    )
    return packed, state


def quantise_(model: torch.nn.Module, how: Quantisation) -> int:
    """Store every linear layer of `model` but its head in fewer bits, frozen; return how many weights that are.

    Raises `PlanError` for a model that has none: its layers are of another class, and nothing would be saved.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    count = 0
    # By name: a list of the layers would keep all plain weights until the last is packed.
    for name in [name for name, _ in model.named_modules()]:
        part = model.get_submodule(name)
        if type(part) is not torch.nn.Linear or part is head:
            continue
        count += part.weight.numel()
        part.requires_grad_(False)
        model.set_submodule(name, QuantisedLinear(part, how), strict=True)
        # What packing computed with leaves holes between the packed weights, more than these take themselves.
        release_free_memory()
    if not count:
        raise PlanError(
            "the base has no plain linear layers to store in fewer bits",
            where="train.adapter.quantization",
            found=type(model).__name__,
            hint="leave the key out",
        )
    return count


def dequantise_(model: torch.nn.Module) -> None:
    """Replace every quantised layer by a plain one that holds the weight it computed with."""
    for name, part in list(model.named_modules()):
        if isinstance(part, QuantisedLinear):
            plain = torch.nn.Linear(part.in_features, part.out_features, bias=False, device="meta")
            plain.weight = torch.nn.Parameter(part.weight, requires_grad=False)
            plain.bias = part.bias
            model.set_submodule(name, plain, strict=True)


def is_quantised(model: torch.nn.Module) -> bool:
    """Whether some layer of a model is stored in fewer bits."""
    return any(isinstance(part, QuantisedLinear) for part in model.modules())


def cast_(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Compute in `dtype` what was loaded in the number format of the file; stored bytes and scales stay."""
    loaded = next(model.parameters()).dtype
    for parameter in model.parameters():
        if parameter.dtype == loaded:
            parameter.data = parameter.data.to(dtype)
    for part in model.modules():
        if isinstance(part, QuantisedLinear):
            part.dtype = dtype
