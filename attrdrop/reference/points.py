"""Clouds of points as the references of the ops on points see them."""

from __future__ import annotations

import torch
from torch import Tensor


def coordinates(name: str, points: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The first three channels, (N, P, 3), in float32 (float64 as it is), and which points are none of padding, (N, P).

    Raises:
        ValueError: such a point is not finite, on the CPU. Elsewhere it counts as padding.
    """
    xyz = points[..., :3].to(torch.float64 if points.dtype == torch.float64 else torch.float32)
    is_valid = xyz.new_ones(xyz.shape[:2], dtype=torch.bool) if valid is None else valid
    is_finite = xyz.isfinite().all(-1)
    if xyz.device.type == "cpu" and not torch.compiler.is_compiling() and not bool((is_finite | ~is_valid).all()):
        raise ValueError(f"{name} must have finite coordinates")
    return xyz, is_valid & is_finite


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """dx*dx + dy*dy + dz*dz in this order, each product and sum rounded, over the last dimension."""
    dx, dy, dz = (a - b).unbind(-1)
    return dx * dx + dy * dy + dz * dz
