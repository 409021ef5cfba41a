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
    head_of,
    kept_and_gradients,
    load_columns,
    load_rows,
    masked_scores,
    next_block,
    store_rows,
    visited_blocks,
    with_sign,
)
from attrdrop.triton_kernels.bits import BLOCKS
from attrdrop.triton_kernels.launch import LARGEST_BLOCK, NOT_SPECIALIZED, Tile, launch, matrices, unit_stride
from attrdrop.triton_kernels.masked_attention import common_arguments, survivors
from attrdrop.triton_kernels.masked_attention_grad_bias import grad_bias


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def masked_attention_backward_query_kernel(
    q, k, v, grad_out, words, bias, survivors, p_out, p_lse, p_shift, p_delta, p_grad_q,
    heads, groups, n_q, n_k, padded_q, scale, kept_share, minus_inf,
    D: tl.constexpr, BLOCK_D: tl.constexpr, D_V: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, SIGN: tl.constexpr, PRECISION: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """dQ of a block of queries; on the way, for the other kernels, delta and lse log2(e).

    Both have padded_q rows a head, so that the others load without a mask. Rows beyond n_q and rows without a set bit
    have +inf in place of lse, which makes P = 0.
    """
    blocks = padded_q // BLOCK_Q
    start_q = tl.program_id(0) % blocks * BLOCK_Q
    head = tl.program_id(0) // blocks % heads
    sample = (tl.program_id(0) // blocks // heads).to(tl.int64)
    head_q = head_of(q, sample, head)
    head_k = head_of(k, sample, head // groups)
    head_v = head_of(v, sample, head // groups)
    head_out = head_of(grad_out, sample, head)
    head_words = None if words is None else head_of(words, sample, head)
    head_bias = None if bias is None else head_of(bias, sample, head)
    head_survivors = None if survivors is None else head_of(survivors, sample, head)

    o_q = start_q + tl.arange(0, BLOCK_Q)
    row = (sample * heads + head) * padded_q
    b_grad_out = load_rows(head_out, start_q, n_q, BLOCK_Q, D_V, BLOCK_V)  # (BLOCK_Q, BLOCK_V)
    out = (p_out + (sample * n_q * heads + head) * D_V, heads * D_V, 1)
    b_out = load_rows(out, start_q, n_q, BLOCK_Q, D_V, BLOCK_V)
    b_delta = tl.sum(b_grad_out.to(tl.float32) * b_out.to(tl.float32), 1)
    b_lse = tl.load(p_lse + (sample * heads + head) * n_q + o_q, mask=o_q < n_q, other=float("-inf"))
    b_shift = tl.where(b_lse == float("-inf"), float("inf"), b_lse * LOG2_E)
    tl.store(p_delta + row + o_q, b_delta)
    tl.store(p_shift + row + o_q, b_shift)

    b_q = with_sign(load_rows(head_q, start_q, n_q, BLOCK_Q, D, BLOCK_D), SIGN)  # (BLOCK_Q, BLOCK_D)
    b_grad_q = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
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
            b_p = tl.exp2(b_scores * unit - b_shift[:, None])
            b_v = load_columns(head_v, start_k, n_k, BLOCK_K, D_V, BLOCK_V)  # (BLOCK_V, BLOCK_K)
            _, b_grad_p = kept_and_gradients(
                b_p, b_grad_out, b_v, head_survivors, place, kept_share, BLOCK_Q, BLOCK_K, PRECISION
            )
            b_grad_scores = b_p * (b_grad_p - b_delta[:, None])
            b_grad_q = tl.dot(b_grad_scores.to(b_k.dtype), tl.trans(b_k), b_grad_q, input_precision=PRECISION)

    p_grad_q += (sample * n_q * heads + head) * D
    store_rows(p_grad_q, with_sign(b_grad_q * scale, SIGN), start_q, n_q, heads * D, BLOCK_Q, D, BLOCK_D)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def masked_attention_backward_key_value_kernel(
    q, k, v, grad_out, words, bias, survivors, p_shift, p_delta, p_grad_k, p_grad_v,
    heads, groups, n_q, n_k, padded_q, scale, kept_share, minus_inf,
    D: tl.constexpr, BLOCK_D: tl.constexpr, D_V: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, SIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV of a block of keys over all heads of its group; words, bias and survivors are those by key."""
    blocks = tl.cdiv(n_k, BLOCK_K)
    start_k = tl.program_id(0) % blocks * BLOCK_K
    kv_heads = heads // groups
    kv_head = tl.program_id(0) // blocks % kv_heads
    sample = (tl.program_id(0) // blocks // kv_heads).to(tl.int64)

    b_k = load_rows(head_of(k, sample, kv_head), start_k, n_k, BLOCK_K, D, BLOCK_D)  # (BLOCK_K, BLOCK_D)
    b_v = load_rows(head_of(v, sample, kv_head), start_k, n_k, BLOCK_K, D_V, BLOCK_V)  # (BLOCK_K, BLOCK_V)
    b_grad_k = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    b_grad_v = tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
    unit = scale * LOG2_E if bias is None else 1.0
    for member in range(groups):
        head = kv_head * groups + member
        head_q = head_of(q, sample, head)
        head_out = head_of(grad_out, sample, head)
        row = (sample * heads + head) * padded_q
        head_words = None if words is None else head_of(words, sample, head)
        head_survivors = None if survivors is None else head_of(survivors, sample, head)
        for chunk in range(0, n_q, BLOCKS * BLOCK_Q):
            bitmap, count = visited_blocks(head_words, (start_k, chunk, n_k, n_q), BLOCK_K, BLOCK_Q)
            for i in range(count):
                start_q, bitmap = next_block(head_words, bitmap, chunk, i, BLOCK_Q)
                place = (start_k, start_q, n_k, n_q)
                o_q = start_q + tl.arange(0, BLOCK_Q)
                b_q = with_sign(load_columns(head_q, start_q, n_q, BLOCK_Q, D, BLOCK_D), SIGN)  # (BLOCK_D, BLOCK_Q)
                head_bias = None if bias is None else head_of(bias, sample, head)
                b_scores = masked_scores(
                    b_k, b_q, head_words, head_bias, place, scale, minus_inf, BLOCK_K, BLOCK_Q, True, PRECISION
                )  # (BLOCK_K, BLOCK_Q)
                b_p = tl.exp2(b_scores * unit - tl.load(p_shift + row + o_q)[None, :])
                b_grad_out = load_rows(head_out, start_q, n_q, BLOCK_Q, D_V, BLOCK_V)  # (BLOCK_Q, BLOCK_V)
                b_kept, b_grad_p = kept_and_gradients(
                    b_p, b_v, tl.trans(b_grad_out), head_survivors, place, kept_share, BLOCK_K, BLOCK_Q, PRECISION
                )
                b_grad_v = tl.dot(b_kept.to(b_v.dtype), b_grad_out, b_grad_v, input_precision=PRECISION)
                b_grad_scores = b_p * (b_grad_p - tl.load(p_delta + row + o_q)[None, :])
                b_grad_k = tl.dot(b_grad_scores.to(b_k.dtype), tl.trans(b_q), b_grad_k, input_precision=PRECISION)

    p_grad_k += (sample * n_k * kv_heads + kv_head) * D
    p_grad_v += (sample * n_k * kv_heads + kv_head) * D_V
    store_rows(p_grad_k, b_grad_k * scale, start_k, n_k, kv_heads * D, BLOCK_K, D, BLOCK_D)
    if survivors is not None:
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
        grad_of_bias = bias.new_zeros(bias.shape) if needs_grad_bias else q.new_empty(0)
        return *(grad.transpose(1, 2) for grad in grads), grad_of_bias
    arguments, choice = common_arguments(q, k, v, bias, scale, dropout_p)
    kept_rows, kept_cols = survivors(rows, q, k, dropout_p, seed, sample_ids, needs_cols=True)
    if cols is not None and rows.shape[2] == 1 < n_q:
        cols = (-(cols & 1)).expand(-1, -1, -1, triton.cdiv(n_q, 32))  # one bit for all queries, a word read repeatedly
    padded_q = triton.cdiv(n_q, LARGEST_BLOCK) * LARGEST_BLOCK
    shift, delta = q.new_empty(2, batch, heads, padded_q, dtype=torch.float32)
    arguments.update(
        grad_out=matrices(unit_stride(grad_out).transpose(1, 2)), words=matrices(rows), survivors=matrices(kept_rows),
        p_out=out, p_lse=lse, p_shift=shift, p_delta=delta, p_grad_q=grads[0], p_grad_k=grads[1], p_grad_v=grads[2],
        padded_q=padded_q,
    )  # fmt: skip
    by_key = dict(words=matrices(cols), survivors=matrices(kept_cols), bias=None)
    if bias is not None:
        by_key["bias"] = matrices(bias.expand(-1, -1, n_q, n_k).transpose(2, 3))

    def query_blocks(tile: Tile) -> int:
        return batch * heads * padded_q // tile.queries

    def key_blocks(tile: Tile) -> int:
        return batch * kv_heads * triton.cdiv(n_k, tile.keys)

    launch("grad_query", masked_attention_backward_query_kernel, arguments, query_blocks, **choice)
    launch("grad_key_value", masked_attention_backward_key_value_kernel, arguments | by_key, key_blocks, **choice)
    grad_of_bias = grad_bias(arguments, bias, choice) if needs_grad_bias else q.new_empty(0)
    return *(grad.transpose(1, 2) for grad in grads), grad_of_bias
