"""How few channels carry the relevance: Gini index, Hoyer's measure, entropy.

Each takes absolute values first. A vector of zeros, and one of a single element, counts as uniform: Gini index 0, Hoyer
0, entropy 1. No result is NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attrdrop._core.maps import check_finite


def channel_relevance(relevance: Tensor) -> Tensor:
    """Sums relevance over space, with its sign.

    Args:
        relevance: floating point (N, C, ...).

    Returns:
        float32 (float64 for float64 relevance) (N, C).

    Raises:
        TypeError: relevance is not a floating-point tensor. ValueError: it has fewer than two dimensions or is not
        finite.
    """
    relevance = check_finite("relevance", relevance)
    if relevance.dim() < 2:
        raise ValueError(f"relevance must have shape (N, C, ...), got {tuple(relevance.shape)}")
    return relevance[..., None].flatten(2).sum(2)


def gini(x: Tensor, dim: int = -1) -> Tensor:
    """Gini index of absolute values: 0 where all are equal, (n - 1) / n where one of n differs from 0.

    Hurley and Rickard (2009), "Comparing measures of sparsity".

    Args:
        x: floating point, any shape. dim: the dimension of length n that is measured.

    Returns:
        float32 (float64 for float64 x), the shape of x without dim; in [0, 1).

    Raises:
        TypeError: x is not a floating-point tensor. ValueError: x is not finite, has no dimension dim, or that
        dimension is empty.
    """
    x = _magnitudes(x, dim).sort(dim=-1).values
    n = x.shape[-1]
    weights = torch.arange(1 - n, n, 2, dtype=x.dtype, device=x.device)  # 2 i - n - 1 for the rank i = 1 ... n
    return _unless_zero((x * weights).sum(-1) / (n * x.sum(-1)), x, otherwise=0)


def hoyer(x: Tensor, dim: int = -1) -> Tensor:
    """(sqrt(n) - l1 / l2) / (sqrt(n) - 1): 0 where all absolute values are equal, 1 where only one differs from 0.

    Hoyer (2004), "Non-negative matrix factorization with sparseness constraints".

    Args:
        x: floating point, any shape. dim: the dimension of length n that is measured.

    Returns:
        float32 (float64 for float64 x), the shape of x without dim; in [0, 1].

    Raises:
        As :func:`gini`.
    """
    x = _magnitudes(x, dim)
    root = math.sqrt(x.shape[-1])
    ratio = x.sum(-1) / x.square().sum(-1).sqrt()
    return _unless_zero((root - ratio) / (root - 1), x, otherwise=0)


def entropy(x: Tensor, dim: int = -1) -> Tensor:
    """Shannon entropy of the absolute values' shares, divided by log(n): 1 where uniform, 0 where one carries all.

    Args:
        x: floating point, any shape. dim: the dimension of length n that is measured.

    Returns:
        float32 (float64 for float64 x), the shape of x without dim; in [0, 1].

    Raises:
        As :func:`gini`.
    """
    x = _magnitudes(x, dim)
    nats = torch.special.entr(x / x.sum(-1, keepdim=True)).sum(-1)
    return _unless_zero(nats / math.log(x.shape[-1]), x, otherwise=1)


def _magnitudes(x: Tensor, dim: int) -> Tensor:
    """Absolute values with dim last, divided by their largest so that no sum over- or underflows."""
    x = check_finite("x", x)
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim must be a dimension of x, which has {x.dim()}, got {dim}")
    if x.shape[dim] == 0:
        raise ValueError(f"x must have at least one element in dimension {dim}, got shape {tuple(x.shape)}")
    x = x.abs().movedim(dim, -1)
    largest = x.amax(-1, keepdim=True)
    return torch.where(largest > 0, x / largest, x)


def _unless_zero(value: Tensor, x: Tensor, *, otherwise: float) -> Tensor:
    """The value, without what rounding adds beyond [0, 1], where x has several elements and one differs from 0."""
    if x.shape[-1] == 1:
        return torch.full_like(value, otherwise)
    return torch.where(x.any(-1), value.clamp(0, 1), otherwise)
