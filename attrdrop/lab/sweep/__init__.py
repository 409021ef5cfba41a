"""Sweeps over settings, methods and sizes of the training split: their tables."""
