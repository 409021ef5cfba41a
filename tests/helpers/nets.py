"""Small networks of every common build, for the tests of attribution."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from attrdrop.models import resnet10, resnet18, resnet50


class InPlaceResidual(nn.Module):
    """Residual block as torchvision writes it: one in-place ReLU for all, and out += identity."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


def in_place_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        InPlaceResidual(6, 6, 1), InPlaceResidual(6, 8, 2), InPlaceResidual(8, 8, 1), InPlaceResidual(8, 12, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def vgg(has_norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    channels_in = 3
    for channels in (6, 6, "pool", 8, 8, "pool"):
        if channels == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels_in, channels, 3, padding=1), *([nn.BatchNorm2d(channels)] if has_norm else [])]
        layers.append(nn.ReLU(inplace=True))
        channels_in = channels
    head = [nn.Flatten(), nn.Linear(8 * 4 * 4, 12), nn.ReLU(True), nn.Dropout(), nn.Linear(12, 5)]
    return nn.Sequential(*layers, *head)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, gate: type[nn.Module]) -> None:
        super().__init__()
        self.reduce, self.expand, self.gate = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        squeezed = functional.adaptive_avg_pool2d(x, 1)
        return self.gate(self.expand(functional.relu(self.reduce(squeezed)))) * x


class InvertedResidual(nn.Module):
    def __init__(self, channels: int, activation: nn.Module, gate: type[nn.Module]) -> None:
        super().__init__()
        wide = 2 * channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), activation,
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), activation,
            SqueezeExcite(wide, gate),
            nn.Conv2d(wide, channels, 1, groups=2, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def mobilenet(activation: nn.Module, gate: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), activation,
        InvertedResidual(6, activation, gate), InvertedResidual(6, activation, gate),
        nn.Conv2d(6, 10, 1, bias=False), nn.BatchNorm2d(10), activation,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(10, 5),
    )  # fmt: skip


class Dense(nn.Module):
    """Pre-activation: its first BatchNorm follows a concatenation."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.norm1(x)))
        y = self.conv2(functional.relu(self.norm2(y)))
        return torch.cat([x, y], 1)


def densenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), Dense(4, 3), Dense(7, 3),
        nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 5, 1, bias=False), nn.AvgPool2d(2),
        Dense(5, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


class PointNet(nn.Module):
    """Points (N, 3, P) to logits, by convolutions of width 1 or the same as linear layers."""

    def __init__(self, is_linear: bool) -> None:
        super().__init__()
        widths = [3, 6, 8, 16]
        layer = nn.Linear if is_linear else lambda i, o: nn.Conv1d(i, o, 1)
        self.is_linear = is_linear
        self.layers = nn.ModuleList(layer(i, o) for i, o in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(o) for o in widths[1:])
        self.head = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 5))

    def forward(self, points: Tensor) -> Tensor:
        x = points.transpose(1, 2) if self.is_linear else points
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = layer(x)
            x = norm(x.transpose(1, 2)).transpose(1, 2) if self.is_linear else norm(x)
            x = functional.relu(x)
        return self.head(torch.amax(x, 1 if self.is_linear else 2))


class Sum(nn.Module):
    """A sum as a module, which comparisons with other implementations can swap for theirs."""

    def forward(self, terms: Tensor) -> Tensor:
        return terms.sum(-1)


class StackedResidual(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, 2, bias=False), nn.BatchNorm2d(channels))
        self.sum, self.relu = Sum(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.sum(torch.stack([self.layers(x), self.shortcut(x)], -1)))


def stacked_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        StackedResidual(6, 6), StackedResidual(6, 10), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5),
    )  # fmt: skip


IMAGE = (2, 3, 16, 16)
CLOUD = (2, 3, 20)
NETS = {
    "resnet10": (lambda: resnet10(5, 4), IMAGE),
    "resnet18": (lambda: resnet18(5, 4), IMAGE),
    "in_place_resnet": (in_place_resnet, IMAGE),
    "resnet50": (lambda: resnet50(5, 2), (2, 3, 32, 32)),
    "vgg": (lambda: vgg(False), IMAGE),
    "vgg_norm": (lambda: vgg(True), IMAGE),
    "mobilenet_v2": (lambda: mobilenet(nn.ReLU6(inplace=True), nn.Sigmoid), IMAGE),
    "mobilenet_v3": (lambda: mobilenet(nn.Hardswish(inplace=True), nn.Hardsigmoid), IMAGE),
    "densenet": (densenet, IMAGE),
    "pointnet": (lambda: PointNet(False), CLOUD),
    "pointnet_linear": (lambda: PointNet(True), CLOUD),
}
"""Name: how to make it, shape of its input."""


def build(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A net of :data:`NETS` in eval mode and float64 with random statistics, inputs, targets."""
    make, shape = NETS[name]
    torch.manual_seed(0)
    return prepare(make()), torch.randn(shape, dtype=torch.float64), torch.arange(shape[0]) + 1


def prepare(net: nn.Module, has_shift: bool = True) -> nn.Module:
    """float64, eval mode, BatchNorm with random statistics and no eps; without shift no layer adds anything."""
    net = net.double().eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = 0.0
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, -0.4, 1.6)
            nn.init.normal_(module.bias, 0, 0.2)
    if not has_shift:
        with torch.no_grad():
            for name, values in [*net.named_parameters(), *net.named_buffers()]:
                if name.endswith(("bias", "running_mean")):
                    values.zero_()
    return net
