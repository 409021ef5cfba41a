"""Relevance by several rules side by side: how much of it is right, what it costs, and pictures of it."""

import time
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from attrdrop import lrp, metrics
from attrdrop.lab.runs.rules import WITHOUT_EPSILON, rule_of
from attrdrop.lab.runs.settings import MapOptions
from attrdrop.lab.runs.training import EVAL_BATCH, ArmTrainer, logits_of, spaced

RANDOM = "random order"


def rules_of(options: MapOptions) -> dict[str, lrp.Rule]:
    """The rules to compare, by what they are called."""
    found: dict[str, lrp.Rule] = {}
    for name in options.rules:
        for epsilon in options.epsilons[:1] if name in WITHOUT_EPSILON else options.epsilons:
            label = f"{name} {epsilon:g}" if len(options.epsilons) > 1 and name not in WITHOUT_EPSILON else name
            found[label] = rule_of(name, epsilon)
    return found


def compared(trainer: ArmTrainer, model: nn.Module, options: MapOptions) -> pd.DataFrame:
    """One row per rule, over some validation examples.

    rank_accuracy, mass_accuracy, pointing_game: of examples whose object is known, else NaN; flipping: mean probability
    of the class while the most relevant patches or points go, lower for better maps; milliseconds: per example.
    """
    examples = trainer.watched
    indices = spaced(examples, trainer.measured)
    x, y = trainer.batch(examples, indices)
    masks, model = trainer.objects(examples, indices), model.eval()
    flip: dict[str, Any] = {
        "batch_size": EVAL_BATCH, "score": "probability", "output": logits_of, **trainer.flips(x),
    }  # fmt: skip
    rows = []
    for label, rule in rules_of(options).items():
        started = time.perf_counter()
        relevance = relevance_by(model, x, y, rule)
        seconds = time.perf_counter() - started
        row = {"rule": label, **_accuracies(relevance, masks)}
        row["flipping"] = float(metrics.flipping_curve(model, x, y, relevance, **flip).auc.mean())
        rows.append(row | {"milliseconds": 1e3 * seconds / len(x)})
    chance = metrics.flipping_curve(model, x, y, relevance, order="random", **flip)
    covered = float(masks.float().mean()) if masks is not None else float("nan")
    rows.append({"rule": RANDOM, "rank_accuracy": covered, "mass_accuracy": covered, "pointing_game": covered})
    rows[-1]["flipping"] = float(chance.auc.mean())
    return pd.DataFrame(rows)


def relevance_by(model: nn.Module, x: Tensor, y: Tensor, rule: lrp.Rule) -> Tensor:
    """In parts, as large as x."""
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
