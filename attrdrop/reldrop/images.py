"""RelDrop (relevance-driven input dropout) on images: occludes what the model relies on before it trains on them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop import lrp
from attrdrop._core.checks import check_choice, check_positive_int
from attrdrop._core.modules import outside_graphs, unwrap
from attrdrop._core.seeds import derive_seed
from attrdrop.ops.occlude_blocks import BORDERS, PER, POLICIES, Value, draw_images, occlude_blocks
from attrdrop.reldrop.guided import Attribution, Guided
from attrdrop.schedules import Schedule

GUIDES = ("image", "source")


@dataclass(frozen=True)
class BlockStatistics:
    """What was really occluded since the last reset.

    images: seen; occluded: those with a block; attributed: those that relevance was computed for; area: mean share of
    the image's area inside the block, over the occluded ones; steps: calls in training mode.
    """

    images: int = 0
    occluded: int = 0
    attributed: int = 0
    area: float = 0.0
    steps: int = 0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class _Blocks(Guided):
    """What RelDrop and RelCutMix share: blocks, for which the images that need it are attributed."""

    p: Schedule
    alpha: Schedule

    def __init__(
        self,
        model: nn.Module,
        *,
        p: Schedule = 0.5,
        alpha: Schedule = 0.5,
        scale: tuple[float, float] = (0.02, 0.4),
        ratio: tuple[float, float] = (0.3, 1 / 0.3),
        k_centers: int = 1,
        border: str = "clip",
        per: str = "image",
        rule: Attribution | None = None,
        **settings: Any,
    ) -> None:
        rule = lrp.EpsilonPlusFlat() if rule is None else rule
        super().__init__(model, "images", {"p": p, "alpha": alpha}, rule=rule, **settings)
        check_choice("border", border, BORDERS)
        check_choice("per", per, PER)
        self._block: dict[str, Any] = {"scale": scale, "ratio": ratio, "k_centers": k_centers, "border": border}
        self._per = per
        occlude_blocks(torch.zeros(0, 1, 1, 1), p=0.0, seed=0, **self._block)

    def statistics(self) -> BlockStatistics:
        """What was occluded on this process since the last reset. Waits for the device."""
        occluded, area = (0.0, 0.0) if self._sums is None else self._sums.tolist()
        share = area / occluded if occluded else 0.0
        return BlockStatistics(self._seen, int(occluded), self._attributed, share, self._steps)

    def _occlude(
        self,
        images: Tensor,
        labels: Tensor | None,
        relevance: Tensor | None,
        partner: Tensor | None = None,
        **fill: Any,
    ) -> tuple[Tensor, Tensor]:
        """Occluded images and their boxes; with partner, image n's relevance is that of image partner[n]."""
        count = images.shape[0]
        p = 0.0 if self._step < self.warmup else self._scheduled("p")
        alpha = self._scheduled("alpha")
        if not self._is_guided(relevance):
            alpha, relevance = 1.0, None
        seed = self._step_seed()
        index = None
        attributed = 0
        if relevance is None:
            # Known before any relevance is: images that stay whole, and uniform centres, need none.
            needed = draw_images(count, p, alpha=alpha, seed=seed, per=self._per, sample_ids=self._ids(count, "cpu"))
            index = needed.nonzero().squeeze(1)
            attributed = len(index)
            if attributed:
                device_index = index.to(images.device, non_blocking=True)
                chosen = device_index if partner is None else partner[device_index]
                relevance = self._relevance(images[chosen], None if labels is None else labels[chosen])
                if isinstance(self.rule, lrp.Rule) and relevance.dim() != 4:
                    raise ValueError(f"stop_at must give relevance of shape (N, C, h, w), got {tuple(relevance.shape)}")
            else:
                index = None
        images, boxes = occlude_blocks(
            images, relevance, p=p, alpha=alpha, per=self._per, seed=seed, index=index,
            sample_ids=self._ids(count, images.device), **self._block, **fill,
        )  # fmt: skip
        areas = boxes[:, 2:].prod(1)
        self._count([(areas > 0).sum(), areas.sum() / max(images.shape[2:].numel(), 1)], count, attributed)
        return images, boxes


class RelDrop(_Blocks):
    """Occludes the most relevant block of some of a batch's images, as a transform: the last step before the model.

    ::

        reldrop = attrdrop.RelDrop(model, p=0.5, alpha=0.5)
        for images, labels in loader:  # normalised, on the device
            loss = criterion(model(reldrop(images, labels)), labels)
            loss.backward(); optimizer.step(); optimizer.zero_grad()

    In evaluation mode of the model it does nothing. Which images are drawn, and which of them get a uniform centre, is
    known before any relevance is computed, so only p (1 - alpha) of a batch is attributed.

    Args:
        model: the model that is trained; also inside DistributedDataParallel or torch.compile.
        p: probability that an image is occluded; a number, or a callable from the step (``attrdrop.schedules``).
        alpha: probability that an occluded image's block is uniform instead of guided; likewise. 1: random erasing.
        scale, ratio, k_centers, border: see :func:`attrdrop.occlude_blocks`.
        value: what blocks are filled with, see there; 0 is the data set's mean after normalisation.
        per: "image", or "batch" to occlude a whole batch or none of it.
        policy: "drop", or "keep" to occlude everything but the block.
        rule: a rule or composite of ``attrdrop.lrp`` (default :func:`attrdrop.lrp.EpsilonPlusFlat`), gradients among
            them; "random"; or a callable (model, images, labels) -> relevance (M, h, w) or (M, c, h, w).
        target: "label", the class in labels, or "pred", the predicted one.
        start, stop_at, unknown, output: see :func:`attrdrop.lrp.relevance`. stop_at a stage of the model makes the
            attribution cheaper and the place of the block coarser.
        every: attribute in every n-th step only; blocks of the other steps are uniform. An approximation.
        warmup: steps at the beginning that leave images alone.
        inplace: write into the images.
        seed: seed of all draws. They depend on it, the step and the sample's place in the global batch alone.

    Raises:
        TypeError, ValueError: an argument is not as said above.
    """

    def __init__(
        self, model: nn.Module, *, value: Value = 0.0, policy: str = "drop", inplace: bool = False, **settings: Any
    ) -> None:
        super().__init__(model, **settings)
        check_choice("policy", policy, POLICIES)
        self.value, self.policy, self.inplace = value, policy, inplace

    @outside_graphs
    def __call__(self, images: Tensor, labels: Tensor | None = None, relevance: Tensor | None = None) -> Tensor:
        """The batch with blocks occluded.

        Args:
            images: (N, C, H, W), as the model takes them.
            labels: int64 (N,), for target="label".
            relevance: (N, h, w) or (N, c, h, w), to be used instead of the model's own.

        Raises:
            TypeError, ValueError: as the classes and functions named above; images are then as they were.
        """
        self._check_batch(images, labels, "(N, C, H, W)")
        if not unwrap(self.model).training:
            return images
        fill: dict[str, Any] = {"value": self.value, "policy": self.policy, "inplace": self.inplace}
        return self._occlude(images, labels, relevance, **fill)[0]


class RelCutMix(_Blocks):
    """CutMix whose block covers what is most relevant: pixels come from another image, labels mix by area.

    Args:
        model, and all but value and policy: as :class:`RelDrop`; alpha=1 is CutMix with a uniform centre.
        num_classes: number of classes of the soft labels.
        guide: "image": the block covers the most relevant part of the image that it is pasted into; "source": it shows
            the most relevant part of the image that it is cut from.
    """

    def __init__(self, model: nn.Module, num_classes: int, *, guide: str = "image", **settings: Any) -> None:
        super().__init__(model, **settings)
        check_choice("guide", guide, GUIDES)
        check_positive_int("num_classes", num_classes)
        self.num_classes, self.guide = num_classes, guide

    @outside_graphs
    def __call__(self, images: Tensor, labels: Tensor, relevance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mixed images, and soft labels (N, num_classes) in the type of the images for ``cross_entropy``.

        Args:
            images: floating point (N, C, H, W). labels: int64 (N,) in [0, num_classes), which is looked at on the CPU
                only. relevance: as in :class:`RelDrop`, by image.
        """
        self._check_batch(images, labels, "(N, C, H, W)")
        if labels is None:
            raise ValueError("labels are needed for mixing them, got None")
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point, in whose type labels are mixed, got {images.dtype}")
        if labels.device.type == "cpu" and labels.numel():
            low, high = map(int, labels.aminmax())
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"labels must lie in [0, {self.num_classes}), the classes to mix, got {low if low < 0 else high}"
                )
        onehot = (labels[:, None] == torch.arange(self.num_classes, device=labels.device)).to(images.dtype)
        if not unwrap(self.model).training:
            return images, onehot
        count, (height, width) = images.shape[0], images.shape[2:]
        order = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(self.seed, self._step, 1)))
        order = order.to(images.device, non_blocking=True)
        partner = order if self.guide == "source" else None
        if relevance is not None and partner is not None:
            relevance = relevance[partner]
        mixed, boxes = self._occlude(images, labels, relevance, partner, source=images, source_index=order)
        share = (boxes[:, 2:].prod(1) / max(height * width, 1)).to(images.dtype)[:, None]
        return mixed, (1 - share) * onehot + share * onehot[order]
