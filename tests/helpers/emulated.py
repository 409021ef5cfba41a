"""CUDA kernels run by the emulator of attrdrop._host, with the arguments of the public functions."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import attrdrop
from attrdrop import KeepMask
from attrdrop.ops.group_points import inverse_index


def as_numpy(tensor: Tensor) -> np.ndarray:
    """The same memory; bfloat16 as its bits."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _run_on_bits(name: str, launch: tuple[int, int, int], *arguments) -> tuple[Tensor, ...]:
    from attrdrop import _host

    arrays = (as_numpy(x) if isinstance(x, Tensor) else x for x in arguments)
    return tuple(map(torch.from_numpy, getattr(_host, f"{name}_cuda")(*arrays, *launch)))


def emulated_keep_mask(
    *arguments, scheduler_seed: int = 0, shared_bytes: int = 232448, scratch_bytes: int = 64 << 20, **options
) -> KeepMask:
    """attrdrop.keep_mask with the CUDA kernels behind it."""
    run = partial(_run_on_bits, "keep_mask", (scheduler_seed, shared_bytes, scratch_bytes))
    with patch.object(torch.ops.attrdrop, "keep_mask", run):
        return attrdrop.keep_mask(*arguments, **options, backend="cpp")


def emulated_random_keep_mask(*shape: int, scheduler_seed: int = 0, **options) -> KeepMask:
    """attrdrop.random_keep_mask with the CUDA kernel behind it."""
    run = partial(_run_on_bits, "random_keep_mask", (scheduler_seed, 232448, 64 << 20))
    with patch.object(torch.ops.attrdrop, "random_keep_mask", run):
        return attrdrop.random_keep_mask(*shape, **options, backend="cpp")


def _optional(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else as_numpy(tensor)


def _bits(value: float, dtype: torch.dtype) -> int:
    """The bits of a number in a type."""
    integer = {1: np.uint8, 2: np.uint16, 4: np.uint32}[dtype.itemsize]
    return int(as_numpy(torch.tensor([value], dtype=dtype)).view(integer)[0])


def _fill(images: Tensor, keep, value, values, is_random, source, source_index, seed, sample_ids) -> tuple:
    """The last arguments of occlude_blocks_ and fill_blocks_; a number as its bits in the type of the images."""
    rest = _optional(source), _optional(source_index), seed % 2**64, _optional(sample_ids)
    return keep, _bits(value, images.dtype), _optional(values), is_random, *rest


def _occlude_blocks_(scheduler_seed: int, images: Tensor, relevance, index, *arguments) -> Tensor:
    from attrdrop import _host

    rule, fill = arguments[:7], _fill(images, *arguments[7:])
    return torch.from_numpy(
        _host.occlude_blocks_cuda(
            as_numpy(images), _optional(relevance), _optional(index), *rule, *fill, scheduler_seed
        )
    )


def _fill_blocks_(scheduler_seed: int, images: Tensor, boxes: Tensor, *fill) -> None:
    from attrdrop import _host

    _host.fill_blocks_cuda(as_numpy(images), boxes.numpy(), *_fill(images, *fill), scheduler_seed)


def emulated_occlude_blocks(images: Tensor, relevance: Tensor | None = None, *, scheduler_seed: int = 0, **arguments):
    """attrdrop.occlude_blocks with the CUDA kernel behind it."""
    with patch.object(torch.ops.attrdrop, "occlude_blocks_", partial(_occlude_blocks_, scheduler_seed)):
        return attrdrop.occlude_blocks(images, relevance, **arguments, backend="cpp")


def emulated_fill_blocks(images: Tensor, boxes: Tensor, *, scheduler_seed: int = 0, **arguments) -> Tensor:
    """attrdrop.fill_blocks with the CUDA kernel behind it."""
    with patch.object(torch.ops.attrdrop, "fill_blocks_", partial(_fill_blocks_, scheduler_seed)):
        return attrdrop.fill_blocks(images, boxes, **arguments, backend="cpp")


def _run_on_points(name: str, scheduler_seed: int, *arguments) -> Tensor:
    from attrdrop import _host

    if name == "scatter_points":
        grad, index, size, *_ = arguments
        arguments = (grad, size, *inverse_index(index, size))
    arrays = (as_numpy(x) if isinstance(x, Tensor) else x for x in arguments)
    result = torch.from_numpy(getattr(_host, f"{name}_cuda")(*arrays, scheduler_seed))
    return result.view(torch.bfloat16) if result.dtype == torch.uint16 else result


@contextmanager
def emulated_points(scheduler_seed: int = 0) -> Iterator[None]:
    """Inside it, backend="cpp" of the ops on points is the CUDA kernel."""
    with ExitStack() as patches:
        for name in ("farthest_point_sample", "ball_query", "group_points", "scatter_points"):
            run = partial(_run_on_points, name, scheduler_seed)
            patches.enter_context(patch.object(torch.ops.attrdrop, name, run))
        yield


def _occlude_points_(scheduler_seed: int, points: Tensor, relevance, valid, *arguments) -> Tensor:
    from attrdrop import _host

    *rule, value, values, seed, sample_ids = arguments
    tensors = as_numpy(points), _optional(relevance), _optional(valid)
    rest = _bits(value, points.dtype), _optional(values), seed % 2**64, _optional(sample_ids)
    return torch.from_numpy(_host.occlude_points_cuda(*tensors, *rule, *rest, scheduler_seed))


def emulated_occlude_points(points: Tensor, relevance: Tensor | None = None, *, scheduler_seed: int = 0, **arguments):
    """attrdrop.occlude_points with the CUDA kernel behind it."""
    with patch.object(torch.ops.attrdrop, "occlude_points_", partial(_occlude_points_, scheduler_seed)):
        return attrdrop.occlude_points(points, relevance, **arguments, backend="cpp")
