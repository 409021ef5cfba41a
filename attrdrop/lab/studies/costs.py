"""What a step costs under each attribution (Table 7), all timed in turn in one process."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch

from attrdrop.addrop import ATTRIBUTIONS
from attrdrop.lab.names import ADDROP, PLAIN
from attrdrop.lab.runs.timing import timed_step
from attrdrop.lab.text.models import load_model
from attrdrop.lab.text.training import Trainer

ROUNDS, SECONDS = (5, 20), 60.0  # at least, at most, and until when rounds go on
LAYERS = ("all", "first")


def measure(trainer: Trainer) -> dict[str, Any]:
    """Rows with attribution, layers, and the time of a training step over a plain one: median and quartiles.

    A step is forward, backward and update on a batch of the task. Within a round every variant takes the same batch,
    and ratios are formed within rounds, so that a slow minute of the machine hits all.
    """
    steps = {("", ""): _step(trainer, PLAIN)} | {
        (attribution, layers): _step(trainer, ADDROP, attribution=attribution, layers=layers)
        for layers in LAYERS
        for attribution in ATTRIBUTIONS
    }
    seconds = _timed(trainer, steps)
    plain = seconds["", ""]
    rows = []
    for (attribution, layers), times in seconds.items():
        ratios = np.quantile(times / plain, (0.25, 0.5, 0.75))
        rows.append(
            {
                "attribution": attribution,
                "layers": layers,
                "step_ms": 1e3 * float(np.median(times)),
                **dict(zip(("low", "ratio", "high"), map(float, ratios), strict=True)),
            }
        )
    return {"rows": rows, "rounds": len(plain), "batch_size": trainer.settings.batch_size}


def _step(trainer: Trainer, arm: str, **changes: Any) -> Callable[[Any], float]:
    """Gives the seconds of a step on a batch."""
    settings = dataclasses.replace(trainer.settings, cross_tuning=False, **changes)
    seed = settings.first_seed
    model, method = load_model(arm, seed, settings, trainer.kind)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)

    return lambda batch: timed_step(partial(method, **batch), optimizer, trainer.device, epoch=1)[1]


def _timed(trainer: Trainer, steps: dict[tuple[str, str], Callable[[Any], float]]) -> dict[tuple[str, str], np.ndarray]:
    """Seconds of each step, one entry a round."""
    batches = cycle(trainer.batches(trainer.settings.first_seed))
    names = list(steps)
    times: dict[tuple[str, str], list[float]] = {name: [] for name in names}
    for step in steps.values():
        step(next(batches))  # the first one pays for allocations
    started = time.perf_counter()
    for count in range(ROUNDS[1]):
        if count >= ROUNDS[0] and time.perf_counter() - started > SECONDS:
            break
        batch = next(batches)
        for name in names[count % len(names) :] + names[: count % len(names)]:
            times[name].append(steps[name](batch))
    return {name: np.asarray(found) for name, found in times.items()}
