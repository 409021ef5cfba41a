"""Sheets of point clouds in three dimensions, drawn without a display: relevance, and points that were dropped."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from attrdrop._core.maps import check_finite, point_relevance
from attrdrop.plots.sheets import COLOURS, SCALE, add_relevance_scale, check_titles, save, sheet

ELEVATION, AZIMUTH = 20, -50  # degrees; the y axis of the data points upwards
POINT_AREA = 2.2  # square points, of the markers
ZOOM = 1.6  # of matplotlib's axes, which leave wide margins for the labels that are not drawn


def relevance_clouds(
    points: Tensor,
    relevance: Tensor,
    target: Path | IO[bytes],
    titles: Sequence[str] | None = None,
    label: str = "",
) -> None:
    """Clouds coloured by relevance: red is positive, blue negative, grey zero.

    Each cloud is scaled by its own largest magnitude, so colours of different clouds are not comparable.

    Args:
        points: floating point (N, P, C), C 3 or more, of which x, y (upwards) and z are drawn.
        relevance: floating point (N, P), or (N, P, C), whose channels are summed with their sign.
        target: receives a PNG. titles: one per cloud. label: beside the colours, such as what the relevance is of.

    Raises:
        TypeError: points or relevance is not a floating-point tensor. ValueError: a shape does not fit, one of them is
        not finite, or titles are not one per cloud.
    """
    places = _places(points)
    values = point_relevance(relevance).cpu().numpy()
    if values.shape != points.shape[:2]:
        raise ValueError(
            f"relevance must have shape (N, P) or (N, P, C) with (N, P) = {tuple(points.shape[:2])}, "
            f"got {tuple(relevance.shape)}"
        )
    figure, panels = _cloud_sheet(places, titles, footer=SCALE)
    for axes, cloud, signed in zip(panels, places, values, strict=True):
        _colour(axes, cloud, signed)
    add_relevance_scale(figure, label)
    save(figure, target)


def compared_clouds(
    points: Tensor,
    maps: Mapping[str, Tensor],
    target: Path | IO[bytes],
    titles: Sequence[str] | None = None,
    label: str = "",
) -> None:
    """Each cloud coloured by its relevance by several rules, side by side, each on a scale of its own.

    Args:
        points, target, label: as of :func:`relevance_clouds`.
        maps: by the name of the rule, floating point (N, P), or (N, P, C), whose channels are summed with their sign.
        titles: one per cloud, before the name of the rule.

    Raises:
        TypeError, ValueError: as :func:`relevance_clouds`; also: there is no map.
    """
    places = _places(points)
    if not maps:
        raise ValueError("maps must hold relevance by at least one rule, got none")
    found = [point_relevance(relevance).cpu().numpy() for relevance in maps.values()]
    for name, values in zip(maps, found, strict=True):
        if values.shape != points.shape[:2]:
            raise ValueError(
                f"maps[{name!r}] must have shape (N, P) or (N, P, C) with (N, P) = {tuple(points.shape[:2])}, "
                f"got {tuple(maps[name].shape)}"
            )
    check_titles(titles, len(places), "cloud")
    names = [f"{title}: {name}" if title else name for title in titles or [""] * len(places) for name in maps]
    across = 2 if len(places) > 1 and len(maps) < 4 else 1
    figure, panels = _cloud_sheet(places.repeat(len(maps), 0), names, SCALE, across * len(maps))
    for place, axes in enumerate(panels):
        cloud, rule = divmod(place, len(maps))
        _colour(axes, places[cloud], found[rule][cloud])
    add_relevance_scale(figure, label)
    save(figure, target)


def dropped_clouds(
    points: Tensor, dropped: Tensor, target: Path | IO[bytes], titles: Sequence[str] | None = None
) -> None:
    """Clouds in grey, with a red cross where a point was dropped.

    Args:
        points: floating point (N, P, C), C 3 or more, as they were before: x, y (upwards) and z are drawn.
        dropped: bool (N, P). target: receives a PNG. titles: one per cloud.

    Raises:
        TypeError: points is not a floating-point tensor or dropped not a bool tensor. ValueError: a shape does not fit,
        points are not finite, or titles are not one per cloud.
    """
    places = _places(points)
    if not isinstance(dropped, Tensor) or dropped.dtype != torch.bool:
        got = dropped.dtype if isinstance(dropped, Tensor) else type(dropped).__name__
        raise TypeError(f"dropped must be a bool tensor, got {got}")
    if dropped.shape != points.shape[:2]:
        raise ValueError(f"dropped must have shape (N, P) = {tuple(points.shape[:2])}, got {tuple(dropped.shape)}")
    figure, panels = _cloud_sheet(places, titles)
    for axes, cloud, gone in zip(panels, places, dropped.cpu().numpy(), strict=True):
        axes.scatter(*cloud[:, ~gone], color="0.45", s=POINT_AREA, linewidths=0, depthshade=False)
        axes.scatter(*cloud[:, gone], facecolors="none", edgecolors="red", s=7 * POINT_AREA, marker="X", linewidths=0.5)
    save(figure, target)


def _colour(axes: Any, cloud: np.ndarray, signed: np.ndarray) -> None:
    """Draw a cloud (3, P) in the colours of its relevance (P,)."""
    largest = np.abs(signed).max()
    scaled = signed / largest if largest > 0 else signed
    colours = COLOURS((scaled + 1) / 2)
    colours[:, :3] *= 0.8  # zero is grey, not the white of the sheet
    axes.scatter(*cloud, c=colours, s=POINT_AREA * (1 + 2 * np.abs(scaled)), linewidths=0, depthshade=False)


def _cloud_sheet(
    places: np.ndarray, titles: Sequence[str] | None, footer: float = 0.0, columns: int | None = None
) -> tuple[Figure, list[Any]]:
    """One panel per cloud (N, 3, P), in which the sphere around the cloud has room."""
    count = len(places)
    columns = columns or min(count, max(4, math.ceil(math.sqrt(count))))
    figure, panels = sheet(count, 1.0, columns, titles, "cloud", footer, projection="3d")
    for axes, cloud in zip(panels, places, strict=True):
        centre = (cloud.max(1) + cloud.min(1)) / 2
        radius = max(float(np.linalg.norm(cloud - centre[:, None], axis=0).max()), 1e-6)
        axes.set(**{f"{axis}lim": (c - radius, c + radius) for axis, c in zip("xyz", centre, strict=True)})
        axes.set_box_aspect((1, 1, 1), zoom=ZOOM)
        axes.view_init(elev=ELEVATION, azim=AZIMUTH)
    return figure, panels


def _places(points: Tensor) -> np.ndarray:
    """(N, P, C) -> (N, 3, P), turned so that the upward axis is last, as matplotlib draws it."""
    values = check_finite("points", points)
    if values.dim() != 3 or values.shape[2] < 3 or values.numel() == 0:
        raise ValueError(f"points must have shape (N, P, C), C 3 or more, not empty, got {tuple(points.shape)}")
    x, y, z = values[..., :3].double().cpu().unbind(2)
    return torch.stack([x, -z, y], 1).numpy()
