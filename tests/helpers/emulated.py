"""CUDA kernels run by the emulator of attrdrop._host, with the arguments of the public functions."""

from collections.abc import Callable, Iterator
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


def emulated_keep_mask(
    x: Tensor,
    y: Tensor,
    *,
    p: float,
    q: float,
    seed: int,
    layer: int = 0,
    valid: Tensor | None = None,
    is_causal: bool = False,
    region: str = "high",
    weight: tuple[Tensor, Tensor, Tensor, float] | None = None,
    keys: str = "auto",
    sample_ids: Tensor | None = None,
    **launch: int,
) -> KeepMask:
    """launch: scheduler_seed, shared_bytes, scratch_bytes."""
    from attrdrop import _host

    is_half = x.dtype != torch.float32
    rows, cols, counts = _host.keep_mask_cuda(
        as_numpy(x),
        as_numpy(y),
        p,
        q,
        seed % 2**64,
        layer,
        None if valid is None else valid.numpy().view(np.uint32),
        is_causal,
        region == "low",
        keys == "bf16" or (keys == "auto" and is_half),
        None if sample_ids is None else sample_ids.numpy(),
        None if weight is None else (as_numpy(weight[0]), as_numpy(weight[1]), weight[2].numpy(), weight[3]),
        **launch,
    )
    bits = (torch.from_numpy(a.view(np.int32)) for a in (rows, cols))
    return KeepMask(*bits, torch.from_numpy(counts.view(np.int64)))


def _run(operator: str, scheduler_seed: int, *arguments) -> Tensor | None:
    """What torch.ops.attrdrop has by this name, from the CUDA kernel."""
    from attrdrop import _host

    if operator == "scatter_points":
        grad, index, size, *_ = arguments
        arguments = (grad, index, size, *inverse_index(index, size))
    arrays = (as_numpy(x) if isinstance(x, Tensor) else x for x in arguments)
    result = getattr(_host, f"{operator.rstrip('_')}_cuda")(*arrays, scheduler_seed)
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
