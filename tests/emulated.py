"""The CUDA kernel of keep_mask, run by the emulator of attrdrop._host, with the arguments of attrdrop.keep_mask."""

import numpy as np
import torch
from torch import Tensor

from attrdrop import KeepMask


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
