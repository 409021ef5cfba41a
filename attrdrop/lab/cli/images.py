"""The command `attrdrop train-images`."""

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


class ImagePreset(str, Enum):
    """Names of PRESETS."""

    demo = "demo"


def train_images(
    context: typer.Context,
    preset: Annotated[
        ImagePreset | None,
        option(OUTPUT, "demo: few images and epochs, some minutes on two CPU cores; other options override it."),
    ] = None,
    dataset: Annotated[
        str, option(DATA, "mnist (5,000 digits, a package), cifar10, cifar100, npz (arrays x and y), or folder.")
    ] = "mnist",
    data: Annotated[
        Path | None, option(DATA, "Where the set lies: CIFAR's python archive unpacked, an .npz file, train/ and val/.")
    ] = None,
    train_size: Annotated[int | None, option(DATA, "Use only so many training images.", min=2)] = None,
    test_size: Annotated[int | None, option(DATA, "Use only so many test images.", min=1)] = None,
    image_size: Annotated[int, option(DATA, "Pixels a side, for image files.", min=8)] = 224,
    model: Annotated[str, option(MODEL, "resnet10 (narrow), resnet18, resnet50 or vit-tiny.")] = "resnet10",
    arms: Annotated[
        str, option(TRAINING, "What to compare, of plain, erasing, reldrop, cutmix, relcutmix.")
    ] = "plain,erasing,reldrop",
    p: Annotated[float, option(RELDROP, "Probability that an image is occluded, in every arm but plain.")] = 0.5,
    alpha: Annotated[float, option(RELDROP, "Probability that an occluded image's block is placed at random.")] = 0.5,
    min_area: Annotated[float, option(RELDROP, "Smallest share of the image that a block covers.")] = 0.02,
    max_area: Annotated[float, option(RELDROP, "Largest share of the image that a block covers.")] = 0.4,
    rule: Annotated[
        str,
        option(
            RELDROP, "epsilon-plus-flat, epsilon, epsilon-flat, epsilon-plus, gradient-times-input or abs-gradient."
        ),
    ] = "epsilon-plus-flat",
    stop_at: Annotated[
        str | None, option(RELDROP, "Attribute down to this module only, stages.1 for instance: cheaper and coarser.")
    ] = None,
    seeds: Seeds = 3,
    first_seed: FirstSeed = 0,
    epochs: Annotated[int, option(TRAINING, "Epochs of a run.", min=1)] = 10,
    batch_size: Annotated[int, option(TRAINING, "Images per step; a last batch of one is left out.", min=2)] = 64,
    lr: Annotated[float, option(TRAINING, "Largest learning rate of the one-cycle schedule (SGD).")] = 0.05,
    weight_decay: Annotated[float, option(TRAINING, "Weight decay.", min=0)] = 5e-4,
    device: Device = "auto",
    threads: Threads = None,
    output: Resumed = Path("runs/images"),
    overwrite: Overwrite = False,
) -> None:
    """Train an image classifier plainly, with random erasing and with RelDrop, and compare.

    All arms see the same data in the same order from the same initial
    weights, at each of several seeds, and erase equally large blocks. The
    table shows accuracy, step time, memory and what the models rely on.
    Ctrl-C keeps every finished run; the same command again does the rest.
    """
    with one_sentence():
        from attrdrop.lab.images.data import load_task
        from attrdrop.lab.images.experiment import ImageExperiment
        from attrdrop.lab.images.settings import PRESETS, ImageSettings

        values = values_under(context, PRESETS[preset.value] if preset else {})
        settings = arm_settings(ImageSettings, values)
        load = partial(load_task, values["dataset"], values["data"], values["image_size"])
        run_arms(ImageExperiment, settings, values, load)
