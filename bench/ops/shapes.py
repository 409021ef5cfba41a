"""What is measured: shapes, types, modes and the constants of the masks."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

P, Q, SEED, DROPOUT = 0.3, 0.3, 0, 0.1

Inputs = SimpleNamespace
Forms = Mapping[str, Callable[[], object]]


class Shape(NamedTuple):
    """Batch, heads, sequence length, head width."""

    batch: int
    heads: int
    n: int
    d: int

    def __str__(self) -> str:
        return f"B{self.batch} H{self.heads} n{self.n} d{self.d}"

    @property
    def positions(self) -> int:
        return self.batch * self.heads * self.n * self.n

    @property
    def values(self) -> int:
        return self.batch * self.heads * self.n * self.d


class ImageShape(NamedTuple):
    """Images, channels, height, width."""

    batch: int
    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"N{self.batch} {self.channels}x{self.height}x{self.width}"

    @property
    def values(self) -> int:
        return self.batch * self.channels * self.height * self.width

    @property
    def n(self) -> int:
        """Pixels of a channel, as --n selects by it."""
        return self.height * self.width


class PointShape(NamedTuple):
    """Clouds, points in each, channels."""

    batch: int
    points: int
    channels: int

    def __str__(self) -> str:
        return f"N{self.batch} {self.points}x{self.channels}"

    @property
    def values(self) -> int:
        return self.batch * self.points * self.channels

    @property
    def n(self) -> int:
        """Points of a cloud, as --n selects by it."""
        return self.points


AnyShape = Shape | ImageShape | PointShape
TINY: Mapping[type, AnyShape] = {
    Shape: Shape(2, 2, 40, 16),
    ImageShape: ImageShape(2, 2, 40, 16),
    PointShape: PointShape(2, 40, 3),
}
"""A small shape of each kind."""


class Cost(NamedTuple):
    """What one forward call must compute and move at least."""

    flop: float
    bytes: float


IMAGES = {"I1": ImageShape(128, 3, 32, 32), "I2": ImageShape(256, 3, 224, 224)}
GROUPED = {"P1": PointShape(16, 1024, 3), "P2": PointShape(16, 1024, 64)}
OCCLUDED = {"P3": PointShape(32, 1024, 3), "P4": PointShape(16, 2048, 6)}
POINTS = GROUPED | OCCLUDED
FEATURES = {  # of convolutions
    "F1": ImageShape(256, 64, 112, 112),
    "F2": ImageShape(256, 256, 56, 56),
    "F3": ImageShape(256, 2048, 7, 7),
}
FEATURE_SHAPES = {"cpu": (ImageShape(128, 64, 32, 32), ImageShape(64, 512, 7, 7)), "cuda": tuple(FEATURES.values())}
IMAGE_SHAPES = {"cpu": tuple(IMAGES.values()), "cuda": tuple(IMAGES.values())}
POINT_SHAPES = {"cpu": tuple(GROUPED.values()), "cuda": tuple(GROUPED.values())}
OCCLUDED_SHAPES = {"cpu": tuple(OCCLUDED.values()), "cuda": tuple(OCCLUDED.values())}
NAMED = {"S1": Shape(32, 12, 512, 64), "S2": Shape(4, 32, 4096, 128)}
SHAPES = {"cpu": (Shape(16, 12, 128, 32), Shape(4, 12, 512, 64)), "cuda": tuple(NAMED.values())}
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
POINT_DTYPES = {"cpu": torch.float32, "cuda": torch.float32}  # coordinates are rarely halved

TOKENS, WIDTH = 16384, 2048  # batch times n, and heads times d, of the shapes over n
LENGTHS = (128, 512, 1024, 2048, 4096, 8192, 16384)


def _over_n(lengths: tuple[int, ...] = LENGTHS) -> tuple[Shape, ...]:
    """S1, S2, then one shape for each other n and d, all of the same number of tokens."""
    named = {(shape.n, shape.d): shape for shape in NAMED.values()}
    others = (Shape(TOKENS // n, WIDTH // d, n, d) for n in lengths for d in (64, 128) if (n, d) not in named)
    return *named.values(), *others


CPU_OVER_N = (Shape(4, 12, 512, 32), Shape(1, 8, 1024, 128), Shape(1, 12, 2048, 32), Shape(1, 12, 2048, 64))
OVER_N = {"cpu": SHAPES["cpu"] + CPU_OVER_N, "cuda": _over_n()}
RANKED_OVER_N = {"cpu": SHAPES["cpu"], "cuda": _over_n((64, *LENGTHS))}

FACTORS = {  # of a mode's work and traffic to those of the forward
    "forward": Cost(1, 1),
    "backward": Cost(2.5, 2),
    "train": Cost(3.5, 3),
    "train with dropout": Cost(3.5, 3),
}
ELEMENTWISE = {"forward": Cost(1, 1), "train": Cost(2, 2.5)}  # two tensors move, and three in the backward


def heads(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> Tensor:
    """(B,H,n,d) as models make it: a view of (B,n,H,d) memory."""
    generator = torch.Generator(device).manual_seed(seed)
    b, h, n, d = shape
    return torch.randn(b, n, h, d, generator=generator, device=device, dtype=dtype).transpose(1, 2)
