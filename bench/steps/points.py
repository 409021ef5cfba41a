"""Whole RelDrop training steps on clouds against the plain step: time and peak memory. See bench/steps/guided.py."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor, nn

from attrdrop import RelDropPoints, lrp, models, use_backend
from bench.ops import points as rivals
from bench.ops.shapes import Inputs
from bench.steps.cli import count, option
from bench.steps.guided import GuidedSteps, Transform, plain
from bench.steps.skeleton import StepSettings

MODELS: dict[str, Callable[..., nn.Module]] = {
    "ssg": models.pointnet2_ssg,
    "msg": models.pointnet2_msg,
    "pointnet": models.pointnet,
}
CLASSES = 40


@dataclass(frozen=True)
class Settings(StepSettings):
    """One benchmark of steps on clouds."""

    model: str = option("ssg", choices=MODELS)
    batch: int = option(16, type=partial(count, least=2))  # BatchNorm cannot train on one
    points: int = option(1024, type=count, help="points of a cloud")
    channels: int = option(3, type=partial(count, least=3), help="numbers of a point, 6 with normals")

    def __str__(self) -> str:
        return f"{self.model} B{self.batch} {self.points}x{self.channels}"


def build_model(settings: Settings) -> nn.Module:
    """A classifier with random weights, in training mode."""
    torch.manual_seed(0)
    sizes = {} if settings.model == "pointnet" else {"points": settings.points}
    return MODELS[settings.model](CLASSES, settings.channels, **sizes).to(settings.device).train()


def build_batch(settings: Settings) -> tuple[Tensor, Tensor]:
    """Points on boxes in the unit sphere, and labels."""
    generator = torch.Generator().manual_seed(1)
    points = 2 * torch.rand(settings.batch, settings.points, settings.channels, generator=generator) - 1
    side = torch.randint(3, (settings.batch, settings.points, 1), generator=generator)
    points[..., :3].scatter_(2, side, points[..., :3].gather(2, side).sign())
    labels = torch.randint(CLASSES, (settings.batch,), generator=generator)
    return (3**-0.5 * points).to(settings.device), labels.to(settings.device)


def ours(model: nn.Module, settings: Settings, mode: str = "threshold", **options: Any) -> Transform:
    """attrdrop.RelDropPoints, which drops as the released code does unless told otherwise."""
    return RelDropPoints(model, mode=mode, **options)


def found_once(model: nn.Module, settings: Settings) -> Transform:
    """The same, with the neighbours of the whole clouds in both passes."""
    reldrop = RelDropPoints(model, mode="threshold")

    def transform(points: Tensor, labels: Tensor) -> tuple:
        if settings.model == "pointnet":
            return (reldrop(points, labels),)
        neighbours = model.neighbours(points)  # type: ignore[operator]
        return reldrop(points, labels, neighbours=neighbours), None, neighbours

    return transform


def cloud_by_cloud(model: nn.Module, settings: Settings) -> Transform:
    """Our relevance, and the released procedure for the mask: one cloud after another, on the host."""

    def transform(points: Tensor, labels: Tensor) -> Tensor:
        found = lrp.relevance(model, points, labels, rule=lrp.EpsilonFlat(1e-6)).sum(-1)
        return rivals.loop(Inputs(points=points, relevance=found))

    return transform


def in_torch(make: Callable[[nn.Module, Settings], Transform], model: nn.Module, settings: Settings) -> Transform:
    """The same with all ops of ours in plain PyTorch, the model's sampling and grouping among them."""
    transform = make(model, settings)
    forward = model.forward

    def reference(*arguments: Any, **options: Any) -> Tensor:
        with use_backend("reference"):
            return forward(*arguments, **options)

    model.forward = reference  # type: ignore[method-assign]
    return transform


ARMS: dict[str, Callable[[nn.Module, Settings], Transform]] = {
    "plain": plain,
    "RelDrop": ours,
    "RelDrop, neighbours found once": found_once,
    "RelDrop, calibrated": partial(ours, mode="calibrated"),
    "RelDrop, epsilon": partial(ours, rule=lrp.Epsilon(1e-6)),
    "RelDrop, gradient x input": partial(ours, rule=lrp.GradientTimesInput()),
    "RelDrop, every 4": partial(ours, every=4),
    "random point dropout": partial(ours, rule="random"),
    "cloud by cloud": cloud_by_cloud,
    "plain, ops in torch": partial(in_torch, plain),
    "RelDrop, ops in torch": partial(in_torch, ours),
}
ALONE = {"attribution alone": lrp.EpsilonFlat(1e-6)}

BENCH = GuidedSteps(
    op="step points",
    module="bench.steps.points",
    description=__doc__,
    settings=Settings,
    build_model=build_model,
    build_batch=build_batch,
    arms=ARMS,
    alone=ALONE,
    smallest=lambda settings: replace(settings, batch=2, points=64),
    ops={"sampling": "farthest_point_sample", "gates": "relevance_gate_relu", "points": "occlude_points"},
    steps={"RelDrop, every 4": 4},
)


parse, main = BENCH.parse, BENCH.main

if __name__ == "__main__":
    raise SystemExit(main())
