"""Ordinary dropout of the attention probabilities as packed bits: what is set in the mask and not dropped.

Made once for a forward or a backward pass: inside the attention kernels the draws cost four times as much, because
four threads share each row of a matrix product and would all draw its words.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from attrdrop.triton_kernels.bits import load_words, transpose_words
from attrdrop.triton_kernels.launch import NOT_SPECIALIZED, on_device
from attrdrop.triton_kernels.philox import bernoulli_words

ROWS, WORDS = 128, 2


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def dropout_words_kernel(
    p_keep, p_ids, p_rows, p_cols, stride_kb, stride_kh, stride_kn, heads, n_q, n_k, seed: tl.int64, threshold,
    ROWS: tl.constexpr, WORDS: tl.constexpr, HAS_COLS: tl.constexpr,
):  # fmt: skip
    blocks_q, blocks_k = tl.cdiv(n_q, ROWS), tl.cdiv(n_k, 32 * WORDS)
    start_k = tl.program_id(0) % blocks_k * (32 * WORDS)
    start_q = tl.program_id(0) // blocks_k % blocks_q * ROWS
    head = tl.program_id(0) // (blocks_k * blocks_q) % heads
    sample = (tl.program_id(0) // (blocks_k * blocks_q) // heads).to(tl.int64)
    o_row = start_q + tl.arange(0, ROWS)
    o_word = start_k // 32 + tl.arange(0, WORDS)
    p_keep += sample * stride_kb + head.to(tl.int64) * stride_kh
    b_keep = load_words(p_keep, o_row, o_row < n_q, stride_kn, 1, start_k, n_k, 32 * WORDS)  # (ROWS, WORDS)
    draw_sample = tl.load(p_ids + sample).to(tl.int32)
    b_rows = b_keep & ~bernoulli_words(seed, o_word[None, :], o_row[:, None], head, draw_sample, threshold)
    words_k, words_q = tl.cdiv(n_k, 32), tl.cdiv(n_q, 32)
    p_rows += (sample * heads + head) * n_q * words_k
    o_place = o_row[:, None].to(tl.int64) * words_k + o_word[None, :]
    tl.store(p_rows + o_place, b_rows, mask=(o_row < n_q)[:, None] & (o_word < words_k)[None, :])
    if HAS_COLS:
        b_cols = transpose_words(b_rows, ROWS, WORDS)  # (32 * WORDS, ROWS / 32)
        o_key = start_k + tl.arange(0, 32 * WORDS)
        o_query_word = start_q // 32 + tl.arange(0, ROWS // 32)
        p_cols += (sample * heads + head) * n_k * words_q
        o_place = o_key[:, None].to(tl.int64) * words_q + o_query_word[None, :]
        tl.store(p_cols + o_place, b_cols, mask=(o_key < n_k)[:, None] & (o_query_word < words_q)[None, :])


def dropout_words(
    keep: Tensor, heads: int, n_q: int, n_k: int, threshold: int, seed: int, sample_ids: Tensor, needs_cols: bool
) -> tuple[Tensor, Tensor | None]:
    """Bits by query (B, H, n_q, ceil(n_k / 32)) and, if needed, by key (B, H, n_k, ceil(n_q / 32)).

    keep (B|1, H|1, n_q|1, ceil(n_k / 32)); each of its set bits is cleared with probability threshold / 65536.
    """
    batch = sample_ids.numel()
    rows = keep.new_empty(batch, heads, n_q, triton.cdiv(n_k, 32))
    cols = keep.new_empty(batch, heads, n_k, triton.cdiv(n_q, 32)) if needs_cols else None
    strides = (0 if size == 1 else stride for size, stride in zip(keep.shape[:3], keep.stride(), strict=False))
    programs = batch * heads * triton.cdiv(n_q, ROWS) * triton.cdiv(n_k, 32 * WORDS)
    with on_device(keep.device):
        dropout_words_kernel[(programs,)](
            keep, sample_ids, rows, cols, *strides, heads, n_q, n_k, seed, threshold, ROWS=ROWS, WORDS=WORDS,
            HAS_COLS=needs_cols, num_warps=4,
        )  # fmt: skip
    return rows, cols
