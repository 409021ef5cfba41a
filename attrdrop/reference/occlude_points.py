"""RelDrop on point clouds (Eq. 1): M is 0 at the points whose score alpha U + (1 - alpha) r is large."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attrdrop.reference.philox import below, draw_words, uniform

POINT, RESAMPLE = 0x80000003, 0x80000004
"""Counter 1 of the draws."""
NORMS = ("minmax", "rank", "positive")
REPLACEMENTS = ("number", "first", "resample")


def point_words(points: int, purpose: int, seed: int, sample_ids: Tensor) -> Tensor:
    """int64 (N, P): point j takes word j % 4 of call j // 4."""
    call = torch.arange((points + 3) // 4, device=sample_ids.device)
    return torch.stack(draw_words(seed, purpose, sample_ids[:, None], call), -1).flatten(1)[:, :points]


def summed(relevance: Tensor, valid: Tensor) -> Tensor:
    """Relevance (N, P, c) of the points, (N, P): summed over c with its sign, in order, in float32 (float64 as it is).

    Raises:
        ValueError: a valid point has one that is not finite, on the CPU. Elsewhere that is -inf.
    """
    wide = relevance.to(torch.float64 if relevance.dtype == torch.float64 else torch.float32)
    total = wide[..., 0]
    for channel in range(1, wide.shape[2]):
        total = total + wide[..., channel]
    finite = total.isfinite()
    if total.device.type == "cpu" and not torch.compiler.is_compiling() and not bool((finite | ~valid).all()):
        raise ValueError("relevance must be finite")
    return torch.where(finite, total, -math.inf) + 0.0  # -0 becomes +0


def normalised(total: Tensor, valid: Tensor, norm: str) -> Tensor:
    """r in [0, 1], float64 (N, P), over the valid points of each cloud; 0 where relevance is -inf."""
    if total.shape[1] == 0:
        return total.double()
    if norm == "rank":  # how many are smaller; points that are not valid stand behind all others
        order = torch.where(valid, total, math.inf).sort(dim=1).values.contiguous()
        last = valid.sum(1, keepdim=True) - 1
        return torch.searchsorted(order, total.contiguous()).double() / last.clamp(min=1)
    counted = valid & (total > -math.inf)
    total = total.double()
    high = torch.where(counted, total, -math.inf).amax(1, keepdim=True)
    low = torch.zeros_like(high)
    if norm == "minmax":
        low = torch.where(counted, total, math.inf).amin(1, keepdim=True)
    return torch.where(counted & (high > low), (total - low).clamp(min=0) / (high - low), 0)


def choose_points(
    points: Tensor,
    relevance: Tensor | None,
    valid: Tensor,
    alpha: float,
    beta: float,
    calibrated: bool,
    norm: str,
    seed: int,
    sample_ids: Tensor,
) -> Tensor:
    """bool (N, P): which points are dropped."""
    count = points.shape[1]
    score = uniform(point_words(count, POINT, seed, sample_ids))
    if relevance is not None:
        score = alpha * score + (1 - alpha) * normalised(summed(relevance, valid), valid, norm)
    if not calibrated:
        return valid & (score >= 1 - beta) if beta > 0 else torch.zeros_like(valid)
    dropped = (valid.sum(1, keepdim=True).double() * beta + 0.5).floor()
    order = torch.where(valid, score.float(), -1).sort(dim=1, descending=True, stable=True).indices
    first = (torch.arange(count, device=points.device) < dropped).expand_as(valid)
    return torch.zeros_like(valid).scatter(1, order, first)


def replacing_points(points: Tensor, valid: Tensor, dropped: Tensor, resample: bool, seed: int, ids: Tensor) -> Tensor:
    """What each point becomes if it is dropped, (N, P, C): the first point that stays, or any of them.

    Where none stays, the first valid one.
    """
    stays = valid & ~dropped
    kept = stays.sum(1, keepdim=True)
    order = (~torch.where(kept > 0, stays, valid)).long().sort(dim=1, stable=True).indices
    words = point_words(points.shape[1], RESAMPLE, seed, ids)
    rank = below(words, kept) if resample else torch.zeros_like(words)
    return points.gather(1, order.gather(1, rank)[..., None].expand_as(points))


def occlude_points_(
    points: Tensor,
    relevance: Tensor | None,
    valid: Tensor,
    alpha: float,
    beta: float,
    calibrated: bool,
    norm: str,
    replacement: str,
    value: float,
    values: Tensor | None,
    seed: int,
    sample_ids: Tensor,
) -> Tensor:
    """Writes s where M = 0: a number, one per channel, or points that stay. bool (N, P): which points were dropped."""
    dropped = choose_points(points, relevance, valid, alpha, beta, calibrated, norm, seed, sample_ids)
    if replacement == "number":
        s = points.new_full((1,), value) if values is None else values
    else:
        s = replacing_points(points, valid, dropped, replacement == "resample", seed, sample_ids)
    points.copy_(torch.where(dropped[..., None], s, points))
    return dropped
