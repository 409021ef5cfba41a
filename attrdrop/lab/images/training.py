"""One training run of one arm on images, and what is measured of the trained model."""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

import attrdrop
from attrdrop import lrp, metrics
from attrdrop.lab.device import PeakMemory
from attrdrop.lab.errors import InputError, RunError
from attrdrop.lab.images.data import Images, ImageTask
from attrdrop.lab.images.settings import CUTMIX, ERASING, PLAIN, RELCUTMIX, RELDROP, RULES, ImageSettings
from attrdrop.models import resnet10, resnet18, resnet50

RESNETS: dict[str, Any] = {"resnet10": resnet10, "resnet18": resnet18, "resnet50": resnet50}
EVAL_BATCH, MEASURED = 128, 256
FLIPPING_STEPS, FLIPPING_PATCH = 16, 4
ORDERS: tuple[Literal["descending", "random"], ...] = ("descending", "random")
# Rough cost in forward passes, for the time left.
WORK = {PLAIN: 3.0, ERASING: 3.0, CUTMIX: 3.0, RELDROP: 3.7, RELCUTMIX: 3.7}


@dataclass(frozen=True)
class ImageEpoch:
    """One epoch; erased is the mean share of the area that was replaced, over all images."""

    number: int
    train_loss: float
    test_loss: float
    test_accuracy: float
    erased: float
    step_seconds: list[float]


@dataclass(frozen=True)
class ImageRun:
    """One arm at one seed, after its last epoch: no epoch is chosen."""

    arm: str
    seed: int
    test_accuracy: float
    calibration_error: float
    rank_accuracy: float | None
    flipping_auc: dict[str, float]
    flipping: dict[str, list[float]]
    channel_gini: float | None
    attributed: float
    peak_memory_bytes: int | None
    seconds: float
    epochs: list[ImageEpoch]


class ImageTrainer:
    """Runs (arm, seed) after (arm, seed) on one task."""

    def __init__(self, settings: ImageSettings, task: ImageTask, device: torch.device) -> None:
        self.settings, self.task, self.device = settings, task, device
        images, classes = len(task.train.labels), len(task.label_names)
        if images < classes:
            raise InputError(f"--train-size: {images} training images are fewer than the {classes} classes.")
        if settings.batch_size > images:
            raise InputError(f"--batch-size: {settings.batch_size} is more than the {images} training images.")
        self.steps = len(self._batches(torch.arange(images)))

    def build(self, seed: int) -> nn.Module:
        """The model with its initial weights, the same in all arms at a seed."""
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

    def check(self) -> None:
        """Attribute two images, so that what cannot work fails before anything is written."""
        x, y = self._batch(self.task.train, _spaced(len(self.task.train.labels), 2))
        transform = self._transform(RELDROP, self.build(self.settings.first_seed), 0)
        transform.p, transform.alpha = 1.0, 0.0
        try:
            transform(x, y)
        except (ValueError, TypeError) as error:
            stop = f", --stop-at {self.settings.stop_at}" if self.settings.stop_at is not None else ""
            given = f"--model {self.settings.model}, --rule {self.settings.rule}{stop}"
            raise InputError(f"{given}: RelDrop cannot work with them: {error}.") from error

    def work(self, arm: str) -> float:
        """Rough cost of a run in forward passes."""
        per_epoch = self.steps * WORK[arm] + len(self.task.test.labels) / self.settings.batch_size
        return self.settings.epochs * per_epoch

    def run(
        self, arm: str, seed: int, advance: Callable[[float], None] = lambda work: None
    ) -> tuple[ImageRun, nn.Module]:
        """Train for all epochs, then measure."""
        settings, started, memory = self.settings, time.perf_counter(), PeakMemory(self.device)
        model = self.build(seed)
        transform = None if arm == PLAIN else self._transform(arm, model, seed)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=settings.lr, momentum=0.9, weight_decay=settings.weight_decay, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.epochs * self.steps)
        order = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        epochs = []
        for number in range(1, settings.epochs + 1):
            losses, seconds, erased = self._train_epoch(model, transform, optimizer, schedule, order, arm, advance)
            logits = self._logits(model, self.task.test)
            advance(len(logits) / settings.batch_size)
            loss = functional.cross_entropy(logits, self.task.test.labels).item()
            accuracy = metrics.top1(logits, self.task.test.labels)
            epochs.append(ImageEpoch(number, sum(losses) / len(losses), loss, float(accuracy), erased, seconds))
        statistics = transform.statistics() if transform is not None else attrdrop.BlockStatistics()
        attributed = statistics.attributed / statistics.images if statistics.images else 0.0
        run = ImageRun(
            arm=arm,
            seed=seed,
            test_accuracy=epochs[-1].test_accuracy,
            attributed=attributed,
            peak_memory_bytes=memory.bytes(),
            seconds=time.perf_counter() - started,
            epochs=epochs,
            **self._measure(model, logits),
        )
        return run, model

    @torch.no_grad()
    def maps(self, model: nn.Module, count: int = 8) -> tuple[Tensor, Tensor, list[str]]:
        """Some test images, uint8 (n, C, H, W), their relevance (n, C, H, W), and what they are and are taken for."""
        indices, names = _spaced(len(self.task.test.labels), count), self.task.label_names
        x, y = self._batch(self.task.test, indices)
        taken = _logits_of(model.eval()(x)).argmax(1)
        titles = [
            names[label] if label == other else f"{names[label]}, taken for {names[other]}"
            for label, other in zip(y.tolist(), taken.tolist(), strict=True)
        ]
        return self.task.test.pixels(indices, "none", None), self._relevance(model, x, y).cpu(), titles

    def occluded(self, model: nn.Module, count: int = 16) -> Tensor:
        """Some training images as RelDrop would show them to the model, in [0, 1]."""
        x, y = self._batch(self.task.train, _spaced(len(self.task.train.labels), count))
        transform = self._transform(RELDROP, model.train(), 0)
        transform.p, transform.alpha = 1.0, 0.0
        shown = transform(x, y).cpu()
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.task.mean, self.task.std))
        return (shown * std + mean).clamp(0, 1)

    def _transform(self, arm: str, model: nn.Module, seed: int) -> Any:
        settings = self.settings
        options: dict[str, Any] = {
            "p": settings.p,
            "alpha": settings.alpha if arm in (RELDROP, RELCUTMIX) else 1.0,
            "scale": (settings.min_area, settings.max_area),
            "border": "shift",
            "rule": RULES[settings.rule](),
            "stop_at": settings.stop_at,
            "seed": seed,
        }
        if arm in (CUTMIX, RELCUTMIX):
            return attrdrop.RelCutMix(model, len(self.task.label_names), **options)
        return attrdrop.RelDrop(model, **options)

    def _train_epoch(
        self,
        model: nn.Module,
        transform: Any,
        optimizer: torch.optim.Optimizer,
        schedule: Any,
        order: torch.Generator,
        arm: str,
        advance: Callable[[float], None],
    ) -> tuple[list[float], list[float], float]:
        """Losses and seconds of the steps, and the mean share of the area that was replaced."""
        model.train()
        if transform is not None:
            before = transform.statistics()
        losses, seconds = [], []
        for indices in self._batches(torch.randperm(len(self.task.train.labels), generator=order)):
            x, y = self._batch(self.task.train, indices, self.task.augment, order)
            started = self._clock()
            target = y
            if isinstance(transform, attrdrop.RelCutMix):
                x, target = transform(x, y)
            elif transform is not None:
                x = transform(x, y)
            loss = functional.cross_entropy(_logits_of(model(x)), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(self._clock() - started)
            schedule.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise RunError(f"the training loss became {losses[-1]}; try a smaller --lr.")
            advance(WORK[arm])
        if transform is None:
            return losses, seconds, 0.0
        after = transform.statistics()
        erased = after.area * after.occluded - before.area * before.occluded
        return losses, seconds, erased / max(after.images - before.images, 1)

    def _batches(self, order: Tensor) -> list[Tensor]:
        """A last batch of a single image is left out: BatchNorm cannot train on it."""
        batches = list(order.split(self.settings.batch_size))
        return batches[:-1] if len(batches[-1]) == 1 else batches

    @torch.no_grad()
    def _logits(self, model: nn.Module, images: Images) -> Tensor:
        model.eval()
        batches = torch.arange(len(images.labels)).split(EVAL_BATCH)
        return torch.cat([_logits_of(model(self._batch(images, batch)[0])).float().cpu() for batch in batches])

    def _measure(self, model: nn.Module, logits: Tensor) -> dict[str, Any]:
        """Calibration on the test split; relevance measures on some images of it."""
        test = self.task.test
        indices = _spaced(len(test.labels), MEASURED)
        x, y = self._batch(test, indices)
        relevance = self._relevance(model, x, y)
        height, width = x.shape[2:]
        patch = max(1, min(FLIPPING_PATCH, height // 4, width // 4))
        steps = min(FLIPPING_STEPS, math.ceil(height / patch) * math.ceil(width / patch))
        curves = {
            order: metrics.flipping_curve(
                model, x, y, relevance, steps=steps, order=order, patch=patch,
                batch_size=EVAL_BATCH, score="probability", output=_logits_of,
            )
            for order in ORDERS
        }  # fmt: skip
        rank = gini = None
        if test.masks is not None:
            accuracy = metrics.relevance_rank_accuracy(relevance.cpu(), test.masks[indices])
            rank = float(accuracy.nanmean())
        if hasattr(model, "stages"):
            last = f"stages.{len(model.stages) - 1}"  # type: ignore[arg-type]
            found = lrp.layer_relevance(model, x, y, [last], rule=lrp.EpsilonPlusFlat())[last]
            gini = float(metrics.gini(metrics.channel_relevance(found)).mean())
        return {
            "calibration_error": float(metrics.calibration_error(logits, test.labels)),
            "rank_accuracy": rank,
            "flipping_auc": {order: float(curve.auc.mean()) for order, curve in curves.items()},
            "flipping": {"fraction": curves[ORDERS[0]].fractions.tolist()}
            | {order: curve.scores.mean(0).tolist() for order, curve in curves.items()},
            "channel_gini": gini,
        }

    def _relevance(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The same rule in all arms, whatever the training used."""
        parts = zip(x.split(EVAL_BATCH), y.split(EVAL_BATCH), strict=True)
        return torch.cat([lrp.relevance(model, a, b, rule=lrp.EpsilonPlusFlat()) for a, b in parts])

    def _batch(
        self, images: Images, indices: Tensor, augment: str = "none", generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        pixels = images.pixels(indices, augment, generator)
        return self.task.normalised(pixels, self.device), images.labels[indices].to(self.device)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _spaced(images: int, count: int) -> Tensor:
    """Evenly spaced indices: sets often come sorted by class."""
    count = min(count, images)
    return torch.arange(count) * images // max(count, 1)


def _logits_of(output: Any) -> Tensor:
    return getattr(output, "logits", output)


def as_dict(run: ImageRun) -> dict[str, Any]:
    """A run for a JSON file."""
    return dataclasses.asdict(run)
