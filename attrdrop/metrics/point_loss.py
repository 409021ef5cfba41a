"""Robustness to the random loss of points: what a model says about clouds with a part missing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from attrdrop._core.checks import check_choice, check_positive_int, check_seed, is_number
from attrdrop._core.maps import check_finite
from attrdrop.metrics._scores import Scores, check_target

MODES = ("remove", "origin")
FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class PointLossCurve(NamedTuple):
    """fractions (S,): share of points lost; scores (N, S): the model's scores there, averaged over repeats."""

    fractions: Tensor
    scores: Tensor

    @property
    def auc(self) -> Tensor:
        """Mean height of each curve, by the trapezoid rule: (N,)."""
        if len(self.fractions) == 1:
            return self.scores.squeeze(1)
        area = torch.trapezoid(self.scores, self.fractions, dim=1)
        return area / (self.fractions[-1] - self.fractions[0])


def point_loss_curve(
    model: nn.Module,
    points: Tensor,
    target: Tensor,
    *,
    fractions: Sequence[float] = FRACTIONS,
    repeats: int = 5,
    mode: Literal["remove", "origin"] = "remove",
    score: Literal["logit", "probability", "accuracy"] = "accuracy",
    batch_size: int | None = None,
    seed: int = 0,
    output: Callable[[Any], Tensor] | None = None,
) -> PointLossCurve:
    """Removes more and more random points of each cloud and follows the model's score of the target.

    Within a repeat, a lost point stays lost. The model runs in eval mode without gradients; each module's training
    flag and the global random state are left as they were.

    Args:
        model: maps clouds to logits (n, classes), if necessary through ``output``.
        points: floating point (N, P, C), finite.
        target: int64 (N,), the class whose score is followed.
        fractions: increasing shares of the points lost, in [0, 1); of P points, floor(fraction * P) are lost.
        repeats: number of draws of the lost points, over which scores are averaged.
        mode: "remove" (clouds become smaller, remaining points keep their order) or "origin" (every channel becomes 0).
        score: "logit", "probability" (after softmax) or "accuracy" (1 where the target is the arg-max).
        batch_size: clouds per call of the model; default, all.
        seed: of the draws, which are the same on every device.
        output: turns what the model returns into logits, such as ``lambda out: out.logits``; by default unchanged.

    Returns:
        Fractions actually lost (S,) and scores (N, S), both float32 (float64 for float64 logits), on the device of the
        points.

    Raises:
        TypeError: an argument has the wrong type. ValueError: a shape does not fit, points are not finite, or an
        argument is out of range; the message names it.
    """
    scored = Scores(model, score, output)
    check_choice("mode", mode, MODES)
    for name, number in (("repeats", repeats), ("batch_size", 1 if batch_size is None else batch_size)):
        check_positive_int(name, number)
    check_finite("points", points)
    if points.dim() != 3 or points.numel() == 0:
        raise ValueError(f"points must have shape (N, P, C), not empty, got {tuple(points.shape)}")
    points, target = points.detach(), check_target(target, points)
    size = points.shape[1]
    lost_counts = [int(fraction * size + 1e-9) for fraction in _check_fractions(fractions)]  # .29 * 100 is 28.999...

    generator = torch.Generator().manual_seed(check_seed(seed))
    draws = []
    with scored.following(points, target):
        for _ in range(repeats):
            ranks = torch.rand(points.shape[:2], generator=generator).argsort(1).argsort(1).to(points.device)
            batches = (tensor.split(batch_size or len(points)) for tensor in (points, ranks, target))
            curves = [
                torch.stack([scored(_without(x, rank < lost, mode), wanted) for lost in lost_counts], 1)
                for x, rank, wanted in zip(*batches, strict=True)
            ]
            draws.append(torch.cat(curves))
    scores = torch.stack(draws).mean(0).to(points.device)
    lost_shares = torch.tensor(lost_counts, dtype=scores.dtype, device=points.device) / size
    return PointLossCurve(lost_shares, scores)


def _without(points: Tensor, lost: Tensor, mode: str) -> Tensor:
    """(n, P, C), bool (n, P) with equally many in each cloud -> (n, fewer, C), or with zeros in their places."""
    if mode == "origin":
        return points.masked_fill(lost[..., None], 0)
    return points[~lost].view(len(points), -1, points.shape[2])


def _check_fractions(fractions: Sequence[float]) -> list[float]:
    values = list(fractions)
    if not all(is_number(value) for value in values):
        raise TypeError(f"fractions must be numbers, got {fractions!r}")
    is_rising = all(a < b for a, b in itertools.pairwise(values))
    if not values or not is_rising or not values[0] >= 0 or not values[-1] < 1:
        raise ValueError(f"fractions must rise within [0, 1), at least one, got {fractions!r}")
    return [float(value) for value in values]
