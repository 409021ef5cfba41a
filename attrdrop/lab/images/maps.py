"""Relevance by several rules side by side: pictures of some images, and how much of it is right."""

import io
import time
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from attrdrop import lrp, metrics
from attrdrop.lab.images.settings import MapOptions
from attrdrop.lab.images.training import FLIPPING_PATCH, FLIPPING_STEPS, MEASURED, ImageTrainer
from attrdrop.lab.runs.rules import WITHOUT_EPSILON, rule_of
from attrdrop.lab.runs.training import EVAL_BATCH, logits_of, spaced
from attrdrop.plots import images as image_plots

RANDOM = "random order"


def rules_of(options: MapOptions) -> dict[str, lrp.Rule]:
    """The rules to compare, by what they are called."""
    found: dict[str, lrp.Rule] = {}
    for name in options.rules:
        for epsilon in options.epsilons[:1] if name in WITHOUT_EPSILON else options.epsilons:
            label = f"{name} {epsilon:g}" if len(options.epsilons) > 1 and name not in WITHOUT_EPSILON else name
            found[label] = rule_of(name, epsilon)
    return found


def compared(trainer: ImageTrainer, model: nn.Module, options: MapOptions) -> pd.DataFrame:
    """One row per rule, over some validation images.

    rank_accuracy, mass_accuracy, pointing_game: of images whose object is known, else NaN; flipping: mean probability
    of the class while the most relevant patches go, which is lower for better maps; milliseconds: per image.
    """
    examples = trainer.watched
    indices = spaced(examples, MEASURED)
    x, y = trainer.batch(examples, indices)
    masks, model = examples.objects(indices), model.eval()
    patch = max(1, min(FLIPPING_PATCH, *(side // 4 for side in x.shape[2:])))
    flip: dict[str, Any] = {
        "steps": FLIPPING_STEPS, "patch": patch, "batch_size": EVAL_BATCH, "score": "probability", "output": logits_of,
    }  # fmt: skip
    rows = []
    for label, rule in rules_of(options).items():
        started = time.perf_counter()
        relevance = _relevance(model, x, y, rule)
        seconds = time.perf_counter() - started
        row = {"rule": label, **_accuracies(relevance, masks)}
        row["flipping"] = float(metrics.flipping_curve(model, x, y, relevance, **flip).auc.mean())
        rows.append(row | {"milliseconds": 1e3 * seconds / len(x)})
    chance = metrics.flipping_curve(model, x, y, relevance, order="random", **flip)
    covered = float(masks.float().mean()) if masks is not None else float("nan")
    rows.append({"rule": RANDOM, "rank_accuracy": covered, "mass_accuracy": covered, "pointing_game": covered})
    rows[-1]["flipping"] = float(chance.auc.mean())
    return pd.DataFrame(rows)


def drawn(trainer: ImageTrainer, model: nn.Module, options: MapOptions) -> bytes:
    """A PNG: validation images, each beside its relevance by every rule, with rank accuracy where it is known."""
    examples = trainer.watched
    indices = spaced(examples, options.samples)
    x, y = trainer.batch(examples, indices)
    masks, names = examples.objects(indices), trainer.task.label_names
    maps, scores = {}, {}
    for label, rule in rules_of(options).items():
        maps[label] = _relevance(model.eval(), x, y, rule).cpu()
        if masks is not None:
            accuracy = metrics.relevance_rank_accuracy(maps[label], masks)
            scores[label] = ["" if value != value else f"RRA {100 * value:.0f}\u00a0%" for value in accuracy.tolist()]
    figure = io.BytesIO()
    pictures = examples.pixels(indices, "none", None)
    titles = [names[label] for label in y.tolist()]
    image_plots.compared_maps(pictures, maps, figure, titles, scores, "relevance of the true class")
    return figure.getvalue()


def _relevance(model: nn.Module, x: Tensor, y: Tensor, rule: lrp.Rule) -> Tensor:
    parts = zip(x.split(EVAL_BATCH), y.split(EVAL_BATCH), strict=True)
    return torch.cat([lrp.relevance(model, a, b, rule=rule) for a, b in parts])


def _accuracies(relevance: Tensor, masks: Tensor | None) -> dict[str, float]:
    nothing = float("nan")
    if masks is None:
        return {"rank_accuracy": nothing, "mass_accuracy": nothing, "pointing_game": nothing}
    maps, known = relevance.cpu(), masks.flatten(1).any(1)
    return {
        "rank_accuracy": float(metrics.relevance_rank_accuracy(maps, masks).nanmean()),
        "mass_accuracy": float(metrics.relevance_mass_accuracy(maps, masks).nanmean()),
        "pointing_game": float(metrics.pointing_game(maps, masks)[known].float().mean()),
    }
