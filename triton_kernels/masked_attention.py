"""masked_attention, forward: softmax over the set bits of a packed mask, one pass over the keys (Eq. 1)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attrdrop.triton_kernels.attention_tiles import (
    LN_2,
    LOG2_E,
    head_of,
    load_columns,
    load_rows,
    masked_scores,
    next_block,
    store_rows,
    surviving_positions,
    visited_blocks,
    with_sign,
)
from attrdrop.triton_kernels.bits import BLOCKS, MINUS_INFINITY_BITS
from attrdrop.triton_kernels.dropout_words import dropout_words
from attrdrop.triton_kernels.launch import (
    LARGEST_BLOCK,
    NOT_SPECIALIZED,
    Tile,
    float32_precision,
    launch,
    matrices,
    unit_stride,
)
from attrdrop.triton_kernels.philox import drop_threshold


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def masked_attention_forward_kernel(
    q, k, v, words, bias, survivors, p_out, p_lse, heads, groups, n_q, n_k, scale, kept_share, minus_inf,
    D: tl.constexpr, BLOCK_D: tl.constexpr, D_V: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, SIGN: tl.constexpr, PRECISION: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    # One program per block of queries; those of a head are neighbours and share its keys in the cache.
    blocks = tl.cdiv(n_q, BLOCK_Q)
    start_q = tl.program_id(0) % blocks * BLOCK_Q
    head = tl.program_id(0) // blocks % heads
    sample = (tl.program_id(0) // blocks // heads).to(tl.int64)
    head_q = head_of(q, sample, head)
    head_k = head_of(k, sample, head // groups)
    head_v = head_of(v, sample, head // groups)
    head_words = None if words is None else head_of(words, sample, head)
    head_bias = None if bias is None else head_of(bias, sample, head)
    head_survivors = None if survivors is None else head_of(survivors, sample, head)

    b_q = with_sign(load_rows(head_q, start_q, n_q, BLOCK_Q, D, BLOCK_D), SIGN)  # (BLOCK_Q, BLOCK_D)
    b_peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)  # running maximum, in units of log2
    b_sum = tl.zeros((BLOCK_Q,), tl.float32)
    b_out = tl.zeros((BLOCK_Q, BLOCK_V), tl.float32)
    unit = scale * LOG2_E if bias is None else 1.0
    for chunk in range(0, n_k, BLOCKS * BLOCK_K):
        bitmap, count = visited_blocks(head_words, (start_q, chunk, n_q, n_k), BLOCK_Q, BLOCK_K)
        for i in range(count):
            start_k, bitmap = next_block(head_words, bitmap, chunk, i, BLOCK_K)
            place = (start_q, start_k, n_q, n_k)
            b_k = load_columns(head_k, start_k, n_k, BLOCK_K, D, BLOCK_D)  # (BLOCK_D, BLOCK_K)
            b_scores = masked_scores(
                b_q, b_k, head_words, head_bias, place, scale, minus_inf, BLOCK_Q, BLOCK_K, IS_EVEN, PRECISION
            )  # (BLOCK_Q, BLOCK_K)
            b_new_peak = tl.maximum(b_peak, tl.max(b_scores, 1) * unit)
            b_shift = tl.where(b_new_peak == float("-inf"), 0.0, b_new_peak)
            b_p = tl.exp2(b_scores * unit - b_shift[:, None])
            b_decay = tl.exp2(b_peak - b_shift)
            b_sum = b_sum * b_decay + tl.sum(b_p, 1)
            if survivors is not None:
                b_p = tl.where(surviving_positions(head_survivors, place, BLOCK_Q, BLOCK_K), b_p, 0.0)
            b_v = load_rows(head_v, start_k, n_k, BLOCK_K, D_V, BLOCK_V)  # (BLOCK_K, BLOCK_V)
            b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_decay[:, None], input_precision=PRECISION)
            b_peak = b_new_peak

    b_out *= (1.0 / tl.where(b_sum == 0.0, 1.0, b_sum * kept_share))[:, None]
    p_out += (sample * n_q * heads + head) * D_V
    store_rows(p_out, b_out, start_q, n_q, heads * D_V, BLOCK_Q, D_V, BLOCK_V)
    o_q = start_q + tl.arange(0, BLOCK_Q)
    tl.store(p_lse + (sample * heads + head) * n_q + o_q, (b_peak + tl.log2(b_sum)) * LN_2, mask=o_q < n_q)


def common_arguments(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout_p: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all kernels of masked_attention take, and what decides on their tiles."""
    d, d_v = q.shape[3], v.shape[3]
    n_q, n_k = q.shape[2], k.shape[2]
    block_d, block_v = (max(16, triton.next_power_of_2(width)) for width in (d, d_v))
    precision = float32_precision()
    kind = precision if q.dtype == torch.float32 else "half"
    arguments = dict(
        q=matrices(unit_stride(q)), k=matrices(unit_stride(k)), v=matrices(unit_stride(v)),
        bias=None if bias is None else matrices(bias.expand(-1, -1, n_q, n_k)),
        heads=q.shape[1], groups=q.shape[1] // k.shape[1], n_q=n_q, n_k=n_k,
        scale=abs(scale) or 1.0, kept_share=1.0 - drop_threshold(dropout_p) / 65536.0 or 1.0,
        minus_inf=MINUS_INFINITY_BITS,
        D=d, BLOCK_D=block_d, D_V=d_v, BLOCK_V=block_v, SIGN=-1 if scale < 0 else 0 if scale == 0 else 1,
        PRECISION=precision, IS_EVEN=n_k % LARGEST_BLOCK == 0,
    )  # fmt: skip
    return arguments, dict(kind=kind, width=max(block_d, block_v), device=q.device)


def survivors(
    rows: Tensor, q: Tensor, k: Tensor, dropout_p: float, seed: int, sample_ids: Tensor | None, needs_cols: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The bits that ordinary dropout leaves, by query and by key; None without dropout."""
    threshold = drop_threshold(dropout_p)
    if threshold == 0:
        return None, None
    ids = torch.arange(q.shape[0], device=q.device) if sample_ids is None else sample_ids
    return dropout_words(rows, q.shape[1], q.shape[2], k.shape[2], threshold, seed, ids, needs_cols)


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, bias: Tensor | None, scale: float, dropout_p: float,
    seed: int, sample_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out (B, n_q, H, d_v) and lse (B, H, n_q); rows are packed bits by query.

    Without rows all positions are attended to; there is no dropout then.
    """
    batch, heads, n_q, _ = q.shape
    n_k, d_v = v.shape[2:]
    out = q.new_empty(batch, n_q, heads, d_v)
    lse = q.new_empty(batch, heads, n_q, dtype=torch.float32)
    if out.numel() == 0 or n_k == 0:
        return out.zero_(), lse.fill_(-float("inf"))
    arguments, choice = common_arguments(q, k, v, bias, scale, dropout_p)
    kept, _ = survivors(rows, q, k, dropout_p, seed, sample_ids, needs_cols=False)
    arguments.update(words=matrices(rows), survivors=matrices(kept), p_out=out, p_lse=lse)

    def programs(tile: Tile) -> int:
        return batch * heads * triton.cdiv(n_q, tile.queries)

    launch("forward", masked_attention_forward_kernel, arguments, programs, **choice)
    return out, lse
