"""Training on images: models, arms, and what is measured of a trained model."""

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
from attrdrop.lab.images.report import OCCLUDED_FIGURE, maps_figure
from attrdrop.lab.images.settings import RELDROP
from attrdrop.lab.runs.arms import Arm
from attrdrop.lab.runs.training import RELEVANCE_OF, ArmTrainer, Run, spaced
from attrdrop.models import resnet10, resnet18, resnet50
from attrdrop.plots import images as image_plots

RESNETS: dict[str, Any] = {"resnet10": resnet10, "resnet18": resnet18, "resnet50": resnet50}
MEASURED = 256
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
    run_type = ImageRun
    measured_rule = lrp.EpsilonPlusFlat()

    def build(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        classes, channels, size = len(self.task.label_names), self.task.channels, self.task.size
        shortest = min(size)
        if self.settings.model == "vit-tiny":
            from transformers import ViTConfig, ViTForImageClassification

            sizes: dict[str, Any] = {
                "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768,
                "image_size": size, "patch_size": max(1, shortest // 8), "num_channels": channels,
                "num_labels": classes,
            }  # fmt: skip
            model: nn.Module = ViTForImageClassification(ViTConfig(**sizes))
        else:
            model = RESNETS[self.settings.model](classes, small_images=shortest <= 64, channels=channels)
        return model.to(self.device)

    def figures(self, arm: str, model: nn.Module) -> dict[str, bytes]:
        """Relevance on test images, and for RelDrop what it shows to the model."""
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
        x, y = self._batch(self.task.train, spaced(self.task.train, count))
        model.train()
        shown = torch.cat([arm(x, y)[0].cpu() for arm in (self._guided(model), self._guided(model, alpha=1.0))])
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.task.mean, self.task.std))
        names = [self.task.label_names[label] for label in y.tolist()]
        titles = [f"{name}, {kind} block" for kind in ("guided", "random") for name in names]
        return (shown * std + mean).clamp(0, 1), titles

    def _guided(self, model: nn.Module, alpha: float = 0.0) -> Arm:
        """RelDrop that gives every image a block, a guided one unless alpha says otherwise."""
        return ARM_TYPES[RELDROP](model, dataclasses.replace(self.settings, p=1.0, alpha=alpha), self.task, 0)

    def _given(self) -> str:
        stop = f", --stop-at {self.settings.stop_at}" if self.settings.stop_at is not None else ""
        return f"--model {self.settings.model}, --rule {self.settings.rule}{stop}"

    def _shape(self) -> dict[str, Any]:
        return {"pixels": [self.task.channels, *self.task.size]}

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            model.parameters(), lr=self.settings.lr, momentum=0.9, weight_decay=self.settings.weight_decay,
            nesterov=True,
        )  # fmt: skip

    def _batch(
        self, examples: Images, indices: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        pixels = examples.pixels(indices, "none" if generator is None else self.task.augment, generator)
        return self.task.normalised(pixels, self.device), examples.labels[indices].to(self.device)

    def _measure(self, model: nn.Module, logits: Tensor) -> dict[str, Any]:
        """On some images of the test split."""
        test = self.task.test
        indices = spaced(test, MEASURED)
        x, y = self._batch(test, indices)
        relevance = self._relevance(model, x, y)
        height, width = x.shape[2:]
        patch = max(1, min(FLIPPING_PATCH, height // 4, width // 4))
        steps = min(FLIPPING_STEPS, math.ceil(height / patch) * math.ceil(width / patch))
        rank = gini = None
        if test.masks is not None:
            accuracy = metrics.relevance_rank_accuracy(relevance.cpu(), test.masks[indices])
            rank = float(accuracy.nanmean())
        if hasattr(model, "stages"):
            last = f"stages.{len(model.stages) - 1}"  # type: ignore[arg-type]
            found = lrp.layer_relevance(model, x, y, [last], rule=lrp.EpsilonPlusFlat())[last]
            gini = float(metrics.gini(metrics.channel_relevance(found)).mean())
        return {
            "rank_accuracy": rank,
            **self._flipping(model, x, y, relevance, ORDERS, steps=steps, patch=patch),
            "channel_gini": gini,
        }
