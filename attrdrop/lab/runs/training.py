"""One training run of one arm, and measurements of the trained model."""

import abc
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from attrdrop import lrp, metrics
from attrdrop.lab.device import PeakMemory, resolve_device
from attrdrop.lab.errors import InputError
from attrdrop.lab.names import PLAIN
from attrdrop.lab.runs import signatures
from attrdrop.lab.runs.arms import Arm
from attrdrop.lab.runs.splits import warn_unseen
from attrdrop.lab.runs.timing import timed_step
from attrdrop.lab.runs.variants import arm_of, changed

EVAL_BATCH = 128
WATCHED = 64  # examples, after an epoch
WEIGHTS = "weights.pt"
RELEVANCE_OF = "relevance of the true class, named first"


@dataclass(frozen=True)
class Epoch:
    """One epoch; changed is the share of the training data (area, points) that was taken away.

    fitted_loss: on training examples as they are, in evaluation mode. rank_accuracy: of relevance on watched examples;
    None where no masks are known. flipping: mean probability of their class while what is most relevant goes; None
    where it is not measured.
    """

    number: int
    train_loss: float
    fitted_loss: float
    test_loss: float
    test_accuracy: float
    changed: float
    rank_accuracy: float | None
    flipping: float | None
    step_seconds: list[float]


@dataclass(frozen=True)
class Run:
    """One arm at one seed, after its last epoch: no epoch is chosen. loss, calibration_error, brier_score: of the test
    split.

    attributed, reused: shares of the examples; agreement: of kept relevance with what replaced it.
    """

    arm: str
    seed: int
    dev_accuracy: float | None
    test_accuracy: float
    loss: float
    calibration_error: float
    brier_score: float
    attributed: float
    reused: float
    cache_bytes: float
    agreement: float | None
    flipping_auc: dict[str, float]
    flipping: dict[str, list[float]]
    peak_memory_bytes: int | None
    seconds: float
    epochs: list[Epoch]


class ArmTrainer(abc.ABC):
    """Runs (arm, seed) after (arm, seed) on one task."""

    examples: ClassVar[str]
    arms: ClassVar[Mapping[str, type[Arm]]]
    uses: ClassVar[Mapping[str, Collection[str]]]  # which settings tell on an arm
    run_type: ClassVar[type[Run]]
    smaller: ClassVar[str]  # options that say how much is taken away
    measured: ClassVar[int]  # examples, of the trained model
    measured_rule: ClassVar[lrp.Rule]  # the same in all arms, whatever the training used

    def __init__(self, settings: Any, task: Any) -> None:
        self.settings, self.task, self.device = settings, task, resolve_device(settings.device)
        count, classes = len(task.train.labels), len(task.label_names)
        if count < classes:
            raise InputError(f"--train-size: {count} training {self.examples} are fewer than the {classes} classes.")
        if settings.batch_size > count:
            raise InputError(f"--batch-size: {settings.batch_size} is more than the {count} training {self.examples}.")
        self.steps = len(self._batches(torch.arange(count)))
        self.variants = {label: changed(settings, label, self.uses) for label in settings.arms}
        self.watched = task.test if task.dev is None else task.dev
        for part, found in (("training", task.train), ("test", task.test)):
            warn_unseen(found.labels.tolist(), task.label_names, f"{part} {self.examples}")

    @abc.abstractmethod
    def build(self, seed: int) -> nn.Module:
        """The model with its initial weights, the same in all arms at a seed."""

    def check(self) -> None:
        """Attribute two examples, so that what cannot work fails before anything is written."""
        samples = spaced(self.task.train, 2)
        x, y = self.batch(self.task.train, samples)
        model = self.build(self.settings.first_seed).train()
        guided = [own for label, own in self.variants.items() if self.arms[arm_of(label)].is_guided]
        for settings in dict.fromkeys(guided or [self.settings]):
            try:
                self._guided(model, settings)(x, y, samples)
            except (ValueError, TypeError) as error:
                raise InputError(f"{self._given(settings)}: RelDrop cannot work with them: {error}.") from error

    @abc.abstractmethod
    def figures(self, arm: str, model: nn.Module) -> dict[str, bytes]:
        """Figures of a trained model, by file name."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """As transformers does it, else the weights alone: a state dict that `torch.load` reads."""
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(folder)  # type: ignore[operator]
        else:
            torch.save(model.state_dict(), folder / WEIGHTS)

    def rank(self, run: dict[str, Any]) -> tuple[float, ...]:
        """The first seed: no run is chosen by the test split."""
        return (-run["seed"],)

    def facts(self) -> dict[str, Any]:
        """What distinguishes tasks."""
        task = self.task
        return {
            "task": {
                "name": task.name,
                "labels": task.label_names,
                "sizes": {name: len(part.labels) for name, part in self._parts.items()},
                "checksums": [part.checksum() for part in self._parts.values()],
                **self._shape(),
            }
        }

    def work(self, arm: str) -> float:
        """Rough cost of a run in forward passes."""
        tested = len(self.task.test.labels)
        tested += min(tested, len(self.task.train.labels))
        per_epoch = self.steps * self.arms[arm_of(arm)].work + tested / self.settings.batch_size
        return self.settings.epochs * per_epoch

    def trained(
        self,
        arm: str,
        seed: int,
        advance: Callable[[float], None] = lambda work: None,
        epoch: Callable[[str], None] = lambda text: None,
    ) -> tuple[Any, nn.Module]:
        """Train for all epochs, then measure; `advance` is told of work and `epoch` of how each epoch went."""
        settings, labels = changed(self.settings, arm, self.uses), self.task.test.labels
        started, memory = time.perf_counter(), PeakMemory(self.device)
        model = self.build(seed)
        changing = self.arms[arm_of(arm)](model, settings, self.task, seed)
        optimizer = self._optimizer(model)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.epochs * self.steps)
        order = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        epochs: list[Epoch] = []
        told: set[str] = set()
        for number in range(1, settings.epochs + 1):
            losses, seconds, taken = self._train_epoch(number, model, changing, optimizer, schedule, order, advance)
            logits = self.logits(model, self.task.test)
            advance((len(logits) + min(len(logits), len(self.task.train.labels))) / settings.batch_size)
            loss = functional.cross_entropy(logits, labels).item()
            accuracy = float(metrics.top1(logits, labels))
            seen = self._watch(model, settings.measure_every is not None and number % settings.measure_every == 0)
            fitted = self._fitted_loss(model)
            epochs.append(Epoch(number, sum(losses) / len(losses), fitted, loss, accuracy, taken, *seen, seconds))
            if arm_of(arm) != PLAIN:
                signs = signatures.of_run(epochs, settings.epochs, self.smaller)
                for sign in signs.keys() - told:
                    warnings.warn(f"{arm}, seed {seed}, epoch {number}: {signs[sign]}", stacklevel=2)
                told |= signs.keys()
            epoch(
                f"epoch {number} of {settings.epochs}: training loss {epochs[-1].train_loss:.4g}, test accuracy "
                f"{100 * accuracy:.1f} %"
            )
        done = changing.counts()
        dev = None
        if self.task.dev is not None:
            dev = float(metrics.top1(self.logits(model, self.task.dev), self.task.dev.labels))
        run = self.run_type(
            arm=arm,
            seed=seed,
            dev_accuracy=dev,
            test_accuracy=epochs[-1].test_accuracy,
            loss=loss,
            calibration_error=metrics.calibration_error(logits, labels),
            brier_score=metrics.brier_score(logits, labels),
            attributed=done.attributed / done.examples if done.examples else 0.0,
            reused=done.reused / done.examples if done.examples else 0.0,
            cache_bytes=done.cache_bytes,
            agreement=done.agreement,
            peak_memory_bytes=memory.bytes(),
            seconds=time.perf_counter() - started,
            epochs=epochs,
            **self._measure(model, logits),
        )
        return run, model

    @abc.abstractmethod
    def _shape(self) -> dict[str, Any]:
        """What else is a fact of the task: how large an example is."""

    @abc.abstractmethod
    def _guided(self, model: nn.Module, settings: Any) -> Arm:
        """RelDrop that attributes every example."""

    @abc.abstractmethod
    def _given(self, settings: Any) -> str:
        """The options that RelDrop may be unable to work with."""

    @abc.abstractmethod
    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer: ...

    @abc.abstractmethod
    def batch(self, examples: Any, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and labels on the device, augmented where a generator is given."""

    @abc.abstractmethod
    def _measure(self, model: nn.Module, logits: Tensor) -> dict[str, Any]:
        """Fields of the run that need the trained model; logits are those of the test split."""

    @abc.abstractmethod
    def flips(self, x: Tensor) -> dict[str, Any]:
        """How features of such inputs are flipped, as `attrdrop.metrics.flipping_curve` takes it."""

    def objects(self, examples: Any, indices: Tensor) -> Tensor | None:
        """Where the objects of these examples are, None where that is not known."""
        return None

    def _watch(self, model: nn.Module, is_flipped: bool) -> tuple[float | None, float | None]:
        """Rank accuracy, where objects are known, and flipping, where it is asked for, of some watched examples."""
        indices = spaced(self.watched, WATCHED)
        masks = self.objects(self.watched, indices)
        if masks is None and not is_flipped:
            return None, None
        parts = indices.split(self.settings.batch_size)  # so that a step of training needs more memory
        batches = [self.batch(self.watched, part) for part in parts]
        found = [self._relevance(model.eval(), *batch) for batch in batches]
        rank = None if masks is None else rank_accuracy(torch.cat(found), masks)
        if not is_flipped:
            return rank, None
        x, y = (torch.cat(pieces) for pieces in zip(*batches, strict=True))
        flipped = self._flipping(model, x, y, torch.cat(found), ("descending",))
        return rank, flipped["flipping_auc"]["descending"]

    @property
    def _parts(self) -> dict[str, Any]:
        """The splits that are there."""
        parts = {"train": self.task.train, "dev": self.task.dev, "test": self.task.test}
        return {name: part for name, part in parts.items() if part is not None}

    def _train_epoch(
        self,
        number: int,
        model: nn.Module,
        arm: Arm,
        optimizer: torch.optim.Optimizer,
        schedule: Any,
        order: torch.Generator,
        advance: Callable[[float], None],
    ) -> tuple[list[float], list[float], float]:
        """Losses and seconds of the steps, and the share that was taken away."""
        model.train()
        before = arm.counts()
        losses, seconds = [], []
        for indices in self._batches(torch.randperm(len(self.task.train.labels), generator=order)):
            x, target = self.batch(self.task.train, indices, order)

            def loss_of(x: Tensor = x, target: Tensor = target, indices: Tensor = indices) -> Tensor:
                x, target = arm(x, target, indices)
                return functional.cross_entropy(logits_of(model(x)), target)

            loss, passed = timed_step(loss_of, optimizer, self.device, number)
            losses.append(loss)
            seconds.append(passed)
            schedule.step()
            advance(arm.work)
        after = arm.counts()
        return losses, seconds, (after.changed - before.changed) / max(after.units - before.units, 1)

    def _batches(self, order: Tensor) -> list[Tensor]:
        """A last batch of a single example is left out: BatchNorm cannot train on it."""
        batches = list(order.split(self.settings.batch_size))
        return batches[:-1] if len(batches[-1]) == 1 else batches

    def _fitted_loss(self, model: nn.Module) -> float:
        """Of as many training examples as there are test examples."""
        examples = self.task.train.select(spaced(self.task.train, len(self.task.test.labels)))
        return functional.cross_entropy(self.logits(model, examples), examples.labels).item()

    @torch.no_grad()
    def logits(self, model: nn.Module, examples: Any) -> Tensor:
        """Those of a split: float32 (N, classes)."""
        model.eval()
        batches = torch.arange(len(examples.labels)).split(EVAL_BATCH)
        return torch.cat([logits_of(model(self.batch(examples, batch)[0])).float().cpu() for batch in batches])

    def _relevance(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        parts = zip(x.split(EVAL_BATCH), y.split(EVAL_BATCH), strict=True)
        return torch.cat([lrp.relevance(model, a, b, rule=self.measured_rule) for a, b in parts])

    def _flipping(
        self, model: nn.Module, x: Tensor, y: Tensor, relevance: Tensor, orders: tuple[Any, ...]
    ) -> dict[str, Any]:
        """Mean probability of the class while features go, in each order."""
        curves = {
            order: metrics.flipping_curve(
                model, x, y, relevance, order=order, batch_size=EVAL_BATCH, score="probability", output=logits_of,
                **self.flips(x),
            )
            for order in orders
        }  # fmt: skip
        return {
            "flipping_auc": {order: float(curve.auc.mean()) for order, curve in curves.items()},
            "flipping": {"fraction": curves[orders[0]].fractions.tolist()}
            | {order: curve.scores.mean(0).tolist() for order, curve in curves.items()},
        }

    @torch.no_grad()
    def _explained(self, model: nn.Module, indices: Tensor) -> tuple[Tensor, Tensor, list[str]]:
        """Some test examples, their relevance, and what they are and are taken for."""
        names = self.task.label_names
        x, y = self.batch(self.task.test, indices)
        taken = logits_of(model.eval()(x)).argmax(1)
        titles = [
            names[label] if label == other else f"{names[label]}, taken for {names[other]}"
            for label, other in zip(y.tolist(), taken.tolist(), strict=True)
        ]
        return x.cpu(), self._relevance(model, x, y).cpu(), titles


def spaced(examples: Any, count: int) -> Tensor:
    """Evenly spaced indices: sets often come sorted by class."""
    size = len(examples.labels)
    count = min(count, size)
    return torch.arange(count) * size // max(count, 1)


def rank_accuracy(relevance: Tensor, masks: Tensor) -> float | None:
    """Mean over the examples whose object is known; None where it is in none."""
    found = metrics.relevance_rank_accuracy(relevance.cpu(), masks)
    return None if bool(found.isnan().all()) else float(found.nanmean())


def logits_of(output: Any) -> Tensor:
    """A model's output, or the logits in it."""
    return getattr(output, "logits", output)
