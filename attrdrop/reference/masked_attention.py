"""Attention over the set bits of a packed mask (Eq. 1), materialised, differentiable by autograd, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from attrdrop.reference.pack_mask import unpack_mask
from attrdrop.reference.philox import bernoulli, drop_threshold


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    bias: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: int,
    sample_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(out (B, n_q, H, d_v), lse (B, H, n_q)); rows without a set bit give 0 and lse -inf."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        return _attend(q, k.to(wide), v.to(wide), keep, bias, scale, dropout_p, seed, sample_ids)


def _attend(q, k, v, keep, bias, scale, dropout_p, seed, sample_ids) -> tuple[Tensor, Tensor]:
    wide = k.dtype
    scores = (q.to(wide) @ k.transpose(-1, -2)) * scale
    if bias is not None:
        scores = scores + bias.to(wide)
    columns = unpack_mask(keep, k.shape[2])
    scores = scores.masked_fill(~columns, -torch.inf)
    is_empty = (scores == -torch.inf).all(-1, keepdim=True)
    lse = torch.logsumexp(scores, -1)
    probability = torch.softmax(scores.masked_fill(is_empty, 0.0), -1).masked_fill(is_empty | ~columns, 0.0)
    if dropout_p > 0:
        batch, heads, n_q, n_k = scores.shape
        ids = torch.arange(batch, device=q.device) if sample_ids is None else sample_ids
        dropped = bernoulli(seed, 0, ids, heads, n_q, n_k, dropout_p)
        kept_share = 1.0 - drop_threshold(dropout_p) / 65536.0
        probability = probability.masked_fill(dropped, 0.0) / (kept_share or 1.0)
    out = (probability @ v).to(q.dtype).transpose(1, 2).contiguous()
    return out, lse
