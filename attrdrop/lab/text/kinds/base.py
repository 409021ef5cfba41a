"""The interface of a task type."""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from attrdrop.lab.errors import InputError
from attrdrop.lab.text.tasks import Examples, Task

Row = dict[str, Any]
Collate = Callable[[list[Row]], Any]
IGNORED = -100  # of labels, in transformers


@dataclass(frozen=True)
class Metric:
    """A score. better: -1 where lower is better; percent: whether it is shown times 100."""

    name: str
    better: int = 1
    percent: bool = True


@dataclass(frozen=True)
class Prediction:
    """Of some examples: the summed loss, over how many items, and what was predicted and expected.

    log_p: of every class, for each example, where each has one class.
    """

    loss: float = 0.0
    count: int = 0
    predicted: list[Any] = field(default_factory=list)
    expected: list[Any] = field(default_factory=list)
    log_p: list[list[float]] = field(default_factory=list)

    def __add__(self, other: "Prediction") -> "Prediction":
        return Prediction(
            self.loss + other.loss,
            self.count + other.count,
            self.predicted + other.predicted,
            self.expected + other.expected,
            self.log_p + other.log_p,
        )

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.count, 1)


class Kind(abc.ABC):
    """One task type, for one task and tokenizer."""

    name: ClassVar[str]  # value of --task-type
    factory: ClassVar[Any] = AutoModelForSequenceClassification  # the class that makes the model
    metrics: ClassVar[dict[str, Metric]]  # by value of --metric, the default first
    splits_words: ClassVar[bool] = False  # whether texts come as lists of words
    scorer: ClassVar[str | None] = None  # the package that computes the metrics, where it is one of its own
    labels_texts: ClassVar[bool] = False  # whether a label is of a text whole, which may then lose tokens

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.task, self.tokenizer, self.max_length = task, tokenizer, max_length

    @classmethod
    def metric(cls, name: str | None) -> tuple[str, Metric]:
        """A metric by name, the default without one. Raises InputError where the package that computes it is missing:
        it would otherwise be missed after the first epoch."""
        if cls.scorer and find_spec(cls.scorer) is None:
            raise InputError(
                f"--task-type: {cls.name} is scored by the package {cls.scorer}, which is not installed: "
                f"pip install {cls.scorer}."
            )
        name = name or next(iter(cls.metrics))
        if name not in cls.metrics:
            raise InputError(f"--metric: {name!r} is not one of {', '.join(cls.metrics)}, the metrics of {cls.name}.")
        return name, cls.metrics[name]

    def model_options(self, config: Any = None) -> dict[str, Any]:
        """Options of the model's configuration; ``config`` is that of a pre-trained model."""
        names = self.task.label_names
        return {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": _indices(names)}

    def encode(self, examples: Examples) -> list[Row]:
        """One unpadded feature dictionary per example, with its labels."""
        encoded = self.tokenizer(examples.texts, examples.pairs, truncation=True, max_length=self.max_length)
        assert examples.labels is not None
        return [row | {"labels": label} for row, label in zip(rows_of(encoded), examples.labels, strict=True)]

    def encode_to_train(self, examples: Examples) -> list[Row]:
        """The rows from which something can be learned."""
        return self.encode(examples)

    @abc.abstractmethod
    def collate(self, seed: int) -> Collate:
        """Makes a padded batch of rows; draws, where it draws, from the seed."""

    @abc.abstractmethod
    def predict(self, model: Any, rows: list[Row], batch: dict[str, Tensor]) -> Prediction:
        """The model's predictions for a batch."""

    @abc.abstractmethod
    def score(self, metric: str, found: Prediction) -> float:
        """The metric over all examples."""

    def measures(self, found: Prediction) -> dict[str, float]:
        """What is told of all examples beside the metric: the loss, a mean over items."""
        return {"loss": found.mean_loss}

    def on(self, examples: Examples) -> "Kind":
        """The kind as it predicts these examples, whose classes may be merged ones."""
        return self

    def written(self, predicted: list[Any]) -> list[str]:
        """What was predicted of each example, as a file of predictions has it."""
        raise InputError(f"--output: {self.name} predicts tokens and writes no predictions; leave it out.")

    def _select(self, rows: list[Row]) -> list[Row]:
        """The part of them that the model gets."""
        names = {*self.tokenizer.model_input_names, "labels"}
        return [{name: value for name, value in row.items() if name in names} for row in rows]


def rows_of(encoded: Any) -> list[Row]:
    """The columns that a tokenizer gives, as one dictionary per example."""
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> tuple[float, int]:
    """Summed cross-entropy of (..., C) logits over the labels that count, and how many these are."""
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss.item(), int((labels != IGNORED).sum())


def _indices(names: list[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(names)}
