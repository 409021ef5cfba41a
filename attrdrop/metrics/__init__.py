"""Measures of relevance maps, of what models do under them, and of robustness. They need only torch and NumPy."""

from attrdrop.metrics.flipping import FlippingCurve, flipping_curve
from attrdrop.metrics.out_of_distribution import (
    anomaly_score,
    aupr,
    auroc,
    aurra,
    brier_score,
    calibration_error,
    class_subset,
    evaluate,
    top1,
)
from attrdrop.metrics.point_loss import PointLossCurve, point_loss_curve
from attrdrop.metrics.rank_accuracy import pointing_game, relevance_mass_accuracy, relevance_rank_accuracy
from attrdrop.metrics.sparsity import channel_relevance, entropy, gini, hoyer

__all__ = [
    "FlippingCurve",
    "PointLossCurve",
    "anomaly_score",
    "aupr",
    "auroc",
    "aurra",
    "brier_score",
    "calibration_error",
    "channel_relevance",
    "class_subset",
    "entropy",
    "evaluate",
    "flipping_curve",
    "gini",
    "hoyer",
    "point_loss_curve",
    "pointing_game",
    "relevance_mass_accuracy",
    "relevance_rank_accuracy",
    "top1",
]
