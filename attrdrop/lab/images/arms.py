"""The arms of an experiment on images: what is removed, where, and what replaces it."""

from typing import Any, ClassVar

from torch import Tensor, nn

from attrdrop import RelCutMix, RelDrop, RelMixUp
from attrdrop.lab.images.settings import (
    CHAINS,
    CUTMIX,
    ERASING,
    MEAN,
    MIXUP,
    RAW_MEAN,
    RELCUTMIX,
    RELDROP,
    RELMIXUP,
)
from attrdrop.lab.names import PLAIN
from attrdrop.lab.runs.arms import Arm, Counts, alpha_of
from attrdrop.lab.runs.rules import rule_of


class Erasing(Arm):
    """Blocks, pixels or patches at random places are erased."""

    def __init__(self, model: nn.Module, settings: Any, task: Any, seed: int) -> None:
        options: dict[str, Any] = {
            "p": settings.p,
            "alpha": alpha_of(settings, task) if self.is_guided else 1.0,
            "rule": rule_of(settings.rule, settings.epsilon),
            "stop_at": settings.stop_at,
            "every": settings.every,
            "cache_epochs": settings.cache_epochs if self.is_guided else 1,
            "seed": seed,
        }
        self.transform = self._transform(model, settings, task, options)

    def __call__(self, x: Tensor, y: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Erasing changes no target; of a mixture, what is relevant is asked for the class with the largest share."""
        return self.transform(x, y if y.dim() == 1 else y.argmax(1), samples=samples), y

    def counts(self) -> Counts:
        found, kept = self.transform.statistics(), self.transform.cache_statistics()
        return Counts(
            found.images, found.attributed, found.images, found.area * found.occluded, kept.reused, kept.bytes,
            kept.agreement,
        )  # fmt: skip

    def _transform(self, model: nn.Module, settings: Any, task: Any, options: dict[str, Any]) -> Any:
        return RelDrop(
            model, mode=settings.mode, beta=settings.beta, patch=settings.patch, value=_value(settings.value, task),
            **_block(settings), **options,
        )  # fmt: skip


class Guided(Erasing):
    """RelDrop: some of the blocks lie where relevance is highest."""

    is_guided: ClassVar = True
    work = 3.7


class CutMix(Erasing):
    """The block is pasted from another image, and the target mixed."""

    def __call__(self, x: Tensor, y: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(x, y, samples=samples)

    def _transform(self, model: nn.Module, settings: Any, task: Any, options: dict[str, Any]) -> Any:
        return RelCutMix(model, len(task.label_names), **_block(settings), **options)


class GuidedCutMix(CutMix, Guided):
    """RelCutMix: CutMix, guided by relevance."""


class MixUp(CutMix):
    """The whole image is mixed with another, and the target in the same proportion."""

    def _transform(self, model: nn.Module, settings: Any, task: Any, options: dict[str, Any]) -> Any:
        return RelMixUp(model, len(task.label_names), concentration=settings.mix, **options)


class GuidedMixUp(MixUp, Guided):
    """RelMixUp: the other image shows most where relevance is highest."""


class Chain(Arm):
    """One arm after another."""

    is_guided: ClassVar = True
    work = Guided.work
    parts: ClassVar[tuple[type[Arm], ...]]

    def __init__(self, model: nn.Module, settings: Any, task: Any, seed: int) -> None:
        # Draws of their own: else both would choose the same images.
        self.arms = [part(model, settings, task, seed + (place << 32)) for place, part in enumerate(self.parts)]

    def __call__(self, x: Tensor, y: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        for arm in self.arms:
            x, y = arm(x, y, samples)
        return x, y

    def counts(self) -> Counts:
        """Of the guided one, with all that was taken away."""
        found = [arm.counts() for arm in self.arms]
        (guided,) = (counts for arm, counts in zip(self.arms, found, strict=True) if arm.is_guided)
        return guided._replace(changed=sum(counts.changed for counts in found))


ARM_TYPES: dict[str, type[Arm]] = {
    PLAIN: Arm,
    ERASING: Erasing,
    RELDROP: Guided,
    CUTMIX: CutMix,
    RELCUTMIX: GuidedCutMix,
    MIXUP: MixUp,
    RELMIXUP: GuidedMixUp,
}
ARM_TYPES |= {
    name: type("Chained", (Chain,), {"parts": tuple(ARM_TYPES[part] for part in parts)})
    for name, parts in CHAINS.items()
}


def _block(settings: Any) -> dict[str, Any]:
    return {
        "scale": (settings.min_area, settings.max_area),
        "border": settings.border,
        "k_centers": settings.k_centers,
    }


def _value(name: str, task: Any) -> Any:
    """As `attrdrop.RelDrop` takes it."""
    if name == MEAN:
        return 0.0
    if name == RAW_MEAN:
        return tuple(task.mean)
    try:
        return float(name)
    except ValueError:
        return name
