"""The backward of masked attention, and the mask that its dO Vᵀ gives (Eq. 5 to 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from attrdrop.reference.keep_mask import keep_mask
from attrdrop.reference.masked_attention import masked_attention


def ranked_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    keep: Tensor,
    keep_cols: Tensor,
    bias: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: int,
    sample_ids: Tensor | None,
    needs_grad_bias: bool,
    p: float,
    rate: float,
    mask_seed: int,
    layer: int,
    low: bool,
    bf16_keys: bool,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v and, if needed, of the bias (else empty); rows, cols and counts of the mask, whose valid
    columns are those of keep."""
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        bias = bias if bias is None else bias.detach().requires_grad_(needs_grad_bias)
        found, _ = masked_attention(q, k, v, keep, bias, scale, dropout_p, seed, sample_ids)
        wanted = [q, k, v, bias] if bias is not None and needs_grad_bias else [q, k, v]
        grads = torch.autograd.grad(found, wanted, grad_out)
    mask = keep_mask(
        grad_out.transpose(1, 2), v.detach(), p, rate, mask_seed, layer, keep, False, low, bf16_keys, sample_ids,
        None, None, None, 1.0, None,
    )  # fmt: skip
    return *grads[:3], grads[3] if len(grads) > 3 else q.new_empty(0), *mask
