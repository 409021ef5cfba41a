"""Residual networks (He et al., 2016) with a stem for small images or for large ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 ones."""

    def __init__(self, channels_in: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        channels_out = width * expansion
        shapes = [(channels_in, width, 3, stride), (width, width, 3, 1)]
        if expansion > 1:
            shapes = [(channels_in, width, 1, 1), (width, width, 3, stride), (width, channels_out, 1, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in shapes)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels_in != channels_out:
            conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)"""
        y = x
        last = len(self.convs) - 1
        for place, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            y = torch.relu(y) if place < last else y
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network.

    Args:
        blocks: number of blocks in each stage.
        classes: number of outputs.
        width: channels of the first stage; each later one has twice as many and half the resolution.
        expansion: 1 for plain blocks, 4 for bottlenecks.
        small_images: a 3x3 stem without pooling, as is usual for 32x32 pixels, instead of 7x7 with pooling.
        channels: of the input.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        classes: int,
        width: int = 64,
        expansion: int = 1,
        small_images: bool = True,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if small_images:
            stem: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        else:
            stem = [nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            stem.append(nn.MaxPool2d(3, 2, 1))
        self.stem = nn.Sequential(*stem)
        stages, channels_in = [], width
        for place, count in enumerate(blocks):
            wide = width * 2**place
            strides = [1 if place == 0 else 2] + [1] * (count - 1)
            stage = [
                Block(channels_in if i == 0 else wide * expansion, wide, stride, expansion)
                for i, stride in enumerate(strides)
            ]
            stages.append(nn.Sequential(*stage))
            channels_in = wide * expansion
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(channels_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes)"""
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


def resnet10(classes: int, width: int = 16, small_images: bool = True, channels: int = 3) -> ResNet:
    """One block per stage, narrow: trains on a CPU."""
    return ResNet([1, 1, 1, 1], classes, width, small_images=small_images, channels=channels)


def resnet18(classes: int, width: int = 64, small_images: bool = True, channels: int = 3) -> ResNet:
    """ResNet-18."""
    return ResNet([2, 2, 2, 2], classes, width, small_images=small_images, channels=channels)


def resnet34(classes: int, width: int = 64, small_images: bool = False, channels: int = 3) -> ResNet:
    """ResNet-34."""
    return ResNet([3, 4, 6, 3], classes, width, small_images=small_images, channels=channels)


def resnet50(classes: int, width: int = 64, small_images: bool = False, channels: int = 3) -> ResNet:
    """ResNet-50."""
    return ResNet([3, 4, 6, 3], classes, width, expansion=4, small_images=small_images, channels=channels)


def resnet101(classes: int, width: int = 64, small_images: bool = False, channels: int = 3) -> ResNet:
    """ResNet-101."""
    return ResNet([3, 4, 23, 3], classes, width, expansion=4, small_images=small_images, channels=channels)


def is_torchvision(state: Mapping[str, Tensor]) -> bool:
    """Whether weights are named as those of a residual network of torchvision."""
    return "conv1.weight" in state and "layer1.0.conv1.weight" in state


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a torchvision residual network under our names, for ``load_state_dict``.

    ::

        model = resnet50(classes=1000)
        model.load_state_dict(from_torchvision(torch.load("resnet50.pth", weights_only=True)))

    Args:
        state: of resnet18, 34, 50 or 101; our network with the stem for large images then gives the same logits.

    Raises:
        ValueError: a name is not one of such a network.
    """
    return {_ours(name): value for name, value in state.items()}


def _ours(name: str) -> str:
    whole = {"conv1": "stem.0", "bn1": "stem.1", "fc": "head"}
    module, _, parameter = name.rpartition(".")
    if module in whole:
        return f"{whole[module]}.{parameter}"
    found = re.fullmatch(r"layer([1-4])\.(\d+)\.(conv|bn|downsample\.)(\d)", module)
    if found is None:
        raise ValueError(f"state must hold the weights of a residual network of torchvision, got {name!r}")
    stage, block, kind, place = found.groups()
    part = f"shortcut.{place}" if kind == "downsample." else f"{kind.replace('bn', 'norm')}s.{int(place) - 1}"
    return f"stages.{int(stage) - 1}.{block}.{part}.{parameter}"
