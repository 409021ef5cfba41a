"""Gates: what a linear layer's output goes through, so that its gradient is treated by the layer's rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attrdrop.lrp.calls import LinearCall
from attrdrop.lrp.carriers import ScaleGradients
from attrdrop.lrp.recorder import is_recording
from attrdrop.lrp.rules import JoinRule, LayerRule, SurrogateRule, Zero
from attrdrop.lrp.twice import Walk
from attrdrop.ops.relevance_gate import activation_gate, relevance_gate, relevance_gate_relu


def gate(walk: Walk | None, z: Tensor, eps: float, relu: bool = False, **options: Any) -> Tensor:
    """relevance_gate, or what has its gradients."""
    if walk is not None:
        return walk.gate(z, eps, relu, **options)
    return (relevance_gate_relu if relu else relevance_gate)(z, eps, **options)


def proportional(walk: Walk | None, y: Tensor, z: Tensor) -> Tensor:
    """y = f(z), whose gradient g goes to z as g y / z."""
    return activation_gate(y, z) if walk is None else walk.gate(y, 0.0, False, surrogate=z)


def scaled(walk: Walk | None, tensors: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor]:
    """The tensors, the gradient of each of which is multiplied by a number."""
    if walk is not None:
        return [walk.scaled(x, factor) for x, factor in zip(tensors, factors, strict=True)]
    found = list(tensors)
    places = [place for place, x in enumerate(tensors) if x.requires_grad][::-1]  # gradients add up from the last on
    changed = ScaleGradients.apply([factors[place] for place in places], *(tensors[place] for place in places))
    for place, x in zip(places, changed, strict=True):
        found[place] = x
    return found


@dataclass(slots=True)
class Pending:
    """What is to be done to a linear layer's output z, once it is known what follows.

    BatchNorm is folded in, ReLU fused into its gate. call None: a BatchNorm that follows no linear layer is one itself.
    """

    rule: LayerRule
    call: LinearCall | None
    scale: Tensor | None = None
    shift: Tensor | None = None

    def takes_affine(self, z: Tensor, channels: int) -> bool:
        """Whether a BatchNorm on z works on the layer's outputs, and is the first to do so."""
        if self.call is None or self.scale is not None or self.shift is not None:
            return False
        return (self.call.is_conv or z.dim() == 2) and z.shape[1] == channels

    def is_identity(self, z: Tensor) -> bool:
        """Whether the gate would change no gradient: that of LRP-0, where no output is 0, infinite or NaN.

        Looked for where that needs no waiting; gradients of float16 have a gate that keeps them finite. Outputs in
        bfloat16 are 0 too often for a recording, which lasts as long as none is.
        """
        if type(self.rule) is not Zero or self.scale is not None or self.shift is not None:
            return False
        if not z.is_cpu or z.dtype == torch.float16 or (z.dtype == torch.bfloat16 and is_recording()):
            return False
        z = z.detach()
        total = z.reciprocal().sum() + z.sum()
        return bool(total - total == 0)  # it is finite; one value that a recording branches on

    def finish(self, z: Tensor, walk: Walk | None, relu: bool) -> Tensor:
        """The output, with its gradient treated by the rule."""
        rule, scale, shift = self.rule, self.scale, self.shift
        if self.call is None or not isinstance(rule, (SurrogateRule, JoinRule)):
            return gate(walk, z, rule.eps, relu, scale=scale, shift=shift)
        call = self.call.folded(scale, shift)
        if isinstance(rule, JoinRule):
            return rule.join(call, gate(walk, z, rule.eps, relu, scale=scale, shift=shift))
        if not relu and (scale is not None or shift is not None):
            with torch.set_grad_enabled(walk is not None):  # what goes back goes to the surrogate
                z, scale, shift = gate(walk, z, rule.eps, scale=scale, shift=shift), None, None
        surrogate = rule.surrogate(call, z, relu)
        return gate(walk, z, rule.eps, relu, scale=scale, shift=shift, surrogate=surrogate.to(z.dtype))
