"""Composed functions, which torch computes as one, restated in parts that have rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Still = Callable[[Tensor], Tensor]
"""Makes a constant of an activation."""


def layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    *, still: Still,
) -> Tensor:  # fmt: skip
    """LayerNorm with its deviation as a constant (AttnLRP): linear in the input."""
    axes = list(range(-len(normalized_shape), 0))
    return _affine(_standardise(input, axes, eps, still), weight, bias).to(input.dtype)


def rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None, *, still: Still
) -> Tensor:
    """RMSNorm with the root mean square as a constant."""
    axes = list(range(-len(normalized_shape), 0))
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(wide * torch.rsqrt(still(wide).square().mean(axes, keepdim=True) + eps), weight, None).to(
        input.dtype
    )


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    *, still: Still,
) -> Tensor:  # fmt: skip
    """GroupNorm with its deviations as constants."""
    grouped = input.unflatten(1, (num_groups, -1))
    y = _standardise(grouped, list(range(2, grouped.dim())), eps, still).flatten(1, 2)
    by_channel = (-1, *(1,) * (input.dim() - 2))
    weight, bias = (None if x is None else x.view(by_channel) for x in (weight, bias))
    return _affine(y, weight, bias).to(input.dtype)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    still: Still,
) -> Tensor:
    """InstanceNorm with its deviations as constants, or the affine map of its running statistics."""
    if use_input_stats:
        return group_norm(input, input.shape[1], weight, bias, eps, still=still)
    return functional.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


def normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None, *, still: Still
) -> Tensor:
    """x / |x| with the length as a constant."""
    return input / still(input).norm(p, dim, keepdim=True).clamp_min(eps)


NORMS: dict[str, Callable[..., Tensor]] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "normalize": normalize,
}


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """torch.nn.functional.multi_head_attention_forward for (L, N, E) inputs, in eval mode."""
    unusual = {"bias_k": bias_k, "bias_v": bias_v, "static_k": static_k, "static_v": static_v}
    given = [name for name, x in unusual.items() if x is not None] + (["add_zero_attn"] if add_zero_attn else [])
    if given or query.dim() != 3:
        what = ", ".join(given) if given else f"unbatched input of shape {tuple(query.shape)}"
        raise ValueError(f"no rule covers multi-head attention with {what}")
    if use_separate_proj_weight:
        weights: Any = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        assert in_proj_weight is not None
        weights = in_proj_weight.chunk(3)
    biases = in_proj_bias.chunk(3) if in_proj_bias is not None else (None, None, None)
    batch, n_q, width = query.shape[1], query.shape[0], out_proj_weight.shape[1]

    def heads(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = functional.linear(x, weight, bias)
        return y.reshape(x.shape[0], batch, num_heads, -1).permute(1, 2, 0, 3)

    q, k, v = (heads(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    mask = _merged_mask(attn_mask, key_padding_mask, batch, num_heads, q.dtype)
    probabilities = None
    if need_weights:
        scores = torch.matmul(q, k.transpose(-2, -1)) * (q.shape[-1] ** -0.5)
        probabilities = torch.softmax(scores if mask is None else scores + mask, -1)
        out = torch.matmul(probabilities, v)
        probabilities = probabilities.mean(1) if average_attn_weights else probabilities
    else:
        out = functional.scaled_dot_product_attention(q, k, v, mask)
    out = out.permute(2, 0, 1, 3).reshape(n_q, batch, width)
    return functional.linear(out, out_proj_weight, out_proj_bias), probabilities


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """The gated linear unit."""
    a, b = input.chunk(2, dim)
    return a * torch.sigmoid(b)


def lerp(input: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """Linear interpolation."""
    return input * (1 - weight) + end * weight


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """input + value tensor1 tensor2"""
    return input + value * (tensor1 * tensor2)


PARTS: dict[str, Callable[..., Any]] = {
    "multi_head_attention_forward": multi_head_attention,
    "glu": glu,
    "lerp": lerp,
    "addcmul": addcmul,
}
"""Run in the mode, so that each part meets its own rule."""


def _merged_mask(
    attention: Tensor | None, padding: Tensor | None, batch: int, heads: int, dtype: torch.dtype
) -> Tensor | None:
    """Both masks as numbers to add to the scores (N, heads, n_q, n_k)."""

    def additive(mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask.to(dtype)
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))

    merged = None
    if attention is not None:
        merged = additive(attention)
        merged = merged.view(batch, heads, *merged.shape[1:]) if merged.dim() == 3 else merged
    if padding is not None:
        by_key = additive(padding)[:, None, None, :]
        merged = by_key if merged is None else merged + by_key
    return merged


def _standardise(x: Tensor, axes: list[int], eps: float, still: Still) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    var = still(wide).var(axes, correction=0, keepdim=True)
    return (wide - wide.mean(axes, keepdim=True)) * torch.rsqrt(var + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
