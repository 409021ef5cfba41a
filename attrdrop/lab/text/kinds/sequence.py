"""Sentences and sentence pairs: classification and regression."""

import copy
from typing import Any, ClassVar

import torch
from scipy import stats
from sklearn import metrics
from torch import Tensor
from transformers import DataCollatorWithPadding

from attrdrop.lab.text.examples import Merged
from attrdrop.lab.text.kinds.base import Collate, Kind, Metric, Prediction, Row, cross_entropy_sum
from attrdrop.lab.text.tasks import Examples
from attrdrop.metrics import brier_score, calibration_error


class _Sequence(Kind):
    labels_texts = True

    def collate(self, seed: int) -> Collate:
        return DataCollatorWithPadding(self.tokenizer)


class Classification(_Sequence):
    """One class per text or pair of texts; `merged` classes are those that several of the model's count as."""

    name = "classification"
    merged: Merged | None = None
    metrics: ClassVar = {
        "accuracy": Metric("accuracy"),
        "matthews": Metric("Matthews correlation"),
        "f1": Metric("macro F1"),
        "log-loss": Metric("log loss", better=-1, percent=False),
    }

    def model_options(self, config: Any = None) -> dict[str, Any]:
        return super().model_options(config) | {"problem_type": "single_label_classification"}

    def predict(self, model: Any, rows: list[Row], batch: dict[str, Tensor]) -> Prediction:
        labels = batch["labels"]
        logits = model(**batch).logits
        predicted = logits.argmax(-1)
        if self.merged is not None:
            of = torch.tensor(self.merged.of, device=logits.device)
            logits, predicted = _merged_logits(logits, of), of[predicted]
        log_p = logits.double().log_softmax(-1).tolist()
        return Prediction(*cross_entropy_sum(logits, labels), predicted.tolist(), labels.tolist(), log_p)

    def measures(self, found: Prediction) -> dict[str, float]:
        log_p, labels = torch.tensor(found.log_p), torch.tensor(found.expected)
        return super().measures(found) | {
            "accuracy": float(metrics.accuracy_score(found.expected, found.predicted)),
            "calibration_error": calibration_error(log_p, labels),
            "brier_score": brier_score(log_p, labels),
        }

    def on(self, examples: Examples) -> Kind:
        if examples.merged is None:
            return self
        kind = copy.copy(self)
        kind.merged = examples.merged
        return kind

    def written(self, predicted: list[Any]) -> list[str]:
        names = self.task.label_names if self.merged is None else self.merged.names
        return [names[index] for index in predicted]

    def score(self, metric: str, found: Prediction) -> float:
        measure = {
            "accuracy": metrics.accuracy_score,
            "matthews": metrics.matthews_corrcoef,
            "f1": lambda expected, predicted: metrics.f1_score(expected, predicted, average="macro"),
            "log-loss": lambda expected, predicted: found.mean_loss,
        }[metric]
        return float(measure(found.expected, found.predicted))


class Regression(_Sequence):
    """One number per text or pair of texts."""

    name = "regression"
    metrics: ClassVar = {
        "pearson": Metric("Pearson correlation"),
        "spearman": Metric("Spearman correlation"),
        "mse": Metric("squared error", better=-1, percent=False),
    }

    def model_options(self, config: Any = None) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def predict(self, model: Any, rows: list[Row], batch: dict[str, Tensor]) -> Prediction:
        labels = batch["labels"]
        predicted = model(**batch).logits.float().squeeze(-1)
        loss = torch.nn.functional.mse_loss(predicted, labels, reduction="sum").item()
        return Prediction(loss, len(labels), predicted.tolist(), labels.tolist())

    def score(self, metric: str, found: Prediction) -> float:
        if metric == "mse":
            return found.mean_loss
        if len(set(found.predicted)) < 2 or len(set(found.expected)) < 2:
            return 0.0  # a constant correlates with nothing
        correlate = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[metric]
        return float(correlate(found.predicted, found.expected).statistic)

    def written(self, predicted: list[Any]) -> list[str]:
        return [f"{number:.6g}" for number in predicted]


def _merged_logits(logits: Tensor, of: Tensor) -> Tensor:
    """Log-probabilities (B, own classes) of merged classes: of (C,) is the one that each of the model's counts as."""
    log_p = logits.float().log_softmax(-1)
    return torch.stack([log_p[:, of == own].logsumexp(-1) for own in range(int(of.max()) + 1)], -1)
