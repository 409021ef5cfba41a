"""The arms of an experiment on images: which images lose a block, where, and what takes its place."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from attrdrop import RelCutMix, RelDrop, lrp
from attrdrop.lab.images.settings import CUTMIX, ERASING, RELCUTMIX, RELDROP
from attrdrop.lab.names import PLAIN
from attrdrop.lab.runs.arms import Arm, Counts

RULES: dict[str, Callable[[], lrp.Rule]] = {
    "epsilon-plus-flat": lrp.EpsilonPlusFlat,
    "epsilon": lrp.Epsilon,
    "epsilon-flat": lrp.EpsilonFlat,
    "epsilon-plus": lrp.EpsilonPlus,
    "gradient-times-input": lrp.GradientTimesInput,
    "abs-gradient": lrp.AbsGradient,
}


class Erasing(Arm):
    """A block at a random place is erased."""

    is_guided: ClassVar = False  # whether relevance places some of the blocks

    def __init__(self, model: nn.Module, settings: Any, task: Any, seed: int) -> None:
        options: dict[str, Any] = {
            "p": settings.p,
            "alpha": settings.alpha if self.is_guided else 1.0,
            "scale": (settings.min_area, settings.max_area),
            "border": "shift",
            "rule": RULES[settings.rule](),
            "stop_at": settings.stop_at,
            "seed": seed,
        }
        self.transform = self._transform(model, len(task.label_names), options)

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(x, y), y

    def counts(self) -> Counts:
        found = self.transform.statistics()
        return Counts(found.images, found.attributed, found.images, found.area * found.occluded)

    def _transform(self, model: nn.Module, classes: int, options: dict[str, Any]) -> Any:
        return RelDrop(model, **options)


class Guided(Erasing):
    """RelDrop: some of the blocks lie where relevance is highest."""

    is_guided = True
    work = 3.7


class CutMix(Erasing):
    """The block is pasted from another image, and the target mixed."""

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(x, y)

    def _transform(self, model: nn.Module, classes: int, options: dict[str, Any]) -> Any:
        return RelCutMix(model, classes, **options)


class GuidedCutMix(CutMix, Guided):
    """RelCutMix: the same guided."""


ARM_TYPES: dict[str, type[Arm]] = {
    PLAIN: Arm,
    ERASING: Erasing,
    RELDROP: Guided,
    CUTMIX: CutMix,
    RELCUTMIX: GuidedCutMix,
}
