"""Kernels for test_ahead.py: one that is well behaved and one that needs more registers than there are."""

import triton
import triton.language as tl


@triton.jit
def matmul_kernel(p_x, p_y, p_bias, p_out, n_k, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """x (BLOCK, n_k), y (n_k, BLOCK), bias (BLOCK,) or None -> out (BLOCK, BLOCK)."""
    o, o_k = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, n_k, BLOCK_K):
        b_x = tl.load(p_x + o[:, None] * n_k + (start + o_k)[None, :])
        b_y = tl.load(p_y + (start + o_k)[:, None] * BLOCK + o[None, :])
        acc = tl.dot(b_x, b_y, acc)
    if p_bias is not None:
        acc += tl.load(p_bias + o)[None, :]
    tl.store(p_out + o[:, None] * BLOCK + o[None, :], acc.to(tl.bfloat16))


@triton.jit
def row_sum_kernel(p_x, p_out, n, BLOCK: tl.constexpr):
    """x (n,) -> its sum; BLOCK floats live in the registers through the loop."""
    o = tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        acc += tl.load(p_x + start + o)
    tl.store(p_out, tl.sum(acc, 0))
