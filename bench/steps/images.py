"""Whole RelDrop training steps on images against the plain step: time and peak memory. See bench/steps/guided.py."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor, nn

from attrdrop import RelDrop, lrp, models
from bench.steps import zennit_peer
from bench.steps.cli import count, option
from bench.steps.guided import GuidedSteps, Transform, plain
from bench.steps.skeleton import StepSettings

MODELS = {"resnet10": models.resnet10, "resnet18": models.resnet18, "resnet50": models.resnet50}
LARGE = 64  # pixels: larger images get the stem with pooling, and 1000 classes instead of 10


@dataclass(frozen=True)
class Settings(StepSettings):
    """One benchmark of steps on images."""

    model: str = option("resnet18", choices=MODELS)
    batch: int = option(128, type=partial(count, least=2))  # BatchNorm cannot train on one
    size: int = option(32, type=count, help="height and width of the images")
    channels_last: bool = option(False, action="store_true", help="memory format of model and images")

    def __str__(self) -> str:
        return f"{self.model} B{self.batch} {self.size}x{self.size}"

    @property
    def mode(self) -> str:
        return "channels last" if self.channels_last else "contiguous"

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def classes(self) -> int:
        return 1000 if self.size > LARGE else 10


def build_model(settings: Settings) -> models.ResNet:
    """A classifier with random weights, in training mode."""
    torch.manual_seed(0)
    model = MODELS[settings.model](settings.classes, small_images=settings.size <= LARGE)
    return model.to(settings.device, memory_format=settings.layout).train()


def build_batch(settings: Settings) -> tuple[Tensor, Tensor]:
    """Normalised noise, and labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(settings.batch, 3, settings.size, settings.size, generator=generator)
    labels = torch.randint(settings.classes, (settings.batch,), generator=generator)
    return images.to(settings.device, memory_format=settings.layout), labels.to(settings.device)


def ours(model: nn.Module, settings: Settings, **options: object) -> Transform:
    """attrdrop.RelDrop; guided alone where it is given a rule."""
    return RelDrop(model, **({"alpha": 0.0} if "rule" in options else {}), **options)


def zennit_relevance(model: nn.Module, settings: Settings) -> Transform:
    """RelDrop with relevance from zennit."""
    return RelDrop(model, p=1.0, alpha=0.0, rule=zennit_peer.Relevance(model, settings.torch_dtype))


def zennit_released(model: nn.Module, settings: Settings) -> Transform:
    """zennit_peer.Released."""
    return zennit_peer.Released(model, settings.torch_dtype)


EPSILON, ZPLUS = lrp.Epsilon(), lrp.EpsilonPlusFlat()
RELEASED = "zennit, as released, p=.5"
ARMS: dict[str, Callable[[nn.Module, Settings], Transform]] = {
    "plain": plain,
    "RelDrop": ours,
    "epsilon, whole batch": partial(ours, p=1.0, rule=EPSILON),
    "epsilon, p=.5": partial(ours, p=0.5, rule=EPSILON),
    "epsilon, p=.5, to stage 2": partial(ours, p=0.5, rule=EPSILON, stop_at="stages.1"),
    "z+, whole batch": partial(ours, p=1.0, rule=ZPLUS),
    "z+, p=.5": partial(ours, p=0.5, rule=ZPLUS),
    "z+, p=.5, to stage 2": partial(ours, p=0.5, rule=ZPLUS, stop_at="stages.1"),
    "gradient x input, whole batch": partial(ours, p=1.0, rule=lrp.GradientTimesInput()),
    "random erasing": partial(ours, p=0.5, alpha=1.0),
    "zennit, epsilon-plus-flat, whole batch": zennit_relevance,
    RELEASED: zennit_released,
}
ALONE = {"attribution alone, epsilon": EPSILON, "attribution alone, z+": ZPLUS}


def missing(arm: str) -> ImportError | None:
    """Why an arm cannot run."""
    return zennit_peer.missing() if arm.startswith("zennit") else None


BENCH = GuidedSteps(
    op="step images",
    module="bench.steps.images",
    description=__doc__,
    settings=Settings,
    build_model=build_model,
    build_batch=build_batch,
    arms=ARMS,
    alone=ALONE,
    smallest=lambda settings: replace(settings, model="resnet10", batch=2),
    ops={"gates": "relevance_gate_relu", "blocks": "occlude_blocks"},
    steps={RELEASED: 2},  # every other batch is drawn as a whole
    missing=missing,
)


parse, main = BENCH.parse, BENCH.main

if __name__ == "__main__":
    raise SystemExit(main())
