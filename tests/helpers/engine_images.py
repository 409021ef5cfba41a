"""RelDrop and LRP under an engine: some steps on each process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from engines import Engine, gathered, place
from image_models import image_batch, small_resnet
from models import build
from point_models import point_batch, small_pointnet2
from torch import Tensor, nn
from torch.nn import functional

from attrdrop import RelCutMix, RelDrop, RelDropPoints, RelMixUp, lrp
from attrdrop.models.resnet import Block

STEPS, TOTAL = 2, 8
FEW = {"p": 0.4, "alpha": 0.3, "seed": 3}  # so that a process may need no relevance where another does


def synchronised(model: nn.Module) -> nn.Module:
    """With SyncBatchNorm, which trains on GPUs only: frozen."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()
    return model


def resnet() -> nn.Module:
    return small_resnet(is_frozen=True)


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Any]]] = {
    "blocks": (resnet, functools.partial(RelDrop, **FEW)),
    "blocks-sync": (lambda: synchronised(resnet()), functools.partial(RelDrop, **FEW)),
    "patches": (resnet, functools.partial(RelDrop, mode="patch", patch=4, **FEW)),
    "kept": (resnet, functools.partial(RelDrop, cache_epochs=2, **FEW)),
    "stage": (resnet, functools.partial(RelDrop, stop_at="stages.0", **FEW)),
    "cutmix": (resnet, functools.partial(RelCutMix, num_classes=5, **FEW)),
    "cutmix-source": (resnet, functools.partial(RelCutMix, num_classes=5, guide="source", **FEW)),
    "mixup": (resnet, functools.partial(RelMixUp, num_classes=5, **FEW)),
    "vit": (lambda: Logits(build("vit", attention="sdpa")), functools.partial(RelDrop, **FEW)),
    "points": (
        functools.partial(small_pointnet2, is_frozen=True),
        functools.partial(RelDropPoints, mode="calibrated", beta=0.3, seed=3),
    ),
}


class Logits(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def layers(model: nn.Module) -> list[nn.Module]:
    """What FSDP wraps each on its own."""
    if isinstance(model, Logits):
        return list(model.model.vit.layers)
    return [module for module in model.modules() if isinstance(module, Block)]


def run(
    make_engine: Callable[..., Engine], kind: str, sizes: list[list[int]], dtype: torch.dtype
) -> list[dict[str, Any]]:
    """What each step gave, of the whole batch."""
    (held,) = sizes
    make_model, make_transform = KINDS[kind]
    trained = make_engine(make_model().to(dtype), layers)
    transform = make_transform(trained.model)
    rank, count = place()
    begin = sum(held[:rank])
    inputs, labels = point_batch(TOTAL) if kind == "points" else image_batch(TOTAL)
    inputs, labels = inputs.to(dtype)[begin : begin + held[rank]], labels[begin : begin + held[rank]] % 2
    samples = torch.arange(begin, begin + held[rank])
    found = []
    for _ in range(STEPS):
        given = transform(inputs, labels, samples=samples)
        given, targets = given if isinstance(given, tuple) else (given, labels)
        loss = functional.cross_entropy(trained.model(given), targets) * held[rank] / TOTAL
        trained.backward(loss * count)
        gradients = trained.gradients()
        relevance = lrp.relevance(trained.model, inputs, labels)
        trained.step()
        whole = (torch.cat(gathered(part)) for part in (given.detach(), relevance, loss.detach().view(1)))
        found.append(dict(zip(("inputs", "relevance", "loss"), whole, strict=True)) | {"gradients": gradients})
        found[-1]["loss"] = found[-1]["loss"].sum()
    return found
