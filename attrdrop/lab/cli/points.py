"""The command `attrdrop train-points`."""

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from attrdrop.lab.cli.options import Device, FirstSeed, Overwrite, Resumed, Seeds, Threads
from attrdrop.lab.cli.terminal import (
    DATA,
    MODEL,
    OUTPUT,
    TRAINING,
    arm_settings,
    one_sentence,
    option,
    run_arms,
    values_under,
)

RELDROP = "RelDrop"


class PointPreset(str, Enum):
    """Names of PRESETS."""

    demo = "demo"


def train_points(
    context: typer.Context,
    preset: Annotated[
        PointPreset | None,
        option(OUTPUT, "demo: a narrow model, few points, some minutes on two CPU cores; other options override it."),
    ] = None,
    dataset: Annotated[
        str, option(DATA, "furniture (438 shapes, shipped), modelnet40, shapenet, or npz (arrays x and y).")
    ] = "furniture",
    data: Annotated[Path | None, option(DATA, "Where the set lies: the archive unpacked, or an .npz file.")] = None,
    train_size: Annotated[int | None, option(DATA, "Use only so many training clouds.", min=2)] = None,
    test_size: Annotated[int | None, option(DATA, "Use only so many test clouds.", min=1)] = None,
    points: Annotated[int, option(DATA, "Points of a cloud that the model sees.", min=1)] = 1024,
    sampling: Annotated[
        str, option(DATA, "Which points of a longer cloud: first (in training some of 2,048) or farthest.")
    ] = "first",
    normals: Annotated[
        bool, typer.Option("--normals/--no-normals", help="Read normals, channels 3 to 5.", rich_help_panel=DATA)
    ] = False,
    jitter: Annotated[float, option(DATA, "Deviation of the noise on training points.")] = 0.01,
    rotate: Annotated[
        bool,
        typer.Option("--rotate/--no-rotate", help="Turn training clouds about the upward axis.", rich_help_panel=DATA),
    ] = False,
    model: Annotated[str, option(MODEL, "pointnet2-ssg, pointnet2-msg or pointnet.")] = "pointnet2-ssg",
    width: Annotated[float, option(MODEL, "Factor on the number of channels of each layer.")] = 1.0,
    arms: Annotated[
        str, option(TRAINING, "What to compare, of plain, dropout (of random points) and reldrop.")
    ] = "plain,dropout,reldrop",
    alpha: Annotated[float, option(RELDROP, "Weight of chance against relevance: 1 is all chance.")] = 0.5,
    beta: Annotated[float, option(RELDROP, "How much is dropped: the share of points, if all is chance.")] = 0.15,
    mode: Annotated[
        str, option(RELDROP, "threshold (as published) or calibrated (the share beta of each cloud, exactly).")
    ] = "threshold",
    value: Annotated[
        str, option(RELDROP, "What a dropped point becomes: origin, first (the first point) or resample.")
    ] = "origin",
    rule: Annotated[
        str, option(RELDROP, "epsilon-flat, epsilon, epsilon-plus-flat, gradient-times-input or abs-gradient.")
    ] = "epsilon-flat",
    seeds: Seeds = 3,
    first_seed: FirstSeed = 0,
    epochs: Annotated[int, option(TRAINING, "Epochs of a run.", min=1)] = 60,
    batch_size: Annotated[int, option(TRAINING, "Clouds per step; a last batch of one is left out.", min=2)] = 32,
    lr: Annotated[float, option(TRAINING, "Largest learning rate of the one-cycle schedule (AdamW).")] = 2e-3,
    weight_decay: Annotated[float, option(TRAINING, "Weight decay.", min=0)] = 1e-4,
    device: Device = "auto",
    threads: Threads = None,
    output: Resumed = Path("runs/points"),
    overwrite: Overwrite = False,
) -> None:
    """Train a point cloud classifier plainly, with random point dropout and with RelDrop, and compare.

    All arms see the same data in the same order from the same initial
    weights, at each of several seeds. The table shows accuracy, step
    time, memory, and how well the models bear the loss of points.
    Ctrl-C keeps every finished run; the same command again does the rest.
    """
    with one_sentence():
        from attrdrop.lab.points.data import load_task
        from attrdrop.lab.points.experiment import PointExperiment
        from attrdrop.lab.points.readers import Reading
        from attrdrop.lab.points.settings import PRESETS, PointSettings

        values = values_under(context, PRESETS[preset.value] if preset else {})
        settings = arm_settings(PointSettings, values)
        reading = Reading(settings.points, settings.sampling, settings.normals)
        load = partial(load_task, values["dataset"], values["data"], reading)
        run_arms(PointExperiment, settings, values, load)
