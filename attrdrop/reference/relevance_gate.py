"""relevance_gate: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(z: Tensor, scale: Tensor | None, shift: Tensor | None, relu: bool) -> Tensor:
    """y = scale z + shift per channel, and its positive part if asked for. z (N, C, ...), scale and shift (C,)."""
    y = _wide(z)
    if scale is not None:
        y = y * _by_channel(scale, y)
    if shift is not None:
        y = y + _by_channel(shift, y)
    return (y.clamp_min(0) if relu else y).to(z.dtype)


def backward(grad: Tensor, y: Tensor, surrogate: Tensor | None, scale: Tensor | None, eps: float) -> Tensor:
    """scale grad y / (s + eps sign(s)) with s the surrogate, or y itself; 0 where y is 0, and sign(0) = 1."""
    y = _wide(y)
    s = y if surrogate is None else _wide(surrogate)
    damped = _wide(grad) * torch.where(y == 0, 0, y / torch.where(s < 0, s - eps, s + eps))
    if scale is not None:
        damped = damped * _by_channel(scale, y)
    return damped.to(grad.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (x.dim() - 2))
