"""The arms of an experiment on point clouds: which points are dropped."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from attrdrop import RelDropPoints, lrp
from attrdrop.lab.names import PLAIN
from attrdrop.lab.points.settings import DROPOUT, RELDROP
from attrdrop.lab.runs.arms import Arm, Counts
from attrdrop.lab.runs.training import logits_of

RULES: dict[str, Callable[[], lrp.Rule]] = {
    "epsilon-flat": partial(lrp.EpsilonFlat, 1e-6),
    "epsilon": partial(lrp.Epsilon, 1e-6),
    "epsilon-plus-flat": lrp.EpsilonPlusFlat,
    "gradient-times-input": lrp.GradientTimesInput,
    "abs-gradient": lrp.AbsGradient,
}


class PointDropout(Arm):
    """Random points."""

    def __init__(self, model: nn.Module, settings: Any, task: Any, seed: int) -> None:
        self.transform = RelDropPoints(
            model, alpha=settings.alpha, beta=settings.beta, mode=settings.mode, value=settings.value,
            rule=self._rule(settings), output=logits_of, seed=seed,
        )  # fmt: skip

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(x, y), y

    def counts(self) -> Counts:
        found = self.transform.statistics()
        return Counts(found.clouds, found.attributed, found.points, found.dropped)

    def _rule(self, settings: Any) -> Any:
        return "random"


class Guided(PointDropout):
    """RelDrop: relevant points."""

    work = 5.0

    def _rule(self, settings: Any) -> Any:
        return RULES[settings.rule]()


ARM_TYPES: dict[str, type[Arm]] = {PLAIN: Arm, DROPOUT: PointDropout, RELDROP: Guided}
