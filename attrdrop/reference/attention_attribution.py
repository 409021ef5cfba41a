"""Statistics of dF/dA = dO Vᵀ (Eq. 5), of A or of A * dF/dA from the materialised matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from attrdrop.reference.keep_mask import attribution, probability, valid_columns


def positions(
    grad_out: Tensor | None,
    v: Tensor | None,
    weight_q: Tensor | None,
    weight_k: Tensor | None,
    weight_lse: Tensor | None,
    scale: float,
    bias: Tensor | None,
) -> Tensor:
    """(B, H, n_q, n_k): dO Vᵀ, the probabilities exp(scale q kᵀ + bias - lse), or where all is given their product."""
    factors = []
    if grad_out is not None and v is not None:
        factors.append(attribution(grad_out, v))
    if weight_q is not None and weight_k is not None and weight_lse is not None:
        factors.append(probability(weight_q, weight_k, weight_lse, scale, bias))
    return factors[0] if len(factors) == 1 else factors[0] * factors[1]


def attention_attribution(
    grad_out: Tensor | None,
    v: Tensor | None,
    weight_q: Tensor | None,
    weight_k: Tensor | None,
    weight_lse: Tensor | None,
    scale: float,
    bias: Tensor | None,
    valid: Tensor | None,
    is_causal: bool,
    k: int,
) -> tuple[Tensor, Tensor]:
    """k = 0: sums over rows (B, H, n_k) and no indices; else the k largest entries and their flat indices."""
    b = positions(grad_out, v, weight_q, weight_k, weight_lse, scale, bias)
    columns = valid_columns(valid, is_causal, b.shape, b.device)
    if k == 0:
        return b.masked_fill(~columns, 0.0).sum(2), torch.empty(*b.shape[:2], 0, dtype=torch.int64, device=b.device)
    flat, allowed = b.flatten(2), columns.flatten(2)
    rank = torch.where(flat.isnan(), torch.inf, flat)  # NaN ranks last of all, as in sort
    order = torch.argsort(torch.where(allowed, rank, -torch.inf), dim=-1, descending=True, stable=True)
    order = order.gather(-1, torch.argsort((~allowed).gather(-1, order).int(), dim=-1, stable=True))
    indices = torch.nn.functional.pad(order[..., :k], (0, max(0, k - order.shape[-1])), value=-1)
    found = allowed.sum(-1, keepdim=True) > torch.arange(k, device=b.device)
    indices = torch.where(found, indices, -1)
    values = flat.gather(-1, indices.clamp(min=0)).masked_fill(~found, -torch.inf) if flat.shape[-1] else None
    if values is None:
        values = torch.full_like(indices, -torch.inf, dtype=b.dtype)
    return values, indices
