"""An arm of an experiment that trains from scratch: what it makes of a batch, and what that costs."""

from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from attrdrop import schedules


class Counts(NamedTuple):
    """What an arm did so far: examples seen and attributed; units (images, points) seen and taken away."""

    examples: float = 0
    attributed: float = 0
    units: float = 0
    changed: float = 0
    reused: float = 0  # examples whose relevance was kept from an earlier epoch
    cache_bytes: float = 0
    agreement: float | None = None  # of kept relevance with what replaced it


class Arm:
    """Plain training, which every other arm changes. Made anew for each run."""

    work: ClassVar[float] = 3.0  # rough cost of a step in forward passes: a forward and a backward
    is_guided: ClassVar = False  # whether relevance has a say

    def __init__(self, model: nn.Module, settings: Any, task: Any, seed: int) -> None:
        pass

    def __call__(self, x: Tensor, y: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets that the model is trained on; samples: which examples of the training split they are."""
        return x, y

    def counts(self) -> Counts:
        """What was done since it was made."""
        return Counts()


def alpha_of(settings: Any, task: Any) -> schedules.Schedule:
    """The share of chance, which goes in a line from alpha to alpha_end over the training where that is given."""
    if settings.alpha_end is None:
        return settings.alpha
    steps = settings.epochs * max(1, len(task.train.labels) // settings.batch_size)
    return schedules.linear(settings.alpha, settings.alpha_end, steps)
