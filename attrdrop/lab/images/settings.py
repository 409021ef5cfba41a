"""What an experiment on images is run with."""

from dataclasses import dataclass
from typing import Any

from attrdrop import lrp
from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.settings import PLAIN, ArmSettings, check_share

ERASING, RELDROP, CUTMIX, RELCUTMIX = "erasing", "reldrop", "cutmix", "relcutmix"
ARMS = (PLAIN, ERASING, RELDROP, CUTMIX, RELCUTMIX)
MODELS = ("resnet10", "resnet18", "resnet50", "vit-tiny")
RULES: dict[str, Any] = {
    "epsilon-plus-flat": lrp.EpsilonPlusFlat,
    "epsilon": lrp.Epsilon,
    "epsilon-flat": lrp.EpsilonFlat,
    "epsilon-plus": lrp.EpsilonPlus,
    "gradient-times-input": lrp.GradientTimesInput,
    "abs-gradient": lrp.AbsGradient,
}

# Small enough for two CPU cores and some minutes.
DEMO: dict[str, Any] = {"train_size": 1500, "test_size": 500, "epochs": 4, "seeds": 3}
PRESETS = {"demo": DEMO}


@dataclass(frozen=True)
class ImageSettings(ArmSettings):
    """Hyper-parameters of all arms; those of RelDrop are named as in `attrdrop.RelDrop`.

    Blocks are moved inside the image instead of being cut at its border, so that all arms erase equally large ones.
    """

    MODELS, ARMS, RULES = MODELS, ARMS, RULES

    model: str = "resnet10"
    arms: tuple[str, ...] = (PLAIN, ERASING, RELDROP)
    rule: str = "epsilon-plus-flat"
    p: float = 0.5
    min_area: float = 0.02
    max_area: float = 0.4
    stop_at: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("p", self.p)
        if not 0 < self.min_area <= self.max_area <= 1:
            raise InputError(
                f"--min-area, --max-area: need 0 < min <= max <= 1, got {self.min_area} and {self.max_area}."
            )
