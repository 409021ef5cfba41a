"""Rules of layer-wise relevance propagation (LRP), and composites that say which layer gets which.

Written with R = a c (relevance = activation times coefficient), a rule for a linear layer y = W a + b, in which b and W
include the eval-mode BatchNorm that follows, is a rule for what becomes of the gradient c of y: docs/mathematics.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from attrdrop._core.checks import is_number
from attrdrop.lrp.calls import LinearCall


class Rule:
    """A rule for linear layers; alone it serves as a composite that gives every layer this rule."""

    def for_layer(self, kind: str, is_first: bool) -> Rule:
        """The rule of a layer: kind is "conv" or "linear"; first layers see nothing but the input."""
        return self


@dataclass(frozen=True)
class Epsilon(Rule):
    """LRP-epsilon: R_j = sum_k a_j w_jk R_k / (y_k + eps sign(y_k)).

    Args:
        eps: stabiliser, above 0; large values keep relevance away from weak outputs.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_positive(self)


class SurrogateRule(Rule):
    """A rule that divides by another sum than the layer's output, its surrogate, which the layer is run again for.

    stabilizer: added to the denominator, above 0.
    """

    stabilizer: float

    def __post_init__(self) -> None:
        _check_positive(self)

    @property
    def eps(self) -> float:
        return self.stabilizer

    def surrogate(self, call: LinearCall, y: Tensor, relu: bool) -> Tensor:
        """What the layer's outputs y are replaced by in the denominator; relu: only positive y matter."""
        raise NotImplementedError


@dataclass(frozen=True)
class ZPlus(SurrogateRule):
    """LRP-z+: R_j = sum_k (a_j w_jk)⁺ R_k / (sum_j (a_j w_jk)⁺ + b_k⁺); costs a second forward of the layer.

    Args:
        stabilizer: added to the denominator, above 0.
    """

    stabilizer: float = 1e-6

    def surrogate(self, call: LinearCall, y: Tensor, relu: bool) -> Tensor:
        weight, bias = call.weight, call.bias
        found = call.run(call.positive_input, weight.clamp_min(0), None if bias is None else bias.clamp_min(0))
        if not call.is_nonnegative:
            found = found + call.run(call.input.clamp_max(0), weight.clamp_max(0), None)
        return found


@dataclass(frozen=True)
class Gamma(SurrogateRule):
    """LRP-gamma: contributions of the sign of the output count 1 + gamma times.

    R_j = sum_k (a_j w_jk + gamma (a_j w_jk)⁺) R_k / sum_j (...) where y_k > 0, with ⁻ for ⁺ where y_k < 0.

    Args:
        gamma: 0 or more; 0 is epsilon, infinity z+.
        stabilizer: added to the denominator, above 0.
    """

    gamma: float = 0.25
    stabilizer: float = 1e-6

    def surrogate(self, call: LinearCall, y: Tensor, relu: bool) -> Tensor:
        positive = self._favour(call, above=True)
        return positive if relu else torch.where(y > 0, positive, self._favour(call, above=False))

    def _favour(self, call: LinearCall, above: bool) -> Tensor:
        def larger(values: Tensor, up: bool) -> Tensor:
            return values + self.gamma * (values.clamp_min(0) if up else values.clamp_max(0))

        bias = None if call.bias is None else larger(call.bias, above)
        found = call.run(call.positive_input, larger(call.weight, above), bias)
        if not call.is_nonnegative:
            found = found + call.run(call.input.clamp_max(0), larger(call.weight, not above), None)
        return found


@dataclass(frozen=True)
class Flat(Rule):
    """Every input in the window of an output gets the same share of its relevance, whatever value and weight.

    Meant for layers that see the input. Elsewhere what goes to an activation of 0 is lost, as R = a c.
    """


@dataclass(frozen=True)
class GradientTimesInput(Rule):
    """x dF/dx: the plain gradient in eval mode, no layer treated. Not a rule for single layers."""


@dataclass(frozen=True)
class AbsGradient(Rule):
    """|dF/dx|: the size of the plain gradient in eval mode. Not a rule for single layers."""


@dataclass(frozen=True)
class Composite(Rule):
    """A rule for convolutions, one for linear layers, and one for the layers that see the input.

    Args:
        conv, linear, first: rules for single layers; first None: none of its own.
    """

    conv: Rule = field(default_factory=Epsilon)
    linear: Rule = field(default_factory=Epsilon)
    first: Rule | None = None

    def __post_init__(self) -> None:
        for name in ("conv", "linear", "first"):
            rule = getattr(self, name)
            if not isinstance(rule, (Epsilon, ZPlus, Gamma, Flat)) and not (rule is None and name == "first"):
                raise TypeError(f"{name} must be Epsilon, ZPlus, Gamma or Flat, got {rule!r}")

    def for_layer(self, kind: str, is_first: bool) -> Rule:
        if is_first and self.first is not None:
            return self.first
        return self.conv if kind == "conv" else self.linear


def EpsilonPlusFlat(eps: float = 1e-3, stabilizer: float = 1e-6) -> Composite:
    """z+ for convolutions, epsilon for linear layers, flat for the first."""
    return Composite(conv=ZPlus(stabilizer), linear=Epsilon(eps), first=Flat())


def EpsilonPlus(eps: float = 1e-3, stabilizer: float = 1e-6) -> Composite:
    """z+ for convolutions, epsilon for linear layers."""
    return Composite(conv=ZPlus(stabilizer), linear=Epsilon(eps))


def EpsilonFlat(eps: float = 1e-3) -> Composite:
    """Epsilon for all layers but the first, which is flat."""
    return Composite(conv=Epsilon(eps), linear=Epsilon(eps), first=Flat())


def _check_positive(rule: Rule) -> None:
    """All parameters of rules are numbers above 0, gamma may be 0."""
    for name in (entry.name for entry in fields(rule)):  # type: ignore[arg-type]
        value = getattr(rule, name)
        least = "0 or more" if name == "gamma" else "above 0"
        if not is_number(value):
            raise TypeError(f"{name} must be a number {least}, got {type(value).__name__}")
        if not (value > 0 or (name == "gamma" and value == 0)) or value == float("inf"):
            raise ValueError(f"{name} must be finite and {least}, got {value}")
