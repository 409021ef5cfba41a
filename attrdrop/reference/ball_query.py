"""Ball query: the first k points, in order of index, within a radius of each centre."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attrdrop.reference.points import coordinates, squared_distances


def ball_query(points: Tensor, centres: Tensor, radius: list[float], k: list[int], valid: Tensor | None) -> Tensor:
    """int64 (N, S, sum of k), one scale after the other.

    Fewer than k: the first found fills the rest. None: the nearest point does, of equals the first; index 0 where there
    is no point.
    """
    xyz, usable = coordinates("points", points, valid)
    at, _ = coordinates("centres", centres)
    distance = squared_distances(xyz[:, None], at[:, :, None])  # (N, S, P)
    is_point = usable[:, None] & ~distance.isnan()
    if distance.numel() == 0:
        return distance.new_empty(*at.shape[:2], sum(k), dtype=torch.int64)
    distance = torch.where(is_point, distance, math.inf)
    nearest = (is_point & (distance == distance.amin(-1, keepdim=True))).long().argmax(-1)  # the first of equals
    number = torch.arange(xyz.shape[1], device=xyz.device)
    found = []
    for r, most in zip(radius, k, strict=True):
        limit = xyz.new_full((), r, dtype=torch.float64).to(xyz.dtype).square()
        is_within = is_point & (distance <= limit)
        inside = torch.where(is_within, number, len(number)).sort(-1).values[..., :most]
        inside = torch.nn.functional.pad(inside, (0, most - inside.shape[-1]), value=len(number))
        rest = torch.where(is_within.any(-1), inside[..., 0], nearest)
        found.append(torch.where(inside < len(number), inside, rest[..., None]))
    return torch.cat(found, -1)
