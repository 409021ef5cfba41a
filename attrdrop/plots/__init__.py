"""Figures without a display: curves of data frames and texts here, pictures in :mod:`images` and :mod:`points`."""

from attrdrop.plots.curves import flipping_curves, loss_curves, point_loss_curves, training_curves
from attrdrop.plots.text import text_heatmap

__all__ = ["flipping_curves", "loss_curves", "point_loss_curves", "text_heatmap", "training_curves"]
