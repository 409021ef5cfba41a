"""What an experiment on point clouds is run with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from attrdrop import lrp
from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.settings import PLAIN, ArmSettings, check_choice, check_share

DROPOUT, RELDROP = "dropout", "reldrop"
ARMS = (PLAIN, DROPOUT, RELDROP)
MODELS = ("pointnet2-ssg", "pointnet2-msg", "pointnet")
MODES = ("threshold", "calibrated")
VALUES = ("origin", "first", "resample")
SAMPLINGS = ("first", "farthest")
RULES: dict[str, Callable[[], lrp.Rule]] = {
    "epsilon-flat": partial(lrp.EpsilonFlat, 1e-6),
    "epsilon": partial(lrp.Epsilon, 1e-6),
    "epsilon-plus-flat": lrp.EpsilonPlusFlat,
    "gradient-times-input": lrp.GradientTimesInput,
    "abs-gradient": lrp.AbsGradient,
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
    "mode": "calibrated",
}
PRESETS = {"demo": DEMO}


@dataclass(frozen=True)
class PointSettings(ArmSettings):
    """Hyper-parameters of all arms; those of RelDrop are named as in `attrdrop.RelDropPoints`."""

    MODELS, ARMS, RULES = MODELS, ARMS, RULES

    model: str = "pointnet2-ssg"
    arms: tuple[str, ...] = ARMS
    batch_size: int = 32
    epochs: int = 60
    lr: float = 2e-3
    weight_decay: float = 1e-4
    rule: str = "epsilon-flat"
    width: float = 1.0
    points: int = 1024
    sampling: str = "first"
    normals: bool = False
    jitter: float = 0.01
    rotate: bool = False
    beta: float = 0.15
    mode: str = "threshold"
    value: str = "origin"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("mode", self.mode, MODES)
        check_choice("value", self.value, VALUES)
        check_choice("sampling", self.sampling, SAMPLINGS)
        check_share("beta", self.beta, "share")
        if self.points < 2:
            raise InputError(f"--points: a cloud needs 2 points or more, got {self.points}.")
        if not 0 <= self.jitter < float("inf"):
            raise InputError(f"--jitter: {self.jitter} is no deviation; take a number from 0 on, 0.01 for instance.")
        if not 0 < self.width < float("inf"):
            raise InputError(f"--width: {self.width} is no factor; take a number above 0.")
