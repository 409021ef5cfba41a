"""Composites: which layer gets which rule; and presets under the names that zennit gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from attrdrop.lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, Layer, LayerRule, Rule, ZBox, ZPlus


@dataclass(frozen=True)
class Composite(Rule):
    """A rule for convolutions, one for linear layers, and one for the layers that see the input.

    Args:
        conv, linear, first: rules for single layers; first None: none of its own.
    """

    conv: LayerRule = field(default_factory=Epsilon)
    linear: LayerRule = field(default_factory=Epsilon)
    first: LayerRule | None = None

    def __post_init__(self) -> None:
        for name in ("conv", "linear", "first"):
            rule = getattr(self, name)
            if not isinstance(rule, LayerRule) and not (rule is None and name == "first"):
                raise TypeError(f"{name} must be a rule for single layers, such as Epsilon() or ZPlus(), got {rule!r}")

    def for_layer(self, layer: Layer) -> Rule:
        if layer.is_first and self.first is not None:
            return self.first.for_layer(layer)
        return (self.conv if layer.kind == "conv" else self.linear).for_layer(layer)


def EpsilonPlus(eps: float = 1e-3, stabilizer: float = 1e-6) -> Composite:
    """z⁺ for convolutions, epsilon for linear layers."""
    return Composite(conv=ZPlus(stabilizer), linear=Epsilon(eps))


def EpsilonPlusFlat(eps: float = 1e-3, stabilizer: float = 1e-6) -> Composite:
    """z⁺ for convolutions, epsilon for linear layers, flat for the first."""
    return Composite(conv=ZPlus(stabilizer), linear=Epsilon(eps), first=Flat())


def EpsilonFlat(eps: float = 1e-3) -> Composite:
    """Epsilon for all layers but the first, which is flat."""
    return Composite(conv=Epsilon(eps), linear=Epsilon(eps), first=Flat())


def EpsilonAlpha2Beta1(eps: float = 1e-3, stabilizer: float = 1e-6) -> Composite:
    """alpha = 2, beta = 1 for convolutions, epsilon for linear layers."""
    return Composite(conv=AlphaBeta(2, 1, stabilizer), linear=Epsilon(eps))


def EpsilonAlpha2Beta1Flat(eps: float = 1e-3, stabilizer: float = 1e-6) -> Composite:
    """alpha = 2, beta = 1 for convolutions, epsilon for linear layers, flat for the first."""
    return Composite(conv=AlphaBeta(2, 1, stabilizer), linear=Epsilon(eps), first=Flat())


def EpsilonGammaBox(
    low: float | Sequence[float] | Tensor,
    high: float | Sequence[float] | Tensor,
    eps: float = 1e-3,
    gamma: float = 0.25,
    stabilizer: float = 1e-6,
) -> Composite:
    """gamma for convolutions, epsilon for linear layers, zB between low and high for the first."""
    return Composite(conv=Gamma(gamma, stabilizer), linear=Epsilon(eps), first=ZBox(low, high, stabilizer))


def PointNetFlat(eps: float = 1e-6) -> Composite:
    """Epsilon of 1e-6 and flat for the first layers: the numbers of RelDrop's released code for point clouds.

    That code has flat on one of the three scales that see the points; here all of them have it.
    """
    return EpsilonFlat(eps)
