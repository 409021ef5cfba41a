"""What an experiment is run with."""

from dataclasses import dataclass
from typing import Any

from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.settings import PLAIN, check_arms, check_choice, check_share

ADDROP = "ad-drop"
ATTENTION_DROPOUT, R_DROP, DROP_HEAD = "attention-dropout", "r-drop", "drop-head"
HIDDEN_CUT, DROP_KEY = "hidden-cut", "drop-key"
ARMS = (PLAIN, ADDROP, ATTENTION_DROPOUT, R_DROP, DROP_HEAD, HIDDEN_CUT, DROP_KEY)
REGIONS = ("high", "low")

# Small enough for two CPU cores and about four minutes, with two AD-DROP epochs in four.
DEMO: dict[str, Any] = {
    "seeds": 3,
    "epochs": 4,
    "train_size": 256,
    "dev_size": 128,
    "test_size": 300,
    "max_length": 48,
    "lr": 1e-4,
}
PRESETS = {"demo": DEMO}


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of all arms; those of AD-DROP are named as in `attrdrop.ADDrop`.

    metric chooses the best epoch, None for the task's own. rate is what the rivals of AD-DROP drop, consistency the
    weight of the divergence in the loss of R-Drop and HiddenCut.
    """

    model: str = "minilm"
    arms: tuple[str, ...] = (PLAIN, ADDROP)
    metric: str | None = None
    seeds: int = 3
    first_seed: int = 0
    epochs: int = 6
    batch_size: int = 16
    lr: float = 2e-5
    weight_decay: float = 0.01
    max_length: int = 128
    early_stopping_patience: int = 3
    device: str = "auto"
    p: float = 0.3
    q: float = 0.3
    attribution: str = "GA"
    iga_steps: int = 20
    layers: str = "all"
    attention: str = "encoder"
    target: str = "pseudo"
    pass1: str = "train"
    region: str = "high"
    cross_tuning: bool = True
    rate: float = 0.1
    consistency: float = 1.0

    def __post_init__(self) -> None:
        check_arms(self.arms, ARMS)
        if self.cross_tuning and self.epochs < 2 and ADDROP in self.arms:
            raise InputError(
                f"--epochs: {self.epochs} never reaches an AD-DROP epoch, which under cross-tuning are the even ones; "
                "take 2 or more, or --no-cross-tuning."
            )
        if not 0 < self.lr < float("inf"):
            raise InputError(f"--lr: {self.lr} is no learning rate; take a number above 0, 2e-5 for instance.")
        check_choice("region", self.region, REGIONS)
        check_share("rate", self.rate)
        if not 0 <= self.consistency < float("inf"):
            raise InputError(f"--consistency: {self.consistency} is no weight; take a number from 0 on.")

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.first_seed, self.first_seed + self.seeds))

    @property
    def addrop_arguments(self) -> dict[str, Any]:
        names = ("p", "q", "attribution", "iga_steps", "target", "pass1", "region", "cross_tuning")
        attention = [part.strip() for part in self.attention.split(",")]
        return {name: getattr(self, name) for name in names} | {
            "layers": _parse_layers(self.layers),
            "attention": attention,
        }


def _parse_layers(text: str) -> str | list[int]:
    if text in ("all", "first"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--layers: {text!r} is neither 'all', 'first' nor numbers from 0 such as 0,1,2.") from None
