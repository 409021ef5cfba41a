"""Products that a call computes: torch's FlopCounterMode, with formulas for operators it does not know."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import attrdrop  # noqa: F401  (defines the operators)

aten, ours, triton = torch.ops.aten, torch.ops.attrdrop, torch.ops.attrdrop_triton
Shape = Sequence[int]


def _positions(q: Shape, k: Shape) -> int:
    return q[0] * q[1] * q[2] * k[2]


def _attention(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    """q kᵀ and P V."""
    return 2 * _positions(q, k) * (q[3] + v[3])


def _backward(grad_out: Shape, q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    """q kᵀ again, dO Vᵀ, and the gradients of q, k and v."""
    return 2 * _positions(q, k) * (3 * q[3] + 2 * v[3])


def _ranking(x: Shape, y: Shape, *arguments: Any, **_: Any) -> int:
    """x yᵀ, and q kᵀ where there is a weight."""
    weight_q = arguments[9]
    return 2 * _positions(x, y) * (x[3] + (weight_q[3] if weight_q is not None else 0))


FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
    ours.masked_attention: _attention,
    ours.masked_attention_backward: _backward,
    ours.ranked_attention_backward: _backward,
    ours.keep_mask: _ranking,
    triton.masked_attention: _attention,
    triton.masked_attention_backward: _backward,
    triton.keep_mask: _ranking,
}


def counted(call: Callable[[], object]) -> float:
    """GFLOP of the products in one call, backwards included."""
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        call()
    return counter.get_total_flops() / 1e9
