"""Blocks of whole patches: aligned to the grid of a ViT, around the most relevant patch."""

import pytest
import torch

import attrdrop
from attrdrop.models import resnet10


def boxes_of(before, after):
    """Rows and columns of each image that changed, first and one past the last."""
    for image, other in zip(before, after, strict=True):
        changed = (image != other).any(0)
        if not changed.any():
            yield None
            continue
        rows, columns = (changed.any(axis).nonzero().flatten() for axis in (1, 0))
        top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
        assert changed[top:bottom, left:right].all()
        yield int(top), int(left), int(bottom), int(right)


@pytest.mark.parametrize("size", [(32, 32), (30, 37)])
def test_blocks_are_of_whole_patches(size):
    model = resnet10(classes=3, width=4).train()
    images = torch.rand(24, 3, *size) + 1
    relevance = torch.rand(24, *size) * 0.1
    relevance[:, 20:23, 9:11] = 5.0  # in the patch of row 2, column 1
    reldrop = attrdrop.RelDrop(model, p=0.8, alpha=0.0, patch=8)
    after = reldrop(images, torch.zeros(24, dtype=torch.int64), relevance)
    found = list(boxes_of(images, after))
    assert torch.equal(reldrop.occluded, torch.tensor([box is not None for box in found]))
    assert 12 < int(reldrop.occluded.sum()) < 24
    for top, left, bottom, right in filter(None, found):
        assert top % 8 == left % 8 == 0
        assert bottom % 8 == 0 or bottom == size[0]
        assert right % 8 == 0 or right == size[1]
        assert top <= 16 < bottom
        assert left <= 8 < right
    area = reldrop.statistics().area
    shares = [(b - t) * (r - le) / (size[0] * size[1]) for t, le, b, r in filter(None, found)]
    assert area == pytest.approx(sum(shares) / len(shares), rel=1e-5)


def test_chance_and_mixing_keep_to_the_grid():
    model = resnet10(classes=3, width=4).train()
    images, labels = torch.rand(16, 3, 32, 32), torch.randint(3, (16,))
    random = attrdrop.RelDrop(model, p=1.0, alpha=1.0, patch=16)
    places = {box for box in boxes_of(images, random(images, labels))}
    assert len(places) > 2
    assert all(number % 16 == 0 for box in places for number in box)
    assert random.statistics().attributed == 0
    mixing = attrdrop.RelCutMix(model, 3, p=1.0, patch=16)
    mixed, soft = mixing(images, labels)
    assert soft.sum(1).allclose(torch.ones(16))
    assert all(box is None or all(number % 16 == 0 for number in box) for box in boxes_of(images, mixed))


def test_a_patch_is_a_positive_int():
    with pytest.raises(ValueError, match="patch must be a positive int, got 0"):
        attrdrop.RelDrop(resnet10(classes=3, width=4), patch=0)
