"""masked_attention, gradient of the bias: dS, summed over the samples and heads that share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attrdrop.triton_kernels.attention_tiles import (
    add_bias,
    bound_scores,
    load_columns,
    load_rows,
    surviving_positions,
    with_sign,
)
from attrdrop.triton_kernels.launch import NOT_SPECIALIZED, Tile, launch


@triton.jit(do_not_specialize=(*NOT_SPECIALIZED, "shared_samples", "shared_heads"))
def grad_bias_kernel(
    p_q, p_k, p_v, p_grad_out, p_shift, p_delta, p_grad_bias, p_rows, p_bias, p_survivors,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_on, stride_rb, stride_rh, stride_rn, stride_sb, stride_sh, stride_sn,
    stride_bb, stride_bh, stride_bq, stride_bk, heads, groups, n_q, n_k, padded_q, scale, kept_share, minus_inf,
    shared_samples, shared_heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr, D_V: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, SIGN: tl.constexpr, PRECISION: tl.constexpr,
    HAS_KEEP: tl.constexpr, IS_EVEN: tl.constexpr, HAS_DROPOUT: tl.constexpr,
):  # fmt: skip
    """One program per tile of the bias; in its samples and heads the ``shared_*`` next ones are summed."""
    blocks_q, blocks_k = tl.cdiv(n_q, BLOCK_Q), tl.cdiv(n_k, BLOCK_K)
    start_k = tl.program_id(0) % blocks_k * BLOCK_K
    start_q = tl.program_id(0) // blocks_k % blocks_q * BLOCK_Q
    place = tl.program_id(0) // (blocks_k * blocks_q)
    first_head = place % (heads // shared_heads) * shared_heads
    first_sample = place // (heads // shared_heads) * shared_samples
    o_q = start_q + tl.arange(0, BLOCK_Q)
    o_k = start_k + tl.arange(0, BLOCK_K)
    b_grad_bias = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    for member in range(shared_samples * shared_heads):
        sample = (first_sample + member // shared_heads).to(tl.int64)
        head = first_head + member % shared_heads
        p_head_k = p_k + sample * stride_kb + (head // groups).to(tl.int64) * stride_kh
        p_head_v = p_v + sample * stride_vb + (head // groups).to(tl.int64) * stride_vh
        p_head_q = p_q + sample * stride_qb + head.to(tl.int64) * stride_qh
        p_head_out = p_grad_out + sample * stride_ob + head.to(tl.int64) * stride_oh
        p_head_bias = p_bias + sample * stride_bb + head.to(tl.int64) * stride_bh
        p_head_rows = p_rows
        if HAS_KEEP:
            p_head_rows += sample * stride_rb + head.to(tl.int64) * stride_rh
        row = (sample * heads + head) * padded_q
        b_q = with_sign(load_rows(p_head_q, start_q, n_q, stride_qn, BLOCK_Q, D, BLOCK_D), SIGN)
        b_k = load_columns(p_head_k, start_k, n_k, stride_kn, BLOCK_K, D, BLOCK_D)
        b_scores = tl.dot(b_q, b_k, input_precision=PRECISION)  # (BLOCK_Q, BLOCK_K)
        b_scores = add_bias(
            b_scores, p_head_bias, start_q, start_k, n_q, n_k, stride_bq, stride_bk, scale, BLOCK_Q, BLOCK_K
        )
        b_scores = bound_scores(
            b_scores, p_head_rows, start_q, start_k, n_q, n_k, stride_rn, 1, minus_inf,
            BLOCK_Q, BLOCK_K, HAS_KEEP, IS_EVEN,
        )  # fmt: skip
        b_p = tl.exp2(b_scores - tl.load(p_shift + row + o_q)[:, None])
        b_grad_out = load_rows(p_head_out, start_q, n_q, stride_on, BLOCK_Q, D_V, BLOCK_V)
        b_v = load_columns(p_head_v, start_k, n_k, stride_vn, BLOCK_K, D_V, BLOCK_V)
        b_grad_p = tl.dot(b_grad_out, b_v, input_precision=PRECISION)  # (BLOCK_Q, BLOCK_K)
        if HAS_DROPOUT:
            p_head_survivors = p_survivors + sample * stride_sb + head.to(tl.int64) * stride_sh
            b_survives = surviving_positions(p_head_survivors, start_q, start_k, n_q, n_k, stride_sn, BLOCK_Q, BLOCK_K)
            b_grad_p = tl.where(b_survives, b_grad_p * (1.0 / kept_share), 0.0)
        b_grad_bias += b_p * (b_grad_p - tl.load(p_delta + row + o_q)[:, None])
    p_grad_bias += (place.to(tl.int64) * n_q + o_q[:, None]) * n_k + o_k[None, :]
    tl.store(
        p_grad_bias, b_grad_bias.to(p_grad_bias.dtype.element_ty), mask=(o_q < n_q)[:, None] & (o_k < n_k)[None, :]
    )


def grad_bias(arguments: Mapping[str, Any], bias: Tensor, choice: Mapping[str, Any]) -> Tensor:
    """The gradient of ``bias`` (B|1, H|1, n_q|1, n_k|1), from what ``grad_query_kernel`` left behind.

    Samples and heads are summed inside the kernel; a bias that broadcasts over queries or keys is summed after it.
    """
    heads, n_q, n_k, batch = arguments["heads"], arguments["n_q"], arguments["n_k"], arguments["p_q"].shape[0]
    is_summed = (n_q, n_k) != tuple(bias.shape[2:])
    grad = torch.empty(*bias.shape[:2], n_q, n_k, dtype=torch.float32 if is_summed else bias.dtype, device=bias.device)
    shared = dict(
        p_grad_bias=grad,
        shared_samples=1 if bias.shape[0] == batch else batch,
        shared_heads=1 if bias.shape[1] == heads else heads,
    )

    def programs(tile: Tile) -> int:
        return bias.shape[0] * bias.shape[1] * triton.cdiv(n_q, tile.queries) * triton.cdiv(n_k, tile.keys)

    launch("grad_bias", grad_bias_kernel, {**arguments, **shared}, programs, **choice)
    return grad.sum_to_size(bias.shape).to(bias.dtype) if is_summed else grad
