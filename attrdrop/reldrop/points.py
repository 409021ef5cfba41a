"""RelDrop (relevance-driven input dropout) on point clouds: drops points that the model relies on before it trains."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop import lrp
from attrdrop._core.modules import outside_graphs, unwrap
from attrdrop.ops.occlude_points import Value, occlude_points
from attrdrop.reldrop.guided import Attribution, Guided
from attrdrop.schedules import Schedule

MOST_CHANNELS = 9
"""Of points: coordinates, normals, colours. Clouds of so few points with more channels are taken for transposed."""


@dataclass(frozen=True)
class PointStatistics:
    """What was actually dropped since the last reset.

    clouds: all clouds; points: their points without padding; dropped: dropped points; attributed: clouds for which
    relevance was computed; steps: calls in training mode.
    """

    clouds: int = 0
    points: int = 0
    dropped: int = 0
    attributed: int = 0
    steps: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class RelDropPoints(Guided):
    """Drops relevant points from a batch of clouds, as the last transform before the model.

    ::

        reldrop = attrdrop.RelDropPoints(model, alpha=0.5, beta=0.15)
        for points, labels in loader:  # (N, P, C), augmented, on the device
            loss = criterion(model(reldrop(points, labels)), labels)
            loss.backward(); optimizer.step(); optimizer.zero_grad()

    It does nothing while the model is in evaluation mode.

    Args:
        model: the model being trained, from clouds (N, P, C) to logits; also inside DistributedDataParallel.
        alpha: share of chance in the score by which points are dropped, in [0, 1]; a number, or a callable that takes
            the step (``attrdrop.schedules``). 1: random point dropout without attribution.
        beta: how much is dropped, in [0, 1]; also a number or callable. Mode "calibrated" drops exactly this share.
            Mode "threshold", the rule of the released code, drops less if alpha < 1: about 1 % of the points with the
            default alpha and beta. The released configuration has beta = 0.5.
        mode, norm, value: see :func:`attrdrop.occlude_points`.
        rule: a rule or composite of ``attrdrop.lrp`` (default ``EpsilonFlat(1e-6)``); "random", which is alpha = 1; or
            a callable (model, points, labels) -> relevance (N, P) or (N, P, c).
        target: "label", the class in labels, or "pred", the predicted one.
        start, unknown, output: see :func:`attrdrop.lrp.relevance`; start="contrastive" compares the class with the
            others.
        every: attribute only in every n-th step; the others drop at random, as with alpha = 1. An approximation.
        cache_epochs: attribute a cloud only in every n-th epoch, and reuse its relevance by point until then. An
            approximation, for clouds whose points always come in the same order; see :class:`RelDrop`.
        warmup: number of initial steps that leave clouds alone.
        inplace: write into the points.
        seed: seed of all draws. They depend only on it, the step and the sample's position in the global batch.

    Raises:
        TypeError, ValueError: an argument is not as said above.
    """

    alpha: Schedule
    beta: Schedule

    def __init__(
        self,
        model: nn.Module,
        *,
        alpha: Schedule = 0.5,
        beta: Schedule = 0.15,
        mode: str = "calibrated",
        norm: str | None = None,
        value: Value = "origin",
        rule: Attribution | None = None,
        inplace: bool = False,
        **settings: Any,
    ) -> None:
        rule = lrp.EpsilonFlat(1e-6) if rule is None else rule
        super().__init__(model, "points", {"alpha": alpha, "beta": beta}, rule=rule, **settings)
        self._drop: dict[str, Any] = {"mode": mode, "norm": norm, "value": value, "inplace": inplace}
        if isinstance(value, (str, int, float)):  # how many channels there are is not known yet
            occlude_points(torch.zeros(0, 1, 3), seed=0, **self._drop)

    def statistics(self) -> PointStatistics:
        """What was dropped on this process since the last reset. Synchronises with the device."""
        points, dropped = (0, 0) if self._sums is None else map(int, self._sums.tolist())
        return PointStatistics(self._seen, points, dropped, self._attributed, self._steps)

    @outside_graphs
    def __call__(
        self,
        points: Tensor,
        labels: Tensor | None = None,
        relevance: Tensor | None = None,
        valid: Tensor | None = None,
        samples: Tensor | None = None,
        **arguments: Any,
    ) -> Tensor:
        """The batch with points dropped.

        Args:
            points: (N, P, C), coordinates first, as the model takes them.
            labels: int64 (N,), for target="label".
            relevance: (N, P) or (N, P, c), used instead of the model's own.
            valid: bool (N, P), False for padding. The model gets it too, as keyword ``valid``.
            samples: int64 (N,), the clouds' indices in the data set, for cache_epochs; best on the CPU.
            arguments: further keywords of the model, such as ``neighbours``.

        Raises:
            TypeError, ValueError: as the class and functions named above, or points contain NaN or infinity (checked
                only on the CPU); points are then unchanged.
        """
        self._check_batch(points, labels, "(N, P, C)")
        if points.shape[1] <= MOST_CHANNELS < points.shape[2]:
            raise ValueError(
                f"points must have shape (N, P, C), coordinates last, got {tuple(points.shape)}, which has more "
                "channels than points; pass points.transpose(1, 2)"
            )
        if not unwrap(self.model).training:
            return points
        if points.device.type == "cpu" and not points.isfinite().all():
            raise ValueError("points hold NaN or infinite values")
        arguments = arguments if valid is None else {"valid": valid, **arguments}
        with self._among_all(points, labels, arguments):
            return self._without_some(points, labels, relevance, valid, samples, arguments)

    def _without_some(
        self,
        points: Tensor,
        labels: Tensor | None,
        relevance: Tensor | None,
        valid: Tensor | None,
        samples: Tensor | None,
        arguments: dict[str, Any],
    ) -> Tensor:
        beta = 0.0 if self._step < self.warmup else self._scheduled("beta")
        alpha = self._scheduled("alpha")
        if not self._is_guided(relevance):
            alpha, relevance = 1.0, None
        count, attributed = points.shape[0], 0
        visited = self._visited(samples, count)
        if relevance is None and alpha < 1 and beta > 0 and points.numel():
            relevance, attributed = self._relevance(points, labels, visited, arguments)
        seed, ids = self._step_seed(), self._ids(count, points.device)
        occluded, dropped = occlude_points(
            points, relevance, alpha=alpha, beta=beta, valid=valid, seed=seed, sample_ids=ids, **self._drop
        )
        self.occluded = dropped.any(1)
        there = dropped.new_full((), dropped.numel(), dtype=torch.int64) if valid is None else valid.sum()
        self._count([there, dropped.sum()], count, attributed)
        return occluded

    def _summed(self, relevance: Tensor) -> Tensor:
        return relevance.float().sum(2) if relevance.dim() == 3 else relevance.float()
