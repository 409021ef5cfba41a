"""A small PointNet++ and a batch of clouds, for the tests of RelDropPoints."""

import torch
from torch import Tensor, nn

from attrdrop.models import PointNet2, pointnet2_ssg

CLASSES, POINTS = 5, 64


def small_pointnet2(channels: int = 3, is_frozen: bool = False) -> PointNet2:
    """In training mode; is_frozen: no dropout, and BatchNorms in eval mode, so that samples do not see each other."""
    torch.manual_seed(0)
    model = pointnet2_ssg(CLASSES, channels, points=POINTS, width=0.125).train()
    for module in model.modules():
        if is_frozen and isinstance(module, (nn.BatchNorm1d, nn.Dropout)):
            module.eval()
    return model


def point_batch(count: int, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Clouds (count, 64, channels) about the unit sphere, labels."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(count, POINTS, channels, generator=generator)
    points /= points.norm(dim=-1, keepdim=True)
    return points, torch.arange(count) % CLASSES
