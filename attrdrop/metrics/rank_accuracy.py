"""How much of a relevance map lies on the object: rank accuracy, mass accuracy, pointing game."""

from __future__ import annotations

import torch
from torch import Tensor

from attrdrop._core.checks import check_tensor
from attrdrop._core.maps import pixel_relevance


def relevance_rank_accuracy(relevance: Tensor, mask: Tensor) -> Tensor:
    """Share of the k most relevant pixels that lie inside the mask, where k is the size of the mask.

    Arras, Osman and Samek (2022), "CLEVR-XAI". Of equally relevant pixels, the one with the lower index counts as more
    relevant.

    Args:
        relevance: floating point (N, H, W), or (N, C, H, W), whose channels are summed with their sign.
        mask: bool (N, H, W), True on the object.

    Returns:
        float32 (N,), in [0, 1]; NaN where the mask is empty.

    Raises:
        TypeError: relevance is not a floating-point tensor or mask not a bool tensor. ValueError: a shape does not fit,
        or relevance is not finite.
    """
    scores, inside = _scores_and_mask(relevance, mask)
    ranked = inside.gather(1, scores.argsort(dim=1, descending=True, stable=True))
    size = inside.sum(1)
    is_top = torch.arange(inside.shape[1], device=inside.device) < size[:, None]
    return (ranked & is_top).sum(1).float() / size.float()


def relevance_mass_accuracy(relevance: Tensor, mask: Tensor) -> Tensor:
    """Share of the positive relevance that lies inside the mask (Arras, Osman and Samek, 2022).

    Args:
        relevance: floating point (N, H, W), or (N, C, H, W), whose channels are summed with their sign.
        mask: bool (N, H, W), True on the object.

    Returns:
        float32 (float64 for float64 relevance) (N,), in [0, 1]; NaN where the mask is empty or no relevance is
        positive.

    Raises:
        As :func:`relevance_rank_accuracy`.
    """
    scores, inside = _scores_and_mask(relevance, mask)
    positive = scores.clamp(min=0)
    positive = positive / positive.amax(1, keepdim=True)  # so that no sum overflows
    share = (positive * inside).sum(1) / positive.sum(1)
    return share.clamp(max=1).masked_fill(~inside.any(1), torch.nan)


def pointing_game(relevance: Tensor, mask: Tensor) -> Tensor:
    """Whether the most relevant pixel (the first of several) lies inside the mask.

    Zhang et al. (2016), "Top-down neural attention by excitation backprop", without their tolerance of 15 pixels.

    Args:
        relevance: floating point (N, H, W), or (N, C, H, W), whose channels are summed with their sign.
        mask: bool (N, H, W), True on the object.

    Returns:
        bool (N,); False where the mask is empty.

    Raises:
        As :func:`relevance_rank_accuracy`.
    """
    scores, inside = _scores_and_mask(relevance, mask)
    return inside.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)


def _scores_and_mask(relevance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (N, H * W)."""
    scores = pixel_relevance(relevance)
    mask = check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")
    if mask.shape != scores.shape:
        raise ValueError(f"mask must have shape (N, H, W) = {tuple(scores.shape)}, got {tuple(mask.shape)}")
    return scores.flatten(1), mask.to(scores.device).flatten(1)
