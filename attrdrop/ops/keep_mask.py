"""keep_mask and random_keep_mask: which attention positions survive a step of AD-DROP, as packed bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attrdrop._core import backends, checks
from attrdrop._core.library import operators, register_fake
from attrdrop.ops.pack_mask import check_words, transpose_mask
from attrdrop.reference import keep_mask as reference

KEYS = ("auto", "fp32", "bf16")
REGIONS = ("high", "low")


@dataclass(frozen=True)
class KeepMask:
    """Packed positions to attend to, which combine padding, causality and AD-DROP.

    Attributes:
        rows: int32 (B, H, n_q, ceil(n_k / 32)); bit j % 32 of word j // 32 is column j, set = attend.
        by_key: cols, or int32 (B, H, n_k, 0) where they are made when asked for: kernels of the CPU read rows alone.
        counts: int64 (4,): valid positions, candidates (Eq. 6), dropped ones (Eq. 7), rescued rows.
    """

    rows: Tensor
    by_key: Tensor
    counts: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, n_q, n_k)"""
        return (*self.rows.shape[:3], self.by_key.shape[2])

    @property
    def cols(self) -> Tensor:
        """int32 (B, H, n_k, ceil(n_q / 32)), the transpose of rows."""
        return self.by_key if self.by_key.shape[3] else transpose_mask(self.rows, self.by_key.shape[2])

    @classmethod
    def from_rows(cls, rows: Tensor, n_k: int) -> KeepMask:
        """A mask from packed rows (B|1, H|1, n_q, ceil(n_k / 32)); nothing is counted.

        Raises:
            TypeError: rows is not int32. ValueError: it does not have four dimensions or does not hold n_k columns.
        """
        check_words("rows", rows, n_k)
        if rows.dim() != 4:
            raise ValueError(f"rows must have shape (B, H, n_q, words), got {tuple(rows.shape)}")
        by_key = transpose_mask(rows, n_k) if rows.device.type == "cuda" else rows.new_empty((*rows.shape[:2], n_k, 0))
        return cls(rows, by_key, rows.new_zeros(4, dtype=torch.int64))


class AttentionWeight(NamedTuple):
    """Weights x yᵀ by the attention probabilities exp(scale q kᵀ + bias - lse) (Eq. 3).

    q (B, H, n_q, e), k (B, H_kv, n_k, e), lse float32 (B, H, n_q), scale a number, bias as in :func:`keep_mask`.
    """

    q: Tensor
    k: Tensor
    lse: Tensor
    scale: float
    bias: Tensor | None = None


def keep_mask(
    x: Tensor,
    y: Tensor,
    *,
    p: float,
    q: float,
    seed: int,
    layer: int = 0,
    valid: Tensor | None = None,
    is_causal: bool = False,
    region: str = "high",
    bias: Tensor | None = None,
    scale: float = 1.0,
    weight: AttentionWeight | tuple[Tensor, Tensor, Tensor, float] | None = None,
    keys: str = "auto",
    sample_ids: Tensor | None = None,
    backend: str | None = None,
) -> KeepMask:
    """Ranks each row of x yᵀ, drops part of its high end, and packs the rest (AD-DROP, Eq. 5 to 7).

    Row i with n_i valid columns has the threshold t_i at 0-based rank int(n_i (1 - p)), the product taken in float32.
    Columns strictly below t_i are kept; every other valid column is dropped with probability q. A row that would lose
    all its valid columns keeps them all. Ties at t_i are candidates, -0 equals +0, NaN ranks last. p = 0 leaves no
    candidates. Draws depend only on (seed, layer, sample id, head, row, column): see docs/determinism.md.

    Args:
        x: (B, H, n_q, d), float32, bfloat16, float16 (float64: reference only). GA: the gradient dO of the head
            outputs; AA: the queries; IGA: the sum of dO over the integration steps.
        y: (B, H_kv, n_k, d), dtype and device of x; H_kv divides H. GA and IGA: the values; AA: the keys.
        p: share of a row's valid columns in the candidate region, in [0, 1].
        q: probability that a candidate is dropped, in [0, 1], with a resolution of 1/65536.
        seed: 64-bit seed of the step.
        layer: index of the layer in [0, 65536), part of the random position.
        valid: packed bits (B|1, H|1, n_q|1, ceil(n_k / 32)) of the columns that may be attended to; None: all.
        is_causal: only columns j <= i are valid for row i.
        region: "high", or "low" to mirror the ranking (threshold at rank int(n_i p), columns at or above it kept).
        bias: floating point, broadcastable to (B, H, n_q, n_k), to rank x yᵀ scale + bias, rounded once to float32 (AA
            under a position bias or a floating-point mask). Not together with a weight, which has its own bias.
        scale: factor of x yᵀ before a bias is added; 1 without a bias.
        weight: (q, k, lse, scale, bias or None) to rank x yᵀ multiplied by the attention probabilities (IGA).
        keys: precision of the ranking. "auto": float32 for float32 inputs, bfloat16-rounded float32 sums for
            half-precision ones; "fp32" and "bf16" force one or the other. Rounding to bfloat16 changes about 0.1 % of
            the bits.
        sample_ids: int64 (B,), the samples' global indices in the step; default 0 to B - 1.
        backend: one of :data:`attrdrop.BACKENDS`; default, the one in force.

    Raises:
        TypeError, ValueError: an argument is not as said above; the message names it.
        RuntimeError: the backend asked for cannot serve the call.
    """
    x = checks.check_heads("x", x)
    y = checks.check_heads("y", y, x.dtype, x.device)
    batch, heads, n_q, d = x.shape
    n_k = y.shape[2]
    if y.shape[0] != batch or y.shape[3] != d:
        raise ValueError(f"y must have shape ({batch}, H_kv, n_k, {d}) to go with x, got {tuple(y.shape)}")
    checks.check_groups("y", y.shape[1], heads)
    p, q = checks.check_probability("p", p), checks.check_probability("q", q)
    checks.check_choice("region", region, REGIONS)
    valid = checks.check_bits("valid", valid, (batch, heads, n_q, checks.word_count(n_k)), x.device)
    if weight is not None and bias is not None:
        raise ValueError("bias must be None if a weight is given: pass it as the weight's fifth entry")
    if not checks.is_number(scale):
        raise TypeError(f"scale must be a number, got {type(scale).__name__}")
    if bias is None and scale != 1:
        raise ValueError(f"scale must be 1 if no bias is given, got {scale}")
    weighing = None if weight is None else check_weight(weight, x, y)
    weight_q, weight_k, lse, scale, bias = weighing or (None, None, None, float(scale), bias)
    bias = check_bias("bias" if weight is None else "weight bias", bias, (batch, heads, n_q, n_k), x)
    bf16_keys = ranks_in_bf16(keys, x.dtype)
    arguments = (
        x.detach(),
        y.detach(),
        p,
        q,
        checks.check_seed(seed),
        checks.check_layer(layer),
        valid,
        bool(is_causal),
        region == "low",
        bf16_keys,
        checks.check_sample_ids(sample_ids, batch, x.device),
        weight_q,
        weight_k,
        lse,
        scale,
        bias,
    )
    chosen = _resolve("keep_mask", x, n_k, bf16_keys, backend)
    if chosen == "reference":
        return KeepMask(*reference.keep_mask(*arguments))
    return KeepMask(*operators(chosen).keep_mask(*arguments))


def random_keep_mask(
    batch: int,
    heads: int,
    n_q: int,
    n_k: int,
    *,
    p: float,
    q: float,
    seed: int,
    layer: int = 0,
    valid: Tensor | None = None,
    is_causal: bool = False,
    sample_ids: Tensor | None = None,
    device: torch.device | str | None = None,
    backend: str | None = None,
) -> KeepMask:
    """RD: drops every valid position with probability p q, regardless of attribution; otherwise as :func:`keep_mask`.

    Args:
        batch, heads, n_q, n_k: shape of the attention matrices.
        device: of the mask; by default that of valid or sample_ids, else the CPU.

    Raises:
        TypeError, ValueError: as :func:`keep_mask`.
    """
    for name, size in (("batch", batch), ("heads", heads), ("n_q", n_q), ("n_k", n_k)):
        checks.check_size(name, size)
    rate = checks.check_probability("p", p) * checks.check_probability("q", q)
    if device is None:
        device = next((t.device for t in (valid, sample_ids) if isinstance(t, Tensor)), torch.device("cpu"))
    place = torch.empty(0, device=device)
    valid = checks.check_bits("valid", valid, (batch, heads, n_q, checks.word_count(n_k)), place.device)
    sample_ids = checks.check_sample_ids(sample_ids, batch, place.device)
    arguments = (
        place,
        batch,
        heads,
        n_q,
        n_k,
        rate,
        checks.check_seed(seed),
        checks.check_layer(layer),
        valid,
        bool(is_causal),
        sample_ids,
    )
    chosen = _resolve("random_keep_mask", place, n_k, True, backend)
    if chosen == "reference":
        return KeepMask(*reference.random_keep_mask(*arguments))
    return KeepMask(*operators(chosen).random_keep_mask(*arguments))


def ranks_in_bf16(keys: str, dtype: torch.dtype) -> bool:
    """Whether sums are rounded to bfloat16 before they are ranked."""
    checks.check_choice("keys", keys, KEYS)
    return keys == "bf16" or (keys == "auto" and dtype in (torch.bfloat16, torch.float16))


def _resolve(op: str, x: Tensor, n_k: int, bf16_keys: bool, backend: str | None) -> str:
    double = "float64 keys are ranked by the reference only" if x.dtype == torch.float64 else None
    cuda = double or backends.CUDA_MISSING or _too_large_for_cuda(x, n_k, bf16_keys)
    triton = double or backends.TRITON_MISSING or _too_long_for_triton(n_k)
    missing = {"cuda": cuda, "triton": triton, "cpp": double or backends.COMPILED_MISSING}
    return backends.resolve(op, x, backend, missing)


def _too_large_for_cuda(x: Tensor, n_k: int, bf16_keys: bool) -> str | None:
    """The limits of csrc/cuda/keep_mask_launch.cuh."""
    longest = 65535 if bf16_keys else 32768
    if n_k > longest:
        return f"it ranks rows of up to {longest} keys, got {n_k}"
    if x.shape[-1] > 256:
        return f"it takes head dimensions up to 256, got {x.shape[-1]}"
    return None


def _too_long_for_triton(n_k: int) -> str | None:
    """The limit of triton_kernels/keep_mask.py."""
    return f"it ranks rows of up to 32768 keys, got {n_k}" if n_k > 32768 else None


def check_bias(name: str, bias: Tensor | None, shape: tuple[int, int, int, int], x: Tensor) -> Tensor | None:
    """Floating point, broadcastable to shape, in the dtype of x or float32."""
    bias = checks.check_bias(name, bias, shape, x.device)
    if bias is None:
        return None
    bias = bias.detach()
    return bias if bias.dtype in (x.dtype, torch.float32) else bias.float()


def check_weight(weight: object, x: Tensor | None, y: Tensor | None) -> AttentionWeight:
    """What weighs x yᵀ, or probabilities alone, where there are no x and y; of the bias the caller knows the shape."""
    if not isinstance(weight, tuple) or len(weight) not in (4, 5):
        what = f"{len(weight)} entries" if isinstance(weight, tuple) else type(weight).__name__
        raise TypeError(f"weight must be a tuple (q, k, lse, scale) or (q, k, lse, scale, bias), got {what}")
    q, k, lse, scale, bias = AttentionWeight(*weight)
    q = checks.check_heads("weight q", q, *(() if x is None else (x.dtype, x.device)))
    k = checks.check_heads("weight k", k, q.dtype, q.device)
    lse = checks.check_tensor("weight lse", lse)
    if not checks.is_number(scale):
        raise TypeError(f"weight scale must be a number, got {type(scale).__name__}")
    batch, heads, _, e = q.shape
    if x is not None and q.shape[:3] != x.shape[:3]:
        raise ValueError(f"weight q must have shape {tuple(x.shape[:3])} + (e,), got {tuple(q.shape)}")
    if y is not None and (k.shape[:3] != y.shape[:3] or k.shape[3] != e):
        raise ValueError(f"weight k must have shape {(*y.shape[:3], e)}, got {tuple(k.shape)}")
    if k.shape[0] != batch or k.shape[3] != e:
        raise ValueError(
            f"weight k must have shape ({batch}, H_kv, n_k, {e}) to go with weight q, got {tuple(k.shape)}"
        )
    checks.check_groups("weight k", k.shape[1], heads)
    if lse.shape != q.shape[:3] or lse.dtype not in (torch.float32, q.dtype) or lse.device != q.device:
        raise ValueError(f"weight lse must be float32 of shape {tuple(q.shape[:3])} on {q.device}, got {lse.dtype} "
                         f"of shape {tuple(lse.shape)} on {lse.device}")  # fmt: skip
    if q.dtype != torch.float64:
        lse = lse.float()
    return AttentionWeight(q.detach(), k.detach(), lse.detach().contiguous(), float(scale), bias)


def empty_mask(like, batch, heads, n_q, n_k, *, has_cols):
    """Rows, cols and counts without contents, for fakes."""
    rows = like.new_empty((batch, heads, n_q, checks.word_count(n_k)), dtype=torch.int32)
    cols = like.new_empty((batch, heads, n_k, checks.word_count(n_q) if has_cols else 0), dtype=torch.int32)
    return rows, cols, like.new_empty(4, dtype=torch.int64)


@register_fake("random_keep_mask", "cpp")
def _(like, batch, heads, n_q, n_k, *_draws):
    return empty_mask(like, batch, heads, n_q, n_k, has_cols=like.device.type == "cuda")


@register_fake("random_keep_mask", "triton")
def _(like, batch, heads, n_q, n_k, *_draws):
    return empty_mask(like, batch, heads, n_q, n_k, has_cols=True)


@register_fake("keep_mask", "cpp")
def _(x, y, *_rule):
    return empty_mask(x, *x.shape[:3], y.shape[2], has_cols=x.device.type == "cuda")


@register_fake("keep_mask", "triton")
def _(x, y, *_rule):
    return empty_mask(x, *x.shape[:3], y.shape[2], has_cols=True)
