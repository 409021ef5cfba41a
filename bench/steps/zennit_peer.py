"""RelDrop by way of zennit, a library for layer-wise relevance propagation: an optional rival, at version 0.5.1.

zennit changes a model in place while it works, so it is given a copy, into which the weights of the trained model are
loaded at every call: one copy of the parameters, which is part of the time. The copy is in the type of the autocast and
runs outside it, for zennit runs layers again in its backward hooks. What zennit treats must be a module, so rectifiers,
pooling and, where relevance is divided at them, the sums of residual blocks are modules there. BatchNorms are merged at
every call, by name; zennit's canonizer for torchvision's residual networks does the same by order.
"""

import copy
import importlib
import math
import random
import sys
from types import MethodType, ModuleType

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from attrdrop.models.resnet import Block, ResNet
from bench.ops.images import loop
from bench.ops.shapes import Inputs

AREA, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)


def _load() -> ModuleType:
    """zennit; where torchvision cannot be imported, with an empty one, as only zennit's canonizers for it need it."""
    stubs = {}
    try:
        importlib.import_module("torchvision.models.resnet")
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        stubs = {name: ModuleType(name) for name in ("torchvision", "torchvision.models", "torchvision.models.resnet")}
        stubs["torchvision.models.resnet"].__dict__.update(BasicBlock=Block, Bottleneck=Block)
    sys.modules.update(stubs)
    try:
        return importlib.import_module("zennit")
    finally:
        for name in stubs:
            del sys.modules[name]


def missing() -> ImportError | None:
    """Why zennit cannot be used."""
    try:
        _load()
    except ImportError as error:
        return error
    return None


class _Stacked(nn.Module):
    """A sum that zennit divides relevance at."""

    def __init__(self) -> None:
        super().__init__()
        self.total = _load().layer.Sum()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.total(torch.stack((x, y), -1))


class _Plain(nn.Module):
    """A sum that zennit does not see: both terms get all relevance."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def _block_forward(block: Block, x: Tensor) -> Tensor:
    y = x
    for place, (conv, norm) in enumerate(zip(block.convs, block.norms, strict=True)):
        y = norm(conv(y))
        y = block.relus[place](y) if place < len(block.convs) - 1 else y
    return block.relus[-1](block.add(block.shortcut(x), y))


def _forward(model: ResNet, images: Tensor) -> Tensor:
    x = model.stem(images)
    for stage in model.stages:
        x = stage(x)
    return model.head(model.pool(x).flatten(1))


def in_modules(model: ResNet, divides: bool) -> ResNet:
    """A copy of the model in eval mode, without weight gradients, all of whose functions are modules."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.pool = nn.AdaptiveAvgPool2d(1)
    model.forward = MethodType(_forward, model)
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        block.relus = nn.ModuleList(nn.ReLU() for _ in block.convs)
        block.add = _Stacked() if divides else _Plain()
        block.forward = MethodType(_block_forward, block)
    return model


def _norms(model: ResNet) -> list[tuple[list[str], str]]:
    """Names of convolutions, with that of the BatchNorm that follows each."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, Block):
            found += [([f"{name}.convs.{place}"], f"{name}.norms.{place}") for place in range(len(module.convs))]
        elif isinstance(module, nn.Sequential):
            pairs = zip(list(module), list(module)[1:], strict=False)
            merged = [place for place, (_, after) in enumerate(pairs) if isinstance(after, nn.BatchNorm2d)]
            found += [([f"{name}.{place}"], f"{name}.{place + 1}") for place in merged]
    return found


class Relevance:
    """Relevance of images (N, C, H, W) for their labels, called as RelDrop calls its rule.

    `released`: the published settings, epsilon 1e-3 for all layers but the first, which is flat, sums of residual
    blocks not divided, and relevance 1 of each label; else epsilon-plus-flat with divided sums, from the logits.
    """

    def __init__(self, model: ResNet, dtype: torch.dtype, released: bool = False) -> None:
        zennit = _load()
        self.released = released
        self.copy = in_modules(model, divides=not released).to(dtype)
        canonizers = [zennit.canonizers.NamedMergeBatchNorm(_norms(self.copy))]
        if released:
            epsilon = (zennit.types.Linear, zennit.rules.Epsilon(epsilon=1e-3))  # convolutions are among these
            composite = zennit.composites.SpecialFirstLayerMapComposite(
                layer_map=[*zennit.composites.layer_map_base(), epsilon],
                first_map=[(zennit.types.Convolution, zennit.rules.Flat())],
                canonizers=canonizers,
            )
        else:
            composite = zennit.composites.EpsilonPlusFlat(epsilon=1e-3, canonizers=canonizers)
        self.attribute = zennit.attribution.Gradient(self.copy, composite)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        self.copy.load_state_dict(model.state_dict())
        images = images.to(self.copy.head.weight.dtype)

        def start(logits: Tensor) -> Tensor:
            ones = one_hot(labels, logits.shape[1]).to(logits.dtype)
            return ones if self.released else ones * logits.detach()

        with torch.autocast(images.device.type, enabled=False):
            return self.attribute(images, start)[1].float()


def _size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a block, drawn until it is smaller than the image."""
    while True:
        area = random.uniform(*AREA) * height * width
        aspect = math.exp(random.uniform(*map(math.log, ASPECT)))
        size = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < size[0] < height and 0 < size[1] < width:
            return size


class Released:
    """The published transform: of every two batches one is drawn, and a loop sets a block to 0 in all its images."""

    def __init__(self, model: ResNet, dtype: torch.dtype) -> None:
        self.model, self.relevance = model, Relevance(model, dtype, released=True)
        self.is_drawn = False

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        self.is_drawn = not self.is_drawn
        if not self.is_drawn:
            return images
        sizes = [_size(*images.shape[2:]) for _ in images]
        relevance = self.relevance(self.model, images, labels).sum(1)
        return loop(Inputs(images=images, relevance=relevance, size_list=sizes))
