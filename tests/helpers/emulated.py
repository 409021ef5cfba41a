"""CUDA kernels run by the emulator of attrdrop._host, with the arguments of the public functions."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

import attrdrop
from attrdrop import KeepMask, KeptScores
from attrdrop.ops.group_points import inverse_index


def host():
    """The module; a test that needs it is skipped where it was not built."""
    return pytest.importorskip("attrdrop._host")


def as_numpy(tensor: Tensor) -> np.ndarray:
    """The same memory; bfloat16 as its bits."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _run_on_bits(name: str, launch: tuple[int, int, int], *arguments) -> tuple[Tensor, ...]:
    arrays = (as_numpy(x) if isinstance(x, Tensor) else x for x in arguments)
    return tuple(map(torch.from_numpy, getattr(host(), f"{name}_cuda")(*arrays, *launch)))


def emulated_keep_mask(
    *arguments, scheduler_seed: int = 0, shared_bytes: int = 232448, scratch_bytes: int = 40 << 20, **options
) -> KeepMask:
    """attrdrop.keep_mask with the CUDA kernels behind it."""
    run = partial(_run_on_bits, "keep_mask", (scheduler_seed, shared_bytes, scratch_bytes))
    with patch.object(torch.ops.attrdrop, "keep_mask", run):
        return attrdrop.keep_mask(*arguments, **options, backend="cpp")


def emulated_keep_scores(
    scores: Tensor, *, scheduler_seed: int = 0, shared_bytes: int = 232448, scratch_bytes: int = 40 << 20, **options
) -> KeptScores:
    """attrdrop.keep_scores with the CUDA kernels behind it."""
    run = partial(_run_on_bits, "keep_scores", (scheduler_seed, shared_bytes, scratch_bytes))
    with patch.object(torch.ops.attrdrop, "keep_scores", run):
        return attrdrop.keep_scores(scores, **options, backend="cpp")


def emulated_random_keep_mask(*shape: int, scheduler_seed: int = 0, **options) -> KeepMask:
    """attrdrop.random_keep_mask with the CUDA kernel behind it."""
    run = partial(_run_on_bits, "random_keep_mask", (scheduler_seed, 232448, 40 << 20))
    with patch.object(torch.ops.attrdrop, "random_keep_mask", run):
        return attrdrop.random_keep_mask(*shape, **options, backend="cpp")


def _run(operator: str, scheduler_seed: int, *arguments) -> Tensor | None:
    """What torch.ops.attrdrop has by this name, from the CUDA kernel."""
    if operator == "scatter_points":
        grad, index, size, *_ = arguments
        arguments = (grad, index, size, *inverse_index(index, size))
    arrays = (as_numpy(x) if isinstance(x, Tensor) else x for x in arguments)
    result = getattr(host(), f"{operator.rstrip('_')}_cuda")(*arrays, scheduler_seed)
    if result is None:
        return None
    tensor = torch.from_numpy(result)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


OPERATORS = (
    "farthest_point_sample", "ball_query", "group_points", "scatter_points", "occlude_blocks_", "fill_blocks_",
    "occlude_points_",
)  # fmt: skip


@contextmanager
def emulated(scheduler_seed: int = 0) -> Iterator[None]:
    """Inside it, backend="cpp" of the ops on images and points is the CUDA kernel."""
    with ExitStack() as patches:
        for operator in OPERATORS:
            run = partial(_run, operator, scheduler_seed)
            patches.enter_context(patch.object(torch.ops.attrdrop, operator, run))
        yield


def _emulated(op: Callable) -> Callable:
    """A public function with the CUDA kernel behind it."""

    def call(*tensors: Tensor, scheduler_seed: int = 0, **arguments):
        with emulated(scheduler_seed):
            return op(*tensors, **arguments, backend="cpp")

    return call


emulated_occlude_blocks = _emulated(attrdrop.occlude_blocks)
emulated_fill_blocks = _emulated(attrdrop.fill_blocks)
emulated_occlude_points = _emulated(attrdrop.occlude_points)
