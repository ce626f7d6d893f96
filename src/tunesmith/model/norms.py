"""Root-mean-square norms with hand-written backwards: of the stream between layers, and of heads.

What lives here: which numbers a norm of transformers computes with, and their gradients. What does not: the loops over
rows (`model.kernels`), where norms stand (`model.fused`).

Shapes: T rows, E hidden size.
"""

from __future__ import annotations

import torch

from tunesmith.model.kernels import add_norm_, norm_backward_, scale_rows_


def trained(*parameters: torch.Tensor) -> list[torch.nn.Parameter]:
    """Return those that require gradients."""
    return [part for part in parameters if isinstance(part, torch.nn.Parameter) and part.requires_grad]


class Norm:
    """A norm of transformers over the float32 stream [T, E]: n = stream / rms(stream), times a weight."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.parameter: torch.Tensor = module.weight  # type: ignore[assignment]
        # Gemma's classes have `eps` and start from 1 + weight, the others `variance_epsilon` and plain weights.
        self._offset = 0.0 if hasattr(module, "variance_epsilon") else 1.0
        self._eps: float = module.eps if self._offset else module.variance_epsilon  # type: ignore[assignment]

    def add_(
        self, stream: torch.Tensor, branch: torch.Tensor | None, *, normal: torch.Tensor, wide: torch.Tensor
    ) -> torch.Tensor:
        """Add `branch` to the stream; write n into `normal`, the normed stream into `wide`; return 1 / rms [T, 1]."""
        weight = self.parameter.detach()
        return add_norm_(stream, branch, weight, self._eps, offset=self._offset, normal=normal, wide=wide)

    def scale_(self, normal: torch.Tensor, *, wide: torch.Tensor) -> None:
        """Write the normed stream once more."""
        scale_rows_(normal, self.parameter.detach(), offset=self._offset, wide=wide)

    def backward_(
        self,
        grad: torch.Tensor,
        grad_normed: torch.Tensor,
        normal: torch.Tensor,
        inverse: torch.Tensor,
        *,
        rounded: torch.Tensor | None,
    ) -> None:
        """Add the gradient through the norm to that of the stream, `grad`; write it into `rounded` as well."""
        weight = self.parameter.detach()
        norm_backward_(grad, grad_normed, normal, weight, inverse, offset=self._offset, rounded=rounded)


def normalized(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x / rms(x) over the last dimension, in the dtype of x, and 1 / rms(x), float32."""
    inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True).add_(eps))
    return (x * inverse).to(x.dtype), inverse


def normalized_backward(
    grad: torch.Tensor, weight: torch.Tensor, normal: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the gradient of x through `weight * normalized(x)`, and that of the weight where it trains."""
    scaled = grad.float() * weight.detach()
    mean = (scaled * normal).mean(-1, keepdim=True)
    return scaled.sub_(normal * mean).mul_(inverse), weight_gradients(grad, normal, weight)


def weight_gradients(grad_normed: torch.Tensor, normal: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Return the gradient of a norm's weight where it trains: the sum of `grad_normed * normal` over all rows."""
    if not weight.requires_grad:
        return []
    return [(grad_normed.float() * normal).flatten(0, -2).sum(0).to(weight.dtype)]
