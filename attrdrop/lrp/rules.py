"""Rules of layer-wise relevance propagation (LRP).

Written with R = a c (relevance = activation times coefficient), a rule for a linear layer y = W a + b, in which b and W
include the eval-mode BatchNorm that follows, is a rule for what becomes of the gradient c of y: docs/mathematics.md.
Costs are forward passes of the treated layer beside its own forward and backward; each comes with its backward, and
keeps as much as that layer's own. ⁺ and ⁻ are the parts of a number above and below zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attrdrop._core.checks import is_number
from attrdrop.lrp.calls import LinearCall
from attrdrop.lrp.carriers import Blocked, Carried, FlatJoin
from attrdrop.ops.relevance_gate import relevance_gate


class Layer:
    """A layer that runs and wants its rule.

    Args:
        kind: "conv" or "linear".
        is_first: whether nothing but moves stands between the model's input and it.
        find: gives the name and the module, the innermost whose code runs; asked only by rules that look.
    """

    def __init__(self, kind: str, is_first: bool, find: Callable[[], tuple[str, nn.Module]]) -> None:
        self.kind, self.is_first, self.find = kind, is_first, find

    @property
    def name(self) -> str:
        return self.find()[0]


class Choice(NamedTuple):
    """A layer's rule and why it has it. entry: of a composite's entries by name, the one that says so."""

    rule: LayerRule
    why: str
    entry: int | None = None


class Rule:
    """A rule for linear layers; on its own, it serves as a composite that assigns this rule to every layer."""

    def choose(self, layer: Layer) -> Choice:
        """The rule of a layer."""
        raise NotImplementedError

    def patterns(self) -> list[str]:
        """Shell patterns on names of modules that it holds."""
        return []


class LayerRule(Rule):
    """A rule that single layers can have.

    eps: what damps the gradient at the layer's output. has_gradient: whether its relevance has one in turn.
    """

    eps = 0.0
    has_gradient = False

    def choose(self, layer: Layer) -> Choice:
        return Choice(self, "every layer")

    def misfit(self, call: LinearCall, y: Tensor) -> str | None:
        """Why the rule cannot treat this layer, if it cannot."""
        return None


@dataclass(frozen=True)
class Epsilon(LayerRule):
    """LRP-epsilon: R_j = sum_k a_j w_jk R_k / (y_k + eps sign(y_k)). Costs nothing (Bach et al., 2015).

    Args:
        eps: stabiliser, above 0; large values keep relevance away from weak outputs.
    """

    has_gradient = True

    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True)
class Zero(LayerRule):
    """LRP-0: R_j = sum_k a_j w_jk R_k / y_k, nothing where y_k is 0. Costs nothing (Bach et al., 2015).

    In a ReLU network it is gradient times input, including its noise.
    """

    has_gradient = True


class SurrogateRule(LayerRule):
    """A rule that divides by another sum than the layer's output, its surrogate, which the layer is run again for.

    stabilizer: added to the denominator with its sign, above 0.
    """

    stabilizer: float

    def __post_init__(self) -> None:
        _check_numbers(self)

    @property
    def eps(self) -> float:  # type: ignore[override]
        return self.stabilizer

    def surrogate(self, call: LinearCall, y: Tensor, relu: bool) -> Tensor:
        """What the layer's outputs y are replaced by in the denominator; relu: only positive y matter."""
        raise NotImplementedError


@dataclass(frozen=True)
class ZPlus(SurrogateRule):
    """LRP-z⁺: R_j = sum_k (a_j w_jk)⁺ R_k / (sum_j (a_j w_jk)⁺ + b_k⁺).

    Costs one forward of the layer, two where inputs may be negative (Montavon et al., 2017).

    Args:
        stabilizer: added to the denominator, above 0.
    """

    has_gradient = True

    stabilizer: float = 1e-6

    def surrogate(self, call: LinearCall, y: Tensor, relu: bool) -> Tensor:
        return _signed_sum(call, above=True)


@dataclass(frozen=True)
class AlphaBeta(SurrogateRule):
    """LRP-alpha-beta: contributions for and against an output are weighted by alpha and -beta.

    R_j = sum_k (alpha (a_j w_jk)⁺ / s_k⁺ - beta (a_j w_jk)⁻ / s_k⁻) R_k, s_k⁺ = sum_j (a_j w_jk)⁺ + b_k⁺, s_k⁻ so too.
    Costs two forwards of the layer, four where inputs may be negative, half of them with beta = 0 (Bach et al., 2015).

    Args:
        alpha, beta: 0 or more, alpha - beta = 1; 1 and 0 are z⁺.
        stabilizer: added to both denominators with their signs, above 0.
    """

    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.alpha - self.beta - 1) > 1e-9:
            raise ValueError(f"alpha - beta must be 1, got {self.alpha} - {self.beta}")

    @property
    def eps(self) -> float:  # type: ignore[override]
        return 0.0  # the surrogate has the stabilizer within

    def surrogate(self, call: LinearCall, y: Tensor, relu: bool) -> Tensor:
        """1, whose gradient is alpha ds⁺ / s⁺ - beta ds⁻ / s⁻."""
        ones = torch.ones_like(y)
        found = relevance_gate(ones, self.stabilizer, surrogate=_signed_sum(call, above=True).to(y.dtype))
        if self.beta == 0:
            return found
        against = relevance_gate(ones, self.stabilizer, surrogate=_signed_sum(call, above=False).to(y.dtype))
        return self.alpha * found - self.beta * against


@dataclass(frozen=True)
class Gamma(SurrogateRule):
    """LRP-gamma: contributions with the output's sign are weighted by 1 + gamma.

    R_j = sum_k (a_j w_jk + gamma (a_j w_jk)⁺) R_k / sum_j (...) where y_k > 0, with ⁻ for ⁺ where y_k < 0.
    Costs one forward of the layer before a ReLU, else two; twice that where inputs may be negative (Montavon et al.,
    2019).

    Args:
        gamma: 0 or more; 0 is epsilon, infinity z⁺. A mapping such as {"layer1.*": 0.5, "*": 0.1} gives each layer the
            value of the first shell pattern that matches its name.
        stabilizer: added to the denominator, above 0.
    """

    has_gradient = True

    gamma: float | Mapping[str, float] | tuple[tuple[str, float], ...] = 0.25
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        if isinstance(self.gamma, Mapping):
            for value in self.gamma.values():
                Gamma(value, self.stabilizer)
            object.__setattr__(self, "gamma", tuple(self.gamma.items()))  # can be hashed
        if not isinstance(self.gamma, tuple):
            super().__post_init__()

    def choose(self, layer: Layer) -> Choice:
        if not isinstance(self.gamma, tuple):
            return super().choose(layer)
        for pattern, value in self.gamma:
            if fnmatchcase(layer.name, pattern):
                return Choice(replace(self, gamma=value), f"gamma of {pattern!r}")
        patterns = ", ".join(self.patterns())
        raise ValueError(f"gamma has no value for the layer {layer.name}, which matches none of {patterns}")

    def patterns(self) -> list[str]:
        return [pattern for pattern, _ in self.gamma] if isinstance(self.gamma, tuple) else []

    def surrogate(self, call: LinearCall, y: Tensor, relu: bool) -> Tensor:
        positive = self._favour(call, above=True)
        return positive if relu else torch.where(y > 0, positive, self._favour(call, above=False))

    def _favour(self, call: LinearCall, above: bool) -> Tensor:
        gamma = self.gamma
        assert is_number(gamma)

        return _signed_sum(call, above, lambda values, up, out=None: values + gamma * _part(values, up))


@dataclass(frozen=True)
class ZBox(SurrogateRule):
    """LRP-zB: for bounded inputs, such as pixels; relative to the lowest and highest value of each.

    R_j = sum_k (x_j w_jk - l_j w_jk⁺ - h_j w_jk⁻) R_k / sum_j (...), the bias left out. Meant for layers that see the
    input. Costs three forwards of the layer (Montavon et al., 2017).

    Args:
        low, high: a number, or one per channel of the layer's input (for linear layers: per feature), in the units of
            that input, normalised if the input is normalised. low at most high.
        stabilizer: added to the denominator with its sign, above 0.
    """

    low: float | Sequence[float] | Tensor
    high: float | Sequence[float] | Tensor
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, _by_channel(name, getattr(self, name)))
        low, high = _values(self.low), _values(self.high)
        if len(low) != len(high) and 1 not in (len(low), len(high)):
            raise ValueError(f"low and high must have as many values, got {len(low)} and {len(high)}")
        if any(a > b for a, b in zip(low * len(high), high * len(low), strict=False)):
            raise ValueError(f"low must be at most high, got {self.low} above {self.high}")
        _check_numbers(self)

    def misfit(self, call: LinearCall, y: Tensor) -> str | None:
        channels = call.input.shape[call.channel_axis]
        for name in ("low", "high"):
            count = len(_values(getattr(self, name)))
            if count not in (1, channels):
                return f"{name} has {count} values, and the layer's input {channels} channels"
        return None

    def surrogate(self, call: LinearCall, y: Tensor, relu: bool) -> Tensor:
        scaled = 1 + call.shares  # d/dt of f(x (1 + t)) is x f'(x): what each element contributes
        weight = call.folded_weight
        found = call.run(call.input.detach() * scaled, weight, None)
        for bound, part in ((self.low, weight.clamp_min(0)), (self.high, weight.clamp_max(0))):
            values = scaled.new_tensor(_values(bound)).movedim(0, -1)
            shape = [1] * scaled.dim()
            shape[call.channel_axis] = -1
            found = found - call.run(scaled * values.view(shape), part, None)
        return found


@dataclass(frozen=True)
class WSquare(SurrogateRule):
    """LRP-w²: R_j = sum_k w_jk² R_k / (sum_j w_jk² + b_k²), regardless of the inputs.

    Meant for layers that see unbounded inputs. Costs one forward of the layer (Montavon et al., 2017; with b² as in
    zennit).

    Args:
        stabilizer: added to the denominator, above 0.
    """

    stabilizer: float = 1e-6

    def surrogate(self, call: LinearCall, y: Tensor, relu: bool) -> Tensor:
        bias = None if call.bias is None else call.bias.square()
        return call.weighed(1 + call.shares, lambda weight, _: weight.square(), bias)


class JoinRule(LayerRule):
    """A rule that puts something behind the layer's output y."""

    def join(self, call: LinearCall, y: Tensor) -> Tensor:
        """y, with its relevance led where the rule says."""
        raise NotImplementedError


@dataclass(frozen=True)
class Flat(JoinRule):
    """Every input in the window of an output gets the same share of its relevance, regardless of value and weight.

    R_j = sum_k R_k / n_k, n_k inputs each. Meant for layers that see the input; elsewhere what goes to an activation of
    0 is lost, as R = a c. Costs one forward of the layer with one channel (Lapuschkin et al., 2019).
    """

    def join(self, call: LinearCall, y: Tensor) -> Tensor:
        return FlatJoin.apply(y, *_windows(call))


@dataclass(frozen=True)
class Pass(JoinRule):
    """R_j = R_j of the output: each input gets the relevance of the output at its position. Costs nothing.

    For layers whose output has the shape of their input.
    """

    def misfit(self, call: LinearCall, y: Tensor) -> str | None:
        if y.shape == call.input.shape:
            return None
        return f"Pass needs outputs with the shape of the input, {tuple(call.input.shape)}, not {tuple(y.shape)}"

    def join(self, call: LinearCall, y: Tensor) -> Tensor:
        return Carried.apply(y, call.shares)


@dataclass(frozen=True)
class Block(JoinRule):
    """R_j = 0: relevance ends at the layer's output. Costs nothing."""

    def join(self, call: LinearCall, y: Tensor) -> Tensor:
        return Blocked.apply(y)


@dataclass(frozen=True)
class GradientTimesInput(Rule):
    """x dF/dx: the plain gradient in eval mode, without rules. Not a rule for single layers."""


@dataclass(frozen=True)
class AbsGradient(Rule):
    """|dF/dx|: the magnitude of the plain gradient in eval mode. Not a rule for single layers."""


def _part(values: Tensor, above: bool, out: Tensor | None = None) -> Tensor:
    return torch.clamp_min(values, 0, out=out) if above else torch.clamp_max(values, 0, out=out)


def _signed_sum(call: LinearCall, above: bool, of: Callable[..., Tensor] = _part) -> Tensor:
    """sum_j (a_j w_jk)⁺ + b_k⁺, or that of ⁻; of: what is taken of weights and biases instead of their parts."""
    bias = None if call.bias is None else of(call.bias, above)
    found = call.weighed(call.positive_input, lambda weight, out: of(weight, above, out), bias)
    if not call.is_nonnegative:
        found = found + call.weighed(call.input.clamp_max(0), lambda weight, out: of(weight, not above, out), None)
    return found


def _windows(call: LinearCall) -> tuple[Tensor, Tensor]:
    """Zeros shaped as the layer's output, with a channel for each group, and the number of inputs of each window.

    A gradient of the zeros is spread evenly over each window.
    """
    zeros = call.shares
    if not call.is_conv:
        return zeros.sum(-1, keepdim=True), call.weight.new_full((), call.weight.shape[1])
    groups, channels = call.groups, zeros.shape[1]
    grouped = zeros.unflatten(1, (groups, channels // groups)).sum(2)
    kernel = call.weight.new_ones((groups, 1, *call.weight.shape[2:]))
    ones = torch.ones_like(grouped[:1])
    return call.run(grouped, kernel, None), call.run(ones, kernel, None).detach() * (channels // groups)


def _values(bound: float | Sequence[float] | Tensor) -> tuple[float, ...]:
    return bound if isinstance(bound, tuple) else (bound,)  # type: ignore[return-value]


def _by_channel(name: str, bound: object) -> float | tuple[float, ...]:
    """A number, or a tuple of numbers."""
    if is_number(bound):
        return float(bound)
    if isinstance(bound, Tensor):
        if bound.dim() and bound.numel() != max(bound.shape):
            raise ValueError(f"{name} must be a number or have one value per channel, got shape {tuple(bound.shape)}")
        bound = bound.flatten().tolist()
    if isinstance(bound, Sequence) and bound and all(is_number(value) for value in bound):
        return tuple(float(value) for value in bound)
    raise TypeError(f"{name} must be a number or one per channel, got {type(bound).__name__}")


_LEAST_IS_ZERO = ("gamma", "alpha", "beta")
_ANY_NUMBERS = ("low", "high")


def _check_numbers(rule: LayerRule) -> None:
    """All parameters of rules are finite numbers, most of them above 0."""
    for name in (entry.name for entry in fields(rule)):  # type: ignore[arg-type]
        if name in _ANY_NUMBERS:
            continue
        value = getattr(rule, name)
        least = "0 or more" if name in _LEAST_IS_ZERO else "above 0"
        if not is_number(value):
            raise TypeError(f"{name} must be a number {least}, got {type(value).__name__}")
        if not (value > 0 or (name in _LEAST_IS_ZERO and value == 0)) or value == float("inf"):
            raise ValueError(f"{name} must be finite and {least}, got {value}")
