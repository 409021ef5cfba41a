"""Relevance whose own gradient can be taken: a forward that obeys the rules on the walk back, and itself afterwards.

Relevance R = a c is a function of parameters and inputs, and so are the factors in c, such as y / (y + eps sign(y)).
The walk that finds c takes them for constants, and leads gradients where the rules say; torch records it. Whoever then
takes the gradient of R needs the ordinary gradient of each activation and factor: what the forward would have had
without any rule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class Walk:
    """Whether gradients that pass are those of the walk."""

    is_on = False

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False

    def still(self, x: Tensor) -> Tensor:
        """x, a constant of the walk."""
        return _Still.apply(x, self)

    def scaled(self, x: Tensor, factor: float) -> Tensor:
        """x, whose gradient the walk multiplies by a number."""
        return _Either.apply(x, x * factor, self)

    def gate(
        self, z: Tensor, eps: float, relu: bool, *, scale: Tensor | None = None, shift: Tensor | None = None,
        surrogate: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As :func:`attrdrop.relevance_gate` on the walk."""
        by_channel = (1, -1, *(1,) * (z.dim() - 2))
        y = z if scale is None else z * scale.view(by_channel)
        y = (y if shift is None else y + shift.view(by_channel)).to(z.dtype)
        led = y if surrogate is None else surrogate
        y = torch.relu(y) if relu else y
        is_zero = y == 0
        stabilised = torch.where(led < 0, led - eps, led + eps)
        factor = torch.where(is_zero, 0, y / torch.where(is_zero, 1, stabilised))
        return _Either.apply(y, led * self.still(factor), self)


class _Still(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, walk: Walk) -> Tensor:
        ctx.walk = walk
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return (None if ctx.walk.is_on else grad), None


class _Either(torch.autograd.Function):
    """x; the gradient of the walk goes to the tensor that is led, any other to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, led: Tensor, walk: Walk) -> Tensor:
        ctx.walk = walk
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return (None, grad, None) if ctx.walk.is_on else (grad, None, None)
