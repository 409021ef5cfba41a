"""Packed masks inside Triton kernels: 32 columns to an int32 word, column j is bit j % 32 of word j // 32."""

from __future__ import annotations

import triton
import triton.language as tl

MINUS_INFINITY_BITS = -0x800000
"""The float -inf as an integer. Kernels take it as an argument: ptxas joins ``word & constant | register`` into one
instruction, but not ``word & constant | constant``."""


@triton.jit
def _or(a, b):
    return a | b


@triton.jit
def load_words(p_words, o_row, m_row, stride, stride_word, start, n, COLUMNS: tl.constexpr):
    """The words (rows, COLUMNS / 32) of columns start to start + COLUMNS; bits beyond column n are cleared."""
    o_word = start // 32 + tl.arange(0, COLUMNS // 32)
    m_word = o_word * 32 < n
    p_words += o_row[:, None] * stride + o_word[None, :] * stride_word
    b_words = tl.load(p_words, mask=m_row[:, None] & m_word[None, :], other=0)
    left = tl.minimum(n - 32 * o_word, 32)
    return b_words & tl.where(left < 32, (1 << (left & 31)) - 1, -1)[None, :]


@triton.jit
def _spread(b_words, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS / 32) -> (ROWS, COLUMNS / 32, 32)."""
    return tl.broadcast_to(b_words[:, :, None], (ROWS, COLUMNS // 32, 32))


@triton.jit
def upper_bounds(b_words, minus_inf, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS) floats: NaN where the bit is set, -inf where not, so that minimum(x, bound) masks x.

    The column is split so that one thread of a matrix product, which holds columns 2 l and 2 l + 1 of every eight,
    shifts each word twice; what is left are constants: one instruction an element, and one for the minimum.
    """
    c = tl.arange(0, 32)[None, None, :]
    b_low = (_spread(b_words, ROWS, COLUMNS) >> (c & 6)) >> (c & 16)
    b_bound = (b_low & (1 << (c & 9))) | minus_inf  # bits 0, 1, 8, 9 of the mantissa
    return tl.reshape(b_bound, (ROWS, COLUMNS)).to(tl.float32, bitcast=True)


@triton.jit
def set_bits(b_words, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS) booleans."""
    c = tl.arange(0, 32)[None, None, :]
    b_bits = (_spread(b_words, ROWS, COLUMNS) >> (c & 6)) & (1 << (c & 25))
    return tl.reshape(b_bits, (ROWS, COLUMNS)) != 0


@triton.jit
def _exchange_bits(b_words, ROWS: tl.constexpr, WORDS: tl.constexpr, J: tl.constexpr, MASK: tl.constexpr):
    """Swaps the upper J bits of every 2 J in row r with the lower J bits in row r + J, for each r with bit J clear."""
    b_words = tl.reshape(b_words, (ROWS // (2 * J), 2, J * WORDS))
    is_upper = tl.arange(0, 2)[None, :, None] == 1
    b_other = tl.sum(b_words, 1, keep_dims=True) - b_words  # one shuffle where the two rows are in different lanes
    b_other = tl.where(is_upper, (b_other >> J) & MASK, (b_other << J) & ~MASK)
    b_words = b_words & tl.where(is_upper, ~MASK, MASK)
    return tl.reshape(b_words | b_other, (ROWS, WORDS))


@triton.jit
def transpose_words(b_words, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Words by row (ROWS, WORDS) to words by column (32 * WORDS, ROWS / 32)."""
    b_words = _exchange_bits(b_words, ROWS, WORDS, 16, 0x0000FFFF)
    b_words = _exchange_bits(b_words, ROWS, WORDS, 8, 0x00FF00FF)
    b_words = _exchange_bits(b_words, ROWS, WORDS, 4, 0x0F0F0F0F)
    b_words = _exchange_bits(b_words, ROWS, WORDS, 2, 0x33333333)
    b_words = _exchange_bits(b_words, ROWS, WORDS, 1, 0x55555555)
    b_words = tl.permute(tl.reshape(b_words, (ROWS // 32, 32, WORDS)), (2, 1, 0))
    return tl.reshape(b_words, (32 * WORDS, ROWS // 32))


@triton.jit
def store_words(p_words, b_words, row, word, n_rows, words, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """b_words (ROWS, WORDS) to the contiguous (n_rows, words), from that row and word on."""
    o_row = row + tl.arange(0, ROWS)
    o_word = word + tl.arange(0, WORDS)
    mask = (o_row < n_rows)[:, None] & (o_word < words)[None, :]
    tl.store(p_words + o_row[:, None].to(tl.int64) * words + o_word[None, :], b_words, mask=mask)


@triton.jit
def store_transposed(p_cols, b_rows, start_q, start_k, n_q, n_k, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """b_rows (ROWS, WORDS) by query, from row start_q and column start_k on, to (n_k, ceil(n_q / 32)) by key."""
    b_cols = transpose_words(b_rows, ROWS, WORDS)
    store_words(p_cols, b_cols, start_k, start_q // 32, n_k, tl.cdiv(n_q, 32), 32 * WORDS, ROWS // 32)


BLOCKS = tl.constexpr(32)
"""Blocks of columns that one bitmap covers."""


@triton.jit
def active_blocks(p_words, start, n_rows, stride, stride_word, column, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Which of the next 32 blocks of COLUMNS columns, from ``column`` on, have a set bit in these rows.

    Returns a bitmap and the number of its set bits. A few rows at a time: registers are scarce, and with all rows at
    once the compiler keeps their addresses through the loop over the keys.
    """
    start += column >> 30  # 0, but unknown to the compiler, which else keeps all addresses through the loop over keys
    GROUP: tl.constexpr = 32 if ROWS > 32 else ROWS
    WORDS: tl.constexpr = COLUMNS // 32
    o_word = column // 32 + tl.arange(0, BLOCKS * WORDS)
    b_seen = tl.zeros((GROUP, BLOCKS * WORDS), tl.int32)
    for i in range(0, ROWS, GROUP):
        o_row = start + i + tl.arange(0, GROUP)
        mask = (o_row < n_rows)[:, None] & (o_word * 32 < n)[None, :]
        b_seen |= tl.load(p_words + o_row[:, None] * stride + o_word[None, :] * stride_word, mask=mask, other=0)
    b_any = (tl.reduce(b_seen, 0, _or) != 0).to(tl.int32)  # (BLOCKS * WORDS,)
    b_active = tl.max(tl.reshape(b_any, (BLOCKS, WORDS)), 1)
    return tl.sum(b_active << tl.arange(0, BLOCKS)), tl.sum(b_active)


@triton.jit
def lowest_bit(bitmap):
    """Index of the lowest set bit, read from the exponent of its value as a float."""
    b_value = (bitmap & -bitmap).to(tl.uint32, bitcast=True).to(tl.float32)
    return (b_value.to(tl.int32, bitcast=True) >> 23) - 127
