"""pack_mask, unpack_mask, transpose_mask: boolean masks as 32 columns to an int32 word."""

from __future__ import annotations

import torch
from torch import Tensor

from attrdrop._core import backends
from attrdrop._core.checks import check_tensor, word_count
from attrdrop._core.library import operators, register_fake
from attrdrop.reference import pack_mask as reference


def pack_mask(mask: Tensor, *, backend: str | None = None) -> Tensor:
    """Packs a boolean mask.

    Args:
        mask: bool (..., n), any strides. True usually means "attend".
        backend: one of :data:`attrdrop.BACKENDS`; default, the one in force.

    Returns:
        int32 (..., ceil(n / 32)): column j is bit j % 32 of word j // 32, least significant first; unused bits are 0.

    Raises:
        TypeError: mask is not a bool tensor. ValueError: it has no dimension.
    """
    mask = check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")
    if mask.dim() == 0:
        raise ValueError("mask must have at least one dimension, got a scalar")
    chosen = _resolve("pack_mask", mask, backend)
    if chosen == "reference":
        return reference.pack_mask(mask)
    n = mask.shape[-1]
    flat = mask.reshape(mask.shape[:-1].numel(), n)
    return operators(chosen).pack_mask(flat).view(*mask.shape[:-1], word_count(n))


def unpack_mask(bits: Tensor, n: int, *, backend: str | None = None) -> Tensor:
    """Inverse of :func:`pack_mask`.

    Args:
        bits: int32 (..., ceil(n / 32)). n: number of columns.

    Returns:
        bool (..., n), contiguous.

    Raises:
        TypeError: bits is not int32. ValueError: its last dimension does not hold n columns.
    """
    check_words("bits", bits, n)
    chosen = _resolve("unpack_mask", bits, backend)
    if chosen == "reference":
        return reference.unpack_mask(bits, n)
    flat = _unit_stride(bits.reshape(bits.shape[:-1].numel(), bits.shape[-1]))
    return operators(chosen).unpack_mask(flat, n).view(*bits.shape[:-1], n)


def transpose_mask(rows: Tensor, n_k: int, *, backend: str | None = None) -> Tensor:
    """Packed rows to packed columns: int32 (..., n_q, ceil(n_k / 32)) -> int32 (..., n_k, ceil(n_q / 32)).

    Raises:
        TypeError: rows is not int32. ValueError: it has fewer than two dimensions or does not hold n_k columns.
    """
    check_words("rows", rows, n_k)
    if rows.dim() < 2:
        raise ValueError(f"rows must have at least two dimensions, got shape {tuple(rows.shape)}")
    chosen = _resolve("transpose_mask", rows, backend)
    if chosen == "reference":
        return reference.transpose_mask(rows, n_k)
    *batch, n_q, words = rows.shape
    cols = operators(chosen).transpose_mask(_unit_stride(rows.reshape(torch.Size(batch).numel(), n_q, words)), n_k)
    return cols.view(*batch, n_k, word_count(n_q))


def check_words(name: str, bits: Tensor, n: int) -> None:
    """Raises TypeError or ValueError where bits are no packed rows of n columns."""
    bits = check_tensor(name, bits)
    if bits.dtype != torch.int32:
        raise TypeError(f"{name} must be packed int32 words, got {bits.dtype}")
    if n < 0 or bits.dim() == 0 or bits.shape[-1] != word_count(n):
        raise ValueError(
            f"{name} must have ceil({n} / 32) = {word_count(max(n, 0))} words in its last dimension, "
            f"got shape {tuple(bits.shape)}"
        )


def _unit_stride(bits: Tensor) -> Tensor:
    return bits if bits.stride(-1) == 1 or bits.shape[-1] <= 1 else bits.contiguous()


def _resolve(op: str, tensor: Tensor, backend: str | None) -> str:
    missing = {
        "cuda": backends.CUDA_MISSING, "triton": backends.TRITON_MISSING, "cpp": backends.COMPILED_MISSING,
    }  # fmt: skip
    return backends.resolve(op, tensor, backend, missing)


@register_fake("pack_mask")
def _(mask):
    return mask.new_empty((mask.shape[0], word_count(mask.shape[1])), dtype=torch.int32)


@register_fake("unpack_mask")
def _(bits, n):
    return bits.new_empty((bits.shape[0], n), dtype=torch.bool)


@register_fake("transpose_mask")
def _(rows, n_k):
    return rows.new_empty((rows.shape[0], n_k, word_count(rows.shape[1])))
