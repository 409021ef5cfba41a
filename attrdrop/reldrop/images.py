"""RelDrop (relevance-driven input dropout) on images: occludes what the model relies on before it trains on them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attrdrop import lrp
from attrdrop._core.checks import check_choice, check_positive_int
from attrdrop._core.modules import outside_graphs, unwrap
from attrdrop.ops.occlude_blocks import BORDERS, PER, POLICIES, Value, draw_images, fill_blocks, occlude_blocks
from attrdrop.ops.occlude_points import MODES as SELECTIONS
from attrdrop.reldrop.cells import choose_cells, pooled
from attrdrop.reldrop.guided import Attribution, Guided
from attrdrop.schedules import Schedule, check_schedule

MODES = ("block", "pixel", "patch")


@dataclass(frozen=True)
class BlockStatistics:
    """What was actually occluded since the last reset.

    images: all images; occluded: those with a part occluded; attributed: those for which relevance was computed; area:
    mean occluded share of the area, over occluded images; steps: calls in training mode.
    """

    images: int = 0
    occluded: int = 0
    attributed: int = 0
    area: float = 0.0
    steps: int = 0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Shown(NamedTuple):
    """Images that are attributed, with what the caller said of them; image n of a batch stands for number order[n]."""

    images: Tensor
    labels: Tensor | None
    relevance: Tensor | None
    samples: Tensor | None
    order: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        return x if self.order is None else x[self.order]


class OnImages(Guided):
    """What transforms of images share: some images are changed, some of these at random, and how much is counted."""

    p: Schedule
    alpha: Schedule

    def __init__(
        self,
        model: nn.Module,
        *,
        p: Schedule = 0.5,
        alpha: Schedule = 0.5,
        rule: Attribution | None = None,
        **settings: Any,
    ) -> None:
        rule = lrp.EpsilonPlusFlat() if rule is None else rule
        super().__init__(model, "images", {"p": p, "alpha": alpha}, rule=rule, **settings)

    def statistics(self) -> BlockStatistics:
        """What was done on this process since the last reset. Synchronises with the device."""
        changed, area = (0.0, 0.0) if self._sums is None else self._sums.tolist()
        share = area / changed if changed else 0.0
        return BlockStatistics(self._seen, int(changed), self._attributed, share, self._steps)

    def _of_step(self, relevance: Tensor | None) -> tuple[float, float, Tensor | None]:
        """p, alpha, and the relevance that is given, as far as it has a say."""
        p = 0.0 if self._step < self.warmup else self._scheduled("p")
        return (p, self._scheduled("alpha"), relevance) if self._is_guided(relevance) else (p, 1.0, None)

    def _summed(self, relevance: Tensor) -> Tensor:
        return relevance.float().sum(1) if relevance.dim() == 4 else relevance.float()


class Blocks(OnImages):
    """What RelDrop and RelCutMix share: blocks, for which the images that need it are attributed."""

    def __init__(
        self,
        model: nn.Module,
        *,
        scale: tuple[float, float] = (0.02, 0.4),
        ratio: tuple[float, float] = (0.3, 1 / 0.3),
        k_centers: int = 1,
        border: str = "clip",
        per: str = "image",
        patch: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        check_choice("border", border, BORDERS)
        check_choice("per", per, PER)
        if patch is not None:
            check_positive_int("patch", patch)
        self.patch = patch
        self._block: dict[str, Any] = {"scale": scale, "ratio": ratio, "k_centers": k_centers, "border": border}
        self._per = per
        occlude_blocks(torch.zeros(0, 1, 1, 1), p=0.0, seed=0, **self._block)

    def _occlude(self, images: Tensor, shown: Shown, **fill: Any) -> tuple[Tensor, Tensor]:
        """Occluded images and their boxes, around what is relevant in the images shown."""
        count = images.shape[0]
        visited = self._visited(shown.samples, count)
        p, alpha, relevance = self._of_step(shown.relevance)
        if relevance is not None:
            relevance = shown.of(relevance)
        seed = self._step_seed()
        index = None
        attributed = 0
        if relevance is None:
            # Known before any relevance is: images that stay whole, and uniform centres, need none.
            needed = draw_images(count, p, alpha=alpha, seed=seed, per=self._per, sample_ids=self._ids(count, "cpu"))
            index = needed.nonzero().squeeze(1)
            if len(index):
                device_index = index.to(images.device, non_blocking=True)
                chosen = device_index if shown.order is None else shown.order[device_index]
                if visited is not None:
                    visited = [visited[place] for place in chosen.tolist()]
                labels = None if shown.labels is None else shown.labels[chosen]
                relevance, attributed = self._relevance(shown.images[chosen], labels, visited)
                if isinstance(self.rule, lrp.Rule) and relevance.dim() != (4 if visited is None else 3):
                    raise ValueError(f"stop_at must give relevance of shape (N, C, h, w), got {tuple(relevance.shape)}")
            else:
                index = None
        ids = self._ids(count, images.device)
        place: dict[str, Any] = {"p": p, "alpha": alpha, "per": self._per, "index": index, **self._block}
        if self.patch is None:
            images, boxes = occlude_blocks(images, relevance, seed=seed, sample_ids=ids, **place, **fill)
        else:
            boxes = self._boxes_of_patches(images, relevance, seed=seed, sample_ids=ids, **place)
            images = fill_blocks(images, boxes, seed=seed, sample_ids=ids, **fill)
        areas = boxes[:, 2:].prod(1)
        self.occluded = areas > 0
        self._count([self.occluded.sum(), areas.sum() / max(images.shape[2:].numel(), 1)], count, attributed)
        return images, boxes

    def _boxes_of_patches(self, images: Tensor, relevance: Tensor | None, **place: Any) -> Tensor:
        """Boxes of whole patches: blocks of an image whose pixels are the patches."""
        assert self.patch is not None
        height, width = images.shape[2:]
        grid = torch.zeros(
            images.shape[0], 1, -(-height // self.patch), -(-width // self.patch), device=images.device
        )  # fmt: skip
        guide = None if relevance is None else pooled(relevance, height, width, self.patch)
        _, boxes = occlude_blocks(grid, guide, inplace=True, **place)
        boxes = boxes * self.patch
        return torch.cat([boxes[:, :2], torch.minimum(boxes[:, 2:], _from(boxes, height, width))], 1)


def _from(boxes: Tensor, height: int, width: int) -> Tensor:
    """How much of the image there is from each corner on, (N, 2)."""
    return torch.stack([height - boxes[:, 0], width - boxes[:, 1]], 1)


class RelDrop(Blocks):
    """Occludes the most relevant part of some images in a batch, as the last transform before the model.

    ::

        reldrop = attrdrop.RelDrop(model, p=0.5, alpha=0.5)
        for images, labels in loader:  # normalised, on the device
            loss = criterion(model(reldrop(images, labels)), labels)
            loss.backward(); optimizer.step(); optimizer.zero_grad()

    It does nothing while the model is in evaluation mode. The images and those with a uniform centre are drawn before
    any relevance is computed, so only p (1 - alpha) of a batch is attributed.

    Args:
        model: the model being trained; also inside DistributedDataParallel or torch.compile.
        p: probability that an image is occluded; a number, or a callable that takes the step (``attrdrop.schedules``).
        alpha: probability that an occluded image's block is placed uniformly instead of guided; also a number or
            callable. 1: random erasing. With mode="pixel" and "patch", the share of chance in the score, as in
            :class:`RelDropPoints`.
        mode: "block", one block; "pixel", single pixels; "patch", patches of a fixed grid. The latter two drop the
            share beta with the largest scores from each drawn image, and attribute all drawn images if alpha < 1.
        scale, ratio, k_centers, border: for blocks, see :func:`attrdrop.occlude_blocks`.
        beta: for pixels and patches: the share to drop, in [0, 1]; a number or a callable.
        patch: side of the patches in pixels, default 8; patches at the lower and right border are smaller. A patch's
            relevance is its mean. With mode="block", blocks consist of whole patches, as in a ViT (patch=16), around
            the most relevant one; by default of pixels.
        select: "calibrated", exactly the share beta, or "threshold", as in :func:`attrdrop.occlude_points`.
        value: the replacement, see :func:`attrdrop.occlude_blocks`; 0 is the data set's mean after normalisation.
        per: "image", or "batch" to occlude a whole batch or none of it.
        policy: "drop", or "keep" to occlude everything else instead.
        rule: a rule or composite of ``attrdrop.lrp`` (default :func:`attrdrop.lrp.EpsilonPlusFlat`), including
            gradients; "random"; or a callable (model, images, labels) -> relevance (M, h, w) or (M, c, h, w).
        target: "label", the class in labels, or "pred", the predicted one.
        start, stop_at, unknown, output: see :func:`attrdrop.lrp.relevance`. Setting stop_at to a stage of the model
            makes the attribution cheaper and the position of the block coarser.
        every: attribute only in every n-th step; blocks in other steps are uniform. An approximation.
        cache_epochs: attribute a sample only in every n-th epoch (every n-th visit), and reuse its relevance until
            then: an approximation, which ignores crops and flips that change between epochs. Calls then need
            ``samples``; :meth:`cache_statistics` says what it saves and costs, and how well old relevance agrees with
            new. With several processes, each keeps its own cache.
        warmup: number of initial steps that leave images alone.
        inplace: write into the images.
        seed: seed of all draws. They depend only on it, the step and the sample's position in the global batch.

    Raises:
        TypeError, ValueError: an argument is not as said above.
    """

    beta: Schedule

    def __init__(
        self,
        model: nn.Module,
        *,
        mode: str = "block",
        beta: Schedule = 0.15,
        select: str = "calibrated",
        value: Value = 0.0,
        policy: str = "drop",
        inplace: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        check_choice("mode", mode, MODES)
        check_choice("policy", policy, POLICIES)
        check_choice("select", select, SELECTIONS)
        check_schedule("beta", beta)
        self.beta, self.value, self.policy, self.inplace = beta, value, policy, inplace
        self._side = {"block": 0, "pixel": 1, "patch": self.patch or 8}[mode]
        self._select = select

    @outside_graphs
    def __call__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        relevance: Tensor | None = None,
        samples: Tensor | None = None,
    ) -> Tensor:
        """The batch with some images occluded.

        Args:
            images: (N, C, H, W), as the model takes them.
            labels: int64 (N,), for target="label".
            relevance: (N, h, w) or (N, c, h, w), used instead of the model's own.
            samples: int64 (N,), the images' indices in the data set, for cache_epochs; best on the CPU.

        Raises:
            TypeError, ValueError: as the classes and functions named above; images are then unchanged.
        """
        self._check_batch(images, labels, "(N, C, H, W)")
        if not unwrap(self.model).training:
            return images
        with self._among_all(images, labels):
            if self._side:
                return self._occlude_cells(images, labels, relevance, samples)
            fill: dict[str, Any] = {"value": self.value, "policy": self.policy, "inplace": self.inplace}
            return self._occlude(images, Shown(images, labels, relevance, samples), **fill)[0]

    def _occlude_cells(
        self, images: Tensor, labels: Tensor | None, relevance: Tensor | None, samples: Tensor | None
    ) -> Tensor:
        """Occluded images, by pixels or patches."""
        (count, _, height, width), device = images.shape, images.device
        visited = self._visited(samples, count)
        p, alpha, relevance = self._of_step(relevance)
        beta = self._scheduled("beta")
        seed, ids = self._step_seed(), self._ids(count, "cpu")
        index = draw_images(count, p, seed=seed, per=self._per, sample_ids=ids).nonzero().squeeze(1)
        self.occluded = torch.zeros(count, dtype=torch.bool, device=device)
        if not (len(index) and height * width):
            self._count([torch.zeros((), device=device)] * 2, count, 0)
            return images
        place, attributed = index.to(device, non_blocking=True), 0
        drawn = images[place]
        if relevance is not None:
            relevance = relevance[place]
        elif alpha < 1 and beta > 0:
            if visited is not None:
                visited = [visited[one] for one in index.tolist()]
            relevance, attributed = self._relevance(drawn, None if labels is None else labels[place], visited)
        mask = choose_cells(
            drawn, relevance, self._side, alpha=alpha, beta=beta, select=self._select, seed=seed, sample_ids=ids[index]
        )
        shares = mask.float().mean((1, 2, 3))
        whole = torch.tensor([[0, 0, height, width]], dtype=torch.int32).expand(len(index), 4).contiguous()
        filling = fill_blocks(
            drawn.detach(), whole.to(device, non_blocking=True), value=self.value, seed=seed, sample_ids=ids[index]
        )
        occluded = torch.where(mask if self.policy == "drop" else ~mask, filling, drawn)
        self.occluded[place] = shares > 0
        self._count([self.occluded.sum(), shares.sum()], count, attributed)
        if self.inplace:
            return images.index_copy_(0, place, occluded)
        return images.index_copy(0, place, occluded)
