"""group_points: the points of each group in one tensor, relative to their centre."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attrdrop._core import backends, checks
from attrdrop._core.library import operators, register_fake
from attrdrop.ops import _points as clouds
from attrdrop.reference import group_points as reference


def group_points(points: Tensor, index: Tensor, centres: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Gathers points by index and subtracts the centre of their group from their coordinates, in one pass.

    out[n, s, j] = points[n, index[n, s, j]], minus centres[n, s] in the first three channels.

    The gradient of a point is the sum over its copies, in the order of the index, in float32 (float64 for float64
    points), so every run gives the same bits. Centres are constants and get no gradient. Second-order gradients are
    supported.

    Args:
        points: (N, P, C), float32, bfloat16, float16 (float64: reference only), any strides. P >= 1 unless N is 0.
        index: int64 (N, S, k), any strides, for instance from :func:`ball_query`. On CUDA, clamped into range.
        centres: (N, S, 3), type and device of points, which then need C >= 3; further channels are not read. None:
            nothing is subtracted.
        backend: one of :data:`attrdrop.BACKENDS`; default, the one in force.

    Returns:
        (N, S, k, C), contiguous, the type of points.

    Raises:
        TypeError, ValueError: an argument is not as said above, or an index is out of range on the CPU; the message
            names it. RuntimeError: the backend asked for cannot serve.
    """
    given = (points, index, centres)
    if torch.overrides.has_torch_function_variadic(*given) or _is_watched():
        return torch.overrides.handle_torch_function(
            group_points, given, points, index, centres=centres, backend=backend
        )
    points = clouds.check_points(points, 0 if centres is None else 3)
    _check_index(index, points)
    if centres is not None:
        centres = clouds.check_centres(centres, points).detach()
        if centres.shape[1] != index.shape[1]:
            raise ValueError(f"centres must be one for each of the {index.shape[1]} groups, got {centres.shape[1]}")
    chosen = backends.resolve_compiled("group_points", points, backend)
    if backends.is_transformed():
        if chosen != "reference" and backend not in (None, "auto"):
            raise RuntimeError(f"group_points: backend {backend!r} cannot serve this call: {backends.TRANSFORMED}")
        return reference.group_points(points, index, centres)
    return _Group.apply(points, index, centres, chosen)


def _is_watched() -> bool:
    """Whether a mode, attribution for one, takes the call; torch.compile asks tensors alone."""
    return torch.compiler.is_compiling() and torch._C._len_torch_function_stack() > 0  # type: ignore[attr-defined]


def _check_index(index: object, points: Tensor) -> None:
    index = checks.check_tensor("index", index)
    if index.dtype != torch.int64 or index.dim() != 3 or index.shape[0] != points.shape[0]:
        raise ValueError(
            f"index must be int64 of shape ({points.shape[0]}, S, k), got {index.dtype} of shape {tuple(index.shape)}"
        )
    if index.device != points.device:
        raise ValueError(f"index must be on the device of points, {points.device}, got {index.device}")


class _Group(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, index: Tensor, centres: Tensor | None, backend: str) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size, ctx.backend = points.shape[1], backend
        if backend == "reference":
            return reference.group_points(points, index, centres)
        return operators("cpp").group_points(points, index, centres)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (index,) = ctx.saved_tensors
        return _Scatter.apply(grad, index, ctx.size, ctx.backend), None, None, None


class _Scatter(torch.autograd.Function):
    """The transpose of :class:`_Group` without centres, so each is the gradient of the other."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, index: Tensor, size: int, backend: str) -> Tensor:
        ctx.save_for_backward(index)
        ctx.backend = backend
        if backend == "reference":
            return reference.scatter_points(grad, index, size)
        inverse = inverse_index(index, size) if backend == "cuda" else (None, None)
        return operators("cpp").scatter_points(grad, index, size, *inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (index,) = ctx.saved_tensors
        return _Group.apply(grad, index, None, ctx.backend), None, None, None


def inverse_index(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Places in the flat index (N, S, k), by cloud, point and place, and where those of each point begin.

    Returns:
        int64 (N * S * k,) and int64 (N * size + 1,).
    """
    first = torch.arange(index.shape[0], device=index.device) * size  # point 0 of each cloud, counting all
    number = (index.clamp(0, max(size - 1, 0)) + first[:, None, None]).flatten()
    dtype = torch.int32 if index.shape[0] * size < 2**31 else torch.int64  # half the bits, half the passes of the sort
    found, order = number.to(dtype).sort(stable=True)
    every = torch.arange(index.shape[0] * size + 1, device=index.device, dtype=dtype)
    return order, torch.searchsorted(found, every)


@register_fake("group_points")
def _(points, index, centres):
    return points.new_empty((*index.shape, points.shape[2]))


@register_fake("scatter_points")
def _(grad, index, size, order, starts):
    return grad.new_empty((grad.shape[0], size, grad.shape[3]))
