"""Training on images: models, arms, and measurements of a trained model."""

import dataclasses
import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attrdrop import lrp, metrics
from attrdrop.lab.images.arms import ARM_TYPES
from attrdrop.lab.images.data import Images
from attrdrop.lab.images.models import build
from attrdrop.lab.images.report import OCCLUDED_FIGURE, maps_figure
from attrdrop.lab.images.settings import RELDROP, USES
from attrdrop.lab.runs.arms import Arm
from attrdrop.lab.runs.training import RELEVANCE_OF, ArmTrainer, Run, rank_accuracy, spaced
from attrdrop.plots import images as image_plots

MEASURED = 256  # images, of the trained model
FLIPPING_STEPS, FLIPPING_PATCH = 16, 4
ORDERS: tuple[Literal["descending", "random"], ...] = ("descending", "random")


@dataclass(frozen=True)
class ImageRun(Run):
    """One arm at one seed on images."""

    rank_accuracy: float | None
    channel_gini: float | None


class ImageTrainer(ArmTrainer):
    """Runs (arm, seed) after (arm, seed) on images."""

    examples = "images"
    arms = ARM_TYPES
    uses = USES
    run_type = ImageRun
    smaller = "--max-area or --beta"
    measured = MEASURED
    measured_rule = lrp.EpsilonPlusFlat()

    def build(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        settings, task = self.settings, self.task
        model = build(settings.model, settings.weights, len(task.label_names), task.channels, task.size)
        return model.to(self.device)

    def figures(self, arm: str, model: nn.Module) -> dict[str, bytes]:
        """Relevance on test images, and for RelDrop what the model sees."""
        figure = io.BytesIO()
        images, relevance, titles = self.maps(model)
        image_plots.heat_maps(images, relevance, figure, titles, RELEVANCE_OF)
        figures = {maps_figure(arm): figure.getvalue()}
        if arm == RELDROP:
            figure = io.BytesIO()
            images, titles = self.occluded(model)
            image_plots.contact_sheet(images, figure, titles=titles)
            figures[OCCLUDED_FIGURE] = figure.getvalue()
        return figures

    def maps(self, model: nn.Module, count: int = 8) -> tuple[Tensor, Tensor, list[str]]:
        """Some test images, uint8 (n, C, H, W), their relevance (n, C, H, W), and what they are and are taken for."""
        indices = spaced(self.task.test, count)
        _, relevance, titles = self._explained(model, indices)
        return self.task.test.pixels(indices, "none", None), relevance, titles

    @torch.no_grad()
    def occluded(self, model: nn.Module, count: int = 8) -> tuple[Tensor, list[str]]:
        """Some training images with a guided block, then the same with a random one, in [0, 1], and what they are."""
        indices = spaced(self.task.train, count)
        x, y = self.batch(self.task.train, indices)
        model.train()
        arms = [self._guided(model, self.settings, alpha) for alpha in (0.0, 1.0)]
        shown = torch.cat([arm(x, y, indices)[0].cpu() for arm in arms])
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.task.mean, self.task.std))
        names = [self.task.label_names[label] for label in y.tolist()]
        titles = [f"{name}, {kind} block" for kind in ("guided", "random") for name in names]
        return (shown * std + mean).clamp(0, 1), titles

    def _guided(self, model: nn.Module, settings: Any, alpha: float = 0.0) -> Arm:
        """RelDrop on every image, guided by relevance alone unless alpha says otherwise."""
        own = dataclasses.replace(settings, p=1.0, alpha=alpha, alpha_end=None, cache_epochs=1)
        return ARM_TYPES[RELDROP](model, own, self.task, 0)

    def objects(self, examples: Images, indices: Tensor) -> Tensor | None:
        return examples.objects(indices)

    def flips(self, x: Tensor) -> dict[str, Any]:
        height, width = x.shape[2:]
        patch = max(1, min(FLIPPING_PATCH, height // 4, width // 4))
        return {"steps": min(FLIPPING_STEPS, math.ceil(height / patch) * math.ceil(width / patch)), "patch": patch}

    def _given(self, settings: Any) -> str:
        stop = f", --stop-at {settings.stop_at}" if settings.stop_at is not None else ""
        return f"--model {settings.model}, --rule {settings.rule}{stop}"

    def _shape(self) -> dict[str, Any]:
        return {"pixels": [self.task.channels, *self.task.size]}

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            model.parameters(), lr=self.settings.lr, momentum=0.9, weight_decay=self.settings.weight_decay,
            nesterov=True,
        )  # fmt: skip

    def batch(
        self, examples: Images, indices: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        pixels = examples.pixels(indices, "none" if generator is None else self.task.augment, generator)
        return self.task.normalised(pixels, self.device), examples.labels[indices].to(self.device)

    def _measure(self, model: nn.Module, logits: Tensor) -> dict[str, Any]:
        """On some images of the test split."""
        test = self.task.test
        indices = spaced(test, MEASURED)
        x, y = self.batch(test, indices)
        relevance = self._relevance(model, x, y)
        rank = gini = None
        if (masks := test.objects(indices)) is not None:
            rank = rank_accuracy(relevance, masks)
        if hasattr(model, "stages"):
            last = f"stages.{len(model.stages) - 1}"  # type: ignore[arg-type]
            found = lrp.layer_relevance(model, x, y, [last], rule=lrp.EpsilonPlusFlat())[last]
            gini = float(metrics.gini(metrics.channel_relevance(found)).mean())
        return {
            "rank_accuracy": rank,
            **self._flipping(model, x, y, relevance, ORDERS),
            "channel_gini": gini,
        }
