"""Signs that training with RelDrop goes wrong, as the summary of its paper names them, told while it goes on."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from attrdrop.lab.runs.variants import arm_of

FALLEN = 0.05  # of rank accuracy, below its best
GROWN = 1.5  # of the training loss, over its least
PLATEAU = 0.02  # a loss that has come down by less than this part, half way through
FEWEST_EPOCHS = 4  # of which a plateau can be told
FEWEST_SEEDS = 2  # of which a gain can be told


def of_run(epochs: Sequence[Any], planned: int, smaller: str) -> dict[str, str]:
    """Signs in the epochs of a run so far, by kind, in words.

    epochs: with train_loss and rank_accuracy, which may be None. planned: how many there will be. smaller: the options
    that say how much is taken away.
    """
    found = {}
    losses = [epoch.train_loss for epoch in epochs]
    if not math.isfinite(losses[-1]) or losses[-1] > GROWN * min(losses):
        found["diverges"] = (
            f"the training loss grows, from {min(losses):.3g} to {losses[-1]:.3g}: perhaps too much is removed; try "
            f"a smaller {smaller}, or a smaller --lr"
        )
    elif planned >= FEWEST_EPOCHS and len(losses) == planned // 2 and losses[-1] > (1 - PLATEAU) * losses[0]:
        found["plateau"] = (
            f"the training loss stagnates, {losses[0]:.3g} at first and {losses[-1]:.3g} halfway: perhaps too much is "
            f"removed; try a smaller {smaller}"
        )
    ranks = [epoch.rank_accuracy for epoch in epochs if epoch.rank_accuracy is not None]
    if len(ranks) > 1 and ranks[-1] < max(ranks) - FALLEN:
        found["background"] = (
            f"less relevance lies on the object, rank accuracy {100 * max(ranks):.0f} % at best and "
            f"{100 * ranks[-1]:.0f} % now: the model may rely on the background; check with 'attrdrop maps', or "
            "try another --rule"
        )
    return found


def of_runs(runs: Sequence[dict[str, Any]], rival: str, guided: Sequence[str]) -> str:
    """Whether guided arms gain nothing over the same at random so far, in words; empty where they do.

    Where the rival has several settings, its mean over them counts.
    """
    rivals: dict[int, float] = {
        seed: float(
            np.mean([run["test_accuracy"] for run in runs if arm_of(run["arm"]) == rival and run["seed"] == seed])
        )
        for seed in {run["seed"] for run in runs if arm_of(run["arm"]) == rival}
    }
    gains = {
        arm: [run["test_accuracy"] - rivals[run["seed"]] for run in runs if run["arm"] == arm and run["seed"] in rivals]
        for arm in dict.fromkeys(run["arm"] for run in runs if arm_of(run["arm"]) in guided)
    }
    compared = {arm: float(np.mean(found)) for arm, found in gains.items() if len(found) >= FEWEST_SEEDS}
    if not compared or max(compared.values()) > 0:
        return ""
    best = max(compared, key=compared.__getitem__)
    return (
        f"no gain over {rival} so far: {best} has {100 * compared[best]:+.1f} points over {len(gains[best])} "
        "seeds; perhaps the relevance is poor: try another --epsilon, 0.001 to "
        "start with, or another --rule"
    )
