"""Functions whose gradient is relevance, or sends relevance where the ordinary gradient would not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attrdrop._core.halves import saturated


class FlatJoin(torch.autograd.Function):
    """y; its relevance y g, summed over the channels of a group, divided by the size of the window, goes to zeros."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, zeros: Tensor, count: Tensor) -> Tensor:
        ctx.save_for_backward(y, count)
        ctx.groups, ctx.is_last = zeros.shape[1], count.dim() == 0
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        y, count = ctx.saved_tensors
        relevance = _wide(grad) * y
        by_group = relevance if ctx.is_last else relevance.unflatten(1, (ctx.groups, -1))
        summed = by_group.sum(-1 if ctx.is_last else 2, keepdim=ctx.is_last)
        return None, saturated(summed / count.clamp_min(1), grad.dtype), None


class Carried(torch.autograd.Function):
    """y; its relevance y c goes to the carrier, zeros of its shape."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, carrier: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (y,) = ctx.saved_tensors
        return None, saturated(_wide(grad) * y, grad.dtype)


class Relevance(torch.autograd.Function):
    """Zeros in the place of a, whose gradient is taken as relevance: c = R / a goes on to a."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return torch.zeros_like(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        a = _wide(a)
        return saturated(_wide(grad) / torch.where(a < 0, a - 1e-6, a + 1e-6), grad.dtype)


class ScaleGradients(torch.autograd.Function):
    """Identity of several tensors, the gradient of each of which is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, factors: Sequence[float], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.factors = factors
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return None, *(None if g is None else g * factor for g, factor in zip(grads, ctx.factors, strict=True))


class Blocked(torch.autograd.Function):
    """Identity that nothing goes back through; what follows still takes it for an activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
