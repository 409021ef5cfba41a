"""Rivals of the ops that sample and group points: PointNet++ as it is usually written in PyTorch, in its best forms."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

import attrdrop
from bench.ops.shapes import SEED, Cost, Forms, Inputs, PointShape

RADIUS, NEIGHBOURS = 0.2, 32
GATHERED = {"forward": Cost(1, 1), "train": Cost(2, 2)}  # the gradient moves what the forward does


class GroupInputs(Inputs):
    """Clouds in the unit cube, half of their points as centres, their neighbours, and a gradient of the groups."""

    def __init__(self, shape: PointShape, device: torch.device, dtype: torch.dtype):
        generator = torch.Generator(device).manual_seed(SEED)
        self.shape, self.count = shape, max(1, shape.points // 2)
        self.points = torch.rand(shape, generator=generator, device=device, dtype=dtype)
        chosen = attrdrop.farthest_point_sample(self.points, self.count)
        self.centres = by_gather(self.points, chosen[..., None])[:, :, 0, :3].contiguous()
        self.index = attrdrop.ball_query(self.points, self.centres, radius=RADIUS, k=NEIGHBOURS)
        self.points.requires_grad_()
        self.leaves = (self.points,)
        self.grad = torch.randn(*self.index.shape, shape.channels, generator=generator, device=device, dtype=dtype)


def _chosen_one_by_one(points: Tensor, n: int, distances: Callable[[Tensor], Tensor]) -> Tensor:
    chosen = points.new_zeros(points.shape[0], n, dtype=torch.int64)
    nearest = torch.full(points.shape[:2], torch.inf, device=points.device)
    last = chosen[:, 0]
    for i in range(1, n):
        torch.minimum(nearest, distances(last), out=nearest)
        last = nearest.argmax(-1)
        chosen[:, i] = last
    return chosen


def loop(points: Tensor, n: int) -> Tensor:
    """As published: distances to the last point, minimum and maximum, n times."""
    xyz, clouds = points[..., :3], torch.arange(points.shape[0], device=points.device)
    return _chosen_one_by_one(points, n, lambda last: ((xyz - xyz[clouds, last][:, None]) ** 2).sum(-1))


def matrix_loop(points: Tensor, n: int) -> Tensor:
    """All distances first, then a row of them, minimum and maximum, n times."""
    clouds = torch.arange(points.shape[0], device=points.device)
    x, y, z = ((c[:, :, None] - c[:, None]).square_() for c in points[..., :3].unbind(-1))
    distances = x.add_(y).add_(z)
    return _chosen_one_by_one(points, n, lambda last: distances[clouds, last])


def sample_peers(i: Inputs) -> Mapping[str, Forms]:
    points = i.points.detach()
    return {"loop": {f.__name__: partial(f, points, i.count) for f in (loop, matrix_loop)}}


def _first_by_sort(inside: Tensor, k: int) -> Tensor:
    return inside.sort(dim=-1).values[..., :k]


def _first_by_topk(inside: Tensor, k: int) -> Tensor:
    return inside.topk(k, largest=False, sorted=True).values


def queried(points: Tensor, centres: Tensor, select: Callable[[Tensor, int], Tensor]) -> Tensor:
    """As published: all distances, the indices of those inside in order, and the first in place of those missing."""
    size = points.shape[1]
    outside = torch.cdist(centres, points[..., :3]) > RADIUS
    number = torch.arange(size, device=points.device).expand(outside.shape)
    index = select(number.masked_fill(outside, size), min(NEIGHBOURS, size))
    index = torch.where(index == size, index[..., :1], index)
    return torch.cat((index, index[..., :1].expand(-1, -1, NEIGHBOURS - index.shape[-1])), -1)


def query_peers(i: Inputs) -> Mapping[str, Forms]:
    points = i.points.detach()
    selections = {"sort": _first_by_sort, "topk": _first_by_topk}
    return {"eager": {name: partial(queried, points, i.centres, select) for name, select in selections.items()}}


def mostly_same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether indices are equal, but for points whose distance is the radius to its last places."""
    return bool((ours == theirs).double().mean() > 0.999)


def by_advanced_index(points: Tensor, index: Tensor) -> Tensor:
    return points[torch.arange(points.shape[0], device=points.device)[:, None, None], index]


def by_index_select(points: Tensor, index: Tensor) -> Tensor:
    first = torch.arange(points.shape[0], device=points.device)[:, None, None] * points.shape[1]
    return points.flatten(0, 1).index_select(0, (index + first).flatten()).view(*index.shape, -1)


def by_gather(points: Tensor, index: Tensor) -> Tensor:
    rows = index.flatten(1)[..., None].expand(-1, -1, points.shape[2])
    return points.gather(1, rows).unflatten(1, index.shape[1:])


def group_peers(i: Inputs) -> Mapping[str, Forms]:
    def grouped(gather: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        out = gather(i.points, i.index)
        if out.shape[-1] == 3:
            return out - i.centres[:, :, None]
        out[..., :3] -= i.centres[:, :, None]
        return out

    return {"eager": {f.__name__: partial(grouped, f) for f in (by_advanced_index, by_index_select, by_gather)}}
