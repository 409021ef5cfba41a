"""Training on point clouds: models, arms, and measurements of a trained model."""

import io
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attrdrop import lrp, metrics
from attrdrop.lab.points.arms import ARM_TYPES
from attrdrop.lab.points.data import Augmentation, Clouds
from attrdrop.lab.points.report import DROPPED_FIGURE, relevance_figure
from attrdrop.lab.points.settings import RELDROP, USES
from attrdrop.lab.runs.arms import Arm
from attrdrop.lab.runs.training import EVAL_BATCH, RELEVANCE_OF, ArmTrainer, Run, logits_of, spaced
from attrdrop.plots import points as point_plots

MEASURED = 128
FLIPPING_STEPS = 16
LOSS_REPEATS = 3
ORDERS: tuple[Literal["descending", "random", "ascending"], ...] = ("descending", "random", "ascending")


@dataclass(frozen=True)
class PointRun(Run):
    """One arm at one seed on clouds; class_accuracy is the mean over the classes of the test split."""

    class_accuracy: float
    point_loss_auc: float
    point_loss: dict[str, list[float]]


class PointTrainer(ArmTrainer):
    """Runs (arm, seed) after (arm, seed) on clouds."""

    examples = "clouds"
    arms = ARM_TYPES
    uses = USES
    run_type = PointRun
    smaller = "--beta"
    measured = MEASURED
    measured_rule = lrp.EpsilonFlat(1e-6)

    def build(self, seed: int) -> nn.Module:
        from attrdrop import models

        torch.manual_seed(seed)
        name = self.settings.model.replace("-", "_")
        sizes = {"channels": self.task.channels, "width": self.settings.width}
        if name != "pointnet":  # it samples nothing
            sizes["points"] = self.task.points
        return getattr(models, name)(len(self.task.label_names), **sizes).to(self.device)

    def figures(self, arm: str, model: nn.Module) -> dict[str, bytes]:
        """Relevance on test clouds, and for RelDrop the points that it removes."""
        figure = io.BytesIO()
        points, relevance, titles = self.maps(model)
        point_plots.relevance_clouds(points, relevance, figure, titles, RELEVANCE_OF)
        figures = {relevance_figure(arm): figure.getvalue()}
        if arm == RELDROP:
            figure = io.BytesIO()
            points, dropped, titles = self.dropped(model)
            point_plots.dropped_clouds(points, dropped, figure, titles)
            figures[DROPPED_FIGURE] = figure.getvalue()
        return figures

    def maps(self, model: nn.Module, count: int = 8) -> tuple[Tensor, Tensor, list[str]]:
        """Some test clouds (n, P, C), their relevance (n, P, C), and what they are and are taken for."""
        return self._explained(model, spaced(self.task.test, count))

    @torch.no_grad()
    def dropped(self, model: nn.Module, count: int = 8) -> tuple[Tensor, Tensor, list[str]]:
        """Some training clouds (n, P, C), what RelDrop takes away of them, bool (n, P), and what they are."""
        samples = spaced(self.task.train, count)
        x, y = self.batch(self.task.train, samples)
        shown, _ = self._guided(model.train(), self.settings)(x, y, samples)
        return x.cpu(), (shown != x).any(2).cpu(), [self.task.label_names[label] for label in y.tolist()]

    def _guided(self, model: nn.Module, settings: Any) -> Arm:
        return ARM_TYPES[RELDROP](model, settings, self.task, 0)

    def _given(self, settings: Any) -> str:
        return f"--model {settings.model}, --rule {settings.rule}, --points {self.task.points}"

    def _shape(self) -> dict[str, Any]:
        return {"points": [self.task.points, self.task.channels]}

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay)

    def batch(
        self, examples: Clouds, indices: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        augmentation = None if generator is None else Augmentation(self.settings.jitter, self.settings.rotate)
        points = self.task.batch(examples, indices, augmentation, generator)
        return points.to(self.device), examples.labels[indices].to(self.device)

    def flips(self, x: Tensor) -> dict[str, Any]:
        return {"steps": min(FLIPPING_STEPS, x.shape[1])}

    def _measure(self, model: nn.Module, logits: Tensor) -> dict[str, Any]:
        """Accuracy by class on the whole test split; other measures on some of its clouds."""
        test = self.task.test
        x, y = self.batch(test, spaced(test, MEASURED))
        loss = metrics.point_loss_curve(
            model, x, y, repeats=LOSS_REPEATS, score="accuracy", batch_size=EVAL_BATCH, output=logits_of
        )
        return {
            "class_accuracy": class_accuracy(logits, test.labels),
            **self._flipping(model, x, y, self._relevance(model, x, y), ORDERS),
            "point_loss_auc": float(loss.auc.mean()),
            "point_loss": {"fraction": loss.fractions.tolist(), "score": loss.scores.mean(0).tolist()},
        }


def class_accuracy(logits: Tensor, labels: Tensor) -> float:
    """The accuracy within each class that occurs, averaged over classes."""
    is_right = (logits.argmax(1) == labels).float()
    return float(torch.stack([is_right[labels == label].mean() for label in labels.unique()]).mean())
