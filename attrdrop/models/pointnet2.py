"""PointNet (Qi et al., 2017a) and PointNet++ (Qi et al., 2017b) for the classification of point clouds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attrdrop.ops.ball_query import ball_query
from attrdrop.ops.farthest_point_sample import farthest_point_sample
from attrdrop.ops.group_points import group_points

CLOUD = 1024  # points of a cloud that the published numbers of samples and neighbours are for
LEAST_NEIGHBOURS = 8


class Neighbours(NamedTuple):
    """Which points a level works on.

    centres: int64 (N, S), the sampled points; groups: for each scale int64 (N, S, k), the points around each of them.
    """

    centres: Tensor
    groups: tuple[Tensor, ...]


class SharedLayers(nn.Sequential):
    """Linear layers with BatchNorm and ReLU, the same for every row: (..., C) -> (..., C')."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        for channels_in, channels_out in itertools.pairwise(widths):
            self.append(nn.Linear(channels_in, channels_out, bias=False))
            self.append(nn.BatchNorm1d(channels_out))
            self.append(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        for layer in self:
            rows = layer(rows)
        return rows.view(*x.shape[:-1], rows.shape[1])


class SetAbstraction(nn.Module):
    """Samples centres, takes the points around each at one or more scales, and keeps the maximum of their features.

    Args:
        samples: number of centres S.
        radii: of the ball around a centre, one for each scale.
        neighbours: number of points k in a ball, likewise.
        channels: of a point and its features, its three coordinates included.
        widths: of the shared layers, for each scale.
    """

    def __init__(
        self,
        samples: int,
        radii: Sequence[float],
        neighbours: Sequence[int],
        channels: int,
        widths: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        self.samples, self.radii, self.neighbours, self.channels = samples, tuple(radii), tuple(neighbours), channels
        self.scales = nn.ModuleList(SharedLayers((channels, *layers)) for layers in widths)

    def find(self, points: Tensor, valid: Tensor | None = None) -> tuple[Neighbours, Tensor]:
        """The neighbours, and the coordinates of the centres (N, S, 3); no gradient."""
        points = points.detach()
        centres = farthest_point_sample(points, self.samples, valid=valid)
        places = group_points(points[..., :3], centres[..., None])[:, :, 0]
        groups = ball_query(points, places, radius=self.radii, k=self.neighbours, valid=valid)
        return Neighbours(centres, groups), places

    def forward(self, points: Tensor, features: Tensor | None, found: Neighbours) -> tuple[Tensor, Tensor]:
        """(N, P, C) and (N, P, F) -> coordinates (N, S, 3) and features (N, S, F') of the centres.

        The first level has no features: what points have besides coordinates counts as such.
        """
        centres = group_points(points[..., :3], found.centres[..., None])[:, :, 0]
        scales = []
        for layers, group in zip(self.scales, found.groups, strict=True):
            rows = group_points(points, group, centres)  # (N, S, k, C)
            if features is not None:
                rows = torch.cat((rows, group_points(features, group)), -1)
            scales.append(layers(rows).max(2)[0])
        return centres, torch.cat(scales, -1) if len(scales) > 1 else scales[0]


class PointNet2(nn.Module):
    """PointNet++ with a classifier on top.

    Args:
        levels: modules that sample and group, from the points upwards.
        layers: widths of the shared layers over what the last level leaves, before the maximum over all of it.
        head: widths between there and the logits.
        classes: number of outputs.
        dropout: probability in the head.
    """

    def __init__(
        self,
        levels: Sequence[SetAbstraction],
        layers: Sequence[int],
        head: Sequence[int],
        classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.levels: Any = nn.ModuleList(levels)
        self.channels = levels[0].channels
        self.top = SharedLayers(layers)
        self.head = _head((layers[-1], *head), classes, dropout)

    def neighbours(self, points: Tensor, valid: Tensor | None = None) -> list[Neighbours]:
        """What :meth:`forward` computes on its way; compute it once for several passes over the same clouds."""
        found = []
        for level in self.levels:
            here, points = level.find(points, valid)
            found.append(here)
            valid = None  # centres are points that exist
        return found

    def forward(
        self, points: Tensor, valid: Tensor | None = None, neighbours: Sequence[Neighbours] | None = None
    ) -> Tensor:
        """Logits (N, classes) of clouds.

        Args:
            points: floating point (N, P, C): coordinates, then other channels, such as a normal.
            valid: bool (N, P), False for padding; each cloud must have a point.
            neighbours: from :meth:`neighbours`; valid is then ignored.
        """
        _check_points(points, self.channels, valid)
        neighbours = self.neighbours(points, valid) if neighbours is None else neighbours
        features: Any = None
        for level, found in zip(self.levels, neighbours, strict=True):
            points, features = level(points, features, found)
        return self.head(self.top(torch.cat((points, features), -1)).max(1)[0])


class PointNet(nn.Module):
    """PointNet: shared layers, the maximum over all points, a classifier.

    Args:
        channels: of a point.
        layers: widths of the shared layers.
        head: widths between the maximum and the logits.
        classes: number of outputs.
        dropout: probability in the head.
        turns: whether a small network of the same build (T-Net) turns the coordinates of each cloud first.
    """

    def __init__(
        self,
        channels: int,
        layers: Sequence[int],
        head: Sequence[int],
        classes: int,
        dropout: float,
        turns: bool,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.turn: PointNet | None = None
        if turns:
            self.turn = PointNet(3, layers, head, 9, 0.0, turns=False)
            nn.init.zeros_(self.turn.head[-1].weight)  # begins as no turn at all
            nn.init.zeros_(self.turn.head[-1].bias)
        self.layers = SharedLayers((channels, *layers))
        self.head: Any = _head((layers[-1], *head), classes, dropout)

    def forward(self, points: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits (N, classes) of clouds (N, P, C); valid as in :meth:`PointNet2.forward`."""
        _check_points(points, self.channels, valid)
        if valid is not None:  # what is not there repeats a point, which changes no maximum
            everyone = torch.arange(points.shape[1], device=points.device)
            index = torch.where(valid, everyone, valid.int().argmax(1, keepdim=True))
            points = group_points(points, index[..., None])[:, :, 0]
        if self.turn is not None:
            places = points[..., :3]
            turned = places + places @ self.turn(places).view(-1, 3, 3)
            points = torch.cat((turned, points[..., 3:]), -1)
        return self.head(self.layers(points).max(1)[0])


def pointnet2_ssg(classes: int, channels: int = 3, points: int = CLOUD, width: float = 1.0) -> PointNet2:
    """PointNet++ with single-scale grouping.

    Args:
        classes: number of outputs. channels: per point, 3, or 6 with normals.
        points: per cloud; samples and neighbours are in the published proportion to it.
        width: factor of the published numbers of channels.
    """
    return _pointnet2(classes, channels, points, width, [(0.2,), (0.4,)], [(32,), (64,)], SSG_WIDTHS)


def pointnet2_msg(classes: int, channels: int = 3, points: int = CLOUD, width: float = 1.0) -> PointNet2:
    """PointNet++ with three scales of grouping; arguments as :func:`pointnet2_ssg`."""
    radii, neighbours = [(0.1, 0.2, 0.4), (0.2, 0.4, 0.8)], [(16, 32, 128), (32, 64, 128)]
    return _pointnet2(classes, channels, points, width, radii, neighbours, MSG_WIDTHS)


def pointnet(classes: int, channels: int = 3, width: float = 1.0, turns: bool = True) -> PointNet:
    """PointNet; its second T-Net, of features, is left out.

    Args:
        classes: number of outputs. channels: of a point. width: factor of the published numbers of channels.
        turns: whether a T-Net turns the coordinates of each cloud first.
    """
    layers, head = _scaled((64, 64, 64, 128, 1024), width), _scaled((512, 256), width)
    return PointNet(channels, layers, head, classes, 0.3, turns)


SSG_WIDTHS = [[(64, 64, 128)], [(128, 128, 256)]]
MSG_WIDTHS = [
    [(32, 32, 64), (64, 64, 128), (64, 96, 128)],
    [(64, 64, 128), (128, 128, 256), (128, 128, 256)],
]


def _pointnet2(
    classes: int,
    channels: int,
    points: int,
    width: float,
    radii: Sequence[Sequence[float]],
    neighbours: Sequence[Sequence[int]],
    widths: Sequence[Sequence[Sequence[int]]],
) -> PointNet2:
    share = min(1.0, points / CLOUD)
    levels, before = [], channels
    for place, layers in enumerate(widths):
        samples = max(1, round((512, 128)[place] * points / CLOUD))
        ks = [max(LEAST_NEIGHBOURS, round(k * share)) for k in neighbours[place]]
        scaled = [_scaled(layer, width) for layer in layers]
        levels.append(SetAbstraction(samples, radii[place], ks, before, scaled))
        before = 3 + sum(layer[-1] for layer in scaled)
    return PointNet2(levels, (before, *_scaled((256, 512, 1024), width)), _scaled((512, 256), width), classes, 0.4)


def _scaled(widths: Sequence[int], width: float) -> tuple[int, ...]:
    return tuple(max(1, round(channels * width)) for channels in widths)


def _head(widths: Sequence[int], classes: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels_in, channels_out in itertools.pairwise(widths):
        layers += [nn.Linear(channels_in, channels_out, bias=False), nn.BatchNorm1d(channels_out), nn.ReLU()]
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def _check_points(points: Tensor, channels: int, valid: Tensor | None) -> None:
    if points.dim() != 3 or points.shape[2] != channels or points.shape[1] == 0:
        raise ValueError(
            f"points must have shape (N, P, {channels}) with at least one point, got {tuple(points.shape)}"
        )
    if valid is not None and (valid.dtype != torch.bool or valid.shape != points.shape[:2]):
        raise ValueError(
            f"valid must be bool of shape {tuple(points.shape[:2])}, got {valid.dtype} of shape {tuple(valid.shape)}"
        )
