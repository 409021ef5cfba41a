"""Ordinary dropout of the attention probabilities as packed bits: what is set in the mask and not dropped.

Made once for a forward or a backward pass: inside the attention kernels the draws cost four times as much, because
four threads share each row of a matrix product and would all draw its words.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from attrdrop.triton_kernels.bits import load_words, store_transposed, store_words
from attrdrop.triton_kernels.launch import NOT_SPECIALIZED, on_device, strides
from attrdrop.triton_kernels.philox import bernoulli_words

ROWS, WORDS = 128, 2


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def masked_attention_dropout_kernel(
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
    words_k = tl.cdiv(n_k, 32)
    p_rows += (sample * heads + head) * n_q * words_k
    store_words(p_rows, b_rows, start_q, start_k // 32, n_q, words_k, ROWS, WORDS)
    if HAS_COLS:
        p_cols += (sample * heads + head) * n_k * tl.cdiv(n_q, 32)
        store_transposed(p_cols, b_rows, start_q, start_k, n_q, n_k, ROWS, WORDS)


def dropout_words(
    keep: Tensor, heads: int, n_q: int, n_k: int, threshold: int, seed: int, sample_ids: Tensor, needs_cols: bool
) -> tuple[Tensor, Tensor | None]:
    """Bits by query (B, H, n_q, ceil(n_k / 32)) and, if needed, by key (B, H, n_k, ceil(n_q / 32)).

    keep (B|1, H|1, n_q|1, ceil(n_k / 32)); each of its set bits is cleared with probability threshold / 65536.
    """
    batch = sample_ids.numel()
    rows = keep.new_empty(batch, heads, n_q, triton.cdiv(n_k, 32))
    cols = keep.new_empty(batch, heads, n_k, triton.cdiv(n_q, 32)) if needs_cols else None
    programs = batch * heads * triton.cdiv(n_q, ROWS) * triton.cdiv(n_k, 32 * WORDS)
    with on_device(keep.device):
        masked_attention_dropout_kernel[(programs,)](
            keep, sample_ids, rows, cols, **strides("k", keep, "bhn"), heads=heads, n_q=n_q, n_k=n_k, seed=seed,
            threshold=threshold, ROWS=ROWS, WORDS=WORDS, HAS_COLS=needs_cols, num_warps=4,
        )  # fmt: skip
    return rows, cols
