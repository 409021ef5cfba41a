"""RelDrop by pixels and patches: what is dropped, by the definition restated, on each backend."""

import math

import pytest
import torch
from forwards import seen_by
from image_models import N
from torch.nn import functional

from attrdrop import RelDrop, draw_images, lrp, occlude_points, use_backend
from attrdrop._core.seeds import derive_seed


def cells_by_definition(relevance, side):
    """The relevance of the cells, row by row, and the pixels of each, as lists; relevance (h, w)."""
    height, width = relevance.shape
    cells = [
        [
            (row, column)
            for row in range(top, min(top + side, height))
            for column in range(left, min(left + side, width))
        ]
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    return [sum(relevance[place].item() for place in cell) / len(cell) for cell in cells], cells


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("select", ["calibrated", "threshold"])
@pytest.mark.parametrize(
    ("mode", "patch", "side"), [("pixel", 8, 1), ("patch", 4, 4), ("patch", 5, 5), ("patch", 40, 40)]
)
def test_cells_drop_where_relevance_says(model, batch, backend, select, mode, patch, side):
    images, labels = batch
    reldrop = RelDrop(model, mode=mode, patch=patch, p=0.6, alpha=0.3, beta=0.4, select=select, value=7.0, seed=5)
    with use_backend(backend):
        out = reldrop(images, labels)
    seed = derive_seed(5, 0)
    drawn = draw_images(N, 0.6, seed=seed)
    assert 0 < drawn.sum() < N
    relevance = lrp.relevance(model, images, labels).sum(1)
    dropped = 0
    for n in range(N):
        expected = images[n].clone()
        guide, cells = cells_by_definition(relevance[n], side)
        if drawn[n]:
            score = dict(alpha=0.3, beta=0.4, mode=select, seed=seed, sample_ids=torch.tensor([n]))
            _, gone = occlude_points(torch.zeros(1, len(cells), 1), torch.tensor([guide]), backend="reference", **score)
            for place in gone[0].nonzero()[:, 0].tolist():
                for row, column in cells[place]:
                    expected[:, row, column] = 7.0
                    dropped += 1
        assert torch.equal(out[n], expected)
    found = reldrop.statistics()
    assert (found.images, found.attributed, found.steps) == (N, int(drawn.sum()), 1)
    assert found.area * found.occluded == pytest.approx(dropped / 16**2)


def test_without_chance_the_most_relevant_pixels_go(model, batch):
    images, labels = batch
    out = RelDrop(model, mode="pixel", p=1.0, alpha=0.0, beta=0.1, value=9.0)(images, labels)
    relevance = lrp.relevance(model, images, labels).sum(1).flatten(1)
    for n in range(N):
        gone = (out[n] == 9.0).all(0).flatten()
        assert int(gone.sum()) == math.floor(0.1 * 256 + 0.5)
        assert relevance[n][gone].min() >= relevance[n][~gone].max()


def test_coarse_relevance_is_stretched(model, batch):
    images, labels = batch
    settings = dict(mode="patch", patch=2, p=1.0, alpha=0.0, beta=0.25)
    out = RelDrop(model, stop_at="stages.1", **settings)(images, labels)
    coarse = lrp.relevance(model, images, labels, stop_at="stages.1")
    stretched = coarse.sum(1).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(out, RelDrop(model, **settings)(images, relevance=stretched))


def test_chance_alone_needs_no_attribution(model, batch):
    for settings in ({"alpha": 1.0}, {"rule": "random"}, {"beta": 0.0}, {"p": 0.0}):
        reldrop = RelDrop(model, **{"mode": "pixel", "p": 1.0, "beta": 0.25, **settings})
        assert seen_by(model, lambda reldrop=reldrop: reldrop(*batch)) == []
        found = reldrop.statistics()
        assert found.attributed == 0
        assert found.area == (0.0 if "beta" in settings or "p" in settings else pytest.approx(0.25))


def test_fill_policy_place_and_gradient(model, batch):
    images, labels = batch
    settings = dict(mode="patch", patch=4, p=1.0, alpha=0.0, beta=0.5, seed=7)
    dropped = RelDrop(model, value=(1.0, 2.0, 3.0), **settings)(images, labels)
    kept = RelDrop(model, value=9.0, policy="keep", **settings)(images, labels)
    inside = (dropped != images).any(1)
    assert torch.equal((kept != images).any(1), ~inside)
    assert torch.equal(dropped.movedim(1, -1)[inside].unique(dim=0), torch.tensor([[1.0, 2.0, 3.0]]))
    random = RelDrop(model, value="random", **settings)(images, labels)
    assert torch.equal((random != images).any(1), inside)
    assert random[inside[:, None].expand_as(random)].std() == pytest.approx(1, abs=0.05)
    copied = images.clone()
    assert RelDrop(model, value=(1.0, 2.0, 3.0), inplace=True, **settings)(copied, labels) is copied
    assert torch.equal(copied, dropped)
    leaf = images.clone().requires_grad_()
    RelDrop(model, **settings)(leaf, labels).sum().backward()
    assert torch.equal(leaf.grad, (~inside)[:, None].expand_as(images).float())


def test_training_goes_on_in_every_mode(model, batch):
    images, labels = batch
    for mode in ("block", "pixel", "patch"):
        reldrop = RelDrop(model, mode=mode, warmup=1, every=2)
        for _ in range(4):
            functional.cross_entropy(model(reldrop(images, labels)), labels).backward()
        assert reldrop.statistics().occluded > 0
        assert reldrop.state_dict() == {"step": 4}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"mode": "row"}, ValueError, "mode must be one of block, pixel, patch, got 'row'"),
        ({"select": "some"}, ValueError, "select must be one of threshold, calibrated, got 'some'"),
        ({"patch": 0}, ValueError, "patch must be a positive int, got 0"),
        ({"beta": 1.5}, ValueError, r"beta must lie in \[0, 1\], got 1.5"),
        ({"value": "mean"}, ValueError, "value must be a number"),
        ({"rule": lambda *given: torch.full((N, 16, 16), torch.nan)}, ValueError, "relevance must be finite"),
    ],
)
def test_bad_settings_leave_the_images_alone(model, batch, settings, error, message):
    before = batch[0].clone()
    with pytest.raises(error, match=message):
        RelDrop(model, **{"mode": "pixel", "p": 1.0, "inplace": True, **settings})(*batch)
    assert torch.equal(batch[0], before)
