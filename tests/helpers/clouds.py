"""What the tests of the ops on points share: clouds of every kind, and their calls by each compiled backend."""

import contextlib

import numpy as np
import pytest
import torch
from emulated import emulated

TYPES = [torch.float32, torch.bfloat16, torch.float16]
COMPILED = ["cpp", "emulated", pytest.param("cuda", marks=pytest.mark.gpu)]


def called(name, call, *tensors, scheduler_seed=0, **arguments):
    """The results, on the CPU, of a call by a compiled backend."""
    move = lambda x: x.cuda() if name == "cuda" and isinstance(x, torch.Tensor) else x  # noqa: E731
    with emulated(scheduler_seed) if name == "emulated" else contextlib.nullcontext():
        arguments = {key: move(value) for key, value in arguments.items()}
        result = call(*map(move, tensors), **arguments, backend="cuda" if name == "cuda" else "cpp")
    return tuple(t.cpu() for t in result) if isinstance(result, tuple) else result.cpu()


def chooser(seed):
    """A function that draws one of its arguments."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *choices: choices[int(torch.randint(len(choices), (1,), generator=generator))]


def random_cloud(draw, n, size, channels, dtype):
    """(n, size, channels), on a grid with many ties or anywhere, in any layout."""
    if draw(True, False):
        points = torch.randint(-2, 3, (n, size, channels)).to(dtype)
    else:
        points = torch.randn(n, size, channels).to(dtype)
    layout = draw("contiguous", "channels first", "strided", "broadcast")
    if layout == "channels first":
        return points.mT.contiguous().mT
    if layout == "strided":
        return torch.stack((points, points + 1), 2).flatten(1, 2)[:, ::2]
    return points[:1].expand(n, -1, -1) if layout == "broadcast" and n else points


def squared_distance(a, b):
    """Of two points, number by number; float32 unless they are float64."""
    kind = np.float64 if a.dtype == b.dtype == torch.float64 else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        dx, dy, dz = (kind(p) - kind(q) for p, q in zip(a[:3].tolist(), b[:3].tolist(), strict=True))
        return float(kind(kind(dx * dx) + kind(dy * dy)) + kind(dz * dz))
