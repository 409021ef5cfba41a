"""Rivals of the ops on images, written from the published description: a block around the first maximum of each map.

All take the sizes of the blocks as given, so that their results can be compared with ours; drawing them costs nothing.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

import attrdrop
from bench.ops.shapes import SEED, Forms, ImageShape, Inputs


class BlockInputs(Inputs):
    """Images (N, C, H, W), relevance (N, H, W), the blocks that our op chooses, and their sizes unclipped."""

    def __init__(self, shape: ImageShape, device: torch.device, dtype: torch.dtype):
        generator = torch.Generator(device).manual_seed(4)
        n, c, height, width = shape
        self.shape = shape
        self.images = torch.randn(n, c, height, width, generator=generator, device=device, dtype=dtype)
        self.relevance = torch.randn(n, height, width, generator=generator, device=device)
        _, self.boxes = attrdrop.occlude_blocks(self.images, self.relevance, seed=SEED)
        _, whole = attrdrop.occlude_blocks(self.images, self.relevance, seed=SEED, border="shift")
        self.sizes, self.size_list = whole[:, 2:].long(), whole[:, 2:].tolist()


def _assign(images: Tensor, boxes: Callable[[int], tuple[int, int, int, int]]) -> Tensor:
    out = images.clone()
    for n in range(len(out)):
        top, left, height, width = boxes(n)
        out[n, :, max(top, 0) : top + height, max(left, 0) : left + width] = 0
    return out


def loop(i: Inputs) -> Tensor:
    """As published: one maximum, two `.item()` and one assignment for each image."""

    def box(n: int) -> tuple[int, int, int, int]:
        at, (height, width) = i.relevance[n].argmax(), i.size_list[n]
        row, column = (at // i.relevance.shape[2]).item(), (at % i.relevance.shape[2]).item()
        return row - height // 2, column - width // 2, height, width

    return _assign(i.images, box)


def _mask(images: Tensor, top: Tensor, left: Tensor, sizes: Tensor) -> Tensor:
    rows, columns = (torch.arange(n, device=images.device) for n in images.shape[2:])
    in_rows = (rows >= top[:, None]) & (rows < (top + sizes[:, 0])[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + sizes[:, 1])[:, None])
    return torch.where((in_rows[:, :, None] & in_columns[:, None])[:, None], 0, images)


def masked(i: Inputs) -> Tensor:
    """All images at once: maxima of the flattened maps, a boolean mask of every pixel, and `torch.where`."""
    at, width = i.relevance.flatten(1).argmax(1), i.relevance.shape[2]
    return _mask(i.images, at // width - i.sizes[:, 0] // 2, at % width - i.sizes[:, 1] // 2, i.sizes)


def occlusion_peers(i: Inputs) -> Mapping[str, Forms]:
    return {"loop": {"item": lambda: loop(i)}, "mask": {"where": lambda: masked(i)}}


def fill_peers(i: Inputs) -> Mapping[str, Forms]:
    def assigned() -> Tensor:
        boxes = i.boxes.tolist()
        return _assign(i.images, boxes.__getitem__)

    top, left, *_ = i.boxes.long().unbind(1)
    sizes = i.boxes[:, 2:].long()
    return {"loop": {"tolist": assigned}, "mask": {"where": lambda: _mask(i.images, top, left, sizes)}}


def same_images(ours: Tensor | tuple[Tensor, Tensor], theirs: Tensor | tuple[Tensor, Tensor]) -> bool:
    """Whether images are equal; ours come with their boxes."""
    a, b = (found[0] if isinstance(found, tuple) else found for found in (ours, theirs))
    return torch.equal(a, b)
