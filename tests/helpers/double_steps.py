"""Steps in float64 of small models, and that two of them are equal."""

import torch
from eager import gradients_of
from models import batch, build
from own_attention import InDouble


def task(name, dtype=torch.float64, **fields):
    """A model, with fields of its configuration, and a batch for it."""
    return build(name, dtype, **fields), batch(name, dtype=dtype)


def step(model, loss):
    """Loss and gradients of a step in float64; ``loss`` makes the former."""
    model.zero_grad()
    with InDouble():
        made = loss()
        made.backward()
    return made.detach(), gradients_of(model)


def assert_equal_steps(ours, theirs, tolerance=1e-10):
    assert abs(float(ours[0] - theirs[0])) < tolerance
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, atol=tolerance, rtol=tolerance, msg=name)
