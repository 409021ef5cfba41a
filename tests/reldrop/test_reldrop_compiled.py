"""A function that torch.compile traces may call the transforms: they run as they are, by a break in its graph."""

import pytest
import torch
from image_models import image_batch, small_resnet
from point_models import point_batch, small_pointnet2
from torch.nn import functional

from attrdrop import RelCutMix, RelDrop, RelDropPoints

TRANSFORMS = {
    "images": (small_resnet, image_batch, lambda model: RelDrop(model, p=0.5, alpha=0.5)),
    "mixed": (small_resnet, image_batch, lambda model: RelCutMix(model, 5, p=1.0, alpha=0.0)),
    "points": (small_pointnet2, point_batch, lambda model: RelDropPoints(model, mode="calibrated")),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_compiled_step_takes_what_the_step_takes(name):
    build, batch, transform_of = TRANSFORMS[name]
    inputs, labels = batch(4)

    def train(wrap):
        model = build()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        transform = transform_of(model)

        def step(inputs, labels):
            taken = transform(inputs * 1.5, labels)
            taken, targets = taken if isinstance(taken, tuple) else (taken, labels)
            return functional.cross_entropy(model(taken), targets), taken

        run, taken = wrap(step), []
        for _ in range(2):
            loss, found = run(inputs, labels)
            loss.backward()
            taken.append(found)
        return taken, transform.statistics(), [parameter.grad for parameter in model.parameters()]

    expected, counted, gradients = train(lambda step: step)
    found, also_counted, also_gradients = train(lambda step: torch.compile(step, backend="eager"))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert counted == also_counted
    torch.testing.assert_close(also_gradients, gradients, atol=1e-5, rtol=1e-4)
