"""One fine-tuning run of one arm: the training loop, early stopping, timings."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.metrics import accuracy_score
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedModel

import attrdrop
from attrdrop.lab.device import PeakMemory, resolve_device
from attrdrop.lab.errors import InputError, RunError
from attrdrop.lab.models import Row, load_model, load_tokenizer, tokenize
from attrdrop.lab.settings import ADDROP, PLAIN, Settings
from attrdrop.lab.tasks import Task

EVAL_BATCH = 64
# Rough cost in forward passes, for the time left: forward and backward are 3, AD-DROP adds a forward and a walk back.
PLAIN_STEP, ADDROP_STEP = 3, 5


@dataclass(frozen=True)
class Epoch:
    """One epoch; `statistics` are what AD-DROP did in it, None where it trained plainly."""

    number: int
    train_loss: float
    dev_loss: float
    dev_accuracy: float
    step_seconds: list[float]
    statistics: dict[str, Any] | None


@dataclass(frozen=True)
class Run:
    """One arm at one seed. Accuracies are those of the best epoch on the development split."""

    arm: str
    seed: int
    best_epoch: int
    dev_accuracy: float
    test_accuracy: float | None
    peak_memory_bytes: int | None
    seconds: float
    epochs: list[Epoch]


class Trainer:
    """Runs (arm, seed) after (arm, seed) on one tokenised task."""

    def __init__(self, settings: Settings, task: Task) -> None:
        self.settings, self.task = settings, task
        self.device = resolve_device(settings.device)
        self.tokenizer = load_tokenizer(settings)
        self.train_rows, self.dev_rows, self.test_rows = (
            tokenize(split, self.tokenizer, settings.max_length) if split is not None else []
            for split in (task.train, task.dev, task.test)
        )
        self.collate = DataCollatorWithPadding(self.tokenizer)

    def check(self) -> None:
        """Load both arms and attribute two examples, so that what cannot work fails before anything is written."""
        model, addrop = load_model(ADDROP, self.settings.first_seed, self.settings, self.task, self.tokenizer)
        assert addrop is not None
        try:
            model.train()
            addrop.start_epoch(2)
            addrop.attribute(**next(iter(self._loader(self.train_rows, 2))).to(self.device))
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"AD-DROP cannot work on {self.settings.model}: {error}.") from error
        load_model(PLAIN, self.settings.first_seed, self.settings, self.task, self.tokenizer)

    def work(self, arm: str) -> float:
        """Rough cost of a run in forward passes."""
        return self._work_from(1, arm) + len(self.test_rows) / self.settings.batch_size

    def run(self, arm: str, seed: int, advance: Callable[[float], None] = lambda work: None) -> Run:
        """Train, keep the best epoch's weights, evaluate them on the test split."""
        started, memory = time.perf_counter(), PeakMemory(self.device)
        model, addrop = load_model(arm, seed, self.settings, self.task, self.tokenizer)
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay, fused=True
        )
        loader = self._loader(self.train_rows, self.settings.batch_size, torch.Generator().manual_seed(seed))
        epochs: list[Epoch] = []
        best_weights: dict[str, torch.Tensor] = {}
        for number in range(1, self.settings.epochs + 1):
            epochs.append(self._epoch(number, model, addrop, optimizer, loader, advance))
            best = max(epochs, key=_score)  # the first of equals
            if best is epochs[-1]:
                best_weights = {name: value.clone() for name, value in model.state_dict().items()}
            if number - best.number >= self.settings.early_stopping_patience:
                advance(self._work_from(number + 1, arm))
                break
        model.load_state_dict(best_weights)
        test_accuracy = self._evaluate(model, self.test_rows, advance)[1] if self.test_rows else None
        return Run(
            arm=arm,
            seed=seed,
            best_epoch=best.number,
            dev_accuracy=best.dev_accuracy,
            test_accuracy=test_accuracy,
            peak_memory_bytes=memory.bytes(),
            seconds=time.perf_counter() - started,
            epochs=epochs,
        )

    def _epoch(
        self,
        number: int,
        model: PreTrainedModel,
        addrop: "attrdrop.ADDrop | None",
        optimizer: torch.optim.Optimizer,
        loader: DataLoader,
        advance: Callable[[float], None],
    ) -> Epoch:
        forward = addrop or model
        if addrop is not None:
            addrop.start_epoch(number)
            addrop.reset_statistics()
        model.train()
        losses, seconds = [], []
        work = self._step_work(number, ADDROP if addrop else PLAIN)
        for batch in loader:
            batch = batch.to(self.device)
            started = self._clock()
            loss = forward(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(self._clock() - started)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise RunError(f"the training loss became {losses[-1]} in epoch {number}; try a smaller --lr.")
            advance(work)
        dev_loss, dev_accuracy = self._evaluate(model, self.dev_rows, advance)
        statistics = addrop.statistics().as_dict() if addrop and addrop.statistics().steps else None
        return Epoch(number, sum(losses) / len(losses), dev_loss, dev_accuracy, seconds, statistics)

    @torch.no_grad()
    def _evaluate(
        self, model: PreTrainedModel, rows: list[Row], advance: Callable[[float], None]
    ) -> tuple[float, float]:
        """Mean loss and accuracy; rows are sorted by length to save padding."""
        model.eval()
        outputs = []
        for batch in self._loader(sorted(rows, key=lambda row: len(row["input_ids"])), EVAL_BATCH):
            labels = batch.pop("labels")
            outputs.append((model(**batch.to(self.device)).logits.float().cpu(), labels))
            advance(len(labels) / self.settings.batch_size)
        logits, labels = map(torch.cat, zip(*outputs, strict=True))
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        return loss, float(accuracy_score(labels, logits.argmax(-1)))

    def _loader(self, rows: Any, batch_size: int, order: torch.Generator | None = None) -> DataLoader:
        return DataLoader(rows, batch_size, shuffle=order is not None, generator=order, collate_fn=self.collate)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _step_work(self, epoch: int, arm: str) -> float:
        dropping = arm == ADDROP and (epoch % 2 == 0 or not self.settings.cross_tuning)
        return ADDROP_STEP if dropping else PLAIN_STEP

    def _work_from(self, epoch: int, arm: str) -> float:
        steps = math.ceil(len(self.train_rows) / self.settings.batch_size)
        epochs = range(epoch, self.settings.epochs + 1)
        evaluation = len(self.dev_rows) / self.settings.batch_size
        return sum(steps * self._step_work(number, arm) + evaluation for number in epochs)


def _score(epoch: Epoch) -> tuple[float, float]:
    """The better epoch has the higher accuracy, then the lower loss."""
    return epoch.dev_accuracy, -epoch.dev_loss
