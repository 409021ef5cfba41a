"""An arm of an experiment that trains from scratch: what it makes of a batch, and what that costs."""

from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn


class Counts(NamedTuple):
    """What an arm did so far: examples seen and attributed; units (images, points) seen and taken away."""

    examples: float = 0
    attributed: float = 0
    units: float = 0
    changed: float = 0


class Arm:
    """Plain training, which every other arm changes. Made anew for each run."""

    work: ClassVar[float] = 3.0  # rough cost of a step in forward passes: a forward and a backward

    def __init__(self, model: nn.Module, settings: Any, task: Any, seed: int) -> None:
        pass

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets that the model is trained on."""
        return x, y

    def counts(self) -> Counts:
        """What was done since it was made."""
        return Counts()
