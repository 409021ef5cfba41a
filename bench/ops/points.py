"""Rivals of the op on point clouds, written from the description of the released code: score = alpha U + (1 - alpha) r.

Both draw U by `torch.rand`, so their results are others than ours; the tests give them our numbers and compare.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from bench.ops.shapes import Forms, Inputs, PointShape

ALPHA, BETA = 0.5, 0.15

Draw = Callable[..., Tensor]


class PointInputs(Inputs):
    """Points (N, P, C) and relevance (N, P)."""

    def __init__(self, shape: PointShape, device: torch.device, dtype: torch.dtype):
        generator = torch.Generator(device).manual_seed(5)
        self.points = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        self.relevance = torch.randn(shape[:2], generator=generator, device=device)


def loop(i: Inputs, draw: Draw = torch.rand) -> Tensor:
    """As released: for each cloud the batch goes to the host, where the cloud loses points, and back."""
    out = i.points.clone()
    for n in range(len(out)):
        host, relevance = out.cpu(), i.relevance[n].cpu()
        r = (relevance - relevance.min()) / (relevance.max() - relevance.min())
        score = ALPHA * draw(len(r)) + (1 - ALPHA) * r
        host[n][score >= 1 - BETA] = 0
        out = host.to(i.points.device)
    return out


def _dropped(i: Inputs, draw: Draw) -> Tensor:
    low, high = torch.aminmax(i.relevance, dim=1, keepdim=True)
    guide = (i.relevance - low).mul_((1 - ALPHA) / (high - low))
    score = draw(i.relevance.shape, device=i.relevance.device).mul_(ALPHA).add_(guide)
    return (score >= 1 - BETA)[..., None]


def selected(i: Inputs, draw: Draw = torch.rand) -> Tensor:
    """All clouds at once, and `torch.where`."""
    return torch.where(_dropped(i, draw), 0, i.points)


def filled(i: Inputs, draw: Draw = torch.rand) -> Tensor:
    """All clouds at once, and `masked_fill`."""
    return i.points.masked_fill(_dropped(i, draw), 0)


def multiplied(i: Inputs, draw: Draw = torch.rand) -> Tensor:
    """All clouds at once, and a product with the mask."""
    return i.points * ~_dropped(i, draw)


EAGER = {"where": selected, "masked_fill": filled, "product": multiplied}


def peers(i: Inputs) -> Mapping[str, Forms]:
    return {"loop": {"cpu": partial(loop, i)}, "eager": {name: partial(form, i) for name, form in EAGER.items()}}
