"""The settings of an experiment on point clouds, and its data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from attrdrop.lab.errors import InputError
from attrdrop.lab.names import PLAIN
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
    non_negative,
    one_of,
    positive,
    share,
)

DROPOUT, RELDROP = "dropout", "reldrop"
ARMS = (PLAIN, DROPOUT, RELDROP)
MODELS = ("pointnet2-ssg", "pointnet2-msg", "pointnet")
MODES = ("threshold", "calibrated")
VALUES = ("origin", "first", "resample")
SAMPLINGS = ("first", "farthest")
SHARED = frozenset({"beta", "mode", "value"})
USES: dict[str, frozenset[str]] = {  # which settings tell on an arm
    PLAIN: frozenset(),
    DROPOUT: SHARED,
    RELDROP: SHARED | {"alpha", "alpha_end", "rule", "epsilon", "every"},
}

# Small enough for two CPU cores and some minutes.
DEMO: dict[str, Any] = {
    "points": 256,
    "width": 0.25,
    "epochs": 80,
    "batch_size": 16,
    "lr": 6e-3,
    "seeds": 2,
    "beta": 0.3,
}
PRESETS = {"demo": DEMO}


@dataclass(frozen=True)
class PointData(Options):
    """A set of point clouds, and how much of it is used."""

    dataset: Annotated[
        str, Option(Panel.DATA, "furniture (438 shapes, bundled), modelnet40, shapenet, or npz (arrays x and y).")
    ] = "furniture"
    data: Annotated[Path | None, Option(Panel.DATA, "Location of the set: the unpacked archive, or an .npz file.")] = (
        None
    )
    train_size: Annotated[int | None, Option(Panel.DATA, "Use only this many training clouds.", min=2)] = None
    test_size: Annotated[int | None, Option(Panel.DATA, "Use only this many test clouds.", min=1)] = None
    dev_size: Annotated[
        int | None,
        Option(
            Panel.DATA,
            "Hold out this many training clouds to choose settings on; with --vary, by default a fifth.",
            min=1,
        ),
    ] = None


@dataclass(frozen=True)
class PointEvaluation(Options):
    """A saved model, and where its scores are written."""

    model: Annotated[
        Path, Option(Panel.MODEL, "Folder of a saved model, such as runs/points/models/reldrop.", is_argument=True)
    ]
    output: Annotated[Path | None, Option(Panel.RESULTS, "CSV file for the scores, which are also printed.")] = None
    device: Device = "auto"


@dataclass(frozen=True)
class PointSettings(SeededOptions):
    """Hyper-parameters of all arms; those of RelDrop are named as in `attrdrop.RelDropPoints`."""

    model: Annotated[str, Option(Panel.MODEL, f"{alternatives(MODELS)}.", check=one_of(MODELS))] = MODELS[0]
    arms: Annotated[
        tuple[str, ...],
        Option(Panel.TRAINING, "What to compare: plain, dropout (of random points) and reldrop.", check=arms_of(ARMS)),
    ] = ARMS
    seeds: Seeds = 3
    first_seed: FirstSeed = 0
    epochs: Epochs = 60
    batch_size: Annotated[int, Option(Panel.TRAINING, "Clouds per step; a last batch of one is left out.", min=2)] = 32
    lr: Annotated[
        float,
        Option(
            Panel.TRAINING,
            "Largest learning rate of the one-cycle schedule (AdamW).",
            check=positive("learning rate", "0.05"),
        ),
    ] = 2e-3
    weight_decay: WeightDecay = 1e-4
    device: Device = "auto"
    measure_every: MeasureEvery = None
    width: Annotated[
        float, Option(Panel.MODEL, "Factor on the number of channels of each layer.", check=positive("factor"))
    ] = 1.0
    points: Annotated[int, Option(Panel.DATA, "Number of points per cloud that the model sees.", min=1)] = 1024
    sampling: Annotated[
        str,
        Option(
            Panel.DATA,
            "Which points of a longer cloud: first (in training some of 2,048) or farthest.",
            check=one_of(SAMPLINGS),
        ),
    ] = "first"
    normals: Annotated[bool, Option(Panel.DATA, "Read normals, channels 3 to 5.")] = False
    jitter: Annotated[
        float,
        Option(
            Panel.DATA, "Standard deviation of the noise on training points.", check=non_negative("deviation", "0.01")
        ),
    ] = 0.01
    rotate: Annotated[bool, Option(Panel.DATA, "Rotate training clouds about the upward axis.")] = False
    alpha: Annotated[
        float, Option(Panel.RELDROP, "Weight of chance relative to relevance: 1 is pure chance.", check=share())
    ] = 0.5
    beta: Annotated[
        float,
        Option(Panel.RELDROP, "How much is dropped: the share of points, if dropped by chance.", check=share("share")),
    ] = 0.15
    mode: Annotated[
        str,
        Option(
            Panel.RELDROP,
            "calibrated (exactly the share beta of each cloud) or threshold (as released: fewer points).",
            check=one_of(MODES),
        ),
    ] = "calibrated"
    value: Annotated[
        str,
        Option(
            Panel.RELDROP,
            "What a dropped point becomes: origin, first (the first point) or resample.",
            check=one_of(VALUES),
        ),
    ] = "origin"
    alpha_end: AlphaEnd = None
    rule: Rule = "epsilon-flat"
    epsilon: Epsilon = 1e-6
    every: Every = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points < 2:
            raise InputError(f"--points: a cloud needs 2 points or more, got {self.points}.")
