"""masked_attention, backward: three kernels without atomics, so two runs agree bit for bit.

With S = q kᵀ scale + bias over the set bits, P = exp(S - lse), dropout D in {0, 1 / (1 - rate)}:
dV = (P D)ᵀ dO, dP = (dO Vᵀ) D, dS = P (dP - delta), delta = rowsum(dO O), dQ = scale dS K, dK = scale dSᵀ Q.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attrdrop.triton_kernels.attention_tiles import (
    LOG2_E,
    add_bias,
    bound_scores,
    load_columns,
    load_rows,
    store_rows,
    surviving_positions,
    with_sign,
)
from attrdrop.triton_kernels.bits import BLOCKS, active_blocks, lowest_bit
from attrdrop.triton_kernels.launch import LARGEST_BLOCK, NOT_SPECIALIZED, Tile, launch, strides, unit_stride
from attrdrop.triton_kernels.masked_attention import common_arguments, survivors
from attrdrop.triton_kernels.masked_attention_grad_bias import grad_bias


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def grad_query_kernel(
    p_q, p_k, p_v, p_grad_out, p_out, p_lse, p_shift, p_delta, p_grad_q, p_rows, p_bias, p_survivors,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_on, stride_rb, stride_rh, stride_rn, stride_sb, stride_sh, stride_sn,
    stride_bb, stride_bh, stride_bq, stride_bk, heads, groups, n_q, n_k, padded_q, scale, kept_share, minus_inf,
    D: tl.constexpr, BLOCK_D: tl.constexpr, D_V: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, SIGN: tl.constexpr, PRECISION: tl.constexpr,
    HAS_KEEP: tl.constexpr, IS_EVEN: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
):  # fmt: skip
    """dQ of a block of queries; on the way, for the other kernels, delta and lse log2(e).

    Both have padded_q rows a head, so that the others load without a mask. Rows beyond n_q and rows without a set bit
    have +inf in place of lse, which makes P = 0.
    """
    blocks = padded_q // BLOCK_Q
    start_q = tl.program_id(0) % blocks * BLOCK_Q
    head = tl.program_id(0) // blocks % heads
    sample = (tl.program_id(0) // blocks // heads).to(tl.int64)
    p_q += sample * stride_qb + head.to(tl.int64) * stride_qh
    p_k += sample * stride_kb + (head // groups).to(tl.int64) * stride_kh
    p_v += sample * stride_vb + (head // groups).to(tl.int64) * stride_vh
    p_grad_out += sample * stride_ob + head.to(tl.int64) * stride_oh
    if HAS_KEEP:
        p_rows += sample * stride_rb + head.to(tl.int64) * stride_rh
    if HAS_BIAS:
        p_bias += sample * stride_bb + head.to(tl.int64) * stride_bh
    if HAS_DROPOUT:
        p_survivors += sample * stride_sb + head.to(tl.int64) * stride_sh

    o_q = start_q + tl.arange(0, BLOCK_Q)
    row = (sample * heads + head) * padded_q
    out = (sample * n_q * heads + head) * D_V
    b_grad_out = load_rows(p_grad_out, start_q, n_q, stride_on, BLOCK_Q, D_V, BLOCK_V)  # (BLOCK_Q, BLOCK_V)
    b_out = load_rows(p_out + out, start_q, n_q, heads * D_V, BLOCK_Q, D_V, BLOCK_V)
    b_delta = tl.sum(b_grad_out.to(tl.float32) * b_out.to(tl.float32), 1)
    b_lse = tl.load(p_lse + (sample * heads + head) * n_q + o_q, mask=o_q < n_q, other=float("-inf"))
    b_shift = tl.where(b_lse == float("-inf"), float("inf"), b_lse * LOG2_E)
    tl.store(p_delta + row + o_q, b_delta)
    tl.store(p_shift + row + o_q, b_shift)

    b_q = with_sign(load_rows(p_q, start_q, n_q, stride_qn, BLOCK_Q, D, BLOCK_D), SIGN)  # (BLOCK_Q, BLOCK_D)
    b_grad_q = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    unit = 1.0 if HAS_BIAS else scale * LOG2_E
    for chunk in range(0, n_k, BLOCKS * BLOCK_K):
        if HAS_KEEP:
            bitmap, count = active_blocks(p_rows, start_q, n_q, stride_rn, 1, chunk, n_k, BLOCK_Q, BLOCK_K)
        else:
            bitmap, count = 0, tl.minimum(tl.cdiv(n_k - chunk, BLOCK_K), BLOCKS)
        for i in range(count):
            if HAS_KEEP:
                start_k = chunk + lowest_bit(bitmap) * BLOCK_K
                bitmap &= bitmap - 1
            else:
                start_k = chunk + i * BLOCK_K
            b_k = load_columns(p_k, start_k, n_k, stride_kn, BLOCK_K, D, BLOCK_D)  # (BLOCK_D, BLOCK_K)
            b_scores = tl.dot(b_q, b_k, input_precision=PRECISION)  # (BLOCK_Q, BLOCK_K)
            if HAS_BIAS:
                b_scores = add_bias(
                    b_scores, p_bias, start_q, start_k, n_q, n_k, stride_bq, stride_bk, scale, BLOCK_Q, BLOCK_K
                )
            b_scores = bound_scores(
                b_scores, p_rows, start_q, start_k, n_q, n_k, stride_rn, 1, minus_inf,
                BLOCK_Q, BLOCK_K, HAS_KEEP, IS_EVEN,
            )  # fmt: skip
            b_p = tl.exp2(b_scores * unit - b_shift[:, None])
            b_v = load_columns(p_v, start_k, n_k, stride_vn, BLOCK_K, D_V, BLOCK_V)  # (BLOCK_V, BLOCK_K)
            b_grad_p = tl.dot(b_grad_out, b_v, input_precision=PRECISION)  # (BLOCK_Q, BLOCK_K), Eq. 5
            if HAS_DROPOUT:
                b_survives = surviving_positions(p_survivors, start_q, start_k, n_q, n_k, stride_sn, BLOCK_Q, BLOCK_K)
                b_grad_p = tl.where(b_survives, b_grad_p * (1.0 / kept_share), 0.0)
            b_grad_scores = b_p * (b_grad_p - b_delta[:, None])
            b_grad_q = tl.dot(b_grad_scores.to(b_k.dtype), tl.trans(b_k), b_grad_q, input_precision=PRECISION)

    p_grad_q += (sample * n_q * heads + head) * D
    store_rows(p_grad_q, with_sign(b_grad_q * scale, SIGN), start_q, n_q, heads * D, BLOCK_Q, D, BLOCK_D)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def grad_key_value_kernel(
    p_q, p_k, p_v, p_grad_out, p_shift, p_delta, p_grad_k, p_grad_v, p_cols, p_bias, p_survivors,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_on, stride_cb, stride_ch, stride_cn, stride_cw, stride_tb, stride_th, stride_tn,
    stride_bb, stride_bh, stride_bq, stride_bk,
    heads, groups, n_q, n_k, padded_q, scale, kept_share, minus_inf,
    D: tl.constexpr, BLOCK_D: tl.constexpr, D_V: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, SIGN: tl.constexpr, PRECISION: tl.constexpr,
    HAS_KEEP: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
):  # fmt: skip
    """dK and dV of a block of keys, from transposed products and transposed bits, over all heads of its group."""
    blocks = tl.cdiv(n_k, BLOCK_K)
    start_k = tl.program_id(0) % blocks * BLOCK_K
    kv_heads = heads // groups
    kv_head = tl.program_id(0) // blocks % kv_heads
    sample = (tl.program_id(0) // blocks // kv_heads).to(tl.int64)
    p_k += sample * stride_kb + kv_head.to(tl.int64) * stride_kh
    p_v += sample * stride_vb + kv_head.to(tl.int64) * stride_vh

    b_k = load_rows(p_k, start_k, n_k, stride_kn, BLOCK_K, D, BLOCK_D)  # (BLOCK_K, BLOCK_D)
    b_v = load_rows(p_v, start_k, n_k, stride_vn, BLOCK_K, D_V, BLOCK_V)  # (BLOCK_K, BLOCK_V)
    b_grad_k = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    b_grad_v = tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
    unit = 1.0 if HAS_BIAS else scale * LOG2_E
    for member in range(groups):
        head = kv_head * groups + member
        p_head_q = p_q + sample * stride_qb + head.to(tl.int64) * stride_qh
        p_head_out = p_grad_out + sample * stride_ob + head.to(tl.int64) * stride_oh
        row = (sample * heads + head) * padded_q
        p_head_cols = p_cols
        if HAS_KEEP:
            p_head_cols += sample * stride_cb + head.to(tl.int64) * stride_ch
        p_head_survivors = p_survivors
        if HAS_DROPOUT:
            p_head_survivors += sample * stride_tb + head.to(tl.int64) * stride_th
        for chunk in range(0, n_q, BLOCKS * BLOCK_Q):
            if HAS_KEEP:
                bitmap, count = active_blocks(
                    p_head_cols, start_k, n_k, stride_cn, stride_cw, chunk, n_q, BLOCK_K, BLOCK_Q
                )
            else:
                bitmap, count = 0, tl.minimum(tl.cdiv(n_q - chunk, BLOCK_Q), BLOCKS)
            for i in range(count):
                if HAS_KEEP:
                    start_q = chunk + lowest_bit(bitmap) * BLOCK_Q
                    bitmap &= bitmap - 1
                else:
                    start_q = chunk + i * BLOCK_Q
                o_q = start_q + tl.arange(0, BLOCK_Q)
                b_q = with_sign(load_columns(p_head_q, start_q, n_q, stride_qn, BLOCK_Q, D, BLOCK_D), SIGN)
                b_scores = tl.dot(b_k, b_q, input_precision=PRECISION)  # (BLOCK_K, BLOCK_Q)
                if HAS_BIAS:
                    p_head_bias = p_bias + sample * stride_bb + head.to(tl.int64) * stride_bh
                    b_scores = add_bias(
                        b_scores, p_head_bias, start_k, start_q, n_k, n_q, stride_bk, stride_bq, scale, BLOCK_K, BLOCK_Q
                    )
                b_scores = bound_scores(
                    b_scores, p_head_cols, start_k, start_q, n_k, n_q, stride_cn, stride_cw, minus_inf,
                    BLOCK_K, BLOCK_Q, HAS_KEEP, IS_EVEN=True,
                )  # fmt: skip
                b_p = tl.exp2(b_scores * unit - tl.load(p_shift + row + o_q)[None, :])
                b_grad_out = load_rows(p_head_out, start_q, n_q, stride_on, BLOCK_Q, D_V, BLOCK_V)  # (BLOCK_Q, BLOCK_V)
                b_grad_p = tl.dot(b_v, tl.trans(b_grad_out), input_precision=PRECISION)  # (BLOCK_K, BLOCK_Q)
                b_kept = b_p
                if HAS_DROPOUT:
                    b_survives = surviving_positions(
                        p_head_survivors, start_k, start_q, n_k, n_q, stride_tn, BLOCK_K, BLOCK_Q
                    )
                    b_kept = tl.where(b_survives, b_p, 0.0)
                    b_grad_p = tl.where(b_survives, b_grad_p * (1.0 / kept_share), 0.0)
                b_grad_v = tl.dot(b_kept.to(b_v.dtype), b_grad_out, b_grad_v, input_precision=PRECISION)
                b_grad_scores = b_p * (b_grad_p - tl.load(p_delta + row + o_q)[None, :])
                b_grad_k = tl.dot(b_grad_scores.to(b_k.dtype), tl.trans(b_q), b_grad_k, input_precision=PRECISION)

    p_grad_k += (sample * n_k * kv_heads + kv_head) * D
    p_grad_v += (sample * n_k * kv_heads + kv_head) * D_V
    store_rows(p_grad_k, b_grad_k * scale, start_k, n_k, kv_heads * D, BLOCK_K, D, BLOCK_D)
    if HAS_DROPOUT:
        b_grad_v *= 1.0 / kept_share
    store_rows(p_grad_v, b_grad_v, start_k, n_k, kv_heads * D_V, BLOCK_K, D_V, BLOCK_V)


def masked_attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rows: Tensor | None,
    cols: Tensor | None, bias: Tensor | None, scale: float, dropout_p: float, seed: int, sample_ids: Tensor | None,
    needs_grad_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dQ, dK, dV, each (B, H, n, d) over (B, n, H, d) memory, and the gradient of the bias or an empty tensor.

    ``cols`` are packed bits by key. Where the rows are the same for all queries, cols has one query: bit 0 counts.
    """
    batch, heads, n_q, _ = q.shape
    kv_heads, n_k = k.shape[1:3]
    is_empty = out.numel() == 0 or n_k == 0
    make = torch.zeros if is_empty else torch.empty
    grads = [make(t.transpose(1, 2).shape, dtype=t.dtype, device=t.device) for t in (q, k, v)]
    if is_empty:
        grad_of_bias = torch.zeros_like(bias) if needs_grad_bias else q.new_empty(0)
        return *(grad.transpose(1, 2) for grad in grads), grad_of_bias
    arguments, choice = common_arguments(q, k, v, bias, scale, dropout_p)
    kept_rows, kept_cols = survivors(rows, q, k, dropout_p, seed, sample_ids, needs_cols=True)
    if cols is not None and rows.shape[2] == 1 < n_q:
        cols = -(cols & 1)  # one bit for all queries: the word is read again and again
    grad_out = unit_stride(grad_out)
    padded_q = triton.cdiv(n_q, LARGEST_BLOCK) * LARGEST_BLOCK
    shift, delta = q.new_empty(2, batch, heads, padded_q, dtype=torch.float32)
    arguments.update(
        p_grad_out=grad_out, p_out=out, p_lse=lse, p_shift=shift, p_delta=delta, p_grad_q=grads[0], p_grad_k=grads[1],
        p_grad_v=grads[2], p_rows=rows, p_cols=cols, p_survivors=kept_rows, HAS_KEEP=rows is not None,
        padded_q=padded_q, **strides("o", grad_out, "bnh"), **strides("r", rows, "bhn"), **strides("c", cols, "bhnw"),
        **strides("s", kept_rows, "bhn"), **strides("t", kept_cols, "bhn"),
    )  # fmt: skip

    def query_blocks(tile: Tile) -> int:
        return batch * heads * padded_q // tile.queries

    def key_blocks(tile: Tile) -> int:
        return batch * kv_heads * triton.cdiv(n_k, tile.keys)

    launch("grad_query", grad_query_kernel, arguments, query_blocks, **choice)
    launch("grad_key_value", grad_key_value_kernel, {**arguments, "p_survivors": kept_cols}, key_blocks, **choice)
    grad_of_bias = grad_bias(arguments, bias, choice) if needs_grad_bias else q.new_empty(0)
    return *(grad.transpose(1, 2) for grad in grads), grad_of_bias
