"""attention_attribution: rows, sums or top entries of dF/dA = dO Vᵀ, without the n x n matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attrdrop._core import backends, checks
from attrdrop._core.library import operators, register_fake
from attrdrop.reference import attention_attribution as reference

WIDEST_HEAD = 256
MOST_ENTRIES = 1024  # of topk, in Triton: what one tile holds


class TopEntries(NamedTuple):
    """values (B, H, k), descending, NaN first; rows, columns int64 (B, H, k). Missing entries: -inf, -1, -1."""

    values: Tensor
    rows: Tensor
    columns: Tensor


def attention_attribution(
    grad_out: Tensor,
    v: Tensor,
    *,
    rows: Tensor | None = None,
    topk: int | None = None,
    valid: Tensor | None = None,
    is_causal: bool = False,
    backend: str | None = None,
) -> Tensor | TopEntries:
    """Gradient attribution of attention positions (AD-DROP, Eq. 5) for explanation and plots.

    Args:
        grad_out: (B, H, n_q, d), the gradient of F with respect to the head outputs.
        v: (B, H_kv, n_k, d), the values; dtype and device of grad_out, H_kv divides H.
        rows: int64 (r,): return these rows of dF/dA, (B, H, r, n_k), 0 where invalid.
        topk: return the k largest entries of each head instead, as :class:`TopEntries`.
            With neither, return the sum over all rows for each key, (B, H, n_k).
        valid: packed bits (B|1, H|1, n_q|1, ceil(n_k / 32)) of the positions that count; None: all.
        is_causal: only columns j <= i count in row i.
        backend: one of :data:`attrdrop.BACKENDS`; default, the one in force.

    Returns:
        float32 (float64 for float64 inputs), by the case above.

    Raises:
        TypeError, ValueError: an argument is not as said above; the message names it.
    """
    grad_out = checks.check_heads("grad_out", grad_out)
    v = checks.check_heads("v", v, grad_out.dtype, grad_out.device)
    batch, heads, n_q, d = grad_out.shape
    n_k = v.shape[2]
    if v.shape[0] != batch or v.shape[3] != d:
        raise ValueError(f"v must have shape ({batch}, H_kv, n_k, {d}) to go with grad_out, got {tuple(v.shape)}")
    checks.check_groups("v", v.shape[1], heads)
    valid = checks.check_bits("valid", valid, (batch, heads, n_q, checks.word_count(n_k)), grad_out.device)
    grad_out, v = grad_out.detach(), v.detach()
    if rows is not None and topk is not None:
        raise ValueError("rows and topk cannot both be given: rows picks rows of dF/dA, topk entries")
    if rows is not None:
        rows = _check_picked(rows, grad_out.shape[2], v.device)
        chosen = _resolve(v, grad_out.shape[2], 0, backend)
        if chosen == "triton":
            return torch.ops.attrdrop_triton.attribution_rows(grad_out, v, rows, valid, bool(is_causal))
        return _rows(grad_out, v, rows, valid, is_causal)  # a product of a few rows: torch's own is best
    if topk is not None:
        checks.check_positive_int("topk", topk)
    chosen = _resolve(v, grad_out.shape[2], topk or 0, backend)
    served = reference if chosen == "reference" else operators(chosen)
    values, indices = served.attention_attribution(grad_out, v, valid, bool(is_causal), topk or 0)
    if topk is None:
        return values
    missing_entry = indices < 0
    row = torch.div(indices, max(n_k, 1), rounding_mode="floor").masked_fill(missing_entry, -1)
    return TopEntries(values, row, (indices % max(n_k, 1)).masked_fill(missing_entry, -1))


def _resolve(v: Tensor, n_q: int, topk: int, backend: str | None) -> str:
    cpp, triton = backends.COMPILED_MISSING, backends.TRITON_MISSING
    if v.dtype == torch.float64:
        cpp = triton = "float64 is served by the reference only"
    elif topk > MOST_ENTRIES:
        triton = f"topk may be at most {MOST_ENTRIES}, got {topk}"
    elif topk and n_q * v.shape[2] > 2**32:
        triton = f"topk numbers at most 2**32 positions, got {n_q} x {v.shape[2]}"
    elif v.shape[3] > WIDEST_HEAD:
        triton = f"head dims may be at most {WIDEST_HEAD}, got {v.shape[3]}"
    return backends.resolve("attention_attribution", v, backend, {"triton": triton, "cpp": cpp})


def _check_picked(rows: Tensor, n_q: int, device: torch.device) -> Tensor:
    rows = checks.check_tensor("rows", rows)
    if rows.dtype != torch.int64 or rows.dim() != 1:
        raise TypeError(f"rows must be int64 of shape (r,), got {rows.dtype} of shape {tuple(rows.shape)}")
    if not torch.compiler.is_compiling() and rows.numel() and not (int(rows.min()) >= 0 and int(rows.max()) < n_q):
        raise ValueError(f"rows must lie in [0, {n_q}), got {int(rows.min())} to {int(rows.max())}")
    return rows.to(device).contiguous()


def _rows(grad_out: Tensor, v: Tensor, rows: Tensor, valid: Tensor | None, is_causal: bool) -> Tensor:
    from attrdrop.ops.pack_mask import unpack_mask

    n_q, n_k = grad_out.shape[2], v.shape[2]
    wide = torch.promote_types(v.dtype, torch.float32)
    values = v.to(wide).repeat_interleave(grad_out.shape[1] // v.shape[1], dim=1)
    b = grad_out.index_select(2, rows).to(wide) @ values.transpose(-1, -2)
    if valid is not None:
        picked = valid if valid.shape[2] == 1 and n_q != 1 else valid.index_select(2, rows)
        b = b.masked_fill(~unpack_mask(picked, n_k), 0.0)
    if is_causal:
        b = b.masked_fill(torch.arange(n_k, device=v.device) > rows.unsqueeze(-1), 0.0)
    return b


@register_fake("attention_attribution")
def _(grad_out, v, valid, is_causal, k):
    batch, heads = grad_out.shape[:2]
    values = grad_out.new_empty((batch, heads, k if k > 0 else v.shape[2]), dtype=torch.float32)
    return values, grad_out.new_empty((batch, heads, k), dtype=torch.int64)


@register_fake("attribution_rows")
def _(grad_out, v, rows, valid, is_causal):
    return grad_out.new_empty((*grad_out.shape[:2], rows.shape[0], v.shape[2]), dtype=torch.float32)
