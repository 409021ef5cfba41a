"""masked_attention under measurement: its inputs, its rivals, and what of them fits into memory."""

from collections.abc import Callable, Mapping
from functools import cache, cached_property

import torch
from torch import Tensor

import attrdrop
from attrdrop._core import backends
from bench.ops import flex, peers
from bench.ops.shapes import SEED, Forms, Inputs, P, Q, Shape, heads

RANKED = 2**28  # positions up to which the mask is AD-DROP's own; above, bits of the same density
SPARE = 0.8  # share of the free memory that one peer may take


def random_bits(shape: Shape, share: float, device: torch.device) -> Tensor:
    """int32 (B,H,n,ceil(n/32)): each bit of a column is set with probability `share`, to 1/256.

    Random words are folded, from the last binary digit of the share on: a 1 is an or, a 0 an and.
    """
    generator = torch.Generator(device).manual_seed(SEED)
    b, h, n, _ = shape
    bits = torch.zeros(b, h, n, -(-n // 32), dtype=torch.int32, device=device)
    for digit in reversed(f"{round(share * 256):08b}"):
        word = torch.randint(-(2**31), 2**31, bits.shape, dtype=torch.int32, device=device, generator=generator)
        bits = bits.bitwise_or_(word) if digit == "1" else bits.bitwise_and_(word)
    if n % 32:
        bits[..., -1] &= (1 << n % 32) - 1
    return bits


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated; on a CPU nobody counts."""
    if device.type != "cuda":
        return float("inf")
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def require(size: float, device: torch.device) -> None:
    """Raise RuntimeError where `size` more bytes would crowd the device."""
    free = free_memory(device)
    if size > SPARE * free:
        raise RuntimeError(f"needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


class AttentionInputs(Inputs):
    """q, k, v, the bits, and the gradient of the output; the n x n forms of the mask are made where a peer asks."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        self.q, self.k, self.v = self.leaves = tuple(
            heads(shape, device, dtype, seed).requires_grad_() for seed in (4, 5, 6)
        )
        self.grad = heads(shape, device, dtype, 7).transpose(1, 2)
        self.dropout = 0.0
        self.keep = self._keep()

    def _keep(self) -> attrdrop.KeepMask:
        if self.shape.positions > RANKED:
            return attrdrop.KeepMask.from_rows(random_bits(self.shape, 1 - P * Q, self.device), self.shape.n)
        x, y = (heads(self.shape, self.device, self.dtype, seed) for seed in (1, 2))
        return attrdrop.keep_mask(x, y, p=P, q=Q, seed=SEED)

    def need(self, bytes_per_position: float) -> None:
        """Raise RuntimeError where so much does not fit."""
        require(self.shape.positions * bytes_per_position, self.device)

    @cached_property
    def mask(self) -> Tensor:
        """bool (B,H,n,n)"""
        self.need(1)
        return attrdrop.unpack_mask(self.keep.rows, self.shape.n)

    @cached_property
    def bias(self) -> Tensor:
        """The additive mask in q's type, (B,H,n,n)."""
        mask = self.mask
        self.need(self.dtype.itemsize + 1)
        return peers.additive(mask, self.dtype)


def _ready(i: AttentionInputs, make: Callable[[], Tensor | None], extra: float = 0) -> Callable[[], Tensor | None]:
    """`make` once, and only where `extra` bytes per position would fit besides: what the peer needs as it runs."""

    @cache
    def made() -> Tensor | None:
        mask = make()
        i.need(extra)
        return mask

    return made


def _sdpa(i: AttentionInputs, kind: str, kernel: peers.SDPBackend | None, extra: float = 0) -> Callable[[], Tensor]:
    """torch's attention under one form of the mask, its kernel pinned where `kernel` is given."""
    masks = {"no mask": lambda: None, "bool mask": lambda: i.mask, "additive mask": lambda: i.bias}
    mask = _ready(i, masks[kind], extra)
    return lambda: peers.sdpa(i.q, i.k, i.v, mask(), i.dropout, kernel)


def _eager(i: AttentionInputs) -> Callable[[], Tensor]:
    """Attention with all matrices in memory."""
    bias = _ready(i, lambda: i.bias, 4 * i.dtype.itemsize)
    return lambda: peers.eager_attention(i.q, i.k, i.v, bias(), i.dropout)


def _flex(i: AttentionInputs) -> Mapping[str, Forms]:
    """FlexAttention with the mask captured as booleans and as bits."""
    attention = cache(flex.compiled)

    def form(modification: Callable[[], flex.Modification]) -> Callable[[], Tensor]:
        blocks = cache(lambda: flex.all_blocks(modification(), i.shape.n, i.device))
        return lambda: flex.attend(i.q, i.k, i.v, blocks(), attention())

    return {
        "FlexAttention, bool mask": {"flex": form(lambda: flex.by_bool(i.mask))},
        "FlexAttention, bits": {"flex": form(lambda: flex.by_bits(i.keep.rows))},
    }


class _Unmasked(torch.autograd.Function):
    """Our own Triton kernels with the mask compiled away."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from attrdrop.triton_kernels import masked_attention as kernels

        scale = q.shape[-1] ** -0.5
        out, lse = kernels.masked_attention(q, k, v, None, None, scale, 0.0, 0, None)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor, ...]:
        from attrdrop.triton_kernels import masked_attention_backward as kernels

        arguments = (None, None, None, ctx.scale, 0.0, 0, None, False)
        return kernels.masked_attention_backward(grad_out, *ctx.saved_tensors, *arguments)[:3]


def rivals(i: AttentionInputs) -> Mapping[str, Forms]:
    """Every peer by name. What it needs is made at its first call, which raises where that cannot be."""
    if i.device.type == "cuda":
        found = {
            f"SDPA {name}, {kind}": {name: _sdpa(i, kind, peers.SDPA_KERNELS[name], extra)}
            for kind, names, extra in (
                ("no mask", ("flash", "cudnn"), 0),
                ("bool mask", ("efficient", "cudnn"), i.dtype.itemsize),  # torch makes it additive
                ("additive mask", ("efficient", "cudnn"), 0),
            )
            for name in names
        }
    else:
        found = {f"SDPA, {kind}": {"torch": _sdpa(i, kind, None)} for kind in ("no mask", "bool mask", "additive mask")}
    if i.device.type == "cuda" and not i.dropout and backends.TRITON_MISSING is None:
        found["attrdrop, unmasked"] = {"triton": lambda: _Unmasked.apply(i.q, i.k, i.v)}
    found["SDPA, math"] = {"math": _sdpa(i, "bool mask", peers.SDPBackend.MATH, 16)}
    found["eager"] = {"torch": _eager(i)}
    if i.device.type == "cuda" and not i.dropout:  # FlexAttention has no dropout, and no backward on a CPU
        found |= _flex(i)
    return found


UNLIKE = ("attrdrop, unmasked", "SDPA, no mask", "SDPA flash, no mask", "SDPA cudnn, no mask")
