"""What an experiment with several arms is run with, whatever it trains on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from attrdrop.lab.errors import InputError

PLAIN = "plain"


@dataclass(frozen=True)
class ArmSettings:
    """Hyper-parameters that all arms share; a subclass says which models, arms and rules there are."""

    MODELS: ClassVar[Iterable[str]] = ()
    ARMS: ClassVar[Iterable[str]] = ()
    RULES: ClassVar[dict[str, Any]] = {}

    model: str = ""
    arms: tuple[str, ...] = (PLAIN,)
    seeds: int = 3
    first_seed: int = 0
    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.05
    weight_decay: float = 5e-4
    device: str = "auto"
    alpha: float = 0.5
    rule: str = ""

    def __post_init__(self) -> None:
        check_choice("model", self.model, self.MODELS)
        check_choice("rule", self.rule, self.RULES)
        check_arms(self.arms, self.ARMS)
        if not 0 < self.lr < float("inf"):
            raise InputError(f"--lr: {self.lr} is no learning rate; take a number above 0, 0.05 for instance.")
        check_share("alpha", self.alpha)

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.first_seed, self.first_seed + self.seeds))


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Refuse an option that is none of its choices."""
    if value not in choices:
        raise InputError(f"--{option}: {value!r} is none of {', '.join(choices)}.")


def check_arms(arms: Sequence[str], choices: Iterable[str]) -> None:
    """Refuse arms that are none of the choices, none at all, or one twice."""
    for arm in arms:
        check_choice("arms", arm, choices)
    if not arms or len(set(arms)) < len(arms):
        raise InputError(f"--arms: name at least one arm, each once, got {', '.join(arms) or 'none'}.")


def check_share(option: str, value: float, what: str = "probability") -> None:
    """Refuse an option that is not within 0 and 1."""
    if not 0 <= value <= 1:
        raise InputError(f"--{option}: {value} is no {what}; take a number from 0 to 1.")
