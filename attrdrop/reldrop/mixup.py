"""RelMixUp: MixUp whose other image shows most where relevance is highest."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from attrdrop import lrp
from attrdrop._core.checks import check_choice, check_positive_int, is_number
from attrdrop._core.modules import outside_graphs, unwrap
from attrdrop._core.seeds import derive_seed
from attrdrop.ops import draw_images
from attrdrop.reldrop.guided import Attribution, Guided
from attrdrop.reldrop.images import GUIDES, BlockStatistics, partners, soft_labels
from attrdrop.schedules import Schedule


class RelMixUp(Guided):
    """MixUp weighted by relevance: x' = (1 - m) x + m x2, where m is larger where x is more relevant, labels likewise.

    m = 2 (1 - l) r: r is the share of the image's other pixels that are less relevant (equal ones count half), 1/2 in
    mean; l, the larger of a draw of Beta(concentration, concentration) and 1 minus it, is the image's own weight.
    So m is 1 - l in mean, as in MixUp, and never above 1; the label of x2 has the mean of m as its share.

    Args:
        model, rule, target, start, stop_at, unknown, output, every, cache_epochs, warmup, seed: as :class:`RelDrop`.
        num_classes: number of classes of the soft labels.
        p: probability that an image is mixed; a number, or a callable from the step.
        alpha: probability that a mixed image is mixed evenly, m = 1 - l everywhere; likewise. 1 is MixUp.
        concentration: of the Beta distribution, above 0.
        guide: "image": the other image shows where the image itself is most relevant, which hides that; "source": where
            the other image is.

    Raises:
        TypeError, ValueError: an argument is not as said above.
    """

    p: Schedule
    alpha: Schedule

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        p: Schedule = 0.5,
        alpha: Schedule = 0.5,
        concentration: float = 1.0,
        guide: str = "image",
        rule: Attribution | None = None,
        **settings: Any,
    ) -> None:
        rule = lrp.EpsilonPlusFlat() if rule is None else rule
        super().__init__(model, "images", {"p": p, "alpha": alpha}, rule=rule, **settings)
        check_choice("guide", guide, GUIDES)
        check_positive_int("num_classes", num_classes)
        if not is_number(concentration) or not 0 < concentration < float("inf"):
            raise ValueError(f"concentration must be a finite number above 0, got {concentration!r}")
        self.num_classes, self.concentration, self.guide = num_classes, float(concentration), guide

    def statistics(self) -> BlockStatistics:
        """What was mixed on this process since the last reset; area: mean share of the other image. Waits."""
        mixed, share = (0.0, 0.0) if self._sums is None else self._sums.tolist()
        return BlockStatistics(self._seen, int(mixed), self._attributed, share / mixed if mixed else 0.0, self._steps)

    @outside_graphs
    def __call__(
        self, images: Tensor, labels: Tensor, relevance: Tensor | None = None, samples: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mixed images, and soft labels (N, num_classes) in the type of the images for ``cross_entropy``.

        Args:
            images: floating point (N, C, H, W). labels: int64 (N,) in [0, num_classes), which is looked at on the CPU
                only. relevance, samples: as in :class:`RelDrop`, by image.
        """
        self._check_batch(images, labels, "(N, C, H, W)")
        onehot = soft_labels(images, labels, self.num_classes)
        if not unwrap(self.model).training:
            return images, onehot
        (count, _, height, width), device = images.shape, images.device
        visited = self._visited(samples, count)
        p = 0.0 if self._step < self.warmup else self._scheduled("p")
        alpha = self._scheduled("alpha") if self._is_guided(relevance) else 1.0
        seed, ids = self._step_seed(), self._ids(count, "cpu")
        mixed = draw_images(count, p, seed=seed, sample_ids=ids)
        guided = draw_images(count, p, alpha=alpha, seed=seed, sample_ids=ids).nonzero().squeeze(1)
        order = partners(count, self.seed, self._step).to(device, non_blocking=True)
        strength = torch.where(mixed, 1 - self._weights(ids), 0.0).to(device, images.dtype)  # 1 - l
        shares = strength[:, None, None].expand(count, height, width)
        attributed = 0
        if len(guided) and height * width:
            place = guided.to(device, non_blocking=True)
            of = place if self.guide == "image" else order[place]
            if relevance is not None:
                found = relevance[of]
            else:
                if visited is not None:
                    visited = [visited[one] for one in of.tolist()]
                found, attributed = self._relevance(images[of], labels[of], visited)
            rank = _ranks(self._summed(found), height, width).to(images.dtype)
            shares = shares.index_copy(0, place, 2 * strength[place, None, None] * rank)
        share = shares.flatten(1).mean(1) if height * width else strength
        self._count([mixed.sum().to(device), share.sum()], count, attributed)
        out = images + shares[:, None] * (images[order] - images)
        return out, onehot + share[:, None] * (onehot[order] - onehot)

    def _weights(self, ids: Tensor) -> Tensor:
        """l of each sample, float64 on the CPU."""
        numbers = np.random.default_rng(derive_seed(self.seed, self._step, 2))
        draws = numbers.beta(self.concentration, self.concentration, int(ids.max()) + 1 if len(ids) else 0)
        return torch.from_numpy(np.maximum(draws, 1 - draws))[ids]

    def _summed(self, relevance: Tensor) -> Tensor:
        return relevance.float().sum(1) if relevance.dim() == 4 else relevance.float()


def _ranks(maps: Tensor, height: int, width: int) -> Tensor:
    """(M, h, w) -> the share of the other cells that are less relevant, equal ones counted half, (M, height, width)."""
    flat = maps.flatten(1)
    if flat.device.type == "cpu" and not bool(flat.isfinite().all()):
        raise ValueError("relevance must be finite")
    cells = flat.shape[1]
    order = flat.sort(dim=1).values
    smaller, at_most = (torch.searchsorted(order, flat, right=right) for right in (False, True))
    ranks = (smaller + at_most - 1).float() / (2 * (cells - 1)) if cells > 1 else torch.full_like(flat, 0.5)
    ranks = ranks.view_as(maps)
    if ranks.shape[1:] == (height, width):
        return ranks
    return functional.interpolate(ranks[:, None], (height, width), mode="nearest-exact")[:, 0]
