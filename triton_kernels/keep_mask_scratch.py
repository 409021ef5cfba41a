"""Candidates (Eq. 6) of rows whose keys do not fit beside a matrix product: they go through a scratch in the cache.

A program has its own part of the scratch: it multiplies a block of rows, writes their keys, and ranks a few rows at a
time in the layout that loads give, a row to a warp where it fits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attrdrop.triton_kernels.keep_mask_select import (
    candidate_words,
    column_limit,
    keys_of_block,
    load_slice,
    popcount,
    rank_rows,
    valid_words,
)
from attrdrop.triton_kernels.launch import NOT_SPECIALIZED


@triton.jit
def rank_scratch_rows(
    p_scratch, p_valid, p_rows, start_q, n_q, n_k, stride_vn, share, normal, width, filled,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr, PACKED: tl.constexpr, LOW: tl.constexpr,
    HAS_VALID: tl.constexpr, IS_CAUSAL: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Candidates of rows start_q to start_q + ROWS; the first ``filled`` of ``width`` keys are in the scratch."""
    KEYS: tl.constexpr = COLUMNS // 2 if PACKED else COLUMNS
    WORDS: tl.constexpr = COLUMNS // 32
    o_q = tl.arange(0, ROWS)
    o_row = start_q + o_q
    b_limit = column_limit(o_row, n_k, IS_CAUSAL)
    b_valid_count = tl.zeros((ROWS,), tl.int32)
    if HAS_VALID:
        for start_k in range(0, n_k, COLUMNS):
            b_valid = valid_words(p_valid, o_row, n_q, n_k, b_limit, start_k, stride_vn, WORDS, True, IS_CAUSAL)
            b_valid_count += tl.sum(popcount(b_valid, ISA), 1)
    else:
        b_valid_count += tl.sum(b_limit, 1)
    keys = ()
    for i in tl.static_range(CHUNKS):
        o_key = i * KEYS + tl.arange(0, KEYS)
        mask = tl.broadcast_to((o_key < filled)[None, :], (ROWS, KEYS))
        other = 0x7F807F80 if PACKED else float("inf")
        keys += (tl.load(p_scratch + o_q[:, None] * width + o_key[None, :], mask=mask, other=other),)
    b_place, m_all, m_none = rank_rows(keys, b_valid_count, share, normal, ROWS, CHUNKS * COLUMNS, PACKED, LOW, ISA)
    words = tl.cdiv(n_k, 32)
    for i in tl.static_range(CHUNKS):
        o_word = i * WORDS + tl.arange(0, WORDS)
        b_words = candidate_words(keys[i], b_place, m_all, m_none, ROWS, WORDS, PACKED, LOW, ISA)
        mask = (o_row < n_q)[:, None] & (o_word < words)[None, :]
        tl.store(p_rows + o_q[:, None] * words + o_word[None, :], b_words, mask=mask)


@triton.jit(do_not_specialize=(*NOT_SPECIALIZED, "blocks"))
def select_through_scratch_kernel(
    p_x, p_y, p_q, p_k, p_lse, p_bias, p_valid, p_rows, p_scratch,
    stride_xb, stride_xh, stride_xn, stride_yb, stride_yh, stride_yn,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_bb, stride_bh, stride_bq, stride_bk,
    stride_vb, stride_vh, stride_vn, heads, groups, n_q, n_k, share, quantile, spacing, scale, infinity, blocks,
    D: tl.constexpr, BLOCK_D: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr,
    GUESSED: tl.constexpr, PACKED: tl.constexpr, LOW: tl.constexpr, WEIGHTED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_VALID: tl.constexpr, IS_CAUSAL: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """``blocks`` blocks of BLOCK_Q rows of up to CHUNKS * COLUMNS columns, ranked ROWS at a time."""
    HALVES: tl.constexpr = 2 if PACKED else 1
    width = tl.cdiv(n_k, BLOCK_K) * (BLOCK_K // HALVES)  # keys or pairs in a row of the scratch
    words, blocks_q = tl.cdiv(n_k, 32), tl.cdiv(n_q, BLOCK_Q)
    normal = (quantile, spacing) if GUESSED else ()
    p_scratch += tl.program_id(0).to(tl.int64) * BLOCK_Q * width
    o_q = tl.arange(0, BLOCK_Q)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        start_q = block % blocks_q * BLOCK_Q
        head = tl.cast(block // blocks_q % heads, tl.int64)
        sample = tl.cast(block // blocks_q // heads, tl.int64)
        place = (sample * heads + head) * n_q + start_q
        operands = ()
        if p_x is not None:
            p_head_x = p_x + sample * stride_xb + head * stride_xh + tl.cast(start_q, tl.int64) * stride_xn
            p_head_y = p_y + sample * stride_yb + head // groups * stride_yh
            b_x = load_slice(p_head_x, o_q, n_q - start_q, stride_xn, 0, D, BLOCK_D)
            operands = (b_x, p_head_x, p_head_y, stride_xn, stride_yn)
        weight = ()
        if WEIGHTED:
            p_head_q = p_q + sample * stride_qb + head * stride_qh + tl.cast(start_q, tl.int64) * stride_qn
            p_head_k = p_k + sample * stride_kb + head // groups * stride_kh
            b_q = load_slice(p_head_q, o_q, n_q - start_q, stride_qn, 0, E, BLOCK_E)
            b_lse = tl.load(p_lse + place + o_q, mask=start_q + o_q < n_q, other=0.0)
            weight = ((b_q, p_head_q, p_head_k, stride_qn, stride_kn), b_lse, scale)
        bias = ()
        if HAS_BIAS:
            p_head_bias = p_bias + sample * stride_bb + head * stride_bh + tl.cast(start_q, tl.int64) * stride_bq
            bias = (scale, p_head_bias, stride_bq, stride_bk)
        p_head_valid = p_valid
        if HAS_VALID:
            p_head_valid += sample * stride_vb + head * stride_vh
        b_limit = column_limit(start_q + o_q, n_k, IS_CAUSAL)
        limit_k = tl.minimum(n_k, start_q + BLOCK_Q) if IS_CAUSAL else n_k  # nothing is valid from there on
        for start_k in range(0, limit_k, BLOCK_K):
            b_valid = 0
            if HAS_VALID:
                b_valid = valid_words(
                    p_head_valid, start_q + o_q, n_q, n_k, b_limit, start_k, stride_vn, BLOCK_K // 32, True, IS_CAUSAL
                )
            b_keys = keys_of_block(
                operands, weight, bias, b_valid, b_limit, start_k, o_q, n_q - start_q, n_k, infinity, D, BLOCK_D, E,
                BLOCK_E, BLOCK_Q, BLOCK_K, WEIGHTED, HAS_BIAS, HAS_VALID, True, PACKED, ISA,
            )  # fmt: skip
            o_key = start_k // HALVES + tl.arange(0, BLOCK_K // HALVES)
            tl.store(p_scratch + o_q[:, None] * width + o_key[None, :], b_keys)
        filled = tl.cdiv(limit_k, BLOCK_K) * (BLOCK_K // HALVES)
        tl.debug_barrier()  # other threads read the keys
        for start_row in range(0, tl.minimum(BLOCK_Q, n_q - start_q), ROWS):
            rank_scratch_rows(
                p_scratch + start_row * width, p_head_valid, p_rows + (place + start_row) * words, start_q + start_row,
                n_q, n_k, stride_vn, share, normal, width, filled, ROWS, COLUMNS, CHUNKS, PACKED, LOW, HAS_VALID,
                IS_CAUSAL, ISA,
            )  # fmt: skip
        tl.debug_barrier()  # before the next block's keys
