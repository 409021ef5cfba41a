"""Grouping: rows of points by index, less their centre, and the sums that are its gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def _rows(index: Tensor, channels: int) -> Tensor:
    """The index (N, S, k) as gather and scatter want it, (N, S * k, C)."""
    return index.flatten(1)[..., None].expand(-1, -1, channels)


def group_points(points: Tensor, index: Tensor, centres: Tensor | None) -> Tensor:
    """out[n, s, j] = points[n, index[n, s, j]], less centres[n, s] in the first three channels: (N, S, k, C).

    Raises:
        ValueError: an index is out of range, on the CPU. Elsewhere it is moved into range.
    """
    inside = index.clamp(0, max(points.shape[1] - 1, 0))
    if index.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.equal(inside, index):
        raise ValueError(f"index must lie in [0, {points.shape[1]}), got {int(index[inside != index][0])}")
    grouped = points.gather(1, _rows(inside, points.shape[2])).unflatten(1, index.shape[1:])
    if centres is None:
        return grouped
    return torch.cat((grouped[..., :3] - centres[:, :, None, :3], grouped[..., 3:]), -1)


def scatter_points(grad: Tensor, index: Tensor, size: int) -> Tensor:
    """The rows (N, S, k, C) of each of `size` points, added up in float32 (float64 as it is): (N, size, C)."""
    index = index.clamp(0, max(size - 1, 0))
    wide = grad.flatten(1, 2).to(torch.float64 if grad.dtype == torch.float64 else torch.float32)
    sums = wide.new_zeros(grad.shape[0], size, grad.shape[3])
    return sums.scatter_add_(1, _rows(index, grad.shape[3]), wide).to(grad.dtype)
