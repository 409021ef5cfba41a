"""Layer-wise relevance propagation (LRP) as a damped gradient: one forward, one backward, no change to the model."""

from attrdrop.lrp.captured import capture
from attrdrop.lrp.composites import (
    Composite,
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonFlat,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    PointNetFlat,
)
from attrdrop.lrp.explain import LayerRow, LayerTable, explain
from attrdrop.lrp.relevance import layer_relevance, relevance
from attrdrop.lrp.rules import (
    AbsGradient,
    AlphaBeta,
    Block,
    Epsilon,
    Flat,
    Gamma,
    GradientTimesInput,
    Pass,
    Rule,
    WSquare,
    ZBox,
    Zero,
    ZPlus,
)

__all__ = [
    "AbsGradient",
    "AlphaBeta",
    "Block",
    "Composite",
    "Epsilon",
    "EpsilonAlpha2Beta1",
    "EpsilonAlpha2Beta1Flat",
    "EpsilonFlat",
    "EpsilonGammaBox",
    "EpsilonPlus",
    "EpsilonPlusFlat",
    "Flat",
    "Gamma",
    "GradientTimesInput",
    "LayerRow",
    "LayerTable",
    "Pass",
    "PointNetFlat",
    "Rule",
    "WSquare",
    "ZBox",
    "ZPlus",
    "Zero",
    "capture",
    "explain",
    "layer_relevance",
    "relevance",
]
