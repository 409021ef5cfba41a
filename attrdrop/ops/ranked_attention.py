"""ranked_attention: attention whose backward turns dO Vᵀ into the mask of keep_mask, where it has formed it anyway."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attrdrop._core import checks
from attrdrop._core.library import operators, register_fake
from attrdrop.ops.keep_mask import REGIONS, KeepMask, empty_mask, keep_mask, ranks_in_bf16
from attrdrop.ops.masked_attention import check_attention, resolve


class KeepRule(NamedTuple):
    """How :func:`attrdrop.keep_mask` is to rank and draw: its arguments of the same names."""

    p: float
    q: float
    seed: int
    layer: int = 0
    region: str = "high"
    keys: str = "auto"


class Ranking(Protocol):
    """What a backward pass asks when it is reached."""

    def rule(self) -> KeepRule | None:
        """None: nothing is to be ranked."""

    def is_last(self) -> bool:
        """Whether the walk back ends here, so that nobody reads the gradients of q, k and v."""

    def receive(self, grad_out: Tensor, keep: KeepMask) -> None:
        """dO (B, H, n_q, d_v) and the mask."""


def can_rank(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether :func:`ranked_attention` serves a call: on the CPU, in float32 or less, by the C++ kernels."""
    return q.device.type == "cpu" and q.dtype == k.dtype == v.dtype and resolve(q, v, None) == "cpp"


def ranked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: KeepMask,
    ranking: Ranking,
    marker: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    sample_ids: Tensor | None = None,
) -> Tensor:
    """:func:`attrdrop.masked_attention` whose backward gives ``ranking`` what ``keep_mask(dO, v, valid=keep)`` gives.

    To the bit; the product dO Vᵀ of Eq. 5 is then formed once instead of twice. Gradients have no gradients.

    Args:
        q, k, v, keep, bias, scale, dropout_p, seed, sample_ids: as of masked_attention; sample_ids number the draws of
            both.
        ranking: asked in the backward, and told.
        marker: a leaf that requires a gradient, never read: a walk back to it comes through here.

    Returns:
        (B, n_q, H, d_v)

    Raises:
        TypeError, ValueError: an argument is not as said above; the message names it.
        RuntimeError: :func:`can_rank` is false.
    """
    if not can_rank(q, k, v):
        raise RuntimeError(
            f"ranked_attention needs CPU tensors of one half or single type, got {q.dtype} on {q.device}"
        )
    arguments = check_attention(q, k, v, keep, bias, scale, dropout_p, seed, sample_ids)
    return _RankedAttention.apply(*arguments, ranking, marker)


class _RankedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, rows, bias, scale, dropout_p, seed, sample_ids, ranking, marker):
        out, lse = operators("cpp").masked_attention(q, k, v, rows, bias, scale, dropout_p, seed, sample_ids)
        ctx.save_for_backward(q, k, v, out, lse, rows, rows, bias, sample_ids)  # by key the CPU reads none
        ctx.constants = scale, dropout_p, seed
        ctx.ranking = ranking
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        *saved, bias, sample_ids = ctx.saved_tensors
        needs_grad_bias = bias is not None and ctx.needs_input_grad[4]
        arguments = (grad_out, *saved, bias, *ctx.constants, sample_ids, needs_grad_bias)
        rule, x = ctx.ranking.rule(), grad_out.transpose(1, 2)
        if ctx.ranking.is_last():
            if rule is not None:
                v, rows = saved[2], saved[5]
                ctx.ranking.receive(x, keep_mask(x, v, valid=rows, sample_ids=sample_ids, **rule._asdict()))
            return (None,) * 11
        if rule is None:
            *grads, grad_bias = operators("cpp").masked_attention_backward(*arguments)
        else:
            *grads, grad_bias, rows, cols, counts = operators("cpp").ranked_attention_backward(
                *arguments, *_checked(rule), ranks_in_bf16(rule.keys, grad_out.dtype)
            )
            ctx.ranking.receive(x, KeepMask(rows, cols, counts))
        return *grads, None, grad_bias if needs_grad_bias else None, *(None,) * 6


def _checked(rule: KeepRule) -> tuple[float, float, int, int, bool]:
    p, q = checks.check_probability("p", rule.p), checks.check_probability("q", rule.q)
    checks.check_choice("region", rule.region, REGIONS)
    return p, q, checks.check_seed(rule.seed), checks.check_layer(rule.layer), rule.region == "low"


@register_fake("ranked_attention_backward")
def _(grad_out, q, k, v, out, lse, keep, keep_cols, bias, scale, dropout_p, seed, sample_ids, needs_grad_bias, *_rule):
    grads = operators("cpp").masked_attention_backward(
        grad_out, q, k, v, out, lse, keep, keep_cols, bias, scale, dropout_p, seed, sample_ids, needs_grad_bias
    )
    return *grads, *empty_mask(q, *q.shape[:3], k.shape[2], has_cols=False)
