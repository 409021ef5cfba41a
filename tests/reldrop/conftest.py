"""The model and the batch of most tests of RelDrop."""

import pytest
from image_models import image_batch, small_resnet


@pytest.fixture
def model():
    return small_resnet()


@pytest.fixture
def batch():
    return image_batch()
