"""The settings of an experiment on images, and its data."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from attrdrop.lab.errors import InputError
from attrdrop.lab.names import PLAIN, RULES
from attrdrop.lab.runs.settings import (
    AlphaEnd,
    Device,
    Epochs,
    Epsilon,
    Every,
    FirstSeed,
    MeasureEvery,
    Option,
    Options,
    Panel,
    Rule,
    SeededOptions,
    Seeds,
    WeightDecay,
    alternatives,
    arms_of,
    one_of,
    positive,
    share,
)

ERASING, RELDROP, CUTMIX, RELCUTMIX, MIXUP, RELMIXUP = "erasing", "reldrop", "cutmix", "relcutmix", "mixup", "relmixup"
CHAINS = {  # two arms, the second of which gets what the first gives
    f"{first}+{second}": (first, second)
    for first, second in ((RELDROP, CUTMIX), (CUTMIX, RELDROP), (RELDROP, MIXUP), (MIXUP, RELDROP))
}
ARMS = (PLAIN, ERASING, RELDROP, CUTMIX, RELCUTMIX, MIXUP, RELMIXUP, *CHAINS)
GUIDED = (RELDROP, RELCUTMIX, RELMIXUP, *CHAINS)
MODELS = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "vit-tiny")
LIBRARIES = ("torchvision", "timm")  # whose models are named as in torchvision:resnet50
PRETRAINED = "pretrained"
MODES = ("block", "pixel", "patch")
BORDERS = ("shift", "clip")
MEAN, RAW_MEAN, RANDOM = "mean", "raw-mean", "random"

_BLOCK = frozenset({"p", "min_area", "max_area", "border"})
_CELLS = frozenset({"mode", "beta", "patch", "value"})
_GUIDE = frozenset({"alpha", "alpha_end", "rule", "epsilon", "stop_at", "every", "cache_epochs"})
USES: dict[str, frozenset[str]] = {  # which settings tell on an arm
    PLAIN: frozenset(),
    ERASING: _BLOCK | _CELLS,
    RELDROP: _BLOCK | _CELLS | _GUIDE | {"k_centers"},
    CUTMIX: _BLOCK,
    RELCUTMIX: _BLOCK | _GUIDE | {"k_centers"},
    MIXUP: frozenset({"p", "mix"}),
    RELMIXUP: frozenset({"p", "mix"}) | _GUIDE,
}
USES |= {name: USES[first] | USES[second] for name, (first, second) in CHAINS.items()}

# Small enough for two CPU cores and some minutes.
DEMO: dict[str, Any] = {"train_size": 1500, "test_size": 500, "epochs": 4, "seeds": 3}
PRESETS = {"demo": DEMO}


def _check_model(option: str, name: str) -> None:
    library, _, of_library = name.partition(":")
    if name not in MODELS and not (library in LIBRARIES and of_library):
        raise InputError(
            f"--{option}: {name!r} is not one of {', '.join(MODELS)}, and no name such as torchvision:resnet50 or "
            "timm:resnet26."
        )


def _check_value(option: str, value: str) -> None:
    try:
        is_number = math.isfinite(float(value))
    except ValueError:
        is_number = False
    if not is_number and value not in (MEAN, RAW_MEAN, RANDOM):
        raise InputError(f"--{option}: {value!r} is not one of {MEAN}, {RAW_MEAN}, {RANDOM}, and no number.")


@dataclass(frozen=True)
class ImageData(Options):
    """A set of images, and how much of it is used."""

    dataset: Annotated[
        str,
        Option(
            Panel.DATA,
            "mnist (5,000 digits, a package), planted (digits on photographs, at known positions), cifar10, "
            "cifar100, npz (arrays x and y), or folder.",
        ),
    ] = "mnist"
    data: Annotated[
        Path | None,
        Option(
            Panel.DATA,
            "Location of the set: CIFAR's unpacked python archive, an .npz file, or a folder with train/ and val/.",
        ),
    ] = None
    train_size: Annotated[int | None, Option(Panel.DATA, "Use only this many training images.", min=2)] = None
    test_size: Annotated[int | None, Option(Panel.DATA, "Use only this many test images.", min=1)] = None
    dev_size: Annotated[
        int | None,
        Option(
            Panel.DATA,
            "Hold out this many training images to choose settings on; with --vary, by default a fifth.",
            min=1,
        ),
    ] = None
    image_size: Annotated[int, Option(Panel.DATA, "Side length in pixels, for image files.", min=8)] = 224
    classes: Annotated[
        Path | None,
        Option(Panel.DATA, "For image files: a list of class folders, one per line, each followed by a name."),
    ] = None
    boxes: Annotated[
        Path | None,
        Option(
            Panel.DATA, "For image files: a folder with ImageNet's XML files of object boxes, named like the images."
        ),
    ] = None


@dataclass(frozen=True)
class ImageSettings(SeededOptions):
    """Hyper-parameters of all arms; those of RelDrop are named as in `attrdrop.RelDrop`.

    Blocks are moved inside the image instead of being cut at its border, so that all arms erase equally large ones.
    """

    model: Annotated[
        str,
        Option(
            Panel.MODEL,
            f"{alternatives(MODELS)}, or a model of a package: torchvision:convnext_tiny, timm:resnet26.",
            check=_check_model,
        ),
    ] = "resnet10"
    weights: Annotated[
        str,
        Option(Panel.MODEL, "Initial weights: pretrained (the package's own), or a file."),
    ] = ""
    arms: Annotated[
        tuple[str, ...],
        Option(Panel.TRAINING, f"What to compare, separated by commas: {', '.join(ARMS)}.", check=arms_of(ARMS)),
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
    measure_every: MeasureEvery = None
    p: Annotated[
        float,
        Option(Panel.RELDROP, "Probability that an image is occluded, in every arm but plain.", check=share()),
    ] = 0.5
    alpha: Annotated[
        float,
        Option(Panel.RELDROP, "Probability that an occluded image's block is placed at random.", check=share()),
    ] = 0.5
    mode: Annotated[
        str,
        Option(
            Panel.RELDROP,
            "What RelDrop and erasing remove: block, pixel or patch (on a fixed grid; a share beta of them).",
            check=one_of(MODES),
        ),
    ] = MODES[0]
    beta: Annotated[float, Option(Panel.RELDROP, "Share of the pixels or patches to remove.", check=share("share"))] = (
        0.15
    )
    patch: Annotated[int, Option(Panel.RELDROP, "Side length of a patch in pixels.", min=1)] = 8
    border: Annotated[
        str,
        Option(Panel.RELDROP, "Blocks at the border: shift (moved inside) or clip (cut).", check=one_of(BORDERS)),
    ] = BORDERS[0]
    value: Annotated[
        str,
        Option(
            Panel.RELDROP,
            "What fills blocks: mean (of the set), raw-mean (before normalisation, as in the released code), "
            "random, or a number after normalisation.",
            check=_check_value,
        ),
    ] = MEAN
    k_centers: Annotated[
        int, Option(Panel.RELDROP, "Take one of the k most relevant positions as the centre of a block.", min=1)
    ] = 1
    mix: Annotated[
        float,
        Option(Panel.RELDROP, "MixUp's two weights come from Beta(mix, mix).", check=positive("parameter", "0.2")),
    ] = 1.0
    alpha_end: AlphaEnd = None
    min_area: Annotated[float, Option(Panel.RELDROP, "Smallest share of the image that a block covers.")] = 0.02
    max_area: Annotated[float, Option(Panel.RELDROP, "Largest share of the image that a block covers.")] = 0.4
    rule: Rule = RULES[0]
    epsilon: Epsilon = 1e-3
    every: Every = 1
    cache_epochs: Annotated[
        int,
        Option(
            Panel.RELDROP, "Attribute an image only in every n-th epoch, and reuse its relevance until then.", min=1
        ),
    ] = 1
    stop_at: Annotated[
        str | None,
        Option(Panel.RELDROP, "Attribute only down to this module, for instance stages.1: cheaper and coarser."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_area <= self.max_area <= 1:
            raise InputError(
                f"--min-area, --max-area: need 0 < min <= max <= 1, got {self.min_area} and {self.max_area}."
            )


@dataclass(frozen=True)
class EvaluationOptions(Options):
    """Other sets to score a model on, and where the table is written."""

    output: Annotated[Path | None, Option(Panel.RESULTS, "CSV file for the table, which is also printed.")] = None
    shifted: Annotated[
        tuple[str, ...],
        Option(
            Panel.DATA, "Folders of class folders with some or all of the model's classes, such as ImageNet-R and -A."
        ),
    ] = ()
    odd: Annotated[
        tuple[str, ...],
        Option(Panel.DATA, "Folders of class folders with images of none of the model's classes, such as ImageNet-O."),
    ] = ()
