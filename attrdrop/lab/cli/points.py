"""The command `attrdrop train-points`."""

from functools import partial
from pathlib import Path

from attrdrop.lab.cli.options import Run, command
from attrdrop.lab.cli.terminal import run_arms
from attrdrop.lab.points.settings import PRESETS, PointData, PointSettings


@command(
    PRESETS,
    "demo: a narrow model, few points, some minutes on two CPU cores; other options override it.",
    output=Path("runs/points"),
)
def train_points(data: PointData, settings: PointSettings, run: Run) -> None:
    """Train a point cloud classifier plainly, with random point dropout and with RelDrop, and compare.

    All arms see the same data in the same order from the same initial
    weights, at each of several seeds. The table shows accuracy, step
    time, memory, and how well the models bear the loss of points.
    Ctrl-C keeps every finished run; the same command again does the rest.
    """
    from attrdrop.lab.points.data import load_task
    from attrdrop.lab.points.experiment import PointExperiment
    from attrdrop.lab.points.readers import Reading

    reading = Reading(settings.points, settings.sampling, settings.normals)
    run_arms(PointExperiment, settings, data, run, partial(load_task, data.dataset, data.data, reading))
