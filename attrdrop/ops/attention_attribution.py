"""attention_attribution: rows, sums or top entries of dF/dA, A or A * dF/dA, without the n x n matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrdrop._core import backends, checks
from attrdrop._core.library import operators, register_fake
from attrdrop.ops.keep_mask import AttentionWeight, check_bias, check_weight
from attrdrop.reference import attention_attribution as reference

QUANTITIES = ("gradient", "probability", "relevance")
WIDEST_HEAD = 256
MOST_ENTRIES = 1024  # of topk, in Triton: what one tile holds


class TopEntries(NamedTuple):
    """values (B, H, k), descending, NaN first; rows, columns int64 (B, H, k). Missing entries: -inf, -1, -1."""

    values: Tensor
    rows: Tensor
    columns: Tensor


class _Operands(NamedTuple):
    """The operator's leading arguments: what the quantity is made of."""

    grad_out: Tensor | None
    v: Tensor | None
    weight_q: Tensor | None
    weight_k: Tensor | None
    weight_lse: Tensor | None
    scale: float
    bias: Tensor | None

    def queries(self) -> Tensor:
        found = self.weight_q if self.grad_out is None else self.grad_out
        assert found is not None
        return found

    def keys(self) -> Tensor:
        found = self.weight_k if self.v is None else self.v
        assert found is not None
        return found

    def of_rows(self, rows: Tensor) -> _Operands:
        """Those of some queries alone."""
        names = "grad_out", "weight_q", "weight_lse"
        picked: dict[str, Any] = {
            name: x.index_select(2, rows) for name in names if (x := getattr(self, name)) is not None
        }
        if self.bias is not None and self.bias.shape[2] != 1:
            picked["bias"] = self.bias.index_select(2, rows)
        return self._replace(**picked)


def attention_attribution(
    grad_out: Tensor | None = None,
    v: Tensor | None = None,
    *,
    quantity: str = "gradient",
    weight: AttentionWeight | tuple[Tensor, Tensor, Tensor, float] | None = None,
    rows: Tensor | None = None,
    topk: int | None = None,
    valid: Tensor | None = None,
    is_causal: bool = False,
    backend: str | None = None,
) -> Tensor | TopEntries:
    """Sums, rows or top entries of one of three n x n attention quantities, for explanation and plots. Only the
    reference forms more than a tile of the matrix.

    The sum of the relevance over queries is v_j · dF/dv_j for key j (of the query head's share in dF/dv), and over keys
    dO_i · O_i for query i.

    Args:
        grad_out: (B, H, n_q, d), the gradient of F with respect to the head outputs.
        v: (B, H_kv, n_k, d), the values; dtype and device of grad_out, H_kv divides H.
        quantity: "gradient", dF/dA = dO Vᵀ (AD-DROP, Eq. 5), of grad_out and v; "probability", the attention
            probabilities A before dropout, of the weight; "relevance", A * dF/dA, of all of them.
        weight: (q, k, lse, scale, bias or None), from which A = exp(scale q kᵀ + bias - lse): :class:`AttentionWeight`.
            lse is that of ``masked_attention(..., return_lse=True)`` or of flash attention.
        rows: int64 (r,): return these rows, (B, H, r, n_k), 0 where invalid. On the CPU a row out of range raises an
            error; on a GPU, where nothing synchronises, it is clamped into range.
        topk: return the k largest entries of each head instead, as :class:`TopEntries`. With neither, return the sum
            over all rows for each key, (B, H, n_k).
        valid: packed bits (B|1, H|1, n_q|1, ceil(n_k / 32)) of the valid positions, such as those of attention's mask;
            None: all.
        is_causal: only columns j <= i are valid in row i.
        backend: one of :data:`attrdrop.BACKENDS`; default, the one in force.

    Returns:
        float32 (float64 for float64 inputs), with the shape given above.

    Raises:
        TypeError, ValueError: an argument is not as said above; the message names it.
    """
    operands = _check_operands(quantity, grad_out, v, weight)
    queries, n_k = operands.queries(), operands.keys().shape[2]
    batch, heads, n_q, _ = queries.shape
    valid = checks.check_bits("valid", valid, (batch, heads, n_q, checks.word_count(n_k)), queries.device)
    if rows is not None and topk is not None:
        raise ValueError("rows and topk cannot both be given: rows selects rows, topk entries")
    if rows is not None:
        rows = _check_picked(rows, n_q, queries.device)
        chosen = _resolve(operands, 0, backend)
        if chosen == "triton":
            return operators("triton").attribution_rows(*operands, rows, valid, bool(is_causal))
        return _rows(operands, rows, valid, is_causal)  # a product of a few rows: torch's own is best
    if topk is not None:
        checks.check_positive_int("topk", topk)
    chosen = _resolve(operands, topk or 0, backend)
    served = reference if chosen == "reference" else operators(chosen)
    values, indices = served.attention_attribution(*operands, valid, bool(is_causal), topk or 0)
    if topk is None:
        return values
    missing_entry = indices < 0
    row = torch.div(indices, max(n_k, 1), rounding_mode="floor").masked_fill(missing_entry, -1)
    return TopEntries(values, row, (indices % max(n_k, 1)).masked_fill(missing_entry, -1))


def _check_operands(quantity: str, grad_out: Tensor | None, v: Tensor | None, weight: object) -> _Operands:
    checks.check_choice("quantity", quantity, QUANTITIES)
    for name, value, unused in (("grad_out", grad_out, "probability"), ("v", v, "probability"),
                                ("weight", weight, "gradient")):  # fmt: skip
        if (value is None) != (quantity == unused):
            verb = "must be left out for" if value is not None else "must be given for"
            raise ValueError(f"{name} {verb} quantity {quantity!r}")
    if grad_out is not None:
        grad_out = checks.check_heads("grad_out", grad_out).detach()
        v = checks.check_heads("v", v, grad_out.dtype, grad_out.device).detach()
        batch, heads, _, d = grad_out.shape
        if v.shape[0] != batch or v.shape[3] != d:
            raise ValueError(f"v must have shape ({batch}, H_kv, n_k, {d}) to go with grad_out, got {tuple(v.shape)}")
        checks.check_groups("v", v.shape[1], heads)
    if weight is None:
        return _Operands(grad_out, v, None, None, None, 1.0, None)
    q, k, lse, scale, bias = check_weight(weight, grad_out, v)
    bias = check_bias("weight bias", bias, (*q.shape[:3], k.shape[2]), q)
    return _Operands(grad_out, v, q, k, lse, scale, bias)


def _resolve(operands: _Operands, topk: int, backend: str | None) -> str:
    keys, n_q = operands.keys(), operands.queries().shape[2]
    widest = max(x.shape[3] for x in (operands.v, operands.weight_k) if x is not None)
    cpp, triton = backends.COMPILED_MISSING, backends.TRITON_MISSING
    if keys.dtype == torch.float64:
        cpp = triton = "float64 is served by the reference only"
    elif topk > MOST_ENTRIES:
        triton = f"topk may be at most {MOST_ENTRIES}, got {topk}"
    elif topk and n_q * keys.shape[2] > 2**32:
        triton = f"topk numbers at most 2**32 positions, got {n_q} x {keys.shape[2]}"
    elif widest > WIDEST_HEAD:
        triton = f"head dims may be at most {WIDEST_HEAD}, got {widest}"
    return backends.resolve("attention_attribution", keys, backend, {"triton": triton, "cpp": cpp})


def _check_picked(rows: Tensor, n_q: int, device: torch.device) -> Tensor:
    rows = checks.check_tensor("rows", rows)
    if rows.dtype != torch.int64 or rows.dim() != 1:
        raise TypeError(f"rows must be int64 of shape (r,), got {rows.dtype} of shape {tuple(rows.shape)}")
    if rows.numel() and n_q == 0:
        raise ValueError(f"rows must be empty if there are no queries, got {rows.numel()}")
    if rows.device.type != "cpu":
        return rows.to(device).contiguous().clamp(0, max(n_q - 1, 0))
    if not torch.compiler.is_compiling() and rows.numel():
        low, high = map(int, rows.aminmax())
        if low < 0 or high >= n_q:
            raise ValueError(f"rows must lie in [0, {n_q}), got {low} to {high}")
    return rows.to(device, non_blocking=True).contiguous()


def _rows(operands: _Operands, rows: Tensor, valid: Tensor | None, is_causal: bool) -> Tensor:
    from attrdrop.ops.pack_mask import unpack_mask

    n_q, n_k = operands.queries().shape[2], operands.keys().shape[2]
    b = reference.positions(*operands.of_rows(rows))
    if valid is not None:
        picked = valid if valid.shape[2] == 1 and n_q != 1 else valid.index_select(2, rows)
        b = b.masked_fill(~unpack_mask(picked, n_k), 0.0)
    if is_causal:
        b = b.masked_fill(torch.arange(n_k, device=rows.device) > rows.unsqueeze(-1), 0.0)
    return b


@register_fake("attention_attribution")
def _(grad_out, v, weight_q, weight_k, weight_lse, scale, bias, valid, is_causal, k):
    operands = _Operands(grad_out, v, weight_q, weight_k, weight_lse, scale, bias)
    queries, n_k = operands.queries(), operands.keys().shape[2]
    batch, heads = queries.shape[:2]
    values = queries.new_empty((batch, heads, k if k > 0 else n_k), dtype=torch.float32)
    return values, queries.new_empty((batch, heads, k), dtype=torch.int64)


@register_fake("attribution_rows")
def _(grad_out, v, weight_q, weight_k, weight_lse, scale, bias, rows, valid, is_causal):
    operands = _Operands(grad_out, v, weight_q, weight_k, weight_lse, scale, bias)
    queries, n_k = operands.queries(), operands.keys().shape[2]
    return queries.new_empty((*queries.shape[:2], rows.shape[0], n_k), dtype=torch.float32)
