"""The masks of AD-DROP by full sort, as close to the paper's equations as plain PyTorch comes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attrdrop.reference.pack_mask import pack_mask, transpose_mask, unpack_mask
from attrdrop.reference.philox import bernoulli


def attribution(x: Tensor, y: Tensor) -> Tensor:
    """B = x yᵀ per head (Eq. 5), in float32, or float64 for float64 inputs."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = y.to(wide).repeat_interleave(x.shape[1] // y.shape[1], dim=1)
    with torch.autocast(x.device.type, enabled=False):
        return x.to(wide) @ y.transpose(-1, -2)


def scale_and_add(b: Tensor, scale: float | Tensor, bias: Tensor) -> Tensor:
    """b scale + bias, in float32 rounded once, as by a fused multiply-add; in float64 where b is that.

    A product of float32 is exact in float64. The sum is rounded to odd there, so that rounding it once more gives what
    one rounding would (Boldo and Melquiond, 2008).
    """
    bias = bias.to(torch.float64)
    if b.dtype == torch.float64:
        return b * scale + bias
    product = b.double() * torch.as_tensor(scale, dtype=torch.float32).double()
    total = product + bias
    part = total - product
    error = (product - (total - part)) + (bias - part)
    bits = total.view(torch.int64)
    is_cut = ((error > 0) | (error < 0)) & (bits & 1 == 0)
    step = torch.where((error > 0) == (total > 0), 1, -1)
    return torch.where(is_cut, bits + step, bits).view(torch.float64).float()


def probability(q: Tensor, k: Tensor, lse: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """exp(scale q kᵀ + bias - lse), the attention probabilities of the positions that lse counts."""
    scores = attribution(q, k)
    scores = scores * scale if bias is None else scale_and_add(scores, scale, bias)
    return torch.exp(scores - lse.to(scores.dtype).unsqueeze(-1))


def valid_columns(valid: Tensor | None, is_causal: bool, shape: Sequence[int], device: torch.device) -> Tensor:
    """Bool (B, H, n_q, n_k) of the columns that a row may attend to."""
    n_q, n_k = shape[2:]
    columns = torch.ones(shape, dtype=torch.bool, device=device)
    if valid is not None:
        columns &= unpack_mask(valid, n_k)
    if is_causal:
        columns &= torch.ones(n_q, n_k, dtype=torch.bool, device=device).tril()
    return columns


def candidates(b: Tensor, valid: Tensor, p: float, low: bool) -> Tensor:
    """The candidate discard region (Eq. 6): all columns but those strictly below the threshold of their row.

    With n valid columns the threshold is the value at 0-based rank int(n (1 - p)), the product taken in float32;
    no rank n exists, so such a row has no candidates. ``low`` mirrors it: all columns but those at or above rank
    int(n p). NaN ranks last.
    """
    n = valid.sum(-1, keepdim=True)
    share = torch.full((), p if low else 1.0 - p, dtype=torch.float32, device=b.device)
    rank = (n.float() * share).int().long()
    ordered = torch.where(valid, b, torch.nan).sort(-1).values
    threshold = ordered.gather(-1, rank.clamp(max=b.shape[-1] - 1))
    if low:
        region = ~(b >= threshold) | (rank >= n)
        return valid & region & (rank > 0)
    return valid & ~(b < threshold) & (rank < n)


def keep_mask(
    x: Tensor,
    y: Tensor,
    p: float,
    q: float,
    seed: int,
    layer: int,
    valid: Tensor | None,
    is_causal: bool,
    low: bool,
    bf16_keys: bool,
    sample_ids: Tensor | None,
    weight_q: Tensor | None,
    weight_k: Tensor | None,
    weight_lse: Tensor | None,
    scale: float,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, cols, counts) as :func:`attrdrop.keep_mask` documents them; a weight has the scale and the bias."""
    shape = (*x.shape[:3], y.shape[2])
    b = attribution(x, y)
    if weight_q is not None and weight_k is not None and weight_lse is not None:
        b = b * probability(weight_q, weight_k, weight_lse, scale, bias)
    elif bias is not None:
        b = scale_and_add(b, scale, bias)
    b = b.bfloat16().to(b.dtype) if bf16_keys else b
    columns = valid_columns(valid, is_causal, shape, x.device)
    region = candidates(b, columns, p, low) if shape[3] > 0 else columns
    return draw(region, columns, q, seed, layer, sample_ids)


def draw(
    region: Tensor, columns: Tensor, q: float, seed: int, layer: int, sample_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What is left, by query and by key, and the counts."""
    keep, counts = drop(region, columns, q, seed, layer, sample_ids)
    rows = pack_mask(keep)
    return rows, transpose_mask(rows, columns.shape[-1]), counts


def drop(
    region: Tensor, columns: Tensor, q: float, seed: int, layer: int, sample_ids: Tensor | None, first_head: int = 0
) -> tuple[Tensor, Tensor]:
    """Drops each candidate with probability q (Eq. 7); a row that would lose all its keys keeps them."""
    batch, heads, n_q, n_k = columns.shape
    if sample_ids is None:
        sample_ids = torch.arange(batch, device=columns.device)
    dropped = region & bernoulli(seed, layer, sample_ids, heads, n_q, n_k, q, first_head)
    keep = columns & ~dropped
    rescued = columns.any(-1) & ~keep.any(-1)
    keep = torch.where(rescued.unsqueeze(-1), columns, keep)
    counts = torch.stack([columns.sum(), region.sum(), (columns & ~keep).sum(), rescued.sum()])
    return keep, counts


def random_keep_mask(
    like: Tensor,
    batch: int,
    heads: int,
    n_q: int,
    n_k: int,
    rate: float,
    seed: int,
    layer: int,
    valid: Tensor | None,
    is_causal: bool,
    sample_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Every valid column is a candidate, dropped with probability ``rate``; on the device of ``like``."""
    columns = valid_columns(valid, is_causal, (batch, heads, n_q, n_k), like.device)
    return draw(columns, columns, rate, seed, layer, sample_ids)
