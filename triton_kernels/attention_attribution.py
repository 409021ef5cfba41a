"""attention_attribution: rows, sums or top entries of dF/dA = dO Vᵀ (Eq. 5), tile by tile."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attrdrop.triton_kernels.attention_tiles import head_of, load_columns, load_rows
from attrdrop.triton_kernels.bits import load_words, set_bits
from attrdrop.triton_kernels.launch import NOT_SPECIALIZED, float32_precision, matrices, on_device, unit_stride

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


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def attention_attribution_sums_kernel(
    grad_out, v, words, p_sums, heads, groups, n_q, n_k, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    """Sums over all rows for a block of keys."""
    block, sample, head = locate(heads, tl.cdiv(n_k, BLOCK_K))
    place = sample * heads + head
    head_out = head_of(grad_out, sample, head)
    head_v = head_of(v, sample, head // groups)
    head_words = None if words is None else head_of(words, sample, head)
    start_k = block * BLOCK_K
    b_v = load_columns(head_v, start_k, n_k, BLOCK_K, D, BLOCK_D)  # (BLOCK_D, BLOCK_K)
    b_sums = tl.zeros((BLOCK_K,), tl.float32)
    for i in range(tl.cdiv(n_q, BLOCK_Q)):
        start_q = i * BLOCK_Q
        b_out = load_rows(head_out, start_q, n_q, BLOCK_Q, D, BLOCK_D)  # (BLOCK_Q, BLOCK_D)
        b_b = tl.dot(b_out, b_v, input_precision=PRECISION)
        o_row = start_q + tl.arange(0, BLOCK_Q)
        m_counts = counted_positions(head_words, o_row, o_row < n_q, start_k, n_k, BLOCK_Q, BLOCK_K, IS_CAUSAL)
        b_sums += tl.sum(tl.where(m_counts, b_b, 0.0), 0)
    o_k = start_k + tl.arange(0, BLOCK_K)
    tl.store(p_sums + place * n_k + o_k, b_sums, mask=o_k < n_k)


@triton.jit(do_not_specialize=(*NOT_SPECIALIZED, "picked"))
def attention_attribution_rows_kernel(
    grad_out, v, words, p_index, p_rows, heads, groups, picked, n_k, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    """A block of the picked rows."""
    block, sample, head = locate(heads, tl.cdiv(picked, BLOCK_Q))
    place = sample * heads + head
    head_v = head_of(v, sample, head // groups)
    head_words = None if words is None else head_of(words, sample, head)
    o_pick = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_row = o_pick < picked
    o_row = tl.load(p_index + o_pick, mask=m_row, other=0)
    o_d = tl.arange(0, BLOCK_D)
    m_out = m_row[:, None] & (o_d < D)[None, :]
    p_out, stride, _ = head_of(grad_out, sample, head)
    b_out = tl.load(p_out + o_row[:, None] * stride + o_d[None, :], mask=m_out, other=0.0)
    for i in range(tl.cdiv(n_k, BLOCK_K)):
        start_k = i * BLOCK_K
        b_v = load_columns(head_v, start_k, n_k, BLOCK_K, D, BLOCK_D)
        b_b = tl.dot(b_out, b_v, input_precision=PRECISION)
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
    grad_out, v, words, p_keys, heads, groups, n_q, n_k, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, IS_CAUSAL: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """The TOP largest entries of a block of rows, as keys in descending order."""
    blocks = tl.cdiv(n_q, BLOCK_Q)
    block, sample, head = locate(heads, blocks)
    place = sample * heads + head
    head_v = head_of(v, sample, head // groups)
    head_words = None if words is None else head_of(words, sample, head)
    start_q = block * BLOCK_Q
    o_row = start_q + tl.arange(0, BLOCK_Q)
    b_out = load_rows(head_of(grad_out, sample, head), start_q, n_q, BLOCK_Q, D, BLOCK_D)
    b_best = tl.full((TOP,), NOTHING, tl.int64)
    for i in range(tl.cdiv(n_k, BLOCK_K)):
        start_k = i * BLOCK_K
        b_v = load_columns(head_v, start_k, n_k, BLOCK_K, D, BLOCK_D)
        b_b = tl.dot(b_out, b_v, input_precision=PRECISION)
        m_counts = counted_positions(head_words, o_row, o_row < n_q, start_k, n_k, BLOCK_Q, BLOCK_K, IS_CAUSAL)
        b_index = o_row[:, None].to(tl.int64) * n_k + (start_k + tl.arange(0, BLOCK_K))[None, :]
        b_keys = tl.where(m_counts, sort_keys(b_b, b_index), NOTHING)
        if tl.max(b_keys) > tl.min(b_best):
            b_top = tl.topk(tl.reshape(b_keys, (BLOCK_Q * BLOCK_K,)), TOP)
            b_best = tl.topk(tl.reshape(tl.join(b_best, b_top), (2 * TOP,)), TOP)
    tl.store(p_keys + (place * blocks + block) * TOP + tl.arange(0, TOP), b_best)


def common_arguments(grad_out: Tensor, v: Tensor, valid: Tensor | None, is_causal: bool) -> dict[str, Any]:
    d = v.shape[3]
    return dict(
        grad_out=matrices(unit_stride(grad_out)), v=matrices(unit_stride(v)), words=matrices(valid),
        heads=grad_out.shape[1], groups=grad_out.shape[1] // v.shape[1], n_k=v.shape[2],
        D=d, BLOCK_D=max(16, triton.next_power_of_2(d)), BLOCK_Q=BLOCK_Q, BLOCK_K=BLOCK_K,
        PRECISION=float32_precision(), IS_CAUSAL=is_causal,
    )  # fmt: skip


def attention_attribution(
    grad_out: Tensor, v: Tensor, valid: Tensor | None, is_causal: bool, k: int
) -> tuple[Tensor, Tensor]:
    """k = 0: sums over rows (B, H, n_k) and no indices; else the k largest entries and their flat indices."""
    batch, heads, n_q, _ = grad_out.shape
    n_k = v.shape[2]
    empty = grad_out.numel() == 0 or v.numel() == 0
    arguments = common_arguments(grad_out, v, valid, is_causal)
    with on_device(v.device):
        if k == 0:
            sums = v.new_empty(batch, heads, n_k, dtype=torch.float32)
            if empty:
                sums.zero_()
            else:
                attention_attribution_sums_kernel[(batch * heads * triton.cdiv(n_k, BLOCK_K),)](
                    **arguments, p_sums=sums, n_q=n_q
                )
            return sums, v.new_empty(batch, heads, 0, dtype=torch.int64)
        top, blocks = max(2, triton.next_power_of_2(k)), 0 if empty else triton.cdiv(n_q, BLOCK_Q)
        keys = v.new_empty(batch, heads, blocks * top, dtype=torch.int64)
        if not empty:
            attention_attribution_top_kernel[(batch * heads * blocks,)](**arguments, p_keys=keys, n_q=n_q, TOP=top)
    keys = torch.nn.functional.pad(keys, (0, k), value=NOTHING.value).topk(k).values  # all different but NOTHING
    order = (keys >> 32).to(torch.int32)
    values = (order ^ ((order >> 31) & 0x7FFFFFFF)).view(torch.float32)
    is_missing = keys == NOTHING.value
    return values.masked_fill(is_missing, -torch.inf), (0xFFFFFFFF - (keys & 0xFFFFFFFF)).masked_fill(is_missing, -1)


def attribution_rows(grad_out: Tensor, v: Tensor, rows: Tensor, valid: Tensor | None, is_causal: bool) -> Tensor:
    """The rows (B, H, r, n_k) of dO Vᵀ, 0 where a position does not count."""
    picked = grad_out.new_empty(*grad_out.shape[:2], rows.numel(), v.shape[2], dtype=torch.float32)
    if grad_out.shape[3] == 0:
        picked.zero_()
    elif picked.numel():
        arguments = common_arguments(grad_out, v, valid, is_causal)
        programs = picked.shape[0] * picked.shape[1] * triton.cdiv(rows.numel(), BLOCK_Q)
        with on_device(v.device):
            attention_attribution_rows_kernel[(programs,)](
                **arguments, p_index=rows, p_rows=picked, picked=rows.numel()
            )
    return picked
