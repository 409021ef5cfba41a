"""The arms of an experiment on point clouds: which points are dropped."""

from typing import Any, ClassVar

from torch import Tensor, nn

from attrdrop import RelDropPoints
from attrdrop.lab.names import PLAIN
from attrdrop.lab.points.settings import DROPOUT, RELDROP
from attrdrop.lab.runs.arms import Arm, Counts, alpha_of
from attrdrop.lab.runs.rules import rule_of
from attrdrop.lab.runs.training import logits_of


class PointDropout(Arm):
    """Random points."""

    def __init__(self, model: nn.Module, settings: Any, task: Any, seed: int) -> None:
        self.transform = RelDropPoints(
            model, alpha=alpha_of(settings, task), beta=settings.beta, mode=settings.mode, value=settings.value,
            rule=self._rule(settings), every=settings.every, output=logits_of, seed=seed,
        )  # fmt: skip

    def __call__(self, x: Tensor, y: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(x, y), y

    def counts(self) -> Counts:
        found = self.transform.statistics()
        return Counts(found.clouds, found.attributed, found.points, found.dropped)

    def _rule(self, settings: Any) -> Any:
        return "random"


class Guided(PointDropout):
    """RelDrop: relevant points."""

    work = 5.0
    is_guided: ClassVar = True

    def _rule(self, settings: Any) -> Any:
        return rule_of(settings.rule, settings.epsilon)


ARM_TYPES: dict[str, type[Arm]] = {PLAIN: Arm, DROPOUT: PointDropout, RELDROP: Guided}
