"""What an experiment on images is run with, and on which images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from attrdrop.lab.errors import InputError
from attrdrop.lab.names import PLAIN
from attrdrop.lab.runs.settings import (
    Device,
    Epochs,
    FirstSeed,
    Option,
    Options,
    Panel,
    SeededOptions,
    Seeds,
    WeightDecay,
    alternatives,
    arms_of,
    one_of,
    positive,
    share,
)

ERASING, RELDROP, CUTMIX, RELCUTMIX = "erasing", "reldrop", "cutmix", "relcutmix"
ARMS = (PLAIN, ERASING, RELDROP, CUTMIX, RELCUTMIX)
MODELS = ("resnet10", "resnet18", "resnet50", "vit-tiny")
RULES = ("epsilon-plus-flat", "epsilon", "epsilon-flat", "epsilon-plus", "gradient-times-input", "abs-gradient")

# Small enough for two CPU cores and some minutes.
DEMO: dict[str, Any] = {"train_size": 1500, "test_size": 500, "epochs": 4, "seeds": 3}
PRESETS = {"demo": DEMO}


@dataclass(frozen=True)
class ImageData(Options):
    """A set of images, and how much of it."""

    dataset: Annotated[
        str,
        Option(Panel.DATA, "mnist (5,000 digits, a package), cifar10, cifar100, npz (arrays x and y), or folder."),
    ] = "mnist"
    data: Annotated[
        Path | None,
        Option(Panel.DATA, "Where the set lies: CIFAR's python archive unpacked, an .npz file, train/ and val/."),
    ] = None
    train_size: Annotated[int | None, Option(Panel.DATA, "Use only so many training images.", min=2)] = None
    test_size: Annotated[int | None, Option(Panel.DATA, "Use only so many test images.", min=1)] = None
    image_size: Annotated[int, Option(Panel.DATA, "Pixels a side, for image files.", min=8)] = 224


@dataclass(frozen=True)
class ImageSettings(SeededOptions):
    """Hyper-parameters of all arms; those of RelDrop are named as in `attrdrop.RelDrop`.

    Blocks are moved inside the image instead of being cut at its border, so that all arms erase equally large ones.
    """

    model: Annotated[
        str, Option(Panel.MODEL, "resnet10 (narrow), resnet18, resnet50 or vit-tiny.", check=one_of(MODELS))
    ] = "resnet10"
    arms: Annotated[
        tuple[str, ...], Option(Panel.TRAINING, f"What to compare, of {', '.join(ARMS)}.", check=arms_of(ARMS))
    ] = (PLAIN, ERASING, RELDROP)
    seeds: Seeds = 3
    first_seed: FirstSeed = 0
    epochs: Epochs = 10
    batch_size: Annotated[int, Option(Panel.TRAINING, "Images per step; a last batch of one is left out.", min=2)] = 64
    lr: Annotated[
        float,
        Option(
            Panel.TRAINING,
            "Largest learning rate of the one-cycle schedule (SGD).",
            check=positive("learning rate", "0.05"),
        ),
    ] = 0.05
    weight_decay: WeightDecay = 5e-4
    device: Device = "auto"
    p: Annotated[
        float,
        Option(Panel.RELDROP, "Probability that an image is occluded, in every arm but plain.", check=share()),
    ] = 0.5
    alpha: Annotated[
        float,
        Option(Panel.RELDROP, "Probability that an occluded image's block is placed at random.", check=share()),
    ] = 0.5
    min_area: Annotated[float, Option(Panel.RELDROP, "Smallest share of the image that a block covers.")] = 0.02
    max_area: Annotated[float, Option(Panel.RELDROP, "Largest share of the image that a block covers.")] = 0.4
    rule: Annotated[str, Option(Panel.RELDROP, f"{alternatives(RULES)}.", check=one_of(RULES))] = RULES[0]
    stop_at: Annotated[
        str | None,
        Option(Panel.RELDROP, "Attribute down to this module only, stages.1 for instance: cheaper and coarser."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_area <= self.max_area <= 1:
            raise InputError(
                f"--min-area, --max-area: need 0 < min <= max <= 1, got {self.min_area} and {self.max_area}."
            )
