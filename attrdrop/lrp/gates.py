"""Gates: what a linear layer's output goes through, so that its gradient is treated by the layer's rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attrdrop._core.halves import saturated
from attrdrop.lrp.calls import LinearCall
from attrdrop.lrp.rules import Flat, Rule, SurrogateRule
from attrdrop.ops.relevance_gate import relevance_gate, relevance_gate_relu


@dataclass
class Pending:
    """What is to be done to a linear layer's output z, once it is known what follows.

    BatchNorm is folded in, ReLU fused into its gate. call None: a BatchNorm that follows no linear layer is one itself.
    """

    rule: Rule
    call: LinearCall | None
    scale: Tensor | None = None
    shift: Tensor | None = None

    def takes_affine(self, z: Tensor, channels: int) -> bool:
        """Whether a BatchNorm on z works on the layer's outputs, and is the first to do so."""
        if self.call is None or self.scale is not None or self.shift is not None:
            return False
        return (self.call.is_conv or z.dim() == 2) and z.shape[1] == channels

    def finish(self, z: Tensor, relu: bool) -> Tensor:
        """The output, with its gradient treated by the rule."""
        gate = relevance_gate_relu if relu else relevance_gate
        eps: float = getattr(self.rule, "eps", 0.0)
        if self.call is None or not isinstance(self.rule, (SurrogateRule, Flat)):
            return gate(z, eps, scale=self.scale, shift=self.shift)
        call = self.call.folded(self.scale, self.shift)
        if isinstance(self.rule, Flat):
            y = gate(z, eps, scale=self.scale, shift=self.shift)
            return _FlatJoin.apply(y, *_windows(call))
        scale, shift = self.scale, self.shift
        if not relu and (scale is not None or shift is not None):
            with torch.no_grad():  # what goes back goes to the surrogate
                z, scale, shift = relevance_gate(z, eps, scale=scale, shift=shift), None, None
        surrogate = self.rule.surrogate(call, z, relu)
        return gate(z, eps, scale=scale, shift=shift, surrogate=surrogate.to(z.dtype))


def _windows(call: LinearCall) -> tuple[Tensor, Tensor]:
    """Zeros shaped as the layer's output, with a channel for each group, and the number of inputs of each window.

    A gradient of the zeros is spread evenly over each window.
    """
    carrier = call.carrier if call.carrier is not None else Relevance.apply(call.input)
    if not call.is_conv:
        return carrier.sum(-1, keepdim=True), call.weight.new_full((), call.weight.shape[1])
    groups, channels = call.groups, carrier.shape[1]
    grouped = carrier.unflatten(1, (groups, channels // groups)).sum(2)
    kernel = call.weight.new_ones((groups, 1, *call.weight.shape[2:]))
    ones = torch.ones_like(grouped[:1])
    return call.run(grouped, kernel, None), call.run(ones, kernel, None).detach() * (channels // groups)


class _FlatJoin(torch.autograd.Function):
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


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return grad * ctx.factor, None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
