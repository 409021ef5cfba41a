"""Packed masks: column j is bit j % 32 of int32 word j // 32, least significant first; unused bits are 0."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_mask(mask: Tensor) -> Tensor:
    """bool (..., n) -> int32 (..., ceil(n / 32))."""
    n = mask.shape[-1]
    padded = torch.nn.functional.pad(mask, (0, -n % 32)).reshape(*mask.shape[:-1], (n + 31) // 32, 32).long()
    weights = 2 ** torch.arange(32, device=mask.device)
    words = (padded * weights).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).int()


def unpack_mask(bits: Tensor, n: int) -> Tensor:
    """int32 (..., ceil(n / 32)) -> bool (..., n)."""
    columns = bits.unsqueeze(-1) >> torch.arange(32, device=bits.device, dtype=torch.int32) & 1
    return columns.bool().flatten(-2)[..., :n]


def transpose_mask(rows: Tensor, n_k: int) -> Tensor:
    """int32 (..., n_q, ceil(n_k / 32)) -> int32 (..., n_k, ceil(n_q / 32))."""
    return pack_mask(unpack_mask(rows, n_k).transpose(-1, -2))
