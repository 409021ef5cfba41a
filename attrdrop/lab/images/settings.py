"""What an experiment on images is run with."""

from dataclasses import dataclass
from typing import Any

from attrdrop import lrp
from attrdrop.lab.errors import InputError

PLAIN, ERASING, RELDROP, CUTMIX, RELCUTMIX = ARMS = ("plain", "erasing", "reldrop", "cutmix", "relcutmix")
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
class ImageSettings:
    """Hyper-parameters of all arms; those of RelDrop are named as in `attrdrop.RelDrop`.

    Blocks are moved inside the image instead of being cut at its border, so that all arms erase equally large ones.
    """

    model: str = "resnet10"
    arms: tuple[str, ...] = (PLAIN, ERASING, RELDROP)
    seeds: int = 3
    first_seed: int = 0
    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.05
    weight_decay: float = 5e-4
    device: str = "auto"
    p: float = 0.5
    alpha: float = 0.5
    min_area: float = 0.02
    max_area: float = 0.4
    rule: str = "epsilon-plus-flat"
    stop_at: str | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (("model", self.model, MODELS), ("rule", self.rule, RULES)):
            if value not in choices:
                raise InputError(f"--{name}: {value!r} is none of {', '.join(choices)}.")
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise InputError(f"--arms: {unknown[0]!r} is none of {', '.join(ARMS)}.")
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise InputError(f"--arms: name at least one arm, each once, got {', '.join(self.arms) or 'none'}.")
        if not 0 < self.lr < float("inf"):
            raise InputError(f"--lr: {self.lr} is no learning rate; take a number above 0, 0.05 for instance.")
        for name, share in (("p", self.p), ("alpha", self.alpha)):
            if not 0 <= share <= 1:
                raise InputError(f"--{name}: {share} is no probability; take a number from 0 to 1.")
        if not 0 < self.min_area <= self.max_area <= 1:
            raise InputError(
                f"--min-area, --max-area: need 0 < min <= max <= 1, got {self.min_area} and {self.max_area}."
            )

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.first_seed, self.first_seed + self.seeds))
