"""AttnLRP restated slowly: relevance itself, operation by operation, over what a model computes at the level of ATen.

Nothing is shared with the package: no coefficients, no torch function mode, no hooks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
PASSES = {
    aten.gelu,
    aten.silu,
    aten.relu,
    aten.tanh,
    aten.pow,
}  # f(0) = 0: relevance of the output is that of the input
SOFTMAX = {aten._softmax, aten._safe_softmax}
CONSTANT = {aten.rsqrt, aten.eq, aten.isneginf, aten.all, aten.any, aten.logical_not}
PRODUCTS = {aten.mul, aten.bmm, aten.mm}
LINEAR = {aten.addmm, aten.mm, aten.bmm}


class Step(NamedTuple):
    """An operation that ran; inputs: those that depend on what is explained."""

    func: Any
    args: tuple
    kwargs: dict
    inputs: list[Tensor]
    result: Any


class Recorder(TorchDispatchMode):
    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.active = {id(x) for x in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = {id(x): x for x in tensors((args, kwargs)) if id(x) in self.active}
        if inputs and func.overloadpacket not in CONSTANT:
            self.steps.append(Step(func, args, kwargs, list(inputs.values()), result))
            self.active |= {id(y) for y in tensors(result) if y.is_floating_point()}
        return result


def restated(logits: Callable[..., Tensor], embeddings: list[Tensor], eps: float) -> list[Tensor]:
    """Relevance of embeddings for logits(*embeddings) (N,).

    Epsilon for linear layers, half of a product to each of its two factors.
    Softmax by its linear part, R_i = x_i (R_i - p_i sum R); deviations of norms are constants; biases take their share.
    """
    recorder = Recorder(embeddings)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), recorder:
        out = logits(*embeddings)
    relevance = {id(out): out}
    for step in reversed(recorder.steps):
        results = tensors(step.result)
        given = [relevance.get(id(y)) for y in results]
        if any(r is not None for r in given):
            for source, share in zip(step.inputs, shares(step, results, given, eps), strict=True):
                relevance[id(source)] = relevance.get(id(source), 0) + share
    return [relevance[id(x)] for x in embeddings]


def shares(step: Step, results: list[Tensor], given: list, eps: float) -> list[Tensor]:
    """What each input of a step receives of the relevance that its results were given."""
    packet = step.func.overloadpacket
    if packet in PASSES:
        return [given[0]]
    if packet in SOFTMAX:
        p, r = results[0], given[0]
        scores = torch.where(p == 0, 0, step.inputs[0])
        return [scores * (r - p * r.sum(-1, keepdim=True))]
    parts = []
    for z, r in zip(results, given, strict=True):
        if r is not None:
            z = torch.where(z < 0, z - eps, z + eps) if packet in LINEAR and len(step.inputs) == 1 else z
            parts.append(torch.where(r == 0, 0, r / torch.where(r == 0, 1, z)))
    at = {id(source): source.detach().requires_grad_(True) for source in step.inputs}
    args, kwargs = tree_map(lambda x: at.get(id(x), x) if isinstance(x, Tensor) else x, (step.args, step.kwargs))
    y = [layer_norm(*args)] if packet is aten.native_layer_norm else tensors(step.func(*args, **kwargs))
    wanted = [z for z, r in zip(y, given, strict=False) if r is not None]
    grads = torch.autograd.grad(wanted, list(at.values()), parts)
    half = 0.5 if packet in PRODUCTS and len(at) == 2 else 1
    return [torch.where(grad == 0, 0, a) * grad * half for a, grad in zip(step.inputs, grads, strict=True)]


def layer_norm(x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last axis, of which the deviation is a constant."""
    deviation = (x.detach().var(-1, correction=0, keepdim=True) + eps).sqrt()
    y = (x - x.mean(-1, keepdim=True)) / deviation
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def tensors(nest: Any) -> list[Tensor]:
    return [x for x in tree_flatten(nest)[0] if isinstance(x, Tensor)]
