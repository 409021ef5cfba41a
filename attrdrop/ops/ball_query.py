"""ball_query: the points within a radius of each centre."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from attrdrop._core import backends, checks
from attrdrop._core.library import operators, register_fake
from attrdrop.ops import _points as clouds
from attrdrop.reference import ball_query as reference

MOST_SCALES = 32


@overload
def ball_query(
    points: Tensor, centres: Tensor, *, radius: float, k: int, valid: Tensor | None = None, backend: str | None = None
) -> Tensor: ...


@overload
def ball_query(
    points: Tensor,
    centres: Tensor,
    *,
    radius: Sequence[float],
    k: Sequence[int],
    valid: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, ...]: ...


def ball_query(
    points: Tensor,
    centres: Tensor,
    *,
    radius: float | Sequence[float],
    k: int | Sequence[int],
    valid: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Finds the first k valid points, in order of index, within a radius of each centre (Qi et al. 2017).

    "Within" means a squared distance of at most radius * radius, both in float32 with each operation rounded, so all
    backends find the same points. If fewer than k are found, the first one fills the rest; if there are none, the
    nearest valid point does (ties go to the lower index).

    Args:
        points: (N, P, C), C >= 3, coordinates first; float32, bfloat16, float16 (float64: reference only, computed in
            float64), any strides. P >= 1 unless N is 0.
        centres: (N, S, C'), C' >= 3, coordinates first; type and device of points.
        radius, k: positive numbers; or sequences of equal length, at most 32, for grouping at several scales: distances
            are computed only once.
        valid: bool (N, P), False where a point is padding; padding is never found. A cloud with nothing else gives 0s.
        backend: one of :data:`attrdrop.BACKENDS`; default, the one in force.

    Returns:
        int64 (N, S, k); or a tuple with one per scale, views of one tensor. There is no gradient.

    Raises:
        TypeError, ValueError: an argument is not as said above, or a valid point or a centre is NaN or infinite on the
            CPU (on CUDA such a point counts as padding); the message names it. RuntimeError: the backend asked for
            cannot serve.
    """
    points = clouds.check_points(points, 3).detach()
    centres = clouds.check_centres(centres, points).detach()
    valid = clouds.check_valid(valid, points)
    is_single = not isinstance(radius, Sequence) and not isinstance(k, Sequence)
    radii, counts = _check_scales([radius] if is_single else radius, [k] if is_single else k)
    if backends.resolve_compiled("ball_query", points, backend) == "reference":
        index = reference.ball_query(points, centres, radii, counts, valid)
    else:
        index = operators("cpp").ball_query(points, centres, radii, counts, valid)
    return index if is_single else index.split(counts, -1)


def _check_scales(radius: object, k: object) -> tuple[list[float], list[int]]:
    if not isinstance(radius, Sequence) or not isinstance(k, Sequence):
        raise TypeError(
            f"radius and k must be two numbers or two sequences, got {type(radius).__name__} and {type(k).__name__}"
        )
    if not 1 <= len(radius) <= MOST_SCALES or len(radius) != len(k):
        raise ValueError(f"radius and k must have the same length, 1 to {MOST_SCALES} numbers, got {radius} and {k}")
    for r in radius:
        if not checks.is_number(r):
            raise TypeError(f"radius must be a number, got {type(r).__name__}")
        if not 0 < r < float("inf"):
            raise ValueError(f"radius must be positive and finite, got {r}")
    for count in k:
        checks.check_size("k", count, least=1)
    return [float(r) for r in radius], [int(count) for count in k]


@register_fake("ball_query")
def _(points, centres, radius, k, valid):
    return points.new_empty((*centres.shape[:2], sum(k)), dtype=torch.int64)
