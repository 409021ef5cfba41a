"""Pixels and patches of images, dropped one by one: an image is a cloud whose points are the cells of a grid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from attrdrop.ops import occlude_points


def choose_cells(
    images: Tensor,
    relevance: Tensor | None,
    side: int,
    *,
    alpha: float,
    beta: float,
    select: str,
    seed: int,
    sample_ids: Tensor,
) -> Tensor:
    """Which pixels are dropped, bool (N, 1, H, W): whole cells of the grid.

    Args:
        images: (N, C, H, W); cells are side x side pixels, those at the lower and right border smaller.
        relevance: (N, h, w) or (N, c, h, w), whose channels are summed with their sign; that of a cell is the mean over
            its pixels. Maps of another size are stretched to the image first, without smoothing.
        alpha, beta, select, seed, sample_ids: as alpha, beta, mode, seed and sample_ids of
            :func:`attrdrop.occlude_points`, the cells of a row after one another.
    """
    count, _, height, width = images.shape
    rows, columns = -(-height // side), -(-width // side)
    guide = None if relevance is None else pooled(relevance, height, width, side).flatten(1)
    cells = torch.zeros(count, rows * columns, 1, device=images.device)
    _, dropped = occlude_points(
        cells, guide, alpha=alpha, beta=beta, mode=select, seed=seed, sample_ids=sample_ids, inplace=True
    )
    spread = dropped.view(count, 1, rows, columns).repeat_interleave(side, 2).repeat_interleave(side, 3)
    return spread[:, :, :height, :width]


def pooled(relevance: Tensor, height: int, width: int, side: int) -> Tensor:
    """(N, rows, columns)"""
    wide = relevance.detach().float()
    maps = wide[:, None] if wide.dim() == 3 else wide.sum(1, keepdim=True)
    if maps.shape[2:] != (height, width):
        maps = functional.interpolate(maps, (height, width), mode="nearest-exact")
    return maps[:, 0] if side == 1 else functional.avg_pool2d(maps, side, ceil_mode=True)[:, 0]
