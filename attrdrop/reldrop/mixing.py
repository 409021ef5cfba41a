"""RelCutMix and RelMixUp: another image replaces what is relevant, and labels mix in proportion."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from attrdrop._core.checks import check_choice, check_positive_int, is_number
from attrdrop._core.distributed import rows_of_all
from attrdrop._core.modules import outside_graphs, unwrap
from attrdrop._core.seeds import derive_seed
from attrdrop.ops import draw_images
from attrdrop.reldrop.images import Blocks, OnImages, Shown

GUIDES = ("image", "source")


class Mixing(OnImages):
    """What both share: images have partners, and labels are soft."""

    def __init__(self, model: nn.Module, num_classes: int, *, guide: str = "image", **settings: Any) -> None:
        super().__init__(model, **settings)
        check_choice("guide", guide, GUIDES)
        check_positive_int("num_classes", num_classes)
        self.num_classes, self.guide = num_classes, guide

    @outside_graphs
    def __call__(
        self, images: Tensor, labels: Tensor, relevance: Tensor | None = None, samples: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mixed images, and soft labels (N, num_classes) in the type of the images for ``cross_entropy``.

        Args:
            images: floating point (N, C, H, W). labels: int64 (N,) in [0, num_classes), checked only on the CPU.
                relevance, samples: as in :class:`RelDrop`, by image.
        """
        self._check_batch(images, labels, "(N, C, H, W)")
        onehot = soft_labels(images, labels, self.num_classes)
        if not unwrap(self.model).training:
            return images, onehot
        with self._among_all(images, labels):
            own = Shown(images, labels, relevance, samples)
            others = self._others(own)
            mixed, share = self._mixed(own, others)
        theirs = soft_labels(images, others.labels, self.num_classes)[others.order]
        return mixed, onehot + share[:, None] * (theirs - onehot)

    def _others(self, own: Shown) -> Shown:
        """Whom the images are mixed with, wherever these are."""
        order = partners(sum(self._held), self.seed, self._step)
        if len(self._held) == 1:
            return own._replace(order=order.to(own.images.device, non_blocking=True))
        rows = order.tolist()
        others = {name: rows_of_all(x, self._held, rows) for name, x in own._asdict().items() if x is not None}
        return own._replace(**others | {"order": torch.arange(len(own.images), device=own.images.device)})

    def _mixed(self, own: Shown, others: Shown) -> tuple[Tensor, Tensor]:
        """Images, and the share (N,) that its other has in each."""
        raise NotImplementedError


class RelCutMix(Mixing, Blocks):
    """CutMix whose block covers the most relevant part: pixels come from another image, labels mix by area.

    Args:
        model, and all but value and policy: as in :class:`RelDrop`; alpha=1 is CutMix with a uniform centre.
        num_classes: number of classes of the soft labels.
        guide: "image": the block covers the most relevant part of the image that it is pasted into; "source": it shows
            the most relevant part of the image that it is cut from.
    """

    def _mixed(self, own: Shown, others: Shown) -> tuple[Tensor, Tensor]:
        images, shown = own.images, others if self.guide == "source" else own
        mixed, boxes = self._occlude(images, shown, source=others.images, source_index=others.order)
        return mixed, (boxes[:, 2:].prod(1) / max(images.shape[2:].numel(), 1)).to(images.dtype)


class RelMixUp(Mixing):
    """MixUp weighted by relevance: x' = (1 - m) x + m x2, with m larger where x is more relevant.

    m = 2 (1 - l) r: r is the share of the image's other pixels that are less relevant (equal ones count half), with a
    mean of 1/2; l, the larger of a draw from Beta(concentration, concentration) and 1 minus it, is the image's own
    weight. So the mean of m is 1 - l, as in MixUp, and m never exceeds 1; the label of x2 gets the mean of m as its
    share.

    Args:
        model, rule, target, start, stop_at, unknown, output, every, cache_epochs, warmup, seed: as in :class:`RelDrop`.
        num_classes: number of classes of the soft labels.
        p: probability that an image is mixed; a number, or a callable that takes the step.
        alpha: probability that a mixed image is mixed evenly, m = 1 - l everywhere; also a number or callable. 1 is
            MixUp.
        concentration: parameter of the Beta distribution, above 0.
        guide: "image": the other image shows where the first image is most relevant, and hides that part; "source":
            where the other image is most relevant.

    Raises:
        TypeError, ValueError: an argument is not as said above.
    """

    def __init__(self, model: nn.Module, num_classes: int, *, concentration: float = 1.0, **settings: Any) -> None:
        super().__init__(model, num_classes, **settings)
        if not is_number(concentration) or not 0 < concentration < float("inf"):
            raise ValueError(f"concentration must be a finite number above 0, got {concentration!r}")
        self.concentration = float(concentration)

    def _mixed(self, own: Shown, others: Shown) -> tuple[Tensor, Tensor]:
        images, shown = own.images, others if self.guide == "source" else own
        (count, _, height, width), device = images.shape, images.device
        visited = self._visited(shown.samples, count)
        p, alpha, relevance = self._of_step(shown.relevance)
        seed, ids = self._step_seed(), self._ids(count, "cpu")
        mixed = draw_images(count, p, seed=seed, sample_ids=ids)
        guided = draw_images(count, p, alpha=alpha, seed=seed, sample_ids=ids).nonzero().squeeze(1)
        strength = torch.where(mixed, 1 - self._weights(ids), 0.0).to(device, images.dtype)  # 1 - l
        shares = strength[:, None, None].expand(count, height, width)
        attributed = 0
        if len(guided) and height * width:
            place = guided.to(device, non_blocking=True)
            of = place if shown.order is None else shown.order[place]
            if relevance is not None:
                found = relevance[of]
            else:
                if visited is not None:
                    visited = [visited[one] for one in of.tolist()]
                labels = None if shown.labels is None else shown.labels[of]
                found, attributed = self._relevance(shown.images[of], labels, visited)
            rank = _ranks(self._summed(found), height, width).to(images.dtype)
            shares = shares.index_copy(0, place, 2 * strength[place, None, None] * rank)
        share = shares.flatten(1).mean(1) if height * width else strength
        self._count([mixed.sum().to(device), share.sum()], count, attributed)
        return images + shares[:, None] * (others.of(others.images) - images), share

    def _weights(self, ids: Tensor) -> Tensor:
        """l of each sample, float64 on the CPU."""
        numbers = np.random.default_rng(derive_seed(self.seed, self._step, 2))
        draws = numbers.beta(self.concentration, self.concentration, int(ids.max()) + 1 if len(ids) else 0)
        return torch.from_numpy(np.maximum(draws, 1 - draws))[ids]


def soft_labels(images: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """(N, classes), all of each sample's share with its class, in the type of the images."""
    if labels is None:
        raise ValueError("labels are needed for mixing, got None")
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point, in whose type labels are mixed, got {images.dtype}")
    if labels.device.type == "cpu" and labels.numel():
        low, high = map(int, labels.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"labels must lie in [0, {classes}), the classes to mix, got {low if low < 0 else high}")
    return (labels[:, None] == torch.arange(classes, device=labels.device)).to(images.dtype)


def partners(count: int, seed: int, step: int) -> Tensor:
    """Which sample of a batch each one is mixed with, int64 (N,), on the CPU."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, step, 1)))


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
