"""Checks of relevance maps, for metrics and figures."""

from __future__ import annotations

import torch
from torch import Tensor

from attrdrop._core.checks import check_tensor


def check_finite(name: str, value: object) -> Tensor:
    """A finite floating-point tensor without its graph, in float32 at least."""
    tensor = check_tensor(name, value).detach()
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinite values")
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def pixel_relevance(relevance: Tensor) -> Tensor:
    """(N, H, W) or (N, C, H, W) -> (N, H, W), finite; channels are summed with their sign."""
    relevance = check_finite("relevance", relevance)
    if relevance.dim() not in (3, 4) or relevance.shape[1:].numel() == 0:
        raise ValueError(
            f"relevance must have shape (N, H, W) or (N, C, H, W) with at least one pixel, got {tuple(relevance.shape)}"
        )
    return relevance.sum(1) if relevance.dim() == 4 else relevance


def point_relevance(relevance: Tensor) -> Tensor:
    """(N, P) or (N, P, C) -> (N, P), finite; channels are summed with their sign."""
    relevance = check_finite("relevance", relevance)
    if relevance.dim() not in (2, 3) or relevance.shape[1:].numel() == 0:
        raise ValueError(
            f"relevance must have shape (N, P) or (N, P, C) with at least one point, got {tuple(relevance.shape)}"
        )
    return relevance.sum(2) if relevance.dim() == 3 else relevance
