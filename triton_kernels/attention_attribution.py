"""attention_attribution: rows, sums or top entries of dF/dA = dO Vᵀ (Eq. 5), A or their product, tile by tile."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attrdrop.triton_kernels.attention_tiles import head_of, load_columns
from attrdrop.triton_kernels.bits import load_words, set_bits
from attrdrop.triton_kernels.launch import (
    NOT_SPECIALIZED,
    Matrices,
    float32_precision,
    matrices,
    on_device,
    unit_stride,
)

BLOCK_Q, BLOCK_K = 32, 32
MOST_ENTRIES = BLOCK_Q * BLOCK_K
NOTHING = tl.constexpr(-(2**63))  # below the key of every entry


@triton.jit
def locate(heads, blocks):
    """Block, sample and head of this program."""
    block = tl.program_id(0) % blocks
    head = tl.program_id(0) // blocks % heads
    return block, (tl.program_id(0) // blocks // heads).to(tl.int64), head


@triton.jit
def counted_positions(
    words, o_row, m_row, start_k, n_k, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, IS_CAUSAL: tl.constexpr
):
    """(ROWS, BLOCK_K) booleans."""
    o_k = start_k + tl.arange(0, BLOCK_K)
    m_counts = m_row[:, None] & (o_k < n_k)[None, :]
    if words is not None:
        p_words, stride, _ = words
        m_counts &= set_bits(load_words(p_words, o_row, m_row, stride, 1, start_k, n_k, BLOCK_K), ROWS, BLOCK_K)
    if IS_CAUSAL:
        m_counts &= o_k[None, :] <= o_row[:, None]
    return m_counts


@triton.jit
def picked_rows(head, o_row, m_row, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D); 0 where there is no row, and beyond column D."""
    p_x, stride, _ = head
    o_d = tl.arange(0, BLOCK_D)
    p_x += o_row[:, None].to(tl.int64) * stride + o_d[None, :]
    return tl.load(p_x, mask=m_row[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def position_values(
    b_out, b_v, b_q, b_k, b_lse, bias, sample, head, o_row, m_row, start_k, n_k, scale,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(rows, BLOCK_K): dO Vᵀ, exp(scale Q Kᵀ + bias - lse), or their product; what is not given is None."""
    b_b = None if b_out is None else tl.dot(b_out, b_v, input_precision=PRECISION)
    if b_q is not None:
        b_scores = tl.dot(b_q, b_k, input_precision=PRECISION) * scale
        if bias is not None:
            p_bias, stride, stride_column = head_of(bias, sample, head)
            o_k = start_k + tl.arange(0, BLOCK_K)
            p_bias += o_row[:, None].to(tl.int64) * stride + o_k[None, :].to(tl.int64) * stride_column
            b_scores += tl.load(p_bias, mask=m_row[:, None] & (o_k < n_k)[None, :], other=0.0).to(tl.float32)
        b_a = tl.exp(b_scores - b_lse[:, None])
        b_b = b_a if b_b is None else b_b * b_a
    return b_b


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def attention_attribution_sums_kernel(
    grad_out, v, weight_q, weight_k, p_lse, bias, words, p_sums, heads, groups, n_q, n_k, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    """Sums over all rows for a block of keys."""
    block, sample, head = locate(heads, tl.cdiv(n_k, BLOCK_K))
    place = sample * heads + head
    head_v = None if v is None else head_of(v, sample, head // groups)
    head_k = None if weight_k is None else head_of(weight_k, sample, head // groups)
    head_words = None if words is None else head_of(words, sample, head)
    start_k = block * BLOCK_K
    b_v = None if v is None else load_columns(head_v, start_k, n_k, BLOCK_K, D, BLOCK_D)
    b_k = None if weight_k is None else load_columns(head_k, start_k, n_k, BLOCK_K, E, BLOCK_E)
    b_sums = tl.zeros((BLOCK_K,), tl.float32)
    for i in range(tl.cdiv(n_q, BLOCK_Q)):
        o_row = i * BLOCK_Q + tl.arange(0, BLOCK_Q)
        m_row = o_row < n_q
        b_out = None if grad_out is None else picked_rows(head_of(grad_out, sample, head), o_row, m_row, D, BLOCK_D)
        b_q = None if weight_q is None else picked_rows(head_of(weight_q, sample, head), o_row, m_row, E, BLOCK_E)
        b_lse = None if p_lse is None else tl.load(p_lse + place * n_q + o_row, mask=m_row, other=0.0)
        b_b = position_values(
            b_out, b_v, b_q, b_k, b_lse, bias, sample, head, o_row, m_row, start_k, n_k, scale, BLOCK_K, PRECISION
        )  # fmt: skip
        m_counts = counted_positions(head_words, o_row, m_row, start_k, n_k, BLOCK_Q, BLOCK_K, IS_CAUSAL)
        b_sums += tl.sum(tl.where(m_counts, b_b, 0.0), 0)
    o_k = start_k + tl.arange(0, BLOCK_K)
    tl.store(p_sums + place * n_k + o_k, b_sums, mask=o_k < n_k)


@triton.jit(do_not_specialize=(*NOT_SPECIALIZED, "picked"))
def attention_attribution_rows_kernel(
    grad_out, v, weight_q, weight_k, p_lse, bias, words, p_index, p_rows, heads, groups, picked, n_q, n_k, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    """A block of the picked rows."""
    block, sample, head = locate(heads, tl.cdiv(picked, BLOCK_Q))
    place = sample * heads + head
    head_v = None if v is None else head_of(v, sample, head // groups)
    head_k = None if weight_k is None else head_of(weight_k, sample, head // groups)
    head_words = None if words is None else head_of(words, sample, head)
    o_pick = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_row = o_pick < picked
    o_row = tl.load(p_index + o_pick, mask=m_row, other=0)
    b_out = None if grad_out is None else picked_rows(head_of(grad_out, sample, head), o_row, m_row, D, BLOCK_D)
    b_q = None if weight_q is None else picked_rows(head_of(weight_q, sample, head), o_row, m_row, E, BLOCK_E)
    b_lse = None if p_lse is None else tl.load(p_lse + place * n_q + o_row, mask=m_row, other=0.0)
    for i in range(tl.cdiv(n_k, BLOCK_K)):
        start_k = i * BLOCK_K
        b_v = None if v is None else load_columns(head_v, start_k, n_k, BLOCK_K, D, BLOCK_D)
        b_k = None if weight_k is None else load_columns(head_k, start_k, n_k, BLOCK_K, E, BLOCK_E)
        b_b = position_values(
            b_out, b_v, b_q, b_k, b_lse, bias, sample, head, o_row, m_row, start_k, n_k, scale, BLOCK_K, PRECISION
        )  # fmt: skip
        m_counts = counted_positions(head_words, o_row, m_row, start_k, n_k, BLOCK_Q, BLOCK_K, IS_CAUSAL)
        o_k = start_k + tl.arange(0, BLOCK_K)
        o_place = (place * picked + o_pick[:, None]) * n_k + o_k[None, :]
        tl.store(p_rows + o_place, tl.where(m_counts, b_b, 0.0), mask=m_row[:, None] & (o_k < n_k)[None, :])


@triton.jit
def sort_keys(b_values, b_index):
    """int64 keys: larger values first, NaN before all, then smaller indices; -0 equals +0."""
    b_bits = (b_values + 0.0).to(tl.int32, bitcast=True)
    b_order = b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)
    b_order = tl.where(b_values != b_values, 0x7FFFFFFF, b_order)
    return (b_order.to(tl.int64) << 32) | (0xFFFFFFFF - b_index)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def attention_attribution_top_kernel(
    grad_out, v, weight_q, weight_k, p_lse, bias, words, p_keys, heads, groups, n_q, n_k, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, IS_CAUSAL: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """The TOP largest entries of a block of rows, as keys in descending order."""
    blocks = tl.cdiv(n_q, BLOCK_Q)
    block, sample, head = locate(heads, blocks)
    place = sample * heads + head
    head_v = None if v is None else head_of(v, sample, head // groups)
    head_k = None if weight_k is None else head_of(weight_k, sample, head // groups)
    head_words = None if words is None else head_of(words, sample, head)
    o_row = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_row = o_row < n_q
    b_out = None if grad_out is None else picked_rows(head_of(grad_out, sample, head), o_row, m_row, D, BLOCK_D)
    b_q = None if weight_q is None else picked_rows(head_of(weight_q, sample, head), o_row, m_row, E, BLOCK_E)
    b_lse = None if p_lse is None else tl.load(p_lse + place * n_q + o_row, mask=m_row, other=0.0)
    b_best = tl.full((TOP,), NOTHING, tl.int64)
    for i in range(tl.cdiv(n_k, BLOCK_K)):
        start_k = i * BLOCK_K
        b_v = None if v is None else load_columns(head_v, start_k, n_k, BLOCK_K, D, BLOCK_D)
        b_k = None if weight_k is None else load_columns(head_k, start_k, n_k, BLOCK_K, E, BLOCK_E)
        b_b = position_values(
            b_out, b_v, b_q, b_k, b_lse, bias, sample, head, o_row, m_row, start_k, n_k, scale, BLOCK_K, PRECISION
        )  # fmt: skip
        m_counts = counted_positions(head_words, o_row, m_row, start_k, n_k, BLOCK_Q, BLOCK_K, IS_CAUSAL)
        b_index = o_row[:, None].to(tl.int64) * n_k + (start_k + tl.arange(0, BLOCK_K))[None, :]
        b_keys = tl.where(m_counts, sort_keys(b_b, b_index), NOTHING)
        if tl.max(b_keys) > tl.min(b_best):
            b_top = tl.topk(tl.reshape(b_keys, (BLOCK_Q * BLOCK_K,)), TOP)
            b_best = tl.topk(tl.reshape(tl.join(b_best, b_top), (2 * TOP,)), TOP)
    tl.store(p_keys + (place * blocks + block) * TOP + tl.arange(0, TOP), b_best)


class Call:
    """The operands of a call as the kernels take them, and its sizes."""

    def __init__(
        self, grad_out: Tensor | None, v: Tensor | None, weight_q: Tensor | None, weight_k: Tensor | None,
        weight_lse: Tensor | None, scale: float, bias: Tensor | None, valid: Tensor | None, is_causal: bool,
    ):  # fmt: skip
        queries, keys = (weight_q, weight_k) if grad_out is None else (grad_out, v)
        assert queries is not None
        assert keys is not None
        self.like = queries
        self.batch, self.heads, self.n_q = queries.shape[:3]
        self.n_k = keys.shape[2]
        d, e = (0 if x is None else x.shape[3] for x in (v, weight_k))
        self.arguments: dict[str, Any] = dict(
            grad_out=_head_matrices(grad_out), v=_head_matrices(v), weight_q=_head_matrices(weight_q),
            weight_k=_head_matrices(weight_k), p_lse=None if weight_lse is None else weight_lse.contiguous(),
            bias=matrices(bias), words=matrices(valid), heads=self.heads, groups=self.heads // keys.shape[1],
            n_q=self.n_q, n_k=self.n_k, scale=float(scale), D=d, BLOCK_D=_block(d), E=e, BLOCK_E=_block(e),
            BLOCK_Q=BLOCK_Q, BLOCK_K=BLOCK_K, PRECISION=float32_precision(), IS_CAUSAL=is_causal,
        )  # fmt: skip

    def launch(self, kernel: Any, blocks: int, **arguments: Any) -> None:
        """On so many blocks per head; not where there are none."""
        programs = self.batch * self.heads * blocks
        if programs:
            with on_device(self.like.device):
                kernel[(programs,)](**self.arguments, **arguments)


def _head_matrices(x: Tensor | None) -> Matrices | None:
    return None if x is None else matrices(unit_stride(x))


def _block(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def attention_attribution(
    grad_out: Tensor | None, v: Tensor | None, weight_q: Tensor | None, weight_k: Tensor | None,
    weight_lse: Tensor | None, scale: float, bias: Tensor | None, valid: Tensor | None, is_causal: bool, k: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """k = 0: sums over rows (B, H, n_k) and no indices; else the k largest entries and their flat indices."""
    call = Call(grad_out, v, weight_q, weight_k, weight_lse, scale, bias, valid, is_causal)
    batch, heads, n_k = call.batch, call.heads, call.n_k
    if k == 0:
        sums = call.like.new_empty(batch, heads, n_k, dtype=torch.float32)
        call.launch(attention_attribution_sums_kernel, triton.cdiv(n_k, BLOCK_K), p_sums=sums)
        return sums, call.like.new_empty(batch, heads, 0, dtype=torch.int64)
    top, blocks = max(2, triton.next_power_of_2(k)), triton.cdiv(call.n_q, BLOCK_Q) if n_k else 0
    keys = call.like.new_empty(batch, heads, blocks * top, dtype=torch.int64)
    call.launch(attention_attribution_top_kernel, blocks, p_keys=keys, TOP=top)
    keys = torch.nn.functional.pad(keys, (0, k), value=NOTHING.value).topk(k).values  # all different but NOTHING
    order = (keys >> 32).to(torch.int32)
    values = (order ^ ((order >> 31) & 0x7FFFFFFF)).view(torch.float32)
    is_missing = keys == NOTHING.value
    return values.masked_fill(is_missing, -torch.inf), (0xFFFFFFFF - (keys & 0xFFFFFFFF)).masked_fill(is_missing, -1)


def attribution_rows(
    grad_out: Tensor | None, v: Tensor | None, weight_q: Tensor | None, weight_k: Tensor | None,
    weight_lse: Tensor | None, scale: float, bias: Tensor | None, rows: Tensor, valid: Tensor | None, is_causal: bool,
) -> Tensor:  # fmt: skip
    """These rows (B, H, r, n_k), 0 where a position does not count."""
    call = Call(grad_out, v, weight_q, weight_k, weight_lse, scale, bias, valid, is_causal)
    found = call.like.new_empty(call.batch, call.heads, rows.numel(), call.n_k, dtype=torch.float32)
    blocks = triton.cdiv(rows.numel(), BLOCK_Q) if call.n_k else 0
    call.launch(attention_attribution_rows_kernel, blocks, p_index=rows, p_rows=found, picked=rows.numel())
    return found
