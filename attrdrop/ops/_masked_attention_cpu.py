"""masked_attention on the CPU: torch's fused attention, or BLAS products around our fused softmax.

Torch's fused CPU attention has neither dropout nor a gradient for the bias. Those cases go through two batched
products and ``softmax_dropout_``, a few samples at a time, so that scores never exist for the whole batch. Either way
the backward unpacks and recomputes: bits are all that is kept of the mask.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attrdrop._core.library import library

SCORE_BYTES = 16 << 20
"""Bound on the scores or the mask expanded at once, in bytes (at least those of one sample): small enough for the
allocator to hand out the same warm memory again."""

Heads = tuple[Tensor, Tensor, Tensor]


def _is_fused(q: Tensor, v: Tensor, dropout_p: float, needs_grad_bias: bool) -> bool:
    return dropout_p == 0.0 and not needs_grad_bias and q.shape[-1] == v.shape[-1]


def _additive_mask(keep: Tensor, bias: Tensor | None, q: Tensor, n_k: int) -> Tensor:
    """0 or the bias where a bit is set, -inf elsewhere; (B|1, H|1, n_q, n_k) in q's dtype."""
    mask = torch.ops.attrdrop.additive_mask(keep.reshape(-1, keep.shape[-1]), n_k).view(*keep.shape[:3], n_k)
    mask = mask.to(q.dtype) if bias is None else mask.to(q.dtype) + bias.to(q.dtype)
    return mask.expand(*torch.broadcast_shapes(mask.shape, (1, 1, q.shape[2], n_k)))


def _repeat_heads(k: Tensor, heads: int) -> Tensor:
    return k if k.shape[1] == heads else k.repeat_interleave(heads // k.shape[1], dim=1)


def _sum_groups(grad: Tensor, kv_heads: int) -> Tensor:
    summed = grad if grad.shape[1] == kv_heads else grad.unflatten(1, (kv_heads, -1)).sum(2)
    return summed.transpose(1, 2).contiguous().transpose(1, 2)


def _new_grad(like: Tensor, make=torch.empty) -> Tensor:
    """(B, H, n, d) over (B, n, H, d) memory, as the projections before the attention want it."""
    batch, heads, n, d = like.shape
    return make((batch, n, heads, d), dtype=like.dtype, device=like.device).transpose(1, 2)


def _chunks(q: Tensor, n_k: int) -> Iterator[slice]:
    per_sample = 4 * q.shape[1] * q.shape[2] * n_k
    step = max(1, SCORE_BYTES // max(per_sample, 1))
    return (slice(begin, begin + step) for begin in range(0, q.shape[0], step))


def _part(tensor: Tensor | None, chunk: slice) -> Tensor | None:
    return tensor if tensor is None or tensor.shape[0] == 1 else tensor[chunk]


def _float_bias(bias: Tensor | None, chunk: slice) -> Tensor | None:
    part = _part(bias, chunk)
    return None if part is None else part.detach().float()


@torch.library.impl(library, "masked_attention", "CPU")
def forward(q, k, v, keep, bias, scale, dropout_p, seed, sample_ids):
    batch, heads, n_q, _ = q.shape
    out = q.new_zeros(batch, n_q, heads, v.shape[-1])
    lse = torch.full((batch, heads, n_q), -torch.inf, dtype=torch.promote_types(q.dtype, torch.float32))
    if out.numel() == 0 or k.shape[2] == 0:
        return out, lse
    k, v = _repeat_heads(k, heads), _repeat_heads(v, heads)
    with torch.autocast("cpu", enabled=False):
        if _is_fused(q, v, dropout_p, False):
            attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            for chunk in _chunks(q, k.shape[2]):
                mask = _additive_mask(_part(keep, chunk), _part(bias, chunk), q, k.shape[2])
                fused, lse[chunk] = attend(q[chunk], k[chunk], v[chunk], 0.0, False, attn_mask=mask, scale=scale)
                out[chunk] = fused.transpose(1, 2)
            return out, lse.masked_fill_((keep == 0).all(-1), -torch.inf)  # torch reports 0 for such rows
        ids = torch.arange(batch) if sample_ids is None else sample_ids
        for chunk in _chunks(q, k.shape[2]):
            scores = q[chunk].float() @ k[chunk].float().transpose(-1, -2)
            lse[chunk] = torch.ops.attrdrop.softmax_dropout_(
                scores, _float_bias(bias, chunk), _part(keep, chunk), scale, dropout_p, seed, ids[chunk]
            )
            out[chunk] = (scores @ v[chunk].float()).transpose(1, 2)
    return out, lse


@torch.library.impl(library, "masked_attention_backward", "CPU")
def backward(grad_out, q, k, v, out, lse, keep, keep_cols, bias, scale, dropout_p, seed, sample_ids, needs_grad_bias):
    heads, kv_heads, n_k = q.shape[1], k.shape[1], k.shape[2]
    empty = q.new_zeros(0)
    if out.numel() == 0 or n_k == 0:
        grad_bias = bias.new_zeros(bias.shape) if needs_grad_bias else empty
        return *(_new_grad(t, torch.zeros) for t in (q, k, v)), grad_bias
    k, v = _repeat_heads(k, heads), _repeat_heads(v, heads)
    with torch.autocast("cpu", enabled=False):
        if _is_fused(q, v, dropout_p, needs_grad_bias):
            grads = _new_grad(q), _new_grad(k), _new_grad(v)
            walk = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
            finite_lse = lse.masked_fill(lse == -torch.inf, 0.0)
            heads_first = grad_out.transpose(1, 2), q, k, v, out.transpose(1, 2), finite_lse
            for chunk in _chunks(q, n_k):
                mask = _additive_mask(_part(keep, chunk), _part(bias, chunk), q, n_k)
                parts = walk(*(t[chunk] for t in heads_first), 0.0, False, attn_mask=mask, scale=scale)
                for grad, part in zip(grads, parts, strict=True):
                    grad[chunk] = part
            return *(_sum_groups(g, n) for g, n in zip(grads, (heads, kv_heads, kv_heads), strict=True)), empty
        grad_q, grad_k, grad_v, grad_bias = _backward_chunks(
            grad_out, (q, k, v), out, lse, keep, bias, scale, dropout_p, seed, sample_ids, needs_grad_bias
        )
    return grad_q, _sum_groups(grad_k, kv_heads), _sum_groups(grad_v, kv_heads), grad_bias


def _backward_chunks(grad_out, qkv: Heads, out, lse, keep, bias, scale, dropout_p, seed, sample_ids, needs_grad_bias):
    q, k, v = qkv
    grads = _new_grad(q), _new_grad(k), _new_grad(v)
    grad_bias = bias.new_zeros(bias.shape) if needs_grad_bias else q.new_zeros(0)
    ids = torch.arange(q.shape[0]) if sample_ids is None else sample_ids
    for chunk in _chunks(q, k.shape[2]):
        q_f, k_f, v_f = q[chunk].float(), k[chunk].float(), v[chunk].float()
        grad_o = grad_out[chunk].transpose(1, 2).float()
        delta = (grad_o * out[chunk].transpose(1, 2)).sum(-1).contiguous()
        probability = q_f @ k_f.transpose(-1, -2)  # scores now, dropout(P) after the call
        grad_scores = grad_o @ v_f.transpose(-1, -2)  # dO V^T now, dF/d(q k^T) after the call
        grad_z = torch.ops.attrdrop.softmax_dropout_backward_(
            probability, grad_scores, lse[chunk].contiguous(), delta, _float_bias(bias, chunk), _part(keep, chunk),
            scale, dropout_p, seed, ids[chunk], needs_grad_bias,
        )  # fmt: skip
        grads[0][chunk] = grad_scores @ k_f
        grads[1][chunk] = grad_scores.transpose(-1, -2) @ q_f
        grads[2][chunk] = probability.transpose(-1, -2) @ grad_o
        if needs_grad_bias:
            part = grad_bias if bias.shape[0] == 1 else grad_bias[chunk]
            part += grad_z.sum_to_size(part.shape).to(part.dtype)
    return *grads, grad_bias


@torch.library.register_fake("attrdrop::additive_mask")
def _(bits, n):
    return bits.new_empty((bits.shape[0], n), dtype=torch.float32)


@torch.library.register_fake("attrdrop::softmax_dropout_")
def _(scores, bias, keep, scale, dropout_p, seed, sample_ids):
    return scores.new_empty(scores.shape[:3])


@torch.library.register_fake("attrdrop::softmax_dropout_backward_")
def _(scores, grad, lse, delta, bias, keep, scale, dropout_p, seed, sample_ids, needs_grad_bias):
    return torch.empty_like(scores) if needs_grad_bias else scores.new_empty(0, dtype=torch.int32)
