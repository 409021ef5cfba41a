"""Sheets of images, drawn without a display: relevance maps over their images, and images with dropped boxes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from attrdrop._core.checks import check_positive_int
from attrdrop._core.maps import pixel_relevance
from attrdrop.plots.sheets import COLOURS, SCALE, add_relevance_scale, save, sheet


def heat_maps(
    images: Tensor,
    relevance: Tensor,
    target: Path | IO[bytes],
    titles: Sequence[str] | None = None,
    label: str = "",
) -> None:
    """Each image beside its relevance over the image in grey: red is positive, blue negative, grey zero.

    Each map is scaled by its own largest magnitude, so colours of different maps are not comparable.

    Args:
        images: (N, C, H, W), C 1 or 3, uint8 or floating point in [0, 1].
        relevance: floating point (N, H, W), or (N, C, H, W), whose channels are summed with their sign.
        target: receives a PNG. titles: one per image. label: beside the colours, such as what the relevance is of.

    Raises:
        TypeError: images is not such a tensor, or relevance not a floating-point tensor. ValueError: a shape does not
            fit, images are outside [0, 1], relevance is not finite, or titles are not one per image.
    """
    pictures = _pictures(images)
    maps = pixel_relevance(relevance).cpu().numpy()
    if maps.shape != pictures.shape[:3]:
        raise ValueError(
            f"relevance must have shape (N, H, W) or (N, C, H, W) with (N, H, W) = {pictures.shape[:3]}, "
            f"got {tuple(relevance.shape)}"
        )
    gap = np.ones((pictures.shape[1], max(1, round(0.02 * pictures.shape[2])), 3))
    pairs = np.stack(
        [
            np.concatenate([picture, gap, _overlay(picture, map_)], axis=1)
            for picture, map_ in zip(pictures, maps, strict=True)
        ]
    )
    columns = math.ceil(math.sqrt(len(pairs) / 2))
    figure, _ = _image_sheet(pairs, columns, titles, footer=SCALE)
    add_relevance_scale(figure, label)
    save(figure, target)


def compared_maps(
    images: Tensor,
    maps: Mapping[str, Tensor],
    target: Path | IO[bytes],
    titles: Sequence[str] | None = None,
    scores: Mapping[str, Sequence[str]] | None = None,
    label: str = "",
) -> None:
    """Each image, then its relevance by several rules over the image in grey, each map on a scale of its own.

    Args:
        images: (N, C, H, W), C 1 or 3, uint8 or floating point in [0, 1].
        maps: by the name of the rule, floating point (N, H, W) or (N, C, H, W), whose channels are summed.
        target: receives a PNG. titles: one per image. scores: by the name of the rule, a text for each image.
        label: beside the colours.

    Raises:
        TypeError, ValueError: as :func:`heat_maps`; also: there is no map, or a score is not one per image.
    """
    pictures = _pictures(images)
    if not maps:
        raise ValueError("maps must hold relevance by at least one rule, got none")
    overlays = {}
    for name, relevance in maps.items():
        found = pixel_relevance(relevance).cpu().numpy()
        texts = (scores or {}).get(name, [""] * len(pictures))
        if found.shape != pictures.shape[:3] or len(texts) != len(pictures):
            raise ValueError(
                f"maps[{name!r}] and its scores must be one for each image, (N, H, W) = {pictures.shape[:3]}, "
                f"got {tuple(relevance.shape)} and {len(texts)} scores"
            )
        heads = [", ".join(filter(None, (name, text))) for text in texts]
        overlays[name] = ([_overlay(*pair) for pair in zip(pictures, found, strict=True)], heads)
    first = titles or [""] * len(pictures)
    panels = [part for n in range(len(pictures)) for part in (pictures[n], *(all_[n] for all_, _ in overlays.values()))]
    names = [part for n in range(len(pictures)) for part in (first[n], *(texts[n] for _, texts in overlays.values()))]
    across = 2 if len(pictures) > 1 and len(maps) < 6 else 1
    figure, _ = _image_sheet(np.stack(panels), across * (1 + len(maps)), names, footer=SCALE)
    add_relevance_scale(figure, label)
    save(figure, target)


def occlusion_sheet(
    images: Tensor, relevance: Tensor, occluded: Tensor, target: Path | IO[bytes], titles: Sequence[str] | None = None
) -> None:
    """Each image, its relevance over it in grey, and what is left of it: what RelDrop looks at and what it hides.

    Args:
        images, occluded: (N, C, H, W) each, C 1 or 3, uint8 or floating point in [0, 1].
        relevance: floating point (N, H, W) or (N, C, H, W), whose channels are summed; each map has a scale of its own.
        target: receives a PNG. titles: one per image.

    Raises:
        TypeError, ValueError: as :func:`heat_maps`; also: occluded does not have the shape of images.
    """
    if occluded.shape != images.shape:
        raise ValueError(f"occluded must have the shape of images, {tuple(images.shape)}, got {tuple(occluded.shape)}")
    pictures, left, found = _pictures(images), _pictures(occluded), pixel_relevance(relevance).cpu().numpy()
    if found.shape != pictures.shape[:3]:
        raise ValueError(f"relevance must be (N, H, W) = {pictures.shape[:3]}, got {tuple(relevance.shape)}")
    names = titles or ["image"] * len(pictures)
    panels = [part for n in range(len(pictures)) for part in (pictures[n], _overlay(pictures[n], found[n]), left[n])]
    heads = [part for name in names for part in (name, "relevance", "occluded")]
    figure, _ = _image_sheet(np.stack(panels), 6 if len(pictures) > 1 else 3, heads, footer=SCALE)
    add_relevance_scale(figure)
    save(figure, target)


def contact_sheet(
    images: Tensor,
    target: Path | IO[bytes],
    boxes: Tensor | None = None,
    columns: int = 8,
    titles: Sequence[str] | None = None,
) -> None:
    """A grid of images, such as those a training step saw, with a box outlined in each.

    Args:
        images: (N, C, H, W), C 1 or 3, uint8 or floating point in [0, 1].
        target: receives a PNG.
        boxes: (N, 4), the top, left, height and width of a box in pixels; what lies outside the image is cut off, and a
            height or width of 0 draws none.
        columns: images per row. titles: one per image.

    Raises:
        TypeError: images is not such a tensor, or boxes not a tensor. ValueError: a shape does not fit, images are
            outside [0, 1], a box has a negative height or width, columns is not positive, or titles are not one per
            image.
    """
    pictures = _pictures(images)
    check_positive_int("columns", columns)
    figure, panels = _image_sheet(pictures, min(columns, len(pictures)), titles)
    if boxes is not None:
        halo = patheffects.withStroke(linewidth=2.8, foreground="white")
        for axes, (top, left, bottom, right) in zip(panels, _corners(boxes, *pictures.shape[:3]), strict=True):
            if bottom > top and right > left:
                outline = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, clip_on=False)
                outline.set(edgecolor="red", linewidth=1.2, path_effects=[halo])
                axes.add_patch(outline)
    save(figure, target)


def _image_sheet(
    pictures: np.ndarray, columns: int, titles: Sequence[str] | None, footer: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per picture (N, H, W, 3)."""
    count, height, width = pictures.shape[:3]
    figure, panels = sheet(count, height / width, columns, titles, "image", footer)
    for axes, picture in zip(panels, pictures, strict=True):
        axes.imshow(picture)
    return figure, panels


def _overlay(picture: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """(H, W, 3): the picture in pale grey, tinted by its relevance."""
    largest = np.abs(relevance).max()
    scaled = relevance / largest if largest > 0 else relevance
    grey = 0.5 + 0.5 * picture.mean(-1, keepdims=True)
    return grey * COLOURS((scaled + 1) / 2)[..., :3]


def _pictures(images: Tensor) -> np.ndarray:
    """(N, C, H, W) -> float (N, H, W, 3) in [0, 1]."""
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a uint8 or floating-point tensor, got {got}")
    if images.dim() != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(f"images must have shape (N, C, H, W), C 1 or 3, not empty, got {tuple(images.shape)}")
    values = images.detach().double().cpu() / (255 if images.dtype == torch.uint8 else 1)
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(
            f"floating-point images must lie in [0, 1], got {values.min():.3g} to {values.max():.3g}; "
            "undo their normalisation first"
        )
    return values.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()


def _corners(boxes: object, count: int, height: int, width: int) -> np.ndarray:
    """(N, 4) top, left, height, width -> top, left, bottom, right inside the image."""
    if not isinstance(boxes, Tensor):
        raise TypeError(f"boxes must be a torch.Tensor, got {type(boxes).__name__}")
    if tuple(boxes.shape) != (count, 4):
        raise ValueError(f"boxes must have shape (N, 4) = ({count}, 4), got {tuple(boxes.shape)}")
    values = boxes.detach().double().cpu().numpy()
    if not (values[:, 2:] >= 0).all():
        raise ValueError("boxes must have heights and widths of at least 0, got negative ones or NaN")
    corners = np.concatenate([values[:, :2], values[:, :2] + values[:, 2:]], axis=1)
    return corners.clip(0, (height, width, height, width))
