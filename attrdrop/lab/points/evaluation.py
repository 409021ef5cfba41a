"""A saved point cloud classifier on a test split: loss, accuracy, and accuracy as points are lost."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from attrdrop import metrics
from attrdrop.lab.errors import InputError, said
from attrdrop.lab.names import PLAIN
from attrdrop.lab.points.report import PointReport
from attrdrop.lab.points.settings import PointSettings
from attrdrop.lab.points.training import LOSS_REPEATS, PointTrainer, class_accuracy
from attrdrop.lab.runs.models import CARD, card_of, check_model
from attrdrop.lab.runs.training import EVAL_BATCH, WEIGHTS, logits_of


def settings_of(folder: Path, device: str) -> tuple[PointSettings, list[str]]:
    """What a saved model was trained with, and the names of its classes.

    Raises InputError where it is no model that `attrdrop train-points --save` left.
    """
    check_model(folder)
    card = card_of(folder)
    if card.get("kind") != PointReport.kind:
        raise InputError(f"MODEL: {folder} holds no model saved by 'attrdrop train-points --save'.")
    known = {field.name for field in dataclasses.fields(PointSettings)} - {"arms", "device", "batch_size"}
    try:
        values = {name: value for name, value in card["settings"].items() if name in known}
        return PointSettings(**values, arms=(PLAIN,), device=device, batch_size=2), list(card["task"]["labels"])
    except (LookupError, TypeError, AttributeError):
        raise InputError(f"MODEL: {folder / CARD} does not say how the model was trained, and for what.") from None


def restored(folder: Path, trainer: PointTrainer, labels: list[str]) -> nn.Module:
    """The model, for clouds of the trainer's task. Raises InputError where these are of other classes."""
    task = trainer.task
    if task.label_names != labels:
        raise InputError(
            f"--dataset: {task.name} has other classes than the model, whose classes are {', '.join(labels)}."
        )
    model = trainer.build(0)
    try:
        model.load_state_dict(torch.load(folder / WEIGHTS, map_location=trainer.device, weights_only=True))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise InputError(f"MODEL: {folder / WEIGHTS} cannot be read: {said(error).splitlines()[0]}.") from None
    return model


def scores(trainer: PointTrainer, model: nn.Module) -> dict[str, Any]:
    """Measures on the whole test split; point_loss: mean accuracy while 0 to 90 % of the points go at random, and
    accuracy_lost_<percent> that at each share."""
    test = trainer.task.test
    logits = trainer.logits(model, test)
    x, y = trainer.batch(test, torch.arange(len(test.labels)))
    curve = metrics.point_loss_curve(model, x, y, repeats=LOSS_REPEATS, batch_size=EVAL_BATCH, output=logits_of)
    lost = zip(curve.fractions.tolist(), curve.scores.mean(0).tolist(), strict=True)
    return {
        "set": f"{trainer.task.name} test",
        "clouds": len(test.labels),
        "classes": len(trainer.task.label_names),
        "loss": functional.cross_entropy(logits, test.labels).item(),
        "accuracy": float(metrics.top1(logits, test.labels)),
        "class_accuracy": class_accuracy(logits, test.labels),
        "calibration_error": float(metrics.calibration_error(logits, test.labels)),
        "point_loss": float(curve.auc.mean()),
    } | {f"accuracy_lost_{100 * share:.0f}": accuracy for share, accuracy in lost}
