"""Composites: which layer gets which rule; and presets under the names that zennit gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor, nn

from attrdrop._core.warning import warn
from attrdrop.lrp.rules import AlphaBeta, Choice, Epsilon, Flat, Gamma, Layer, LayerRule, Rule, ZBox, ZPlus

Condition = str | type[nn.Module] | Callable[[str, nn.Module], bool]
"""Of a module: a shell pattern on its name, its type, or a function of its name and itself."""


@dataclass(frozen=True)
class Composite(Rule):
    """Rules by layer: by name, type or predicate, else for convolutions, linear layers and layers that see the input.

    A layer is identified by the innermost module whose code runs it, such as the
    ``nn.Linear`` itself, and by its name in ``model.named_modules()``. :func:`attrdrop.lrp.explain` shows which rule
    each layer gets, and why.

    Args:
        conv, linear, first: rules for single layers; first=None: no special rule.
        layers: pairs of a condition and a rule; the first condition that holds decides, before conv, linear and first.
            A condition is a shell pattern ("stages.0.*", where * also matches dots), a type of ``nn.Module``, or a
            function of name and module that returns whether it holds.
    """

    conv: LayerRule = field(default_factory=Epsilon)
    linear: LayerRule = field(default_factory=Epsilon)
    first: LayerRule | None = None
    layers: Sequence[tuple[Condition, LayerRule]] = ()

    def __post_init__(self) -> None:
        for name in ("conv", "linear", "first"):
            rule = getattr(self, name)
            if not (rule is None and name == "first"):
                _check_rule(name, rule)
        is_list = isinstance(self.layers, Sequence) and not isinstance(self.layers, str)
        if not is_list or any(not isinstance(entry, (tuple, list)) or len(entry) != 2 for entry in self.layers):
            raise TypeError(f"layers must be a list of pairs of a condition and a rule, got {self.layers!r}")
        for condition, rule in self.layers:
            if not (isinstance(condition, str) or _is_type(condition) or _is_predicate(condition)):
                raise TypeError(
                    "layers must name layers by a shell pattern, a type of nn.Module or a function of name and module, "
                    f"got {condition!r}"
                )
            _check_rule("layers", rule)
        object.__setattr__(self, "layers", tuple((condition, rule) for condition, rule in self.layers))

    def choose(self, layer: Layer) -> Choice:
        name, module = layer.find() if self.layers else ("", None)
        for place, (condition, rule) in enumerate(self.layers):
            if condition_holds(condition, name, module):
                return Choice(rule.choose(layer).rule, described(condition), place)
        if layer.is_first and self.first is not None:
            return Choice(self.first.choose(layer).rule, "first: it sees the input")
        is_conv = layer.kind == "conv"
        return Choice((self.conv if is_conv else self.linear).choose(layer).rule, layer.kind)

    def patterns(self) -> list[str]:
        held = [rule for rule in (self.conv, self.linear, self.first) if rule is not None]
        own = [condition for condition, _ in self.layers if isinstance(condition, str)]
        return own + [pattern for rule in (*held, *(rule for _, rule in self.layers)) for pattern in rule.patterns()]


def unmatched(rule: Rule, model: nn.Module) -> list[str]:
    """The conditions that hold for no module of the model, in words."""
    conditions: list[Condition] = list(rule.patterns())
    if isinstance(rule, Composite):
        conditions += [condition for condition, _ in rule.layers if not isinstance(condition, str)]
    modules = list(model.named_modules()) if conditions else []
    return [
        described(condition)
        for condition in conditions
        if not any(condition_holds(condition, name, module) for name, module in modules)
    ]


def warn_of_unmatched(rule: Rule, model: nn.Module) -> None:
    """A pattern with a slip of the pen would else go unnoticed."""
    for words in unmatched(rule, model):
        names = ", ".join([name for name, _ in model.named_modules() if name][:3])
        warn(f"the {words} of the composite matches no module of {type(model).__name__}, which has {names}")


def condition_holds(condition: Condition, name: str, module: nn.Module | None) -> bool:
    if isinstance(condition, str):
        return fnmatchcase(name, condition)
    return isinstance(module, condition) if isinstance(condition, type) else bool(condition(name, module))  # type: ignore[arg-type]


def described(condition: Condition) -> str:
    if isinstance(condition, str):
        return f"pattern {condition!r}"
    return f"{'type' if isinstance(condition, type) else 'predicate'} {getattr(condition, '__name__', condition)}"


def _is_type(condition: object) -> bool:
    return isinstance(condition, type) and issubclass(condition, nn.Module)


def _is_predicate(condition: object) -> bool:
    return callable(condition) and not isinstance(condition, (type, nn.Module))


def _check_rule(name: str, rule: object) -> None:
    if not isinstance(rule, LayerRule):
        raise TypeError(f"{name} must be a rule for single layers, such as Epsilon() or ZPlus(), got {rule!r}")


def EpsilonPlus(eps: float = 1e-3, stabilizer: float = 1e-6) -> Composite:
    """z⁺ for convolutions, epsilon for linear layers."""
    return Composite(conv=ZPlus(stabilizer), linear=Epsilon(eps))


def EpsilonPlusFlat(eps: float = 1e-3, stabilizer: float = 1e-6) -> Composite:
    """z⁺ for convolutions, epsilon for linear layers, flat for the first."""
    return Composite(conv=ZPlus(stabilizer), linear=Epsilon(eps), first=Flat())


def EpsilonFlat(eps: float = 1e-3) -> Composite:
    """Epsilon for all layers except the first, which is flat."""
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


def PointNetFlat(eps: float = 1e-6, first: Condition | None = None) -> Composite:
    """Epsilon of 1e-6, flat at the points: the composite of RelDrop's released code for PointNet++.

    Args:
        eps: stabiliser of the epsilon rule.
        first: the flat layers, as in ``Composite(layers=...)``; by default all that see the points. The released code
            uses flat on one of the first convolutions of its three scales.
    """
    if first is None:
        return EpsilonFlat(eps)
    return Composite(conv=Epsilon(eps), linear=Epsilon(eps), layers=[(first, Flat())])
