"""The command `attrdrop train-images`."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from attrdrop.lab.cli.options import command
from attrdrop.lab.cli.terminal import run_experiment
from attrdrop.lab.images.settings import PRESETS, USES, ImageData, ImageSettings
from attrdrop.lab.runs.settings import SavingRunOptions, Variation
from attrdrop.lab.runs.variants import grid


@command(
    PRESETS,
    "demo: few images and epochs, a few minutes on two CPU cores; other options override it.",
    output=Path("runs/images"),
)
def train_images(data: ImageData, variation: Variation, settings: ImageSettings, run: SavingRunOptions) -> None:
    """Train an image classifier plainly, with random erasing and with RelDrop, and compare.

    All arms see the same data in the same order from the same initial
    weights, with several seeds, and erase blocks of the same size. The
    table shows accuracy, step time, memory and what the models rely on.
    With --vary each combination of settings is a separate arm, and a
    development split chooses among them. Ctrl-C keeps every finished run;
    the same command does the rest.
    """
    from attrdrop.lab.images.experiment import ImageExperiment

    settings = dataclasses.replace(settings, arms=grid(settings.arms, variation.vary, USES))
    run_experiment(partial(ImageExperiment, settings, partial(load, data, bool(variation.vary))), run)


def load(data: ImageData, chooses: bool = False) -> Any:
    """The task that the options name, cut down to the sizes they ask for; to choose, it needs a development split."""
    from attrdrop.lab.images.data import load_task

    task = load_task(data.dataset, data.data, data.image_size, data.classes, data.boxes)
    fifth = max(1, len(task.train.labels) // 5) if chooses else None
    return task.limited(data.train_size, data.test_size, data.dev_size or fifth)
