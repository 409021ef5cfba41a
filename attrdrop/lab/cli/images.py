"""The command `attrdrop train-images`."""

from functools import partial
from pathlib import Path
from typing import Any

from attrdrop.lab.cli.options import command
from attrdrop.lab.cli.terminal import run_experiment
from attrdrop.lab.images.settings import PRESETS, ImageData, ImageSettings
from attrdrop.lab.runs.settings import SavingRunOptions


@command(
    PRESETS,
    "demo: few images and epochs, some minutes on two CPU cores; other options override it.",
    output=Path("runs/images"),
)
def train_images(data: ImageData, settings: ImageSettings, run: SavingRunOptions) -> None:
    """Train an image classifier plainly, with random erasing and with RelDrop, and compare.

    All arms see the same data in the same order from the same initial
    weights, at each of several seeds, and erase equally large blocks. The
    table shows accuracy, step time, memory and what the models rely on.
    Ctrl-C keeps every finished run; the same command again does the rest.
    """
    from attrdrop.lab.images.experiment import ImageExperiment

    run_experiment(partial(ImageExperiment, settings, partial(load, data)), run)


def load(data: ImageData) -> Any:
    """The task that the options name, cut down to the sizes they ask for."""
    from attrdrop.lab.images.data import load_task

    task = load_task(data.dataset, data.data, data.image_size)
    return task.limited(data.train_size, data.test_size)
