"""farthest_point_sample: points of a cloud that are far from each other."""

from __future__ import annotations

import torch
from torch import Tensor

from attrdrop._core import backends, checks
from attrdrop._core.library import operators, register_fake
from attrdrop.ops import _points as clouds
from attrdrop.reference import farthest_point_sample as reference


def farthest_point_sample(
    points: Tensor,
    n: int,
    *,
    valid: Tensor | None = None,
    start: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Chooses n points of each cloud, each farthest from the previous ones (Eldar et al. 1997), as PointNet++ does.

    The next point is the valid one with the largest squared distance to the nearest chosen; ties go to the lower index.
    Distances are dx*dx + dy*dy + dz*dz in float32, each operation rounded, so all backends choose the same points. Once
    every point has been chosen or coincides with a chosen one, the first valid index repeats.

    Args:
        points: (N, P, C), C >= 3, coordinates first; float32, bfloat16, float16 (float64: reference only, computed in
            float64), any strides. P >= 1 unless N is 0.
        n: points to choose, 0 or more.
        valid: bool (N, P), False where a point is padding; padding is never chosen. A cloud with nothing else gives 0s.
        start: int64 (N,), the first point of each cloud; by default, and if it is padding, the first valid one. On
            CUDA, clamped into range.
        backend: one of :data:`attrdrop.BACKENDS`; default, the one in force.

    Returns:
        int64 (N, n). There is no gradient.

    Raises:
        TypeError, ValueError: an argument is not as said above, or a valid point is NaN or infinite on the CPU (on CUDA
            it counts as padding); the message names it. RuntimeError: the backend asked for cannot serve.
    """
    points = clouds.check_points(points, 3).detach()
    checks.check_size("n", n)
    valid = clouds.check_valid(valid, points)
    if start is not None:
        checks.check_index("start", start, points.shape[0], points.shape[1])
        start = start.to(points.device)
    if backends.resolve_compiled("farthest_point_sample", points, backend) == "reference":
        return reference.farthest_point_sample(points, n, valid, start)
    return operators("cpp").farthest_point_sample(points, n, valid, start)


@register_fake("farthest_point_sample")
def _(points, n, valid, start):
    return points.new_empty((points.shape[0], n), dtype=torch.int64)
