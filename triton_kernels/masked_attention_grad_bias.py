"""masked_attention, gradient of the bias: dS, summed over the samples and heads that share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attrdrop.triton_kernels.attention_tiles import (
    head_of,
    kept_and_gradients,
    load_columns,
    load_rows,
    masked_scores,
    with_sign,
)
from attrdrop.triton_kernels.launch import NOT_SPECIALIZED, Tile, launch


@triton.jit(do_not_specialize=(*NOT_SPECIALIZED, "shared_samples", "shared_heads"))
def masked_attention_backward_bias_kernel(
    q, k, v, grad_out, words, bias, survivors, p_shift, p_delta, p_grad_bias,
    heads, groups, n_q, n_k, padded_q, scale, kept_share, minus_inf, shared_samples, shared_heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr, D_V: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, SIGN: tl.constexpr, PRECISION: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """One program per tile of the bias; in its samples and heads the ``shared_*`` next ones are summed."""
    blocks_q, blocks_k = tl.cdiv(n_q, BLOCK_Q), tl.cdiv(n_k, BLOCK_K)
    start_k = tl.program_id(0) % blocks_k * BLOCK_K
    start_q = tl.program_id(0) // blocks_k % blocks_q * BLOCK_Q
    place = (start_q, start_k, n_q, n_k)
    tile = tl.program_id(0) // (blocks_k * blocks_q)
    first_head = tile % (heads // shared_heads) * shared_heads
    first_sample = tile // (heads // shared_heads) * shared_samples
    o_q = start_q + tl.arange(0, BLOCK_Q)
    o_k = start_k + tl.arange(0, BLOCK_K)
    b_grad_bias = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    for member in range(shared_samples * shared_heads):
        sample = (first_sample + member // shared_heads).to(tl.int64)
        head = first_head + member % shared_heads
        head_k = head_of(k, sample, head // groups)
        head_v = head_of(v, sample, head // groups)
        head_q = head_of(q, sample, head)
        head_out = head_of(grad_out, sample, head)
        head_bias = head_of(bias, sample, head)
        head_words = None if words is None else head_of(words, sample, head)
        row = (sample * heads + head) * padded_q
        b_q = with_sign(load_rows(head_q, start_q, n_q, BLOCK_Q, D, BLOCK_D), SIGN)
        b_k = load_columns(head_k, start_k, n_k, BLOCK_K, D, BLOCK_D)
        b_scores = masked_scores(
            b_q, b_k, head_words, head_bias, place, scale, minus_inf,
            BLOCK_Q, BLOCK_K, IS_EVEN, PRECISION,
        )  # fmt: skip
        b_p = tl.exp2(b_scores - tl.load(p_shift + row + o_q)[:, None])
        b_grad_out = load_rows(head_out, start_q, n_q, BLOCK_Q, D_V, BLOCK_V)
        b_v = load_columns(head_v, start_k, n_k, BLOCK_K, D_V, BLOCK_V)
        head_survivors = None if survivors is None else head_of(survivors, sample, head)
        _, b_grad_p = kept_and_gradients(
            b_p, b_grad_out, b_v, head_survivors, place, kept_share, BLOCK_Q, BLOCK_K, PRECISION
        )
        b_grad_bias += b_p * (b_grad_p - tl.load(p_delta + row + o_q)[:, None])
    p_grad_bias += (tile.to(tl.int64) * n_q + o_q[:, None]) * n_k + o_k[None, :]
    tl.store(
        p_grad_bias, b_grad_bias.to(p_grad_bias.dtype.element_ty), mask=(o_q < n_q)[:, None] & (o_k < n_k)[None, :]
    )


def grad_bias(arguments: Mapping[str, Any], bias: Tensor, choice: Mapping[str, Any]) -> Tensor:
    """The gradient of ``bias`` (B|1, H|1, n_q|1, n_k|1), from what the kernel of dQ left behind.

    Samples and heads are summed inside the kernel; a bias that broadcasts over queries or keys is summed after it.
    """
    heads, n_q, n_k, batch = arguments["heads"], arguments["n_q"], arguments["n_k"], arguments["q"].pointer.shape[0]
    is_summed = (n_q, n_k) != tuple(bias.shape[2:])
    grad = torch.empty(*bias.shape[:2], n_q, n_k, dtype=torch.float32 if is_summed else bias.dtype, device=bias.device)
    shared = dict(
        p_grad_bias=grad,
        shared_samples=1 if bias.shape[0] == batch else batch,
        shared_heads=1 if bias.shape[1] == heads else heads,
    )

    def programs(tile: Tile) -> int:
        return bias.shape[0] * bias.shape[1] * triton.cdiv(n_q, tile.queries) * triton.cdiv(n_k, tile.keys)

    launch("grad_bias", masked_attention_backward_bias_kernel, {**arguments, **shared}, programs, **choice)
    return grad.sum_to_size(bias.shape).to(bias.dtype) if is_summed else grad
