"""Ranks the rows of x yᵀ and marks the candidates (Eq. 5 and 6): keys, exact thresholds, packed comparisons.

Keys are float32, or two bfloat16 to an int32: column c < 16 of every 32 in the low half, column c + 16 in the high one,
so that comparison masks turn into mask words by one AND-OR for each pair. Columns that do not count hold +inf, which
lies below no threshold.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attrdrop.triton_kernels.bits import load_words
from attrdrop.triton_kernels.launch import NOT_SPECIALIZED

INFINITY = tl.constexpr(0x7F800000)
"""Bits of +inf, and its place in the order of all floats."""

MINUS_INFINITY_PLACE = tl.constexpr(-0x7F800001)
GUESSES = tl.constexpr(10)


@triton.jit
def or_bits(a, b):
    return a | b


@triton.jit
def _holds(b_x, b_y, OP: tl.constexpr):
    if OP == "lt":
        return b_x < b_y
    if OP == "le":
        return b_x <= b_y
    return b_x >= b_y


@triton.jit
def round_pairs(b_low, b_high, ISA: tl.constexpr):
    """Two float32 to two bfloat16 in an int32."""
    if ISA:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [b_low, b_high], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        b_low_bits = b_low.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        return b_low_bits | (b_high.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def compare_pairs(b_pairs, b_pivots, OP: tl.constexpr, ISA: tl.constexpr):
    """All ones in each half where the pair's float OP the pivot's; never with NaN. Pivots are equal in both halves."""
    if ISA >= 90:
        b_pairs, b_pivots = tl.broadcast(b_pairs, b_pivots)
        return tl.inline_asm_elementwise(
            "set." + OP + ".u32.bf16x2 $0, $1, $2;", "=r,r,r", [b_pairs, b_pivots], dtype=tl.int32, is_pure=True, pack=1
        )
    elif ISA == 80 and OP == "lt":
        # The sign of key - pivot, spread over its half. + 0 for a pivot of either zero, so that no difference is - 0.
        b_negative = tl.where((b_pivots & 0x7FFF) != 0, b_pivots ^ -0x7FFF8000, 0)
        b_pairs, b_negative = tl.broadcast(b_pairs, b_negative)
        return tl.inline_asm_elementwise(
            "{.reg .b32 d; fma.rn.bf16x2 d, $1, $2, $3; prmt.b32 $0, d, d, 0xBB99;}", "=r,r,r,r",
            [b_pairs, tl.full((), 0x3F803F80, tl.int32), b_negative], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        m_low = _holds((b_pairs << 16).to(tl.float32, bitcast=True), (b_pivots << 16).to(tl.float32, bitcast=True), OP)
        b_pairs, b_pivots = b_pairs & -65536, b_pivots & -65536
        m_high = _holds(b_pairs.to(tl.float32, bitcast=True), b_pivots.to(tl.float32, bitcast=True), OP)
        return tl.where(m_low, 65535, 0) | tl.where(m_high, -65536, 0)


@triton.jit
def pivot_values(b_places, PACKED: tl.constexpr):
    """The floats at int32 places in the order of all floats, as keys: (ROWS,) -> (ROWS, 1)."""
    b_bits = b_places ^ ((b_places >> 31) & 0x7FFFFFFF)
    if PACKED:
        return ((b_bits & -65536) | ((b_bits >> 16) & 65535))[:, None]
    else:
        return b_bits.to(tl.float32, bitcast=True)[:, None]


@triton.jit
def count(keys, b_places, OP: tl.constexpr, PACKED: tl.constexpr, ISA: tl.constexpr):
    """How many keys of each row OP the float at b_places; keys is a tuple of (ROWS, columns) tiles."""
    b_pivots = pivot_values(b_places, PACKED)
    if PACKED:
        b_sum = compare_pairs(keys[0], b_pivots, OP, ISA)
        for i in tl.static_range(1, len(keys)):
            b_sum += compare_pairs(keys[i], b_pivots, OP, ISA)
        # - sum = 65536 (high - low) + low; exact for rows of less than 65536 columns
        b_sum = -tl.sum(b_sum, 1)
        return 2 * (b_sum & 65535) + (b_sum >> 16)
    else:
        b_count = tl.where(_holds(keys[0], b_pivots, OP), 1.0, 0.0)
        for i in tl.static_range(1, len(keys)):
            b_count += tl.where(_holds(keys[i], b_pivots, OP), 1.0, 0.0)
        return tl.sum(b_count, 1).to(tl.int32)


@triton.jit
def thresholds(keys, b_rank, ROWS: tl.constexpr, PACKED: tl.constexpr, ISA: tl.constexpr):
    """Place of the largest float with at most b_rank keys below it, which is the key at that rank; (ROWS,)."""
    b_place = tl.full((ROWS,), -2147483648, tl.int32)
    b_step = tl.full((ROWS,), -2147483648, tl.int32)
    for _ in range(16 if PACKED else 32):
        b_next = b_place + b_step
        m_up = (count(keys, b_next, "lt", PACKED, ISA) <= b_rank) & (b_next <= INFINITY)
        b_place = tl.where(m_up, b_next, b_place)
        b_step = (b_step >> 1) & 0x7FFFFFFF
    return b_place


@triton.jit
def place_of(b_values):
    b_bits = b_values.to(tl.int32, bitcast=True)
    return b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)


@triton.jit
def normal_guess(keys, b_valid_count, normal):
    """Where a normal row with the mean and deviation of a sample has its threshold, and how far apart its keys lie.

    normal: the quantile of the normal distribution, and by how much it moves for a share more. NaN is no guess.
    """
    b_count, b_sum, b_squares = 0.0, 0.0, 0.0
    for i in tl.static_range(0, len(keys), (len(keys) + 1) // 2):
        b_x = keys[i].to(tl.float32, bitcast=True)  # of a pair about the number in its high half
        m_finite = tl.abs(b_x) < float("inf")
        b_x = tl.where(m_finite, b_x, 0.0)
        b_count += tl.sum(m_finite.to(tl.float32), 1)
        b_sum += tl.sum(b_x, 1)
        b_squares += tl.sum(b_x * b_x, 1)
    b_mean = b_sum / b_count
    b_deviation = tl.sqrt(tl.maximum(b_squares / b_count - b_mean * b_mean, 0.0))
    quantile, spacing = normal
    return b_mean + b_deviation * quantile, b_deviation * spacing / b_valid_count.to(tl.float32)


@triton.jit
def guessed_thresholds(keys, b_rank, m_open, b_valid_count, normal, ROWS: tl.constexpr, PACKED: tl.constexpr,
                       ISA: tl.constexpr):  # fmt: skip
    """As ``thresholds``, or another place with b_rank keys below it; and where the key at that rank may be NaN.

    Counts decide every step, so guesses change the cost and never the result. After GUESSES of them the bracket is
    halved.
    """
    SHIFT: tl.constexpr = 16 if PACKED else 0
    b_guess, b_per_rank = normal_guess(keys, b_valid_count, normal)
    bottom = MINUS_INFINITY_PLACE >> SHIFT
    b_wanted = b_rank.to(tl.float32) + 0.5
    # count(key < low) <= rank, and count(key < high) > rank where high_count is not 0. A row is done at high = low + 1.
    b_low = tl.full((ROWS,), 0, tl.int32) + bottom
    b_high = tl.where(m_open, (INFINITY >> SHIFT) + 1, bottom + 1)
    b_low_count, b_low_value = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    b_high_count, b_high_value = b_low_count, b_low_value
    step = 0
    while tl.max((b_high != b_low + 1).to(tl.int32), 0) > 0:
        b_middle = b_low + (((b_high - b_low) >> 1) & 0x7FFFFFFF)
        if step < GUESSES:
            b_middle = tl.minimum(tl.maximum(place_of(b_guess) >> SHIFT, b_low + 1), b_high - 1)
        b_place = b_middle << SHIFT
        b_value = place_of(b_place.to(tl.float32, bitcast=True)).to(tl.float32, bitcast=True)  # its own inverse
        b_below = count(keys, b_place, "lt", PACKED, ISA)
        m_low = b_below <= b_rank
        b_high = tl.where(m_low, tl.where(b_below == b_rank, b_middle + 1, b_high), b_middle)
        b_low = tl.where(m_low, b_middle, b_low)
        b_below = b_below.to(tl.float32)
        b_low_count, b_high_count = tl.where(m_low, b_below, b_low_count), tl.where(m_low, b_high_count, b_below)
        b_low_value, b_high_value = tl.where(m_low, b_value, b_low_value), tl.where(m_low, b_high_value, b_value)
        # Between two counts by interpolation; before there are two, by the slope of the normal distribution.
        b_share = (b_wanted - b_low_count) / (b_high_count - b_low_count)
        b_between = b_low_value + (b_high_value - b_low_value) * b_share
        m_between = (b_low > bottom) & (b_high_count > 0.0)
        b_guess = tl.where(m_between, b_between, b_value + (b_wanted - b_below) * b_per_rank)
        step += 1
    return b_low << SHIFT, m_open & (b_high_count == 0.0)


@triton.jit
def comparison_words(b_keys, b_pivots, OP: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, PACKED: tl.constexpr,
                     ISA: tl.constexpr):  # fmt: skip
    """(ROWS, WORDS): a bit is set where the key OP its row's pivot."""
    if PACKED:
        c = tl.arange(0, 16)[None, None, :]
        b_masks = tl.reshape(compare_pairs(b_keys, b_pivots, OP, ISA), (ROWS, WORDS, 16))
        return tl.reduce((b_masks & (0x10001 << (c & 9))) << (c & 6), 2, or_bits)
    else:
        c = tl.arange(0, 32)[None, None, :]
        b_masks = tl.reshape(tl.where(_holds(b_keys, b_pivots, OP), -1, 0), (ROWS, WORDS, 32))
        return tl.reduce((b_masks & (1 << (c & 25))) << (c & 6), 2, or_bits)


@triton.jit
def popcount(b_words, ISA: tl.constexpr):
    if ISA:
        return tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [b_words], dtype=tl.int32, is_pure=True, pack=1)
    b_words = b_words - ((b_words >> 1) & 0x55555555)
    b_words = (b_words & 0x33333333) + ((b_words >> 2) & 0x33333333)
    b_words = (b_words + (b_words >> 4)) & 0x0F0F0F0F
    return ((b_words * 0x01010101) >> 24) & 0xFF


@triton.jit
def column_limit(o_row, n_k, IS_CAUSAL: tl.constexpr):
    """(ROWS, 1) or (1, 1): no column from this one on counts, whatever the mask."""
    if IS_CAUSAL:
        return tl.minimum(n_k, o_row + 1)[:, None]
    else:
        return tl.full((1, 1), 0, tl.int32) + n_k


@triton.jit
def valid_words(p_valid, o_row, n_q, n_k, b_limit, start, stride, WORDS: tl.constexpr, HAS_VALID: tl.constexpr,
                IS_CAUSAL: tl.constexpr):  # fmt: skip
    """(ROWS, WORDS), or (1, WORDS) where all rows are alike: the columns that count, from ``start`` on."""
    if HAS_VALID:
        b_words = load_words(p_valid, o_row, o_row < n_q, stride, 1, start, n_k, 32 * WORDS)
    else:
        b_words = tl.full((1, WORDS), -1, tl.int32)
    if IS_CAUSAL or not HAS_VALID:
        b_left = b_limit - (start + 32 * tl.arange(0, WORDS))[None, :]
        b_words &= tl.where(b_left > 0, tl.where(b_left < 32, (1 << (b_left & 31)) - 1, -1), 0)
    return b_words


@triton.jit
def load_slice(p_x, o_row, n, stride, start, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D) from column ``start`` on; 0 beyond row n and column D."""
    o_d = start + tl.arange(0, BLOCK_D)
    m_x = (o_row < n)[:, None]
    if D == 0 or D % BLOCK_D:
        m_x &= (o_d < D)[None, :]
    return tl.load(p_x + o_row[:, None] * stride + o_d[None, :], mask=m_x, other=0.0)


@triton.jit
def product(operands, start_k, o_q, o_k, n_q, n_k, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, columns) of x yᵀ, columns counted from start_k; operands: the first slice of x, then x, y, strides."""
    b_x, p_x, p_y, stride_x, stride_y = operands
    p_y += tl.cast(start_k, tl.int64) * stride_y
    b_y = load_slice(p_y, o_k, n_k - start_k, stride_y, 0, D, BLOCK_D)
    b_b = tl.dot(b_x, tl.trans(b_y), input_precision="ieee")  # keys are ranked: TF32 would round them
    for start_d in range(BLOCK_D, D, BLOCK_D):
        b_x = load_slice(p_x, o_q, n_q, stride_x, start_d, D, BLOCK_D)
        b_y = load_slice(p_y, o_k, n_k - start_k, stride_y, start_d, D, BLOCK_D)
        b_b = tl.dot(b_x, tl.trans(b_y), b_b, input_precision="ieee")
    return b_b


@triton.jit
def load_bias(bias, start_k, o_q, o_k, n_q, n_k):
    """(rows, columns) of a bias in float32, columns from start_k on; bias: the scale, its head, and two strides."""
    _, p_bias, stride_q, stride_k = bias
    p_bias += tl.cast(start_k, tl.int64) * stride_k
    mask = (o_q < n_q)[:, None] & (o_k < n_k - start_k)[None, :]
    return tl.load(p_bias + o_q[:, None] * stride_q + o_k[None, :] * stride_k, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def add_bias(b_scores, bias, start_k, o_q, o_k, n_q, n_k):
    """scores scale + bias, rounded once; as load_bias."""
    b_bias = load_bias(bias, start_k, o_q, o_k, n_q, n_k)
    return tl.fma(b_scores, tl.full(b_scores.shape, bias[0], tl.float32), b_bias)


@triton.jit
def without_invalid(b_b, b_valid, b_left, o_k, infinity, HALF: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
                    WORDS: tl.constexpr, BY_WORDS: tl.constexpr, BY_COLUMN: tl.constexpr):  # fmt: skip
    """(ROWS, WORDS * GROUP): b_b, +inf where a column does not count by its bit or from column b_left on."""
    if BY_WORDS:
        # NaN where the bit is set: the maximum with it changes nothing (see bits.upper_bounds)
        c = tl.arange(0, GROUP)[None, None, :]
        b_words = tl.broadcast_to((b_valid >> (16 * HALF))[:, :, None], (ROWS, WORDS, GROUP))
        b_bounds = (((b_words >> (c & 6)) >> (c & 16)) & (1 << (c & 9))) | infinity
        return tl.maximum(b_b, tl.reshape(b_bounds, (ROWS, WORDS * GROUP)).to(tl.float32, bitcast=True))
    elif BY_COLUMN:
        return tl.where(o_k[None, :] < b_left, b_b, float("inf"))
    else:
        return b_b


@triton.jit
def keys_of_block(
    operands, weight, bias, b_valid, b_limit, start_k, o_q, n_q, n_k, infinity,
    D: tl.constexpr, BLOCK_D: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr, WEIGHTED: tl.constexpr, HAS_BIAS: tl.constexpr, BY_WORDS: tl.constexpr,
    BY_COLUMN: tl.constexpr, PACKED: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Keys of BLOCK_K columns from start_k on: (ROWS, BLOCK_K / 2) pairs or (ROWS, BLOCK_K) floats.

    They rank x yᵀ (Eq. 5); with weight = operands of scores, lse and scale, its product with the attention (Eq. 3). A
    bias (see add_bias) is that of the scores, or without a weight that of x yᵀ; without operands it is what is ranked.
    """
    WORDS: tl.constexpr = BLOCK_K // 32
    HALVES: tl.constexpr = 2 if PACKED else 1
    o = tl.arange(0, BLOCK_K // HALVES)
    halves = ()
    for half in tl.static_range(HALVES):
        o_k = o + (o & -16) + 16 * half if PACKED else o  # 16 columns of every 32
        if len(operands) == 0:
            b_b = load_bias(bias, start_k, o_q, o_k, n_q, n_k)
        else:
            b_b = product(operands, start_k, o_q, o_k, n_q, n_k, D, BLOCK_D)
            if WEIGHTED:
                scores, b_lse, scale = weight
                b_scores = product(scores, start_k, o_q, o_k, n_q, n_k, E, BLOCK_E)
                if HAS_BIAS:
                    b_b *= tl.exp(add_bias(b_scores, bias, start_k, o_q, o_k, n_q, n_k) - b_lse[:, None])
                else:
                    b_b *= tl.exp(b_scores * scale - b_lse[:, None])
            elif HAS_BIAS:
                b_b = add_bias(b_b, bias, start_k, o_q, o_k, n_q, n_k)
        b_b = without_invalid(
            b_b, b_valid, b_limit - start_k, o_k, infinity, half, 32 // HALVES, ROWS, WORDS, BY_WORDS, BY_COLUMN
        )
        halves += (b_b,)
    if PACKED:
        return round_pairs(halves[0], halves[1], ISA)
    else:
        return halves[0]


@triton.jit
def rank_rows(keys, b_valid_count, share, normal, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PACKED: tl.constexpr,
              LOW: tl.constexpr, ISA: tl.constexpr):  # fmt: skip
    """For each row the place of its threshold, whether all its valid columns are candidates, and whether none is.

    The threshold is searched from a guess (see normal_guess), or with an empty ``normal`` in fixed steps.
    """
    b_rank = (b_valid_count.to(tl.float32) * share).to(tl.int32)
    if LOW:
        m_none = b_rank <= 0
        m_all = b_rank >= b_valid_count
    else:
        m_none = b_rank >= b_valid_count
        m_all = b_rank < 0
    if len(normal) > 0:
        m_open = (m_none | m_all) == 0
        b_place, m_nan = guessed_thresholds(keys, b_rank, m_open, b_valid_count, normal, ROWS, PACKED, ISA)
    else:
        b_place = thresholds(keys, b_rank, ROWS, PACKED, ISA)
        m_nan = b_place == INFINITY
    if tl.max(m_nan.to(tl.int32), 0) > 0:  # a threshold may be NaN: then nothing is below it
        b_not_nan = count(keys, tl.full((ROWS,), INFINITY, tl.int32), "le", PACKED, ISA) - (COLUMNS - b_valid_count)
        m_all |= b_rank >= b_not_nan
    return b_place, m_all, m_none


@triton.jit
def candidate_words(b_keys, b_place, m_all, m_none, ROWS: tl.constexpr, WORDS: tl.constexpr, PACKED: tl.constexpr,
                    LOW: tl.constexpr, ISA: tl.constexpr):  # fmt: skip
    """(ROWS, WORDS): the columns that are not kept for sure (Eq. 6), and some that do not count."""
    b_kept = comparison_words(b_keys, pivot_values(b_place, PACKED), "ge" if LOW else "lt", ROWS, WORDS, PACKED, ISA)
    return ~tl.where(m_none[:, None], -1, tl.where(m_all[:, None], 0, b_kept))


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def select_in_registers_kernel(
    p_x, p_y, p_bias, p_valid, p_rows,
    stride_xb, stride_xh, stride_xn, stride_yb, stride_yh, stride_yn, stride_bb, stride_bh, stride_bq, stride_bk,
    stride_vb, stride_vh, stride_vn, heads, groups, n_q, n_k, share, scale, infinity,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CHUNKS: tl.constexpr,
    LOW: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr, IS_CAUSAL: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Candidates of a block of rows of (CHUNKS - 1) * BLOCK_K < n_k <= CHUNKS * BLOCK_K columns.

    The bfloat16 keys of the whole rows stay in registers, in the layout of the matrix product.
    """
    WORDS: tl.constexpr = BLOCK_K // 32
    blocks = tl.cdiv(n_q, BLOCK_Q)
    start_q = tl.program_id(0) % blocks * BLOCK_Q
    head = tl.program_id(0) // blocks % heads
    sample = (tl.program_id(0) // blocks // heads).to(tl.int64)
    o_q = tl.arange(0, BLOCK_Q)
    o_row = start_q + o_q
    p_x += sample * stride_xb + head.to(tl.int64) * stride_xh + start_q.to(tl.int64) * stride_xn
    p_y += sample * stride_yb + (head // groups).to(tl.int64) * stride_yh
    p_rows += ((sample * heads + head) * n_q + start_q) * tl.cdiv(n_k, 32)
    b_x = load_slice(p_x, o_q, n_q - start_q, stride_xn, 0, D, BLOCK_D)
    operands = (b_x, p_x, p_y, stride_xn, stride_yn)
    bias = ()
    if HAS_BIAS:
        p_bias += sample * stride_bb + head.to(tl.int64) * stride_bh + start_q.to(tl.int64) * stride_bq
        bias = (scale, p_bias, stride_bq, stride_bk)
    words = tl.cdiv(n_k, 32)
    if D <= BLOCK_D and not LOW and not HAS_BIAS:  # noqa: SIM102 (one is a constant)
        # Rows that no gradient reaches tie everywhere: all their columns are candidates.
        if tl.max(tl.max((b_x.to(tl.float32) != 0.0).to(tl.int32), 1), 0) == 0:
            for start in range(0, words, WORDS):
                o_word = start + tl.arange(0, WORDS)
                b_all = tl.full((BLOCK_Q, WORDS), -1, tl.int32)
                mask = (o_row < n_q)[:, None] & (o_word < words)[None, :]
                tl.store(p_rows + o_q[:, None] * words + o_word[None, :], b_all, mask=mask)
            return
    if HAS_VALID:
        p_valid += sample * stride_vb + head.to(tl.int64) * stride_vh
    b_limit = column_limit(o_row, n_k, IS_CAUSAL)

    keys = ()
    b_valid_count = tl.zeros((BLOCK_Q,), tl.int32)
    if not HAS_VALID:
        b_valid_count += tl.sum(b_limit, 1)
    for i in tl.static_range(CHUNKS):
        b_valid = 0
        if HAS_VALID:
            b_valid = valid_words(
                p_valid, o_row, n_q, n_k, b_limit, i * BLOCK_K, stride_vn, WORDS, HAS_VALID, IS_CAUSAL
            )
            b_valid_count += tl.sum(popcount(b_valid, ISA), 1)
        b_keys = tl.full((BLOCK_Q, BLOCK_K // 2), 0x7F807F80, tl.int32)
        # Without causality always so, but ptxas does not know: otherwise it rounds after the last product, and spills.
        if i * BLOCK_K < (tl.minimum(n_k, start_q + BLOCK_Q) if IS_CAUSAL else n_k):
            b_keys = keys_of_block(
                operands, (), bias, b_valid, b_limit, i * BLOCK_K, o_q, n_q - start_q, n_k, infinity, D, BLOCK_D, 0, 0,
                BLOCK_Q, BLOCK_K, False, HAS_BIAS, HAS_VALID, IS_CAUSAL or i == CHUNKS - 1, True, ISA,
            )  # fmt: skip
        keys += (b_keys,)
    b_place, m_all, m_none = rank_rows(keys, b_valid_count, share, (), BLOCK_Q, CHUNKS * BLOCK_K, True, LOW, ISA)
    for i in tl.static_range(CHUNKS):
        o_word = i * WORDS + tl.arange(0, WORDS)
        b_words = candidate_words(keys[i], b_place, m_all, m_none, BLOCK_Q, WORDS, True, LOW, ISA)
        mask = (o_row < n_q)[:, None] & (o_word < words)[None, :]
        tl.store(p_rows + o_q[:, None] * words + o_word[None, :], b_words, mask=mask)
