"""One fine-tuning run of one arm: the training loop, early stopping, timings."""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from attrdrop.lab.device import PeakMemory, resolve_device
from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.splits import warn_unseen
from attrdrop.lab.runs.timing import timed_step
from attrdrop.lab.text.evaluation import DELETED, mean_loss, predictions, without_tokens
from attrdrop.lab.text.examples import CLASSIFICATION
from attrdrop.lab.text.kinds import KINDS, Kind, Row
from attrdrop.lab.text.methods import METHODS, Method
from attrdrop.lab.text.models import load_model, load_tokenizer, quiet
from attrdrop.lab.text.settings import Settings
from attrdrop.lab.text.tasks import Examples, Task

MEASURED = 256  # texts of which tokens are deleted


@dataclass(frozen=True)
class Epoch:
    """One epoch; active where the arm did not train plainly, `statistics` what it dropped then.

    train_loss is what was minimised, under dropout and masks; fitted_loss that of training examples without them.
    """

    number: int
    active: bool
    train_loss: float
    fitted_loss: float
    dev_loss: float
    dev_score: float
    step_seconds: list[float]
    statistics: dict[str, Any] | None


@dataclass(frozen=True)
class Run:
    """One arm at one seed. Scores are those of the best epoch on the development split.

    measures: what the task type tells of the reported split, the test split where there is one. deletion_score: on
    some of it, the mean over texts of which a part of the tokens is gone; None where tokens have labels.
    """

    arm: str
    seed: int
    best_epoch: int
    dev_score: float
    test_score: float | None
    other_scores: dict[str, float]
    measures: dict[str, float]
    deletion_score: float | None
    peak_memory_bytes: int | None
    seconds: float
    epochs: list[Epoch] = field(default_factory=list)


class Trainer:
    """Runs (arm, seed) after (arm, seed) on one tokenised task."""

    def __init__(self, settings: Settings, task: Task) -> None:
        quiet()
        self.settings, self.task = settings, task
        self.device = resolve_device(settings.device)
        self.kind = KINDS[task.kind](task, load_tokenizer(settings, task), settings.max_length)
        self.metric_name, self.metric = self.kind.metric(settings.metric or task.metric)
        self.train_rows = self.kind.encode_to_train(task.train)
        self.dev_rows = self.kind.encode(task.dev)
        self.test_rows = self.kind.encode(task.test) if task.test is not None else []
        self.others = {name: (self.kind.on(found), self.kind.encode(found)) for name, found in task.other.items()}
        if task.kind == CLASSIFICATION:
            for name, examples in task.sets.items():
                warn_unseen(examples.labels or [], task.names_of(examples), f"{name} examples")

    def check(self) -> None:
        """Let every arm train on two examples, so that what cannot work fails before anything is written."""
        for arm in self.settings.arms:
            model, method = load_model(arm, self.settings.first_seed, self.settings, self.kind)
            model.train()
            method.start_epoch(2)
            try:
                method(**next(iter(self._loader(self.train_rows[:2], 2))).to(self.device))
            except (ValueError, TypeError, RuntimeError, IndexError) as error:
                raise InputError(f"{arm} cannot work on {self.settings.model}: {error}.") from error

    def batches(self, seed: int) -> Iterator[Any]:
        """Padded training batches on the device, in an order drawn from the seed."""
        return (batch.to(self.device) for batch in self._loader(self.train_rows, self.settings.batch_size, seed))

    def work(self, arm: str) -> float:
        """Rough cost of a run in forward passes."""
        tested = len(self.reported_rows) + sum(len(rows) for _, rows in self.others.values())
        if self.kind.labels_texts:
            tested += len(DELETED) * min(MEASURED, len(self.reported_rows))
        return self._work_from(1, arm) + tested / self.settings.batch_size

    @property
    def reported_rows(self) -> list[Row]:
        """Those of the test split, of the development split where there is none."""
        return self.test_rows or self.dev_rows

    @property
    def watched_rows(self) -> list[Row]:
        """Training examples that are scored after each epoch, as many as development ones."""
        return _spaced(self.train_rows, len(self.dev_rows))

    def facts(self) -> dict[str, Any]:
        """What distinguishes tasks."""
        return {
            "task": {"name": self.task.name, "labels": self.task.label_names, **self.measured()},
            "checksums": {name: examples.checksum() for name, examples in self.task.sets.items()},
        }

    def measured(self) -> dict[str, Any]:
        """The type of the task, the sizes of its splits and other sets, and the metric."""
        return {
            "kind": self.task.kind,
            "sizes": {name: len(examples) for name, examples in self.task.sets.items()},
            "metric": dataclasses.asdict(self.metric),
        }

    def figures(self, arm: str, model: nn.Module) -> dict[str, bytes]:
        """Text experiments draw no figures of a trained model."""
        return {}

    def save(self, model: nn.Module, folder: Path) -> None:
        """As transformers does it, with the tokenizer; nothing in it is of this package."""
        assert isinstance(model, PreTrainedModel)
        model.save_pretrained(folder)
        self.kind.tokenizer.save_pretrained(folder)

    def rank(self, run: dict[str, Any]) -> tuple[float, ...]:
        """By the best epoch's score, then by its loss on the development split."""
        best = next(epoch for epoch in run["epochs"] if epoch["number"] == run["best_epoch"])
        return self.metric.better * run["dev_score"], -best["dev_loss"]

    def changed(self, settings: Settings | None = None, train: Examples | None = None) -> "Trainer":
        """One for other settings of the same model and lengths, or for other training examples of the task."""
        other = copy.copy(self)
        other.settings = settings or self.settings
        if train is not None:
            other.train_rows = self.kind.encode_to_train(train)
        return other

    def run(self, arm: str, seed: int, advance: Callable[[float], None] = lambda work: None) -> Run:
        """Train, keep the best epoch's weights, evaluate them on the test split and the other sets."""
        return self.trained(arm, seed, advance)[0]

    def trained(
        self,
        arm: str,
        seed: int,
        advance: Callable[[float], None] = lambda work: None,
        epoch: Callable[[str], None] = lambda text: None,
    ) -> tuple[Run, PreTrainedModel]:
        """A run, and the model with the weights of its best epoch; `epoch` is told how each epoch went."""
        started, memory = time.perf_counter(), PeakMemory(self.device)
        model, method = load_model(arm, seed, self.settings, self.kind)
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay, fused=True
        )
        loader = self._loader(self.train_rows, self.settings.batch_size, seed)
        epochs: list[Epoch] = []
        best_weights: dict[str, torch.Tensor] = {}
        for number in range(1, self.settings.epochs + 1):
            epochs.append(
                self._epoch(number, model, method, optimizer, loader, METHODS[arm].work(self.settings, number), advance)
            )
            epoch(f"epoch {number} of {self.settings.epochs}: {self._said(epochs[-1])}")
            best = max(epochs, key=self._rank)  # the first of equals
            if best is epochs[-1]:
                best_weights = {name: value.clone() for name, value in model.state_dict().items()}
            if number - best.number >= self.settings.early_stopping_patience:
                advance(self._work_from(number + 1, arm))
                break
        model.load_state_dict(best_weights)
        reported = predictions(model, self.kind, self.reported_rows, self._seen(advance))
        run = Run(
            arm=arm,
            seed=seed,
            best_epoch=best.number,
            dev_score=best.dev_score,
            test_score=self.kind.score(self.metric_name, reported) if self.test_rows else None,
            other_scores={name: self._evaluate(model, *other, advance)[1] for name, other in self.others.items()},
            measures=self.kind.measures(reported),
            deletion_score=self._deletion_score(model, advance) if self.kind.labels_texts else None,
            peak_memory_bytes=memory.bytes(),
            seconds=time.perf_counter() - started,
            epochs=epochs,
        )
        return run, model

    def _epoch(
        self,
        number: int,
        model: PreTrainedModel,
        method: Method,
        optimizer: torch.optim.Optimizer,
        loader: DataLoader,
        work: float,
        advance: Callable[[float], None],
    ) -> Epoch:
        method.start_epoch(number)
        model.train()
        losses, seconds = [], []
        for batch in loader:
            batch = batch.to(self.device)
            loss, passed = timed_step(partial(method, **batch), optimizer, self.device, number)
            losses.append(loss)
            seconds.append(passed)
            advance(work)
        statistics = method.statistics()
        fitted = mean_loss(model, self.kind, self.watched_rows, self._seen(advance))
        dev_loss, dev_score = self._evaluate(model, self.kind, self.dev_rows, advance)
        return Epoch(
            number, method.is_active, sum(losses) / len(losses), fitted, dev_loss, dev_score, seconds, statistics
        )

    def _evaluate(
        self, model: PreTrainedModel, kind: Kind, rows: list[Row], advance: Callable[[float], None]
    ) -> tuple[float, float]:
        """Mean loss and score."""
        found = predictions(model, kind, rows, self._seen(advance))
        return found.mean_loss, kind.score(self.metric_name, found)

    def _deletion_score(self, model: PreTrainedModel, advance: Callable[[float], None]) -> float:
        """Mean over shares of the tokens that are gone."""
        rows, special = _spaced(self.reported_rows, MEASURED), {*self.kind.tokenizer.all_special_ids}
        found = [self._evaluate(model, self.kind, without_tokens(rows, share, special), advance) for share in DELETED]
        return sum(score for _, score in found) / len(found)

    def _seen(self, advance: Callable[[float], None]) -> Callable[[int], None]:
        """Tells of rows that were evaluated, in the units of `work`."""
        return lambda count: advance(count / self.settings.batch_size)

    def _loader(self, rows: Any, batch_size: int, seed: int | None = None) -> DataLoader:
        """Batches in an order drawn from the seed, or in the order of the rows."""
        order = None if seed is None else torch.Generator().manual_seed(seed)
        return DataLoader(
            rows, batch_size, shuffle=order is not None, generator=order, collate_fn=self.kind.collate(seed or 0)
        )

    def _work_from(self, epoch: int, arm: str) -> float:
        steps = math.ceil(len(self.train_rows) / self.settings.batch_size)
        epochs = range(epoch, self.settings.epochs + 1)
        evaluation = (len(self.dev_rows) + len(self.watched_rows)) / self.settings.batch_size
        return sum(steps * METHODS[arm].work(self.settings, number) + evaluation for number in epochs)

    def _said(self, epoch: Epoch) -> str:
        score = f"{100 * epoch.dev_score:.1f} %" if self.metric.percent else f"{epoch.dev_score:.4g}"
        return f"training loss {epoch.train_loss:.4g}, dev {self.metric.name} {score}"

    def _rank(self, epoch: Epoch) -> tuple[float, float]:
        """The better epoch has the better score, then the lower loss."""
        return self.metric.better * epoch.dev_score, -epoch.dev_loss


def _spaced(rows: list[Row], count: int) -> list[Row]:
    """This many of them, evenly spaced, because files are often sorted by class."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]
