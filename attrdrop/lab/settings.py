"""What an experiment is run with."""

from dataclasses import dataclass
from typing import Any

from attrdrop.lab.errors import InputError

PLAIN, ADDROP = "plain", "ad-drop"
ARMS = (PLAIN, ADDROP)

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
    """Hyper-parameters of both arms; those of AD-DROP are named as in `attrdrop.ADDrop`."""

    model: str = "minilm"
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
    target: str = "pseudo"
    pass1: str = "train"
    cross_tuning: bool = True

    def __post_init__(self) -> None:
        if self.cross_tuning and self.epochs < 2:
            raise InputError(
                f"--epochs: {self.epochs} never reaches an AD-DROP epoch, which under cross-tuning are the even ones; "
                "take 2 or more, or --no-cross-tuning."
            )
        if not 0 < self.lr < float("inf"):
            raise InputError(f"--lr: {self.lr} is no learning rate; take a number above 0, 2e-5 for instance.")

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.first_seed, self.first_seed + self.seeds))

    @property
    def addrop_arguments(self) -> dict[str, Any]:
        names = ("p", "q", "attribution", "iga_steps", "target", "pass1", "cross_tuning")
        return {name: getattr(self, name) for name in names} | {"layers": _parse_layers(self.layers)}


def _parse_layers(text: str) -> str | list[int]:
    if text in ("all", "first"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--layers: {text!r} is neither 'all', 'first' nor numbers from 0 such as 0,1,2.") from None
