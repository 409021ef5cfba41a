"""attrdrop.models: shapes, parameter counts, that they train, and that attribution reaches them."""

import pytest
import torch
from torch.nn import functional

from attrdrop import lrp
from attrdrop.models import ResNet, resnet10, resnet18, resnet50


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        pytest.param(lambda: resnet18(10), 11_173_962, id="resnet18, small stem"),
        pytest.param(lambda: resnet18(1000, small_images=False), 11_689_512, id="resnet18, large stem"),
        pytest.param(lambda: resnet50(1000), 25_557_032, id="resnet50"),
    ],
)
def test_parameters_are_those_of_the_published_networks(build, parameters):
    with torch.device("meta"):
        model = build()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        pytest.param(lambda: resnet10(7, width=4), (3, 32, 32), id="resnet10"),
        pytest.param(lambda: resnet10(7, width=4, channels=1), (1, 29, 31), id="grey and odd"),
        pytest.param(lambda: resnet18(7, width=4), (3, 32, 32), id="resnet18"),
        pytest.param(lambda: resnet18(7, width=4, small_images=False), (3, 64, 64), id="resnet18, large stem"),
        pytest.param(lambda: resnet50(7, width=4), (3, 64, 48), id="resnet50"),
        pytest.param(lambda: resnet50(7, width=4, small_images=True), (3, 16, 16), id="resnet50, small stem"),
        pytest.param(lambda: ResNet([1, 2], 7, width=4), (3, 8, 8), id="two stages"),
    ],
)
def test_shapes_of_logits_and_relevance(build, shape):
    model, images = build(), torch.randn(2, *shape)
    assert model(images).shape == (2, 7)
    relevance = lrp.relevance(model, images, "pred")
    assert relevance.shape == images.shape
    assert relevance.isfinite().all()
    assert model.training


@pytest.mark.parametrize(("small_images", "side"), [(True, 32), (False, 8)])
def test_the_stem_keeps_or_quarters_the_resolution(small_images, side):
    model = resnet10(3, width=4, small_images=small_images).eval()
    x = model.stem(torch.randn(1, 3, 32, 32))
    assert x.shape == (1, 4, side, side)
    for place, stage in enumerate(model.stages):
        x = stage(x)
        assert x.shape == (1, 4 * 2**place, -(-side // 2**place), -(-side // 2**place))


@pytest.mark.parametrize("build", [resnet10, resnet18, resnet50], ids=lambda build: build.__name__)
def test_training_steps_lower_the_loss(build):
    model = build(3, width=4, small_images=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    images, labels = torch.randn(12, 3, 16, 16), torch.arange(12) % 3
    losses = []
    for _ in range(4):
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert losses[1] < losses[0]
