"""Layer-wise relevance propagation (LRP) as a damped gradient: one forward, one backward, no change to the model."""

from attrdrop.lrp.relevance import layer_relevance, relevance
from attrdrop.lrp.rules import (
    AbsGradient,
    Composite,
    Epsilon,
    EpsilonFlat,
    EpsilonPlus,
    EpsilonPlusFlat,
    Flat,
    Gamma,
    GradientTimesInput,
    Rule,
    ZPlus,
)

__all__ = [
    "AbsGradient",
    "Composite",
    "Epsilon",
    "EpsilonFlat",
    "EpsilonPlus",
    "EpsilonPlusFlat",
    "Flat",
    "Gamma",
    "GradientTimesInput",
    "Rule",
    "ZPlus",
    "layer_relevance",
    "relevance",
]
