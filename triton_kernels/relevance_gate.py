"""relevance_gate and its backward, element by element in the order of memory, for any dense layout.

Where channels lie innermost ("last"), blocks are (ROWS, COLUMNS) of places and channels, and scale and shift are loaded
once for each column. Elsewhere a block is BLOCK elements on end, and the elements of a channel lie together in runs of
``inner``, "short" or "long" beside a block. The block divides once, where it starts; its elements count on from there
by a multiplication or a comparison. "flat": there is no channel, or one.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attrdrop.triton_kernels.launch import on_device

BLOCK, WARPS = 1024, 4  # eight elements to a thread, 16 bytes of half precision


@triton.jit
def locate(
    size, channels, inner, inverse, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LAYOUT: tl.constexpr,
    WRAPS_ONCE: tl.constexpr, IS_HUGE: tl.constexpr,
):  # fmt: skip
    """Offsets of this program's elements and which exist (ROWS, COLUMNS), and their channels, or those of the columns.

    ``inverse`` is 2³² / inner, rounded up: a multiplication by it divides the small numbers of a block exactly.
    """
    block = tl.program_id(0).to(tl.int64) if IS_HUGE else tl.program_id(0)
    o_column = tl.arange(0, COLUMNS)[None, :]
    if LAYOUT == "last":
        blocks = tl.cdiv(channels, COLUMNS)
        o_channel = block % blocks * COLUMNS + o_column
        o_row = block // blocks * ROWS + tl.arange(0, ROWS)[:, None]
        o_element = o_row * channels + o_channel
        m_element = (o_channel < channels) & (o_element < size)
        o_channel = tl.minimum(o_channel, channels - 1)
    else:
        start = block * COLUMNS
        o_element = start + o_column
        m_element = o_element < size
        o_channel = tl.zeros_like(o_column)
        if LAYOUT != "flat":
            run = start // inner
            skipped = (start - run * inner).to(tl.int32)
            if LAYOUT == "short":
                o_run = tl.umulhi((skipped + o_column).to(tl.uint32), inverse.to(tl.uint32)).to(tl.int32)
            else:
                o_run = (o_column >= inner - skipped).to(tl.int32)
            o_channel = (run % channels).to(tl.int32) + o_run
            o_channel = tl.where(o_channel >= channels, o_channel - channels, o_channel)
            if not WRAPS_ONCE:
                o_channel %= channels
    return o_element, m_element, o_channel


@triton.jit
def divide(b_x, b_y, EXACT: tl.constexpr):
    """x / y, rounded as IEEE says or to 2 units in the last place, in fewer instructions."""
    return tl.div_rn(b_x, b_y) if EXACT else b_x / b_y


@triton.jit(do_not_specialize=("inner", "inverse"))
def relevance_gate_forward_kernel(
    p_z, p_scale, p_shift, p_y, size, channels, inner, inverse, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    LAYOUT: tl.constexpr, WRAPS_ONCE: tl.constexpr, IS_HUGE: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """y = scale z + shift, and its positive part."""
    o_element, m_element, o_channel = locate(
        size, channels, inner, inverse, ROWS, COLUMNS, LAYOUT, WRAPS_ONCE, IS_HUGE
    )  # fmt: skip
    b_y = tl.load(p_z + o_element, mask=m_element).to(tl.float32)  # (ROWS, COLUMNS)
    if HAS_SCALE:
        b_y *= tl.load(p_scale + o_channel)
    if HAS_SHIFT:
        b_y += tl.load(p_shift + o_channel)
    if RELU:
        b_y = tl.where(b_y < 0, 0.0, b_y)  # NaN stays
    tl.store(p_y + o_element, b_y.to(p_y.dtype.element_ty), mask=m_element)


@triton.jit(do_not_specialize=("inner", "inverse", "eps"))
def relevance_gate_backward_kernel(
    p_grad, p_y, p_surrogate, p_scale, p_out, size, channels, inner, inverse, eps, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, LAYOUT: tl.constexpr, WRAPS_ONCE: tl.constexpr, IS_HUGE: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_SURROGATE: tl.constexpr,
):  # fmt: skip
    """scale grad y / (s + eps sign(s)), s the surrogate or y; 0 where y is 0."""
    o_element, m_element, o_channel = locate(
        size, channels, inner, inverse, ROWS, COLUMNS, LAYOUT, WRAPS_ONCE, IS_HUGE
    )  # fmt: skip
    b_grad = tl.load(p_grad + o_element, mask=m_element).to(tl.float32)  # (ROWS, COLUMNS)
    b_y = tl.load(p_y + o_element, mask=m_element).to(tl.float32)
    b_s = b_y
    if HAS_SURROGATE:
        b_s = tl.load(p_surrogate + o_element, mask=m_element).to(tl.float32)
    b_quotient = divide(b_y, b_s + tl.where(b_s < 0, -eps, eps), p_out.dtype.element_ty == tl.float32)
    b_damped = b_grad * tl.where(b_y == 0, 0.0, b_quotient)
    if HAS_SCALE:
        b_damped *= tl.load(p_scale + o_channel)
    tl.store(p_out + o_element, b_damped.to(p_out.dtype.element_ty), mask=m_element)


def in_layout_of(x: Tensor, like: Tensor) -> Tensor:
    """x in the memory order of ``like``, whose shape and dtype it has."""
    strides = zip(x.shape, x.stride(), like.stride(), strict=True)
    return x if all(a == b or size == 1 for size, a, b in strides) else torch.empty_like(like).copy_(x)


def layout(size: int, channels: int, inner: int) -> dict[str, Any]:
    """The kernels' arguments for elements whose channels, if there are any, have stride ``inner``."""
    name = "flat" if channels == 1 else "last" if inner == 1 else "short" if inner < BLOCK else "long"
    columns = min(triton.next_power_of_2(channels), BLOCK) if name == "last" else BLOCK
    return dict(
        size=size, channels=channels, inner=inner, inverse=-(-(2**32) // inner) if name == "short" else 0,
        ROWS=BLOCK // columns, COLUMNS=columns, LAYOUT=name, WRAPS_ONCE=BLOCK // inner < channels,
        IS_HUGE=size + channels * BLOCK >= 2**31,
    )  # fmt: skip


def arguments(dense: Tensor, has_channels: bool) -> tuple[tuple[int], dict[str, Any]]:
    """How many programs, and what they need to know of a dense tensor."""
    size, channels = dense.numel(), dense.shape[1] if has_channels else 1
    known = layout(size, channels, dense.stride(1) if channels > 1 else size)
    across = triton.cdiv(channels, known["COLUMNS"]) if known["LAYOUT"] == "last" else 1
    down = triton.cdiv(size // channels, known["ROWS"]) if known["LAYOUT"] == "last" else triton.cdiv(size, BLOCK)
    return (across * down,), known


def contiguous(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.contiguous()


def relevance_gate(z: Tensor, scale: Tensor | None, shift: Tensor | None, relu: bool) -> Tensor:
    """scale and shift float32 (C,); y in the layout of z, made dense where that is not."""
    y = torch.empty_like(z)
    if y.numel():
        programs, known = arguments(y, scale is not None or shift is not None)
        with on_device(z.device):
            relevance_gate_forward_kernel[programs](
                in_layout_of(z, y), contiguous(scale), contiguous(shift), y, **known, HAS_SCALE=scale is not None,
                HAS_SHIFT=shift is not None, RELU=relu, num_warps=WARPS,
            )  # fmt: skip
    return y


def relevance_gate_backward(
    grad: Tensor, y: Tensor, surrogate: Tensor | None, scale: Tensor | None, eps: float
) -> Tensor:
    """The gradient for z, or for the surrogate; in the layout of y, made dense where that is not."""
    out = torch.empty_like(y)
    if out.numel():
        programs, known = arguments(out, scale is not None)
        with on_device(y.device):
            relevance_gate_backward_kernel[programs](
                in_layout_of(grad, out), in_layout_of(y, out),
                None if surrogate is None else in_layout_of(surrogate, out), contiguous(scale), out, **known, eps=eps,
                HAS_SCALE=scale is not None, HAS_SURROGATE=surrogate is not None, num_warps=WARPS,
            )  # fmt: skip
    return out
