"""Figures without a display: curves of data frames here, pictures in :mod:`images` and :mod:`points`."""

from attrdrop.plots.curves import flipping_curves, loss_curves, point_loss_curves, training_curves

__all__ = ["flipping_curves", "loss_curves", "point_loss_curves", "training_curves"]
