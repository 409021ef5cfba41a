"""Pixel and point flipping: what a model says while its most relevant features are removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from attrdrop._core.checks import check_choice, check_positive_int, check_seed, check_tensor, is_number
from attrdrop._core.maps import pixel_relevance, point_relevance
from attrdrop.metrics._scores import Scores, check_target

ORDERS = ("descending", "ascending", "random")


class FlippingCurve(NamedTuple):
    """fractions (S + 1,): share of features flipped, from 0 to 1; scores (N, S + 1): the model's scores there."""

    fractions: Tensor
    scores: Tensor

    @property
    def auc(self) -> Tensor:
        """Area under each curve over the fraction, by the trapezoid rule: (N,)."""
        return torch.trapezoid(self.scores, self.fractions, dim=1)


def flipping_curve(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    relevance: Tensor,
    *,
    steps: int = 20,
    order: Literal["descending", "ascending", "random"] = "descending",
    value: float | Tensor | Literal["mean"] = 0.0,
    patch: int = 1,
    batch_size: int | None = None,
    score: Literal["logit", "probability", "accuracy"] = "logit",
    seed: int = 0,
    output: Callable[[Any], Tensor] | None = None,
) -> FlippingCurve:
    """Replaces features step by step in the order of their relevance and follows the model's score of the target.

    Bach et al. (2015), "On pixel-wise explanations", with the areas of Samek et al. (2017). The model runs in eval mode
    without gradients; each module's training flag and the global random state are left as they were.

    Args:
        model: maps a batch of inputs to logits (n, classes), if necessary through ``output``.
        inputs: floating point; images (N, C, H, W), whose features are squares of pixels, or point clouds (N, P, C),
            whose features are points.
        target: int64 (N,), the class whose score is followed.
        relevance: floating point; (N, H, W) or (N, C, H, W) for images (summed with its sign over channels and each
            square), (N, P) or (N, P, C) for clouds (summed over channels). Ties go to the lower index.
        steps: number of steps S, at most one per feature; after step s, floor(s / S * features) are flipped.
        order: "descending" (most relevant first), "ascending", or "random", which ignores relevance.
        value: what a flipped feature becomes: a number, a (C,) tensor, or "mean", each sample's own mean per channel.
        patch: side of the squares in pixels; squares at the right and lower border may be smaller.
        batch_size: samples per call of the model; default, all.
        score: "logit", "probability" (after softmax) or "accuracy" (1 where the target is the arg-max).
        seed: of the random order, which is the same on every device.
        output: turns what the model returns into logits, such as ``lambda out: out.logits``; by default unchanged.

    Returns:
        Fractions (S + 1,) and scores (N, S + 1), both float32 (float64 for float64 logits), on the device of the
        inputs.

    Raises:
        TypeError: an argument has the wrong type. ValueError: a shape does not fit, relevance is not finite, or an
        argument is out of range; the message names it.
    """
    scored = Scores(model, score, output)
    check_choice("order", order, ORDERS)
    for name, number in (("steps", steps), ("patch", patch), ("batch_size", 1 if batch_size is None else batch_size)):
        check_positive_int(name, number)
    inputs = _check_inputs(inputs)
    target = check_target(target, inputs)
    features = _Features(inputs, patch)
    ranks = _ranks(features.relevance(relevance), order, seed)
    replacement = _replacement(value, inputs)

    count = ranks.shape[1]
    steps = min(steps, count)
    flipped_counts = [step * count // steps for step in range(steps + 1)]
    batches = (tensor.split(batch_size or len(inputs)) for tensor in (inputs, replacement, ranks, target))
    curves: list[Tensor] = []
    with scored.following(inputs, target):
        for x, fill, rank, wanted in zip(*batches, strict=True):
            steps_of_batch = [
                scored(torch.where(features.spread(rank < flipped), fill, x), wanted) for flipped in flipped_counts
            ]
            curves.append(torch.stack(steps_of_batch, 1))
    scores = torch.cat(curves).to(inputs.device)
    fractions = torch.tensor(flipped_counts, dtype=scores.dtype, device=inputs.device) / count
    return FlippingCurve(fractions, scores)


class _Features:
    """What is flipped as one: squares of pixels in (N, C, H, W), points in (N, P, C)."""

    def __init__(self, inputs: Tensor, patch: int):
        self.is_image = inputs.dim() == 4
        if patch != 1 and not self.is_image:
            raise ValueError(f"patch must be 1 for point clouds, got {patch}")
        self.patch = patch
        self.batch = len(inputs)
        self.sizes = tuple(inputs.shape[2:] if self.is_image else inputs.shape[1:2])  # (H, W) or (P,)
        self.grid = tuple(-(-size // patch) for size in self.sizes)
        self.device = inputs.device

    def relevance(self, relevance: Tensor) -> Tensor:
        """(N, H, W), (N, C, H, W), (N, P) or (N, P, C) -> (N, features)."""
        per_place = pixel_relevance(relevance) if self.is_image else point_relevance(relevance)
        if tuple(per_place.shape) != (self.batch, *self.sizes):
            shapes = "(N, H, W) or (N, C, H, W)" if self.is_image else "(N, P) or (N, P, C)"
            raise ValueError(
                f"relevance must have shape {shapes} for N and size = {(self.batch, *self.sizes)}, "
                f"got {tuple(relevance.shape)}"
            )
        per_place = per_place.to(self.device)
        if not self.is_image:
            return per_place
        (height, width), (rows, cols), patch = self.sizes, self.grid, self.patch
        padded = functional.pad(per_place, (0, cols * patch - width, 0, rows * patch - height))
        return padded.unflatten(2, (cols, patch)).unflatten(1, (rows, patch)).sum((2, 4)).flatten(1)

    def spread(self, flipped: Tensor) -> Tensor:
        """bool (n, features) -> bool that broadcasts to the inputs, (n, 1, H, W) or (n, P, 1)."""
        if not self.is_image:
            return flipped[..., None]
        height, width = self.sizes
        squares = flipped.unflatten(1, self.grid)
        pixels = squares.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)
        return pixels[:, None, :height, :width]


def _ranks(relevance: Tensor, order: str, seed: int) -> Tensor:
    """(N, features) -> the step of each feature in the order, from 0: int64 (N, features)."""
    seed = check_seed(seed)
    if order == "random":
        relevance = torch.rand(relevance.shape, generator=torch.Generator().manual_seed(seed)).to(relevance.device)
    return relevance.argsort(dim=1, descending=order == "descending", stable=True).argsort(dim=1)


def _replacement(value: object, inputs: Tensor) -> Tensor:
    """What flipped features become, (N, C, 1, 1) or (N, 1, C)."""
    is_image = inputs.dim() == 4
    channels = inputs.shape[1 if is_image else 2]
    if isinstance(value, str):
        if value != "mean":
            raise ValueError(f'value must be a number, a tensor or "mean", got {value!r}')
        return inputs.mean((2, 3) if is_image else 1, keepdim=True)
    if is_number(value):
        value = inputs.new_full((channels,), float(value))
    if not isinstance(value, Tensor):
        raise TypeError(f'value must be a number, a tensor or "mean", got {type(value).__name__}')
    if tuple(value.shape) != (channels,):
        raise ValueError(f"value must have shape (C,) = ({channels},), got {tuple(value.shape)}")
    row = value.to(inputs).view((1, channels, 1, 1) if is_image else (1, 1, channels))
    return row.expand(len(inputs), *row.shape[1:])


def _check_inputs(inputs: object) -> Tensor:
    tensor = check_tensor("inputs", inputs)
    if not tensor.is_floating_point():
        raise TypeError(f"inputs must be a floating-point tensor, got {tensor.dtype}")
    if tensor.dim() not in (3, 4) or tensor.numel() == 0:
        raise ValueError(
            f"inputs must be images (N, C, H, W) or point clouds (N, P, C), not empty, got shape {tuple(tensor.shape)}"
        )
    return tensor.detach()
