"""occlude_blocks, fill_blocks, draw_images: RelDrop on images, a block around the most relevant position."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attrdrop._core import backends, checks
from attrdrop._core.library import operators, register_fake
from attrdrop.ops import _occlusion as occlusion
from attrdrop.ops._occlusion import Value
from attrdrop.reference import occlude_blocks as reference

BORDERS = ("clip", "shift")
PER = ("image", "batch")
POLICIES = ("drop", "keep")
IMAGE_TYPES = (torch.uint8, *checks.FLOATS)

Fill = tuple[bool, float, Tensor | None, bool, Tensor | None, Tensor | None]  # of the operators: keep .. source_index


def occlude_blocks(
    images: Tensor,
    relevance: Tensor | None = None,
    *,
    p: float = 1.0,
    scale: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
    value: Value = 0.0,
    alpha: float = 0.0,
    k_centers: int = 1,
    border: str = "clip",
    per: str = "image",
    policy: str = "drop",
    seed: int,
    index: Tensor | None = None,
    sample_ids: Tensor | None = None,
    source: Tensor | None = None,
    source_index: Tensor | None = None,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Replaces a block around the most relevant position of each drawn image (RelDrop, Eq. 1).

    I' = M * I + (1 - M) * s, where M is 0 in the block. Its area is uniform in scale * H * W, its aspect log-uniform in
    ratio; the first of ten attempts that is smaller than the image on both sides is used; if there is none, the image
    is left alone. Cell (i, j) of a relevance map of h x w cells corresponds to pixel ((2i+1)H // 2h, (2j+1)W // 2w).
    Draws depend only on (seed, sample id): see docs/determinism.md. Nothing synchronises with the GPU.

    Args:
        images: (N, C, H, W), uint8, float16, bfloat16, float32 (float64: reference only), any strides.
        relevance: (M, h, w), or (M, c, h, w), summed over c with its sign; float32, bfloat16, float16 (float64:
            reference only). None: every centre is uniform. M = N without index.
        p: probability that an image is occluded, in [0, 1].
        scale: smallest and largest share of the area, 0 < low <= high <= 1.
        ratio: smallest and largest height / width, 0 < low <= high.
        value: s: a number, one per channel (sequence, or (C,) tensor), or "random": standard normal numbers, for uint8
            uniform bytes. For uint8, numbers from 0 to 255, rounded.
        alpha: probability that the centre is uniform over the pixels instead, in [0, 1].
        k_centers: the centre is one of the k most relevant cells, each equally likely; at most all of them. Ties go to
            the lower index, -0 equals +0.
        border: "clip": the block is clipped at the border; "shift": it is moved inside.
        per: "image": each image is drawn separately; "batch": all are occluded or none.
        policy: "drop": the block is replaced; "keep": everything else is.
        seed: 64-bit seed of the step.
        index: int64 (M,), distinct: row m of relevance belongs to image index[m]; blocks of other images are placed
            uniformly.
        sample_ids: int64 (N,), the samples' global indices in the step; default 0 to N - 1.
        source: (N', C, H, W), type and device of images: s is the pixels at the same position in it (CutMix). It gets
            no gradient.
        source_index: int64 (N,), which image of source; by default n for image n. On CUDA, clamped into range.
        inplace: write into images instead of a copy that keeps their memory format.
        backend: one of :data:`attrdrop.BACKENDS`; default, the one in force.

    Returns:
        images and boxes: int32 (N, 4), top, left, height and width of the part inside the image, zeros if the image was
        left alone. :func:`fill_blocks` applies them again.

    Raises:
        TypeError, ValueError: an argument is not as said above, or relevance contains a NaN on the CPU (on CUDA NaN
            ranks last); the message names it, and images are unchanged. RuntimeError: the backend asked for cannot
            serve.
    """
    _check_images(images, inplace)
    count, _, height, width = images.shape
    p, alpha = checks.check_probability("p", p), checks.check_probability("alpha", alpha)
    low, high = _check_pair("ratio", ratio, math.inf)
    checks.check_size("k_centers", k_centers, least=1)
    relevance = _check_relevance(relevance, index, images)
    checks.check_choice("border", border, BORDERS)
    checks.check_choice("per", per, PER)
    rule = (
        p,
        _check_pair("scale", scale, 1.0),
        [math.log(low), math.log(high)],
        alpha,
        min(k_centers, 2**31 - 1),
        border == "shift",
        per == "batch",
    )
    fill = _check_fill(images, value, policy, source, source_index, inplace)
    seed = checks.check_seed(seed)
    ids = checks.check_sample_ids(sample_ids, count, images.device)
    index = None if index is None else index.to(images.device)
    out = images if inplace else images.detach().clone()
    if backends.resolve_compiled("occlude_blocks", images, backend, relevance) == "reference":
        ids = torch.arange(count, device=images.device) if ids is None else ids
        boxes = reference.draw_boxes(count, height, width, relevance, index, *rule, seed, ids)
        reference.fill_blocks_(out, boxes, *fill, seed, ids)
    else:
        boxes = operators("cpp").occlude_blocks_(out, relevance, index, *rule, *fill, seed, ids)
    return _with_gradient(images, out, boxes, policy), boxes


def fill_blocks(
    images: Tensor,
    boxes: Tensor,
    *,
    value: Value = 0.0,
    policy: str = "drop",
    seed: int = 0,
    sample_ids: Tensor | None = None,
    source: Tensor | None = None,
    source_index: Tensor | None = None,
    inplace: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Replaces given blocks, for instance those of an earlier :func:`occlude_blocks`.

    Args:
        images: as there. boxes: int32 (N, 4), top, left, height, width, on the device of images; cut to the image, and
            an empty one leaves the image alone.
        value, policy, source, source_index, inplace, backend: as there.
        seed, sample_ids: as there; only value="random" draws.

    Raises:
        As :func:`occlude_blocks`.
    """
    _check_images(images, inplace)
    boxes = checks.check_tensor("boxes", boxes)
    if boxes.dtype != torch.int32 or tuple(boxes.shape) != (images.shape[0], 4) or boxes.device != images.device:
        raise ValueError(
            f"boxes must be int32 of shape ({images.shape[0]}, 4) on {images.device}, "
            f"got {boxes.dtype} of shape {tuple(boxes.shape)} on {boxes.device}"
        )
    fill = _check_fill(images, value, policy, source, source_index, inplace)
    seed, boxes = checks.check_seed(seed), boxes.contiguous()
    ids = checks.check_sample_ids(sample_ids, images.shape[0], images.device)
    out = images if inplace else images.detach().clone()
    if backends.resolve_compiled("fill_blocks", images, backend) == "reference":
        ids = torch.arange(images.shape[0], device=images.device) if ids is None else ids
        reference.fill_blocks_(out, boxes, *fill, seed, ids)
    else:
        operators("cpp").fill_blocks_(out, boxes, *fill, seed, ids)
    return _with_gradient(images, out, boxes, policy)


def draw_images(
    n: int,
    p: float,
    *,
    alpha: float = 0.0,
    seed: int,
    per: str = "image",
    sample_ids: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Which of n images :func:`occlude_blocks` gives a guided block with the same p, alpha, seed, per and sample_ids.

    Only these need relevance; pass it with ``index``. With alpha = 0, these are all occluded images.

    Returns:
        bool (n,), on the CPU.

    Raises:
        TypeError, ValueError: as :func:`occlude_blocks`.
    """
    checks.check_size("n", n)
    p, alpha = checks.check_probability("p", p), checks.check_probability("alpha", alpha)
    seed = checks.check_seed(seed)
    ids = checks.check_sample_ids(sample_ids, n, torch.device("cpu"))
    ids = torch.arange(n) if ids is None else ids
    checks.check_choice("per", per, PER)
    arguments = (ids, p, alpha, seed, per == "batch")
    if backends.resolve("draw_images", ids, backend, {"cpp": backends.COMPILED_MISSING}) == "reference":
        return reference.draw_images(*arguments)
    return operators("cpp").draw_images(*arguments)


def _with_gradient(images: Tensor, out: Tensor, boxes: Tensor, policy: str) -> Tensor:
    """``out``, with the gradient M to ``images`` where they ask for one."""
    if out is images or not (images.requires_grad and torch.is_grad_enabled()):
        return out
    _, _, height, width = images.shape
    return torch.where(reference.replaced_pixels(boxes, height, width, policy == "keep"), out, images)


def _check_pair(name: str, pair: tuple[float, float], most: float) -> list[float]:
    may = f"a pair of numbers 0 < low <= high{'' if most == math.inf else f' <= {most:g}'}"
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(x, (int, float)) for x in pair):
        raise TypeError(f"{name} must be {may}, got {pair!r}")
    if not 0 < pair[0] <= pair[1] <= most or pair[1] == math.inf:
        raise ValueError(f"{name} must be {may}, got {pair!r}")
    return [float(x) for x in pair]


def _check_images(images: Tensor, inplace: bool) -> None:
    images = checks.check_tensor("images", images)
    if images.dtype not in IMAGE_TYPES:
        raise TypeError(f"images must be uint8, float16, bfloat16, float32 or float64, got {images.dtype}")
    if images.dim() != 4:
        raise ValueError(f"images must have shape (N, C, H, W), got {tuple(images.shape)}")
    if inplace:
        occlusion.check_inplace("images", images)


def _check_relevance(relevance: Tensor | None, index: Tensor | None, images: Tensor) -> Tensor | None:
    if relevance is None:
        if index is not None:
            raise ValueError("index must be None if relevance is None")
        return None
    relevance = occlusion.check_relevance(relevance, "images", images)
    if relevance.dim() not in (3, 4):
        raise ValueError(f"relevance must have shape (M, h, w) or (M, c, h, w), got {tuple(relevance.shape)}")
    count = images.shape[0]
    if index is None and relevance.shape[0] != count:
        raise ValueError(f"relevance must have one row for each of the {count} images, got {relevance.shape[0]}")
    if relevance.shape[0] > 0 and relevance.shape[1:].numel() == 0 and images.shape[2:].numel() > 0:
        raise ValueError(f"relevance must have a cell for each image, got shape {tuple(relevance.shape)}")
    if index is not None:
        checks.check_index("index", index, relevance.shape[0], count)
        if not torch.compiler.is_compiling() and index.device.type == "cpu" and len(index.unique()) < len(index):
            raise ValueError(f"index must hold distinct numbers, got {index.tolist()}")
    return relevance


def _check_fill(
    images: Tensor, value: Value, policy: str, source: Tensor | None, source_index: Tensor | None, inplace: bool
) -> Fill:
    checks.check_choice("policy", policy, POLICIES)
    keep = policy == "keep"
    if source is None:
        if source_index is not None:
            raise ValueError("source_index must be None if source is None")
        if isinstance(value, str) and value == "random":
            return keep, 0.0, None, True, None, None
        return keep, *occlusion.check_value(value, images, images.shape[1], '"random"'), False, None, None
    if not isinstance(value, (int, float)) or value != 0.0:
        raise ValueError("value must be left at 0 if source is given")
    source = checks.check_like("source", source, "images", images)
    least = images.shape[0] if source_index is None else min(images.shape[0], 1)
    if source.dim() != 4 or source.shape[1:] != images.shape[1:] or source.shape[0] < least:
        raise ValueError(
            f"source must have shape {('N', *images.shape[1:])} with at least {least} images, got {tuple(source.shape)}"
        )
    if inplace:
        occlusion.check_apart("source", source, "images", images)
    if source_index is not None:
        checks.check_index("source_index", source_index, images.shape[0], source.shape[0])
        source_index = source_index.to(images.device)
    return keep, 0.0, None, False, source.detach(), source_index


@register_fake("occlude_blocks_")
def _(images, *arguments):
    return images.new_empty((images.shape[0], 4), dtype=torch.int32)


@register_fake("fill_blocks_")
def _(images, boxes, *arguments):
    return None


@register_fake("draw_images")
def _(sample_ids, *arguments):
    return torch.empty_like(sample_ids, dtype=torch.bool)
