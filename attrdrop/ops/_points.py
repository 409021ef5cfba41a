"""Checks that the public ops on clouds of points share."""

from __future__ import annotations

import torch
from torch import Tensor

from attrdrop._core import checks


def check_points(points: object, channels: int) -> Tensor:
    """Clouds (N, P, C) with at least one point each and at least so many channels."""
    points = checks.check_floats("points", points)
    if points.dim() != 3 or points.shape[2] < channels:
        least = f" with C at least {channels}" if channels else ""
        raise ValueError(f"points must have shape (N, P, C){least}, got {tuple(points.shape)}")
    if points.shape[0] > 0 and points.shape[1] == 0:
        raise ValueError(f"points must have a point in each cloud, got shape {tuple(points.shape)}")
    return points


def check_centres(centres: object, points: Tensor) -> Tensor:
    """Centres (N, S, 3 or more) of the type and on the device of points."""
    centres = checks.check_like("centres", centres, "points", points)
    if centres.dim() != 3 or centres.shape[0] != points.shape[0] or centres.shape[2] < 3:
        raise ValueError(
            f"centres must have shape ({points.shape[0]}, S, C) with C at least 3, got {tuple(centres.shape)}"
        )
    return centres


def check_valid(valid: object, points: Tensor) -> Tensor | None:
    """None, or bool (N, P) on the device of points."""
    if valid is None:
        return None
    valid = checks.check_tensor("valid", valid)
    if valid.dtype != torch.bool or valid.shape != points.shape[:2] or valid.device != points.device:
        raise ValueError(
            f"valid must be bool of shape {tuple(points.shape[:2])} on {points.device}, "
            f"got {valid.dtype} of shape {tuple(valid.shape)} on {valid.device}"
        )
    return valid
