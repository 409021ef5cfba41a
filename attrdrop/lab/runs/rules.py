"""Rules of relevance by name."""

from collections.abc import Callable

from attrdrop import lrp

_MADE: dict[str, Callable[[float], lrp.Rule]] = {
    "epsilon-plus-flat": lrp.EpsilonPlusFlat,
    "epsilon": lrp.Epsilon,
    "epsilon-flat": lrp.EpsilonFlat,
    "epsilon-plus": lrp.EpsilonPlus,
    "gradient-times-input": lambda epsilon: lrp.GradientTimesInput(),
    "abs-gradient": lambda epsilon: lrp.AbsGradient(),
}
WITHOUT_EPSILON = ("gradient-times-input", "abs-gradient")


def rule_of(name: str, epsilon: float) -> lrp.Rule:
    """The rule of that name; gradients have no epsilon."""
    return _MADE[name](epsilon)
