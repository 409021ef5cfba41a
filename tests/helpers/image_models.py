"""A small residual network and images for the tests of RelDrop."""

import torch
from torch import Tensor, nn

from attrdrop.models import ResNet

N = 8  # images of a batch


def small_resnet(dropout: float = 0.0, is_frozen: bool = False) -> nn.Module:
    """Five classes, in training mode, with statistics that differ from the initial ones; frozen: those stay."""
    torch.manual_seed(0)
    model = ResNet([1, 1], 5, width=6)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    if dropout:
        model.stem.append(nn.Dropout(dropout))
    model.train()
    if is_frozen:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    return model


def image_batch(count: int = N) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 16, 16), standard normal, and labels below 5."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 16, 16, generator=generator), torch.randint(0, 5, (count,), generator=generator)
