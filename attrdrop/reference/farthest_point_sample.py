"""Farthest point sampling: each point chosen is the one farthest from all that were chosen before."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attrdrop.reference.points import coordinates, squared_distances


def farthest_point_sample(points: Tensor, n: int, valid: Tensor | None, start: Tensor | None) -> Tensor:
    """int64 (N, n). Ties go to the lower index; padding is never chosen, but index 0 where all is padding."""
    xyz, usable = coordinates("points", points, valid)
    clouds = torch.arange(xyz.shape[0], device=xyz.device)
    if n == 0 or xyz.shape[0] == 0:
        return clouds.new_empty(xyz.shape[0], n)
    chosen = usable.long().argmax(1)  # argmax gives the first of equals
    if start is not None:
        start = start.clamp(0, xyz.shape[1] - 1)
        chosen = torch.where(usable[clouds, start], start, chosen)
    nearest = torch.where(usable, math.inf, -1.0).to(xyz.dtype)
    out = [chosen]
    for _ in range(n - 1):
        distance = squared_distances(xyz, xyz[clouds, chosen][:, None])
        nearest = torch.where(distance < nearest, distance, nearest)  # padding stays at -1
        chosen = nearest.argmax(1)
        out.append(chosen)
    return torch.stack(out, 1)
