"""pack_mask and unpack_mask in Triton: one program per block of words, 32 columns to a word."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attrdrop.triton_kernels.launch import on_device

BLOCK_WORDS = 64


@triton.jit
def pack_mask_kernel(p_mask, p_bits, total, n, row_words, stride_row, stride_column, BLOCK: tl.constexpr):
    o_word = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    row = o_word // row_words
    o_column = (o_word % row_words)[:, None] * 32 + tl.arange(0, 32)[None, :]  # (BLOCK, 32)
    m_valid = (o_word < total)[:, None] & (o_column < n)
    b_mask = tl.load(p_mask + row[:, None] * stride_row + o_column * stride_column, mask=m_valid, other=0)
    b_bits = tl.sum((b_mask != 0).to(tl.int32) << tl.arange(0, 32)[None, :], axis=1)  # distinct bits: a sum is an or
    tl.store(p_bits + o_word, b_bits, mask=o_word < total)


@triton.jit
def unpack_mask_kernel(p_bits, p_mask, total, n, row_words, stride_row, BLOCK: tl.constexpr):
    o_word = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = o_word // row_words
    b_bits = tl.load(p_bits + row * stride_row + o_word % row_words, mask=o_word < total, other=0)
    o_column = (o_word % row_words)[:, None] * 32 + tl.arange(0, 32)[None, :]
    b_mask = (b_bits[:, None] >> tl.arange(0, 32)[None, :]) & 1
    m_valid = (o_word < total)[:, None] & (o_column < n)
    tl.store(p_mask + row[:, None] * n + o_column, b_mask.to(tl.int8), mask=m_valid)


def pack_mask(mask: Tensor) -> Tensor:
    """bool (rows, n), any strides -> int32 (rows, ceil(n / 32))."""
    rows, n = mask.shape
    words = (n + 31) // 32
    bits = torch.empty(rows, words, dtype=torch.int32, device=mask.device)
    if bits.numel():
        grid = (triton.cdiv(bits.numel(), BLOCK_WORDS),)
        with on_device(mask.device):
            pack_mask_kernel[grid](
                mask.view(torch.int8), bits, bits.numel(), n, words, *mask.stride(), BLOCK=BLOCK_WORDS
            )
    return bits


def unpack_mask(bits: Tensor, n: int) -> Tensor:
    """int32 (rows, ceil(n / 32)), unit last stride -> bool (rows, n)."""
    rows, words = bits.shape
    mask = torch.empty(rows, n, dtype=torch.int8, device=bits.device)
    if mask.numel():
        grid = (triton.cdiv(bits.numel(), BLOCK_WORDS),)
        with on_device(bits.device):
            unpack_mask_kernel[grid](bits, mask, bits.numel(), n, words, bits.stride(0), BLOCK=BLOCK_WORDS)
    return mask.view(torch.bool)
