"""The rivals of occlude_points compute what it computes, where they get its numbers."""

import pytest
import torch
from bench_setup import CPU

from attrdrop import occlude_points
from attrdrop.reference.occlude_points import POINT, point_words
from bench.ops import points
from bench.ops.shapes import SEED, PointShape


@pytest.mark.parametrize("rival", [points.loop, *points.EAGER.values()])
def test_rivals_drop_the_same_points(rival):
    shape = PointShape(8, 300, 3)
    inputs = points.PointInputs(shape, CPU, torch.float32)
    before = inputs.points.clone()
    numbers = point_words(shape.n, POINT, SEED, torch.arange(shape.batch)).double() * 2.0**-32
    rows = iter(numbers)
    found = rival(inputs, lambda size, **_: next(rows) if isinstance(size, int) else numbers.clone())
    expected, dropped = occlude_points(
        inputs.points, inputs.relevance, alpha=points.ALPHA, beta=points.BETA, mode="threshold", seed=SEED
    )
    assert torch.equal(found, expected)
    assert torch.equal(inputs.points, before)
    assert 8 < dropped.sum() < 300


@pytest.mark.parametrize("rival", [points.loop, *points.EAGER.values()])
def test_rivals_draw_anew(rival):
    inputs = points.PointInputs(PointShape(4, 300, 3), CPU, torch.float32)
    assert not torch.equal(rival(inputs), rival(inputs))
