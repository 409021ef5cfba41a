"""keep_mask and keep_scores in Triton: candidates by row (keep_mask_select.py), then draws, rescue, bits (Eq. 7).

The draws are a kernel of their own, which holds one word in a register and no product: threads of a matrix product
share rows and would all draw the same words.
"""

from __future__ import annotations

from ctypes import c_float
from statistics import NormalDist
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attrdrop.triton_kernels.bits import store_transposed, store_words
from attrdrop.triton_kernels.keep_mask_scratch import select_through_scratch_kernel
from attrdrop.triton_kernels.keep_mask_select import column_limit, popcount, select_in_registers_kernel, valid_words
from attrdrop.triton_kernels.launch import (
    INTERPRETED,
    NOT_SPECIALIZED,
    Tile,
    chip,
    on_device,
    strides,
    unit_stride,
)
from attrdrop.triton_kernels.philox import bernoulli_words, drop_threshold

DRAW_ROWS, DRAW_WORDS = 64, 32 if INTERPRETED else 4
SCRATCH_BYTES = 256 << 20
SCRATCH_LOADS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""How many loads of four keys a lane makes for its row; where they get many, more warps share a row."""
GUESSED_LOADS = 3
"""From here on a search by guesses pays: with fewer loads a lane's share of its steps outweighs the passes saved."""
LONGEST_ROW = 32768
SCORES_HEAD = 65535
"""The number of the head of given scores, which no model's attention has."""
INFINITY_BITS = 0x7F800000
"""Passed as an argument: see bits.MINUS_INFINITY_BITS."""


@triton.jit
def store_both(p_rows, p_cols, b_rows, start_q, start_k, n_q, n_k, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """b_rows (ROWS, WORDS) from row start_q and column start_k on by query, and where p_cols is, transposed by key."""
    store_words(p_rows, b_rows, start_q, start_k // 32, n_q, tl.cdiv(n_k, 32), ROWS, WORDS)
    if p_cols is not None:
        store_transposed(p_cols, b_rows, start_q, start_k, n_q, n_k, ROWS, WORDS)


@triton.jit(do_not_specialize=(*NOT_SPECIALIZED, "first_head"))
def draw_kernel(
    p_valid, p_ids, p_rows, p_cols, p_counts, stride_vb, stride_vh, stride_vn,
    heads, n_q, n_k, seed: tl.int64, first_head, threshold,
    ROWS: tl.constexpr, WORDS: tl.constexpr, CANDIDATES: tl.constexpr, HAS_VALID: tl.constexpr,
    IS_CAUSAL: tl.constexpr, HAS_IDS: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """A block of rows. CANDIDATES "rows": those in p_rows, which the result replaces; "all" or "none" of the valid."""
    blocks, words_k, words_q = tl.cdiv(n_q, ROWS), tl.cdiv(n_k, 32), tl.cdiv(n_q, 32)
    start_q = tl.program_id(0) % blocks * ROWS
    head = tl.program_id(0) // blocks % heads
    sample = (tl.program_id(0) // blocks // heads).to(tl.int64)
    o_q = start_q + tl.arange(0, ROWS)
    p_rows += (sample * heads + head) * n_q * words_k
    if p_cols is not None:
        p_cols += (sample * heads + head) * n_k * words_q
    if HAS_VALID:
        p_valid += sample * stride_vb + head.to(tl.int64) * stride_vh
    draw_sample = sample.to(tl.int32)
    if HAS_IDS:
        draw_sample = tl.load(p_ids + sample).to(tl.int32)
    b_limit = column_limit(o_q, n_k, IS_CAUSAL)

    limit_k = tl.minimum(n_k, start_q + ROWS) if IS_CAUSAL else n_k  # nothing is valid from there on
    b_valid_count = tl.zeros((ROWS, WORDS), tl.int32)
    b_candidate_count = tl.zeros((ROWS, WORDS), tl.int32)
    b_dropped_count = tl.zeros((ROWS, WORDS), tl.int32)
    for start_k in range(0, limit_k, 32 * WORDS):
        o_word = start_k // 32 + tl.arange(0, WORDS)
        b_valid = valid_words(p_valid, o_q, n_q, n_k, b_limit, start_k, stride_vn, WORDS, HAS_VALID, IS_CAUSAL)
        b_valid = tl.where((o_q < n_q)[:, None], b_valid, 0)
        b_keep = b_valid
        if CANDIDATES != "none":
            b_candidates = b_valid
            if CANDIDATES == "rows":
                mask = (o_q < n_q)[:, None] & (o_word < words_k)[None, :]
                p_words = p_rows + o_q[:, None].to(tl.int64) * words_k + o_word[None, :]
                b_candidates &= tl.load(p_words, mask=mask, other=0)
            b_draws = bernoulli_words(seed, o_word[None, :], o_q[:, None], head + first_head, draw_sample, threshold)
            b_dropped = b_candidates & b_draws
            b_keep = b_valid & ~b_dropped
            b_candidate_count += popcount(b_candidates, ISA)
            b_dropped_count += popcount(b_dropped, ISA)
        b_valid_count += popcount(b_valid, ISA)
        store_both(p_rows, p_cols, b_keep, start_q, start_k, n_q, n_k, ROWS, WORDS)
    if IS_CAUSAL:
        for start_k in range(tl.cdiv(limit_k, 32 * WORDS) * 32 * WORDS, n_k, 32 * WORDS):
            b_none = tl.zeros((ROWS, WORDS), tl.int32)
            store_both(p_rows, p_cols, b_none, start_q, start_k, n_q, n_k, ROWS, WORDS)

    b_valid_sum, b_dropped_sum = tl.sum(b_valid_count, 1), tl.sum(b_dropped_count, 1)
    m_rescued = (b_valid_sum > 0) & (b_dropped_sum == b_valid_sum)
    rescued = tl.sum(m_rescued.to(tl.int64), 0)
    if rescued > 0:  # a row may not lose all its keys
        tl.debug_barrier()  # other threads may have stored what is read here
        for start_k in range(0, limit_k, 32 * WORDS):
            o_word = start_k // 32 + tl.arange(0, WORDS)
            mask = (o_q < n_q)[:, None] & (o_word < words_k)[None, :]
            b_keep = tl.load(p_rows + o_q[:, None].to(tl.int64) * words_k + o_word[None, :], mask=mask, other=0)
            b_valid = valid_words(p_valid, o_q, n_q, n_k, b_limit, start_k, stride_vn, WORDS, HAS_VALID, IS_CAUSAL)
            b_keep = tl.where(m_rescued[:, None], b_valid, b_keep)
            store_both(p_rows, p_cols, b_keep, start_q, start_k, n_q, n_k, ROWS, WORDS)
        tl.atomic_add(p_counts + 3, rescued, sem="relaxed")
    tl.atomic_add(p_counts, tl.sum(b_valid_sum.to(tl.int64), 0), sem="relaxed")
    if CANDIDATES != "none":
        tl.atomic_add(p_counts + 1, tl.sum(tl.sum(b_candidate_count, 1).to(tl.int64), 0), sem="relaxed")
        b_dropped_sum = tl.where(m_rescued, 0, b_dropped_sum)
        tl.atomic_add(p_counts + 2, tl.sum(b_dropped_sum.to(tl.int64), 0), sem="relaxed")


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def transpose_kernel(p_rows, p_cols, stride_n, stride_q, n_q, n_k, ROWS: tl.constexpr, WORDS: tl.constexpr):
    blocks_q, blocks_k = tl.cdiv(n_q, ROWS), tl.cdiv(n_k, 32 * WORDS)
    start_k = tl.program_id(0) % blocks_k * (32 * WORDS)
    start_q = tl.program_id(0) // blocks_k % blocks_q * ROWS
    place = (tl.program_id(0) // (blocks_k * blocks_q)).to(tl.int64)
    o_q = start_q + tl.arange(0, ROWS)
    o_word = start_k // 32 + tl.arange(0, WORDS)
    mask = (o_q < n_q)[:, None] & (o_word * 32 < n_k)[None, :]
    p_rows += place * stride_n + o_q[:, None].to(tl.int64) * stride_q + o_word[None, :]
    b_rows = tl.load(p_rows, mask=mask, other=0)
    store_transposed(p_cols + place * n_k * tl.cdiv(n_q, 32), b_rows, start_q, start_k, n_q, n_k, ROWS, WORDS)


def isa(device: torch.device) -> int:
    return 0 if INTERPRETED else chip(device)


def select(
    x: Tensor | None, y: Tensor | None, share: float, valid: Tensor | None, is_causal: bool, low: bool, bf16_keys: bool,
    q: Tensor | None, k: Tensor | None, lse: Tensor | None, scale: float, bias: Tensor | None, rows: Tensor,
) -> None:  # fmt: skip
    """Writes the candidates of every row (Eq. 6) into rows; bits of columns that do not count may be set too.

    Without x and y the bias is what is ranked, of all its columns.
    """
    batch, heads, n_q, _ = rows.shape
    if x is not None and y is not None:
        x, y = unit_stride(x), unit_stride(y)
        dtype, d, n_k, groups = x.dtype, x.shape[3], y.shape[2], heads // y.shape[1]
    else:
        assert bias is not None
        dtype, d, n_k, groups = bias.dtype, 0, bias.shape[3], 1
    if q is not None and k is not None:
        q, k = unit_stride(q), unit_stride(k)
    e = 16 if q is None else q.shape[3]
    chip_isa = isa(rows.device)
    width_d, width_e = (max(16, triton.next_power_of_2(width)) for width in (d, e))
    widest = 16 if dtype == torch.float32 else 64 if width_d > 256 or q is not None else 256  # of a slice
    block_d, block_e = min(widest, width_d), min(widest, width_e)
    arguments: dict[str, Any] = dict(
        p_x=x, p_y=y, p_q=q, p_k=k, p_lse=lse, p_bias=bias, p_valid=valid, p_rows=rows,
        **strides("x", x, "bhn"), **strides("y", y, "bhn"), **strides("q", q, "bhn"), **strides("k", k, "bhn"),
        **strides("b", bias, "bhqk"), **strides("v", valid, "bhn"),
        heads=heads, groups=groups, n_q=n_q, n_k=n_k, share=share, scale=scale,
        infinity=INFINITY_BITS, D=d, BLOCK_D=block_d, E=e, BLOCK_E=block_e, PACKED=bf16_keys, LOW=low,
        WEIGHTED=q is not None, HAS_BIAS=bias is not None, HAS_VALID=valid is not None, IS_CAUSAL=is_causal,
        ISA=chip_isa,
    )  # fmt: skip
    # float32 products, those of two pairs of matrices, and float32 keys would need too many registers.
    in_registers = bf16_keys and dtype != torch.float32 and q is None and x is not None
    if in_registers and (tile := register_tile(chip_isa, width_d, n_k)):
        names = select_in_registers_kernel.arg_names
        select_in_registers_kernel[(batch * heads * triton.cdiv(n_q, tile.queries),)](
            **{name: value for name, value in arguments.items() if name in names}, BLOCK_Q=tile.queries,
            BLOCK_K=tile.keys, CHUNKS=triton.cdiv(n_k, tile.keys), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return
    halves = 2 if bf16_keys else 1
    tile = scratch_tile(chip_isa, dtype, width_d + (0 if q is None else width_e), q is not None)
    rows_at_once, columns, loads = scratch_layout(chip_isa, n_k, halves)
    width = triton.cdiv(n_k, tile.keys) * tile.keys // halves
    processors = 3 if INTERPRETED else torch.cuda.get_device_properties(rows.device).multi_processor_count
    block_q = tile.queries
    while block_q > 16 and processors * block_q * width * 4 > SCRATCH_BYTES:
        block_q //= 2
    blocks = batch * heads * triton.cdiv(n_q, block_q)
    programs = min(blocks, processors, SCRATCH_BYTES // (block_q * width * 4))
    scratch = rows.new_empty(programs * block_q * width, dtype=torch.int32 if bf16_keys else torch.float32)
    quantile = NormalDist().inv_cdf(min(max(share, 0.001), 0.999))
    select_through_scratch_kernel[(programs,)](
        **arguments, quantile=quantile, spacing=1 / NormalDist().pdf(quantile), p_scratch=scratch, blocks=blocks,
        BLOCK_Q=block_q, BLOCK_K=tile.keys, ROWS=min(block_q, rows_at_once), COLUMNS=columns, CHUNKS=loads,
        GUESSED=is_guessed(loads, q is not None), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


# Tiles and layouts were chosen ahead of time: no register is spilled, and few instructions per key.
def register_tile(isa: int, width: int, n_k: int) -> Tile | None:
    """For rows that stay in registers, on chips that compare pairs or where the rows are short."""
    if isa == 0:
        return Tile(64, 256, 1, 1) if n_k <= 1024 else None
    if isa == 80:
        return Tile(64, 64, 4, 2) if n_k <= {16: 384, 32: 384, 64: 384, 128: 256}.get(width, 0) else None
    return Tile(64, 128, 4 if n_k <= 512 and width <= 128 else 8, 2) if n_k <= 1024 else None


def scratch_tile(isa: int, dtype: torch.dtype, width: int, is_weighted: bool) -> Tile:
    if isa == 0:
        return Tile(64, 256, 1, 1)
    if dtype == torch.float32:
        return Tile(32 if is_weighted else 64, 64, 8, 2)
    return Tile(32 if width > 256 else 64, 128 if isa != 80 and width <= 128 else 64, 8, 2)


def scratch_layout(isa: int, n_k: int, halves: int) -> tuple[int, int, int]:
    """Rows ranked at once, columns of them in one load of 8 warps, and the number of such loads."""
    if n_k > LONGEST_ROW:
        raise RuntimeError(f"keep_mask in Triton ranks rows of up to {LONGEST_ROW} keys, got {n_k}")
    if isa == 0:
        return 64, 1024, triton.cdiv(n_k, 1024)
    keys = 128  # of a row in one load: four for each lane of a warp
    while n_k > (16 if isa == 80 else 24) * keys * halves and keys < 1024:
        keys *= 2
    loads = next(loads for loads in SCRATCH_LOADS if loads * keys * halves >= n_k)
    return 1024 // keys * max(1, 8 // loads), keys * halves, loads


def selection(p: float, low: bool) -> tuple[float, str]:
    """The share of a row below its threshold, and which of its columns are candidates: see draw."""
    share = c_float(p if low else 1.0 - p).value  # rounded to float32
    all_share, no_share = (1.0, 0.0) if low else (0.0, 1.0)  # rank 0 or n: nothing to select
    return share, "all" if share == all_share else "none" if share == no_share else "rows"


def is_guessed(loads: int, is_weighted: bool) -> bool:
    """Rows weighted by a softmax have long tails: the threshold of a normal row is no guess there."""
    return loads >= GUESSED_LOADS and not is_weighted


def draw(
    rows: Tensor, cols: Tensor | None, n_k: int, rate: float, seed: int, first_head: int, valid: Tensor | None,
    is_causal: bool, sample_ids: Tensor | None, candidates: str,
) -> Tensor:  # fmt: skip
    """Drops candidates ("rows", or "all" or "none" of the valid columns) with probability ``rate`` (Eq. 7).

    Writes what is left into rows, and transposed into cols, and gives the counts.
    """
    batch, heads, n_q, words = rows.shape
    counts = rows.new_zeros(4, dtype=torch.int64)
    if batch * heads * n_q == 0 or words == 0:
        rows.zero_()
        if cols is not None:
            cols.zero_()
        return counts
    draw_kernel[(batch * heads * triton.cdiv(n_q, DRAW_ROWS),)](
        valid, sample_ids, rows, cols, counts, **strides("v", valid, "bhn"), heads=heads, n_q=n_q, n_k=n_k,
        seed=seed, first_head=(first_head + 2**31) % 2**32 - 2**31, threshold=drop_threshold(rate), ROWS=DRAW_ROWS,
        WORDS=DRAW_WORDS, CANDIDATES=candidates, HAS_VALID=valid is not None, IS_CAUSAL=is_causal,
        HAS_IDS=sample_ids is not None, ISA=isa(rows.device),
    )  # fmt: skip
    return counts


def keep_mask(
    x: Tensor, y: Tensor, p: float, q: float, seed: int, layer: int, valid: Tensor | None, is_causal: bool, low: bool,
    bf16_keys: bool, sample_ids: Tensor | None, weight_q: Tensor | None, weight_k: Tensor | None,
    weight_lse: Tensor | None, scale: float, bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """rows (B, H, n_q, ceil(n_k / 32)), cols (B, H, n_k, ceil(n_q / 32)) and counts (4,), as attrdrop.keep_mask."""
    batch, heads, n_q, _ = x.shape
    n_k = y.shape[2]
    rows = x.new_empty(batch, heads, n_q, triton.cdiv(n_k, 32), dtype=torch.int32)
    cols = x.new_empty(batch, heads, n_k, triton.cdiv(n_q, 32), dtype=torch.int32)
    share, candidates = selection(p, low)
    with on_device(x.device):
        if candidates == "rows" and rows.numel():
            weight = weight_q, weight_k, weight_lse
            select(x, y, share, valid, is_causal, low, bf16_keys, *weight, scale, bias, rows)
        return rows, cols, draw(rows, cols, n_k, q, seed, 65536 * layer, valid, is_causal, sample_ids, candidates)


def random_keep_mask(
    like: Tensor, batch: int, heads: int, n_q: int, n_k: int, rate: float, seed: int, layer: int,
    valid: Tensor | None, is_causal: bool, sample_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As keep_mask with every valid column a candidate; on the device of ``like``."""
    rows = like.new_empty(batch, heads, n_q, triton.cdiv(n_k, 32), dtype=torch.int32)
    cols = like.new_empty(batch, heads, n_k, triton.cdiv(n_q, 32), dtype=torch.int32)
    with on_device(rows.device):
        return rows, cols, draw(rows, cols, n_k, rate, seed, 65536 * layer, valid, is_causal, sample_ids, "all")


def keep_scores(
    scores: Tensor, p: float, q: float, seed: int, layer: int, valid: Tensor | None, low: bool,
    sample_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """rows (B, n, ceil(m / 32)) and counts (4,), as attrdrop.keep_scores."""
    batch, n, m = scores.shape
    rows = scores.new_empty(batch, 1, n, triton.cdiv(m, 32), dtype=torch.int32)
    valid = None if valid is None else valid.unsqueeze(1)
    share, candidates = selection(p, low)
    bias, is_bf16 = scores.unsqueeze(1), scores.dtype == torch.bfloat16  # whose keys round nothing
    with on_device(scores.device):
        if candidates == "rows" and rows.numel():
            select(None, None, share, valid, False, low, is_bf16, None, None, None, 1.0, bias, rows)
        counts = draw(rows, None, m, q, seed, SCORES_HEAD + 65536 * layer, valid, False, sample_ids, candidates)
    return rows.squeeze(1), counts


def transpose_mask(rows: Tensor, n_k: int) -> Tensor:
    """int32 (N, n_q, ceil(n_k / 32)), unit last stride -> int32 (N, n_k, ceil(n_q / 32))."""
    n, n_q, _ = rows.shape
    cols = rows.new_empty(n, n_k, triton.cdiv(n_q, 32))
    if cols.numel():
        programs = n * triton.cdiv(n_q, DRAW_ROWS) * triton.cdiv(n_k, 32 * DRAW_WORDS)
        with on_device(rows.device):
            transpose_kernel[(programs,)](
                rows, cols, rows.stride(0), rows.stride(1), n_q, n_k, ROWS=DRAW_ROWS, WORDS=DRAW_WORDS
            )
    return cols
