"""relevance_gate and relevance_gate_relu: layer-wise relevance propagation as a damped gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attrdrop._core import backends, checks
from attrdrop._core.halves import saturated
from attrdrop._core.library import operators, register_fake
from attrdrop.reference import relevance_gate as reference


def relevance_gate(
    z: Tensor,
    eps: float,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    surrogate: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Identity whose gradient is damped as LRP's epsilon rule damps relevance.

    With y = scale z + shift (the eval-mode BatchNorm after a linear layer; y = z without), the gradient g of y becomes
    scale g y / (y + eps sign(y)) for z: written as R = a c, relevance obeys the epsilon rule if c is propagated this
    way (docs/mathematics.md). Where y is 0 the gradient is 0, where y is NaN or infinite it is NaN; float16 gradients
    saturate at the largest value of their type. Second-order gradients are not supported.

    Args:
        z: (N, C, ...) or (N, C), outputs of a linear layer; float32, bfloat16, float16, float64.
        eps: stabiliser, 0 or more; with 0 the gradient is the plain gradient, except that it is 0 where y is 0.
        scale, shift: (C,), the affine map per channel; None: 1 and 0. They are converted to the type of the
            computation, float32 (float64 for float64 z), and receive no gradient.
        surrogate: s, shape and dtype of z. The gradient g becomes g y / (s + eps sign(s)) and goes to s instead of z: s
            is the denominator of another rule, W⁺a + b⁺ for z⁺.
        backend: one of :data:`attrdrop.BACKENDS`; default, the one in force.

    Returns:
        y, shape and dtype of z.

    Raises:
        TypeError, ValueError: an argument is not as said above; the message names it.
        RuntimeError: the backend asked for cannot serve the call.
    """
    return _gate(z, eps, scale, shift, surrogate, False, backend)


def relevance_gate_relu(
    z: Tensor,
    eps: float,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    surrogate: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """:func:`relevance_gate` followed by ReLU, in one pass; same arguments and errors."""
    return _gate(z, eps, scale, shift, surrogate, True, backend)


def activation_gate(y: Tensor, z: Tensor) -> Tensor:
    """y = f(z), whose gradient g goes to z as g y / z, nothing where y is 0; both are kept for that."""
    return _Gate.apply(y, z, None, None, 0.0, False, _backend("relevance_gate", y, None), False)


def _gate(
    z: Tensor,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    surrogate: Tensor | None,
    relu: bool,
    backend: str | None,
) -> Tensor:
    z = checks.check_floats("z", z)
    if not checks.is_number(eps):
        raise TypeError(f"eps must be a number, got {type(eps).__name__}")
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be 0 or more and finite, got {eps}")
    scale, shift = _channels("scale", scale, z), _channels("shift", shift, z)
    if surrogate is not None:
        surrogate = checks.check_tensor("surrogate", surrogate)
        if surrogate.shape != z.shape or surrogate.dtype != z.dtype or surrogate.device != z.device:
            raise ValueError(
                f"surrogate must match z, {z.dtype} of shape {tuple(z.shape)} on {z.device}, "
                f"got {surrogate.dtype} of shape {tuple(surrogate.shape)} on {surrogate.device}"
            )
    if backends.is_transformed():
        raise RuntimeError("relevance_gate has a custom backward, which transforms of torch.func do not run")
    chosen = _backend("relevance_gate_relu" if relu else "relevance_gate", z, backend)
    return _Gate.apply(z, surrogate, scale, shift, float(eps), relu, chosen, True)


def _backend(op: str, z: Tensor, backend: str | None) -> str:
    missing = {"triton": backends.TRITON_MISSING, "cpp": backends.COMPILED_MISSING}
    if z.dtype == torch.float64:
        missing["triton"] = "float64 is served by the reference and C++ only"
    return backends.resolve(op, z, backend, missing)


def _channels(name: str, values: Tensor | None, z: Tensor) -> Tensor | None:
    """scale or shift in the type that z is computed in."""
    if values is None:
        return None
    values = checks.check_tensor(name, values)
    channels = z.shape[1] if z.dim() > 1 else None
    if channels is None or tuple(values.shape) != (channels,):
        wanted = "z to have a dimension of channels" if channels is None else f"shape ({channels},), the channels of z"
        raise ValueError(f"{name} needs {wanted}, got {tuple(values.shape)} for z of shape {tuple(z.shape)}")
    if not values.is_floating_point() or values.device != z.device:
        raise ValueError(f"{name} must be floating point on {z.device}, got {values.dtype} on {values.device}")
    return values.detach().to(torch.promote_types(z.dtype, torch.float32))


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        surrogate: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        eps: float,
        relu: bool,
        backend: str,
        keeps_ratio: bool,
    ) -> Tensor:
        if scale is None and shift is None and not relu:
            y = z.view_as(z)
        else:
            forward = reference.forward if backend == "reference" else operators(backend).relevance_gate
            y = forward(z, scale, shift, relu)
        ctx.is_ratio = keeps_ratio and surrogate is not None and y.dtype in (torch.float32, torch.float64)
        if ctx.is_ratio:  # one tensor to keep instead of two, and no bit is lost
            ctx.save_for_backward(_damped(torch.ones_like(y), y, surrogate, None, eps, backend), None, None)
        else:
            ctx.save_for_backward(y, surrogate, scale)
        ctx.set_materialize_grads(False)  # zeros would be sent all the way down
        ctx.eps, ctx.backend = eps, backend
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple:
        if grad is None:
            return (None,) * 8
        kept, surrogate, scale = ctx.saved_tensors
        if ctx.is_ratio:
            return None, grad * kept, *(None,) * 6
        scale = scale if surrogate is None else None
        damped = _damped(grad, kept, surrogate, scale, ctx.eps, ctx.backend)
        to_z, to_surrogate = (damped, None) if surrogate is None else (None, damped)
        return to_z, to_surrogate, *(None,) * 6


def _damped(
    grad: Tensor, y: Tensor, surrogate: Tensor | None, scale: Tensor | None, eps: float, backend: str
) -> Tensor:
    """Computed in float32 at least. Beyond the range of float16, in and out: its largest value."""
    backward = reference.backward if backend == "reference" else operators(backend).relevance_gate_backward
    return saturated(backward(saturated(grad, grad.dtype), y, surrogate, scale, eps), grad.dtype)


@register_fake("relevance_gate")
def _(z, scale, shift, relu):
    return torch.empty_like(z)


@register_fake("relevance_gate_backward")
def _(grad, y, surrogate, scale, eps):
    return torch.empty_like(y, dtype=grad.dtype)
