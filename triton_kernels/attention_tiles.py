"""What the attention kernels share: heads, loads of tiles, masked scores (Eq. 1), dropout and gradients.

Kernels take tensors as :class:`launch.Matrices`. A head is one of their matrices: (pointer, stride of rows, stride of
columns). A place is (row, column, n_rows, n_columns): where in a matrix a tile begins, and how large the matrix is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attrdrop.triton_kernels.bits import BLOCKS, active_blocks, load_words, lowest_bit, set_bits, upper_bounds

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def head_of(x, sample, head):
    return x.pointer + (sample * x.stride_b + head.to(tl.int64) * x.stride_h), x.stride_n, x.stride_m


@triton.jit
def load_rows(head, start, n, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(ROWS, BLOCK_D) from row ``start`` on; 0 beyond row n and column D."""
    p_x, stride, _ = head
    o_row = tl.arange(0, ROWS)
    o_d = tl.arange(0, BLOCK_D)
    m_row = start + o_row < n
    p_x += start.to(tl.int64) * stride
    if D == BLOCK_D:
        return tl.load(p_x + o_row[:, None] * stride + o_d[None, :], mask=m_row[:, None], other=0.0)
    return tl.load(p_x + o_row[:, None] * stride + o_d[None, :], mask=m_row[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def load_columns(head, start, n, COLUMNS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(BLOCK_D, COLUMNS): rows of x as columns, for the right side of a product."""
    p_x, stride, _ = head
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
def visited_blocks(words, place, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Which of the next 32 blocks of columns have a set bit in these rows, as a bitmap, and their number; all without
    a mask."""
    row, column, n_rows, n_columns = place
    if words is None:
        bitmap, count = 0, tl.minimum(tl.cdiv(n_columns - column, COLUMNS), BLOCKS)
    else:
        p_words, stride, stride_word = words
        bitmap, count = active_blocks(p_words, row, n_rows, stride, stride_word, column, n_columns, ROWS, COLUMNS)
    return bitmap, count


@triton.jit
def next_block(words, bitmap, column, i, COLUMNS: tl.constexpr):
    """Where the i-th block that is visited begins, and the bitmap without it; column as for the bitmap."""
    if words is None:
        start = column + i * COLUMNS
    else:
        start = column + lowest_bit(bitmap) * COLUMNS
        bitmap &= bitmap - 1
    return start, bitmap


@triton.jit
def add_bias(b_scores, bias, place, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(scores scale + bias) log2(e); b_scores (ROWS, COLUMNS)."""
    p_bias, stride_row, stride_column = bias
    row, column, n_rows, n_columns = place
    o_row = tl.arange(0, ROWS)
    o_column = tl.arange(0, COLUMNS)
    mask = (row + o_row < n_rows)[:, None] & (column + o_column < n_columns)[None, :]
    p_bias += row.to(tl.int64) * stride_row + column.to(tl.int64) * stride_column
    b_bias = tl.load(p_bias + o_row[:, None] * stride_row + o_column[None, :] * stride_column, mask=mask, other=0.0)
    return b_scores * (scale * LOG2_E) + b_bias.to(tl.float32) * LOG2_E


@triton.jit
def masked_scores(
    b_rows, b_columns, words, bias, place, scale, minus_inf,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, IS_EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Products (ROWS, COLUMNS), or, with a bias, scores in units of log2.

    -inf where the bit is not set, or, without a mask, beyond the last column unless blocks divide them evenly.
    """
    b_scores = tl.dot(b_rows, b_columns, input_precision=PRECISION)
    row, column, n_rows, n_columns = place
    if bias is not None:
        b_scores = add_bias(b_scores, bias, place, scale, ROWS, COLUMNS)
    if words is not None:
        p_words, stride, stride_word = words
        o_row = row + tl.arange(0, ROWS)
        b_words = load_words(p_words, o_row, o_row < n_rows, stride, stride_word, column, n_columns, COLUMNS)
        b_scores = tl.minimum(b_scores, upper_bounds(b_words, minus_inf, ROWS, COLUMNS))
    elif not IS_EVEN:
        b_scores = tl.where((column + tl.arange(0, COLUMNS) < n_columns)[None, :], b_scores, float("-inf"))
    return b_scores


@triton.jit
def surviving_positions(words, place, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS) booleans: set in the mask and not dropped by the ordinary dropout of the probabilities."""
    p_words, stride, _ = words
    row, column, n_rows, n_columns = place
    o_row = row + tl.arange(0, ROWS)
    b_words = load_words(p_words, o_row, o_row < n_rows, stride, 1, column, n_columns, COLUMNS)
    return set_bits(b_words, ROWS, COLUMNS)


@triton.jit
def kept_and_gradients(
    b_p, b_rows, b_columns, survivors, place, kept_share,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P without what dropout drops, and dP, the product of rows and columns (Eq. 5); all (ROWS, COLUMNS)."""
    b_grad_p = tl.dot(b_rows, b_columns, input_precision=PRECISION)
    b_kept = b_p
    if survivors is not None:
        b_survives = surviving_positions(survivors, place, ROWS, COLUMNS)
        b_kept = tl.where(b_survives, b_p, 0.0)
        b_grad_p = tl.where(b_survives, b_grad_p * (1.0 / kept_share), 0.0)
    return b_kept, b_grad_p
