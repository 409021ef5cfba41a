"""Rounding to half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in that dtype; what is too large for float16 becomes its largest value, as infinity times 0 would be NaN."""
    if dtype != torch.float16:
        return x.to(dtype)
    most = torch.finfo(dtype).max
    return x.clamp(-most, most).to(dtype)
