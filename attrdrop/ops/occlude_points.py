"""occlude_points: RelDrop on point clouds, single points chosen by relevance and chance."""

from __future__ import annotations

import torch
from torch import Tensor

from attrdrop._core import backends, checks
from attrdrop._core.library import operators, register_fake
from attrdrop.ops import _occlusion as occlusion
from attrdrop.ops._occlusion import Value
from attrdrop.ops._points import check_valid
from attrdrop.reference import occlude_points as reference

MODES = ("threshold", "calibrated")
VALUES = ("origin", "first", "resample")


def occlude_points(
    points: Tensor,
    relevance: Tensor | None = None,
    *,
    alpha: float = 0.5,
    beta: float = 0.15,
    mode: str = "calibrated",
    value: Value = "origin",
    norm: str | None = None,
    seed: int,
    valid: Tensor | None = None,
    sample_ids: Tensor | None = None,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Replaces points of each cloud, chosen by relevance and chance (RelDrop, Eq. 1).

    Each point has score = alpha U + (1 - alpha) r: U is uniform in [0, 1), and r is its relevance, normalised over the
    valid points of its cloud to [0, 1]. Draws depend only on (seed, sample id, position in the cloud): see
    docs/determinism.md. Nothing synchronises with the GPU.

    Args:
        points: (N, P, C), float16, bfloat16, float32 (float64: reference only), any strides.
        relevance: (N, P), or (N, P, c), summed over c with its sign; float32, bfloat16, float16 (float64: reference
            only). None: chance only, as with alpha = 1.
        alpha: share of chance in the score, in [0, 1].
        beta: how much is dropped, in [0, 1]; 0 drops nothing.
        mode: "calibrated": of n valid points, the round(beta n) with the largest scores (in float32; ties go to the
            lower index; a half rounds up). "threshold", the rule of the released code: points with a score >= 1 - beta,
            so that P(dropped) = clip((beta - (1 - alpha) (1 - r)) / alpha, 0, 1), which may be none of a cloud.
        value: s: "origin", 0 in all channels; "first", the first remaining point; "resample", for each dropped point
            one of the remaining ones, each equally likely; a number, or one per channel (sequence, or (C,) tensor). If
            no point remains, "first" and "resample" take the first valid one.
        norm: how r is computed from relevance R. "minmax": (R - min R) / (max R - min R), 0 if all are equal. "rank":
            the share of the other points with smaller R; -0 equals +0. "positive": max(R, 0) / max R, 0 if no R is
            positive. None: "minmax" in mode "threshold", "rank" in mode "calibrated".
        seed: 64-bit seed of the step.
        valid: bool (N, P), True for a point and False for padding, which is never dropped and never counted.
        sample_ids: int64 (N,), the clouds' global indices in the step; default 0 to N - 1.
        inplace: write into points instead of a copy that keeps their strides.
        backend: one of :data:`attrdrop.BACKENDS`; default, the one in force.

    Returns:
        points and dropped: bool (N, P). The gradient of a dropped point is 0: what replaces it is a constant.

    Raises:
        TypeError, ValueError: an argument is not as said above, or relevance of a valid point is not finite on the CPU
            (on CUDA it counts as the least relevant: r = 0); the message names it, and points are unchanged.
            RuntimeError: the backend asked for cannot serve.
    """
    _check_points(points, inplace)
    count, size, _ = points.shape
    alpha, beta = checks.check_probability("alpha", alpha), checks.check_probability("beta", beta)
    checks.check_choice("mode", mode, MODES)
    calibrated = mode == "calibrated"
    norm = ("rank" if calibrated else "minmax") if norm is None else norm
    checks.check_choice("norm", norm, reference.NORMS)
    relevance = _check_relevance(relevance, points, inplace)
    valid = check_valid(valid, points)
    replacement, number, numbers = _check_value(value, points)
    seed = checks.check_seed(seed)
    ids = checks.check_sample_ids(sample_ids, count, points.device)
    out = points if inplace else points.detach().clone()
    rule = (1.0 if relevance is None else alpha, beta, calibrated)
    if backends.resolve_compiled("occlude_points", points, backend, relevance) == "reference":
        ids = torch.arange(count, device=points.device) if ids is None else ids
        valid = torch.ones(count, size, dtype=torch.bool, device=points.device) if valid is None else valid
        dropped = reference.occlude_points_(
            out, relevance, valid, *rule, norm, replacement, number, numbers, seed, ids
        )  # fmt: skip
    else:
        kinds = (reference.NORMS.index(norm), reference.REPLACEMENTS.index(replacement))
        dropped = operators("cpp").occlude_points_(
            out, relevance, valid, *rule, *kinds, number, numbers, seed, ids
        )  # fmt: skip
    if out is not points and points.requires_grad and torch.is_grad_enabled():
        out = torch.where(dropped[..., None], out, points)
    return out, dropped


def _check_points(points: Tensor, inplace: bool) -> None:
    points = checks.check_tensor("points", points)
    if points.dtype not in checks.FLOATS:
        raise TypeError(f"points must be float16, bfloat16, float32 or float64, got {points.dtype}")
    if points.dim() != 3:
        raise ValueError(f"points must have shape (N, P, C), got {tuple(points.shape)}")
    if inplace:
        occlusion.check_inplace("points", points)


def _check_relevance(relevance: Tensor | None, points: Tensor, inplace: bool) -> Tensor | None:
    """None, or (N, P, c)."""
    if relevance is None:
        return None
    relevance = occlusion.check_relevance(relevance, "points", points)
    count, size, _ = points.shape
    if relevance.dim() not in (2, 3) or relevance.shape[:2] != points.shape[:2] or relevance.shape[2:] == (0,):
        raise ValueError(
            f"relevance must have shape ({count}, {size}) or ({count}, {size}, c) with c >= 1, "
            f"got {tuple(relevance.shape)}"
        )
    if inplace:
        occlusion.check_apart("relevance", relevance, "points", points)
    return relevance if relevance.dim() == 3 else relevance.unsqueeze(-1)


def _check_value(value: Value, points: Tensor) -> tuple[str, float, Tensor | None]:
    """As the operator takes it: one of reference.REPLACEMENTS, and the number or numbers."""
    if isinstance(value, str) and value in VALUES:
        return "number" if value == "origin" else value, 0.0, None
    return "number", *occlusion.check_value(value, points, points.shape[2], '"origin", "first" or "resample"')


@register_fake("occlude_points_")
def _(points, *arguments):
    return points.new_empty(points.shape[:2], dtype=torch.bool)
