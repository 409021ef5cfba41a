"""What the attention kernels share: loads of tiles, masked scores (Eq. 1), dropout."""

from __future__ import annotations

import triton
import triton.language as tl

from attrdrop.triton_kernels.bits import load_words, set_bits, upper_bounds

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(p_x, start, n, stride, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(ROWS, BLOCK_D) from row ``start`` on; 0 beyond row n and column D."""
    o_row = tl.arange(0, ROWS)
    o_d = tl.arange(0, BLOCK_D)
    m_row = start + o_row < n
    p_x += start.to(tl.int64) * stride
    if D == BLOCK_D:
        return tl.load(p_x + o_row[:, None] * stride + o_d[None, :], mask=m_row[:, None], other=0.0)
    return tl.load(p_x + o_row[:, None] * stride + o_d[None, :], mask=m_row[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def load_columns(p_x, start, n, stride, COLUMNS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(BLOCK_D, COLUMNS): rows of x as columns, for the right side of a product."""
    o_column = tl.arange(0, COLUMNS)
    o_d = tl.arange(0, BLOCK_D)
    m_column = start + o_column < n
    p_x += start.to(tl.int64) * stride
    if D == BLOCK_D:
        return tl.load(p_x + o_column[None, :] * stride + o_d[:, None], mask=m_column[None, :], other=0.0)
    mask = m_column[None, :] & (o_d < D)[:, None]
    return tl.load(p_x + o_column[None, :] * stride + o_d[:, None], mask=mask, other=0.0)


@triton.jit
def store_rows(p_x, b_x, start, n, stride, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    o_row = tl.arange(0, ROWS)
    o_d = tl.arange(0, BLOCK_D)
    mask = (start + o_row < n)[:, None] & (o_d < D)[None, :]
    p_x += start.to(tl.int64) * stride
    tl.store(p_x + o_row[:, None] * stride + o_d[None, :], b_x.to(p_x.dtype.element_ty), mask=mask)


@triton.jit
def with_sign(b_q, SIGN: tl.constexpr):
    """q times the sign of the scale, so that the kernels see a scale > 0 and may mask the raw products."""
    if SIGN == 1:
        return b_q
    return (b_q.to(tl.float32) * SIGN).to(b_q.dtype)


@triton.jit
def add_bias(
    b_scores, p_bias, row, column, n_rows, n_columns, stride_row, stride_column, scale,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """(scores scale + bias) log2(e); b_scores (ROWS, COLUMNS)."""
    o_row = tl.arange(0, ROWS)
    o_column = tl.arange(0, COLUMNS)
    mask = (row + o_row < n_rows)[:, None] & (column + o_column < n_columns)[None, :]
    p_bias += row.to(tl.int64) * stride_row + column.to(tl.int64) * stride_column
    b_bias = tl.load(p_bias + o_row[:, None] * stride_row + o_column[None, :] * stride_column, mask=mask, other=0.0)
    return b_scores * (scale * LOG2_E) + b_bias.to(tl.float32) * LOG2_E


@triton.jit
def bound_scores(
    b_scores, p_words, row, column, n_rows, n_columns, stride, stride_word, minus_inf,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, HAS_KEEP: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """-inf where the bit is not set, or, without a mask, beyond column n_columns unless blocks divide it evenly."""
    if HAS_KEEP:
        o_row = row + tl.arange(0, ROWS)
        b_words = load_words(p_words, o_row, o_row < n_rows, stride, stride_word, column, n_columns, COLUMNS)
        return tl.minimum(b_scores, upper_bounds(b_words, minus_inf, ROWS, COLUMNS))
    if IS_EVEN:
        return b_scores
    return tl.where((column + tl.arange(0, COLUMNS) < n_columns)[None, :], b_scores, float("-inf"))


@triton.jit
def surviving_positions(p_words, row, column, n_rows, n_columns, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS) booleans: set in the mask and not dropped by the ordinary dropout of the probabilities."""
    o_row = row + tl.arange(0, ROWS)
    b_words = load_words(p_words, o_row, o_row < n_rows, stride, 1, column, n_columns, COLUMNS)
    return set_bits(b_words, ROWS, COLUMNS)
