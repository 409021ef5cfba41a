"""RelDrop on images (Eq. 1): I' = M * I + (1 - M) * s, where M is 0 in one block of every image that is drawn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attrdrop.reference.philox import below, draw_words, uniform

BLOCK, BATCH, ELEMENT = 0x80000000, 0x80000001, 0x80000002
"""Counter 1 of the draws; no row of an attention matrix has such a number."""
ATTEMPTS = 10


def draw_images(sample_ids: Tensor, p: float, alpha: float, seed: int, per_batch: bool) -> Tensor:
    """bool (N,): which images are occluded, with a centre that is guided by relevance."""
    occluded, guide, _, _ = draw_words(seed, BLOCK, sample_ids, torch.zeros_like(sample_ids))
    if per_batch:
        zero = torch.zeros_like(sample_ids)
        occluded = draw_words(seed, BATCH, zero, zero)[0]
    return (uniform(occluded) < p) & (uniform(guide) >= alpha)


def block_sizes(
    sample_ids: Tensor, height: int, width: int, scale: list[float], log_ratio: list[float], seed: int
) -> tuple[Tensor, Tensor]:
    """Height and width of the blocks, int64 (N,): the first of ten attempts strictly inside the image, else 0."""
    call = torch.arange(1, 1 + ATTEMPTS // 2, device=sample_ids.device)[:, None]  # two attempts a call
    a, b, c, d = (uniform(word) for word in draw_words(seed, BLOCK, sample_ids[None], call))  # each (5, N)
    u, v = torch.stack((a, c), 1).flatten(0, 1), torch.stack((b, d), 1).flatten(0, 1)  # (10, N)
    area = float(height * width) * (scale[0] + u * (scale[1] - scale[0]))
    # exp differs by a last place between libraries: in float32 the same number is left
    aspect = torch.exp(log_ratio[0] + v * (log_ratio[1] - log_ratio[0])).float().double()
    h, w = torch.floor(torch.sqrt(area * aspect) + 0.5), torch.floor(torch.sqrt(area / aspect) + 0.5)
    fits = (h > 0) & (h < height) & (w > 0) & (w < width)
    first = fits.long().argmax(0, keepdim=True)  # argmax gives the first of equals
    found = fits.any(0)
    return torch.where(found, h.gather(0, first)[0].long(), 0), torch.where(found, w.gather(0, first)[0].long(), 0)


def scores(relevance: Tensor) -> Tensor:
    """Relevance of the cells, (M, h * w): channels summed with their sign, in order, in float32 (float64 as it is).

    Raises:
        ValueError: a NaN among them, on the CPU. Elsewhere NaN ranks last, as -inf.
    """
    wide = relevance.to(torch.float64 if relevance.dtype == torch.float64 else torch.float32)
    total = wide
    if relevance.dim() == 4:
        total = wide[:, 0]
        for channel in range(1, wide.shape[1]):
            total = total + wide[:, channel]
    missing = total.isnan()
    if total.device.type == "cpu" and not torch.compiler.is_compiling() and bool(missing.any()):
        raise ValueError("relevance must not have NaN in it")
    return torch.where(missing, -math.inf, total).flatten(1) + 0.0  # -0 becomes +0


def draw_boxes(
    count: int,
    height: int,
    width: int,
    relevance: Tensor | None,
    index: Tensor | None,
    p: float,
    scale: list[float],
    log_ratio: list[float],
    alpha: float,
    k_centers: int,
    shift: bool,
    per_batch: bool,
    seed: int,
    sample_ids: Tensor,
) -> Tensor:
    """int32 (N, 4): top, left, height, width of the block of each image, zeros where it has none."""
    _, guide, choice, place = draw_words(seed, BLOCK, sample_ids, torch.zeros_like(sample_ids))
    h, w = block_sizes(sample_ids, height, width, scale, log_ratio, seed)
    occluded = draw_images(sample_ids, p, 0.0, seed, per_batch) & (h > 0)
    pixel = below(place, height * width)
    row, column = pixel // max(width, 1), pixel % max(width, 1)
    if relevance is not None and relevance.shape[0] > 0 and height * width > 0:
        images = torch.arange(count, device=sample_ids.device) if index is None else index
        ranking = scores(relevance).sort(dim=-1, descending=True, stable=True).indices
        rank = below(choice[images], min(k_centers, ranking.shape[1]))
        cell = ranking.gather(1, rank[:, None])[:, 0]
        rows, columns = relevance.shape[-2:]
        is_guided = uniform(guide[images]) >= alpha
        row[images] = torch.where(is_guided, (2 * (cell // columns) + 1) * height // (2 * rows), row[images])
        column[images] = torch.where(is_guided, (2 * (cell % columns) + 1) * width // (2 * columns), column[images])
    (top, h), (left, w) = _place(row, h, height, shift), _place(column, w, width, shift)
    return torch.where(occluded[:, None], torch.stack((top, left, h, w), 1), 0).int()


def _place(centre: Tensor, size: Tensor, limit: int, shift: bool) -> tuple[Tensor, Tensor]:
    """First place and number of places of blocks around their centres, moved or cut to lie in [0, limit)."""
    begin = centre - size // 2
    if shift:
        return torch.minimum(begin.clamp(min=0), limit - size), size
    end = (begin + size).clamp(max=limit)
    begin = begin.clamp(min=0)
    return begin, end - begin


def replaced_pixels(boxes: Tensor, height: int, width: int, keep: bool) -> Tensor:
    """bool (N, 1, H, W): where M = 0. Boxes are cut to the image; an empty one leaves the image alone."""
    top, left, h, w = (side.long() for side in boxes.unbind(-1))
    rows, columns = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + h)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + w)[:, None])
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return ~inside & inside.any(-1, True).any(-2, True) if keep else inside


def random_elements(like: Tensor, seed: int, sample_ids: Tensor) -> Tensor:
    """Standard normal numbers (bytes: uniform), of the shape and type of ``like`` (N, C, H, W).

    Element e = (c * H + y) * W + x takes word e % 4 of call e // 4; two words make two normal numbers (Box-Muller).
    """
    size = like.shape[1:].numel()
    call = torch.arange((size + 3) // 4, device=like.device)
    words = torch.stack(draw_words(seed, ELEMENT, sample_ids[:, None], call), -1)  # (N, calls, 4)
    if like.dtype == torch.uint8:
        elements = words >> 24
    else:
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        first, second = words[..., 0::2], words[..., 1::2]  # (N, calls, 2)
        radius = torch.sqrt(-2 * torch.log(((first >> 9).to(wide) + 0.5) * 2.0**-23))
        angle = math.pi * ((second >> 8).to(wide) * 2.0**-23)
        elements = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), -1)
    return elements.flatten(1)[:, :size].reshape(like.shape).to(like.dtype)


def fill_blocks_(
    images: Tensor,
    boxes: Tensor,
    keep: bool,
    value: float,
    values: Tensor | None,
    is_random: bool,
    source: Tensor | None,
    source_index: Tensor | None,
    seed: int,
    sample_ids: Tensor,
) -> None:
    """Writes s where M = 0: a number, one per channel, random ones, or the pixels of ``source`` at the same place."""
    if source is not None:
        s = source[: images.shape[0]] if source_index is None else source[source_index]
    elif is_random:
        s = random_elements(images, seed, sample_ids)
    else:
        s = images.new_full((1, 1, 1, 1), value) if values is None else values.view(1, -1, 1, 1)
    _, _, height, width = images.shape
    images.copy_(torch.where(replaced_pixels(boxes, height, width, keep), s, images))
