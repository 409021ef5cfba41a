"""The command `attrdrop train-points`."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from attrdrop.lab.cli.options import command
from attrdrop.lab.cli.terminal import run_experiment
from attrdrop.lab.points.settings import PRESETS, USES, PointData, PointSettings
from attrdrop.lab.runs.settings import SavingRunOptions, Variation
from attrdrop.lab.runs.variants import grid


@command(
    PRESETS,
    "demo: a narrow model, few points, a few minutes on two CPU cores; other options override it.",
    output=Path("runs/points"),
)
def train_points(data: PointData, variation: Variation, settings: PointSettings, run: SavingRunOptions) -> None:
    """Train a point cloud classifier plainly, with random point dropout and with RelDrop, and compare.

    All arms see the same data in the same order from the same initial
    weights, with several seeds. The table shows accuracy, step time,
    memory, and how robust the models are to the loss of points. With
    --vary each combination of settings is a separate arm, and a
    development split chooses among them. Ctrl-C keeps every finished run;
    the same command does the rest.
    """
    from attrdrop.lab.points.experiment import PointExperiment

    settings = dataclasses.replace(settings, arms=grid(settings.arms, variation.vary, USES))
    run_experiment(partial(PointExperiment, settings, partial(load, data, settings, bool(variation.vary))), run)


def load(data: PointData, settings: PointSettings, chooses: bool = False) -> Any:
    """The task that the options name, cut down to the sizes they ask for; to choose, it needs a development split."""
    from attrdrop.lab.points.data import load_task
    from attrdrop.lab.points.readers import Reading

    task = load_task(data.dataset, data.data, Reading(settings.points, settings.sampling, settings.normals))
    fifth = max(1, len(task.train.labels) // 5) if chooses else None
    return task.limited(data.train_size, data.test_size, data.dev_size or fifth)
