"""Experiments on text, images and point clouds, and the command `attrdrop` that runs them."""
