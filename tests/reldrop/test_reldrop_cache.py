"""Relevance that is kept over epochs: which is used, what it costs, how far it agrees, and that it survives a stop."""

import pytest
import torch
from forwards import seen_by
from image_models import N
from point_models import point_batch, small_pointnet2

from attrdrop import RelCutMix, RelDrop, RelDropPoints
from attrdrop.reldrop.cache import RelevanceCache

SAMPLES = torch.arange(100, 100 + N)


def test_each_sample_is_attributed_in_every_nth_epoch(model, batch):
    images, labels = batch
    reldrop = RelDrop(model, p=1.0, alpha=0.0, cache_epochs=3)
    order = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(7):
        chosen = torch.randperm(N, generator=order)
        for part in chosen.split(4):
            seen += seen_by(model, lambda part=part: reldrop(images[part], labels[part], samples=SAMPLES[part])) or [0]
    assert seen == [4, 4, 0, 0, 0, 0] * 2 + [4, 4]
    found = reldrop.cache_statistics()
    assert (found.computed, found.reused, found.compared, found.samples) == (3 * N, 4 * N, 2 * N, N)
    assert found.bytes == N * 16 * 16 * 2
    assert found.agreement == pytest.approx(1, abs=0.03)  # nothing was trained in between; float16 may swap neighbours
    assert reldrop.statistics().attributed == 3 * N
    reldrop.reset_statistics()
    assert reldrop.cache_statistics().computed == 0


@pytest.mark.parametrize("mode", ["block", "pixel"])
def test_an_unchanged_model_trains_as_without_a_cache(model, batch, mode):
    images, labels = batch
    settings = dict(mode=mode, p=0.7, alpha=0.3, seed=3)
    usual, cached = RelDrop(model, **settings), RelDrop(model, cache_epochs=4, **settings)
    same = [torch.equal(usual(images, labels), cached(images, labels, samples=SAMPLES)) for _ in range(8)]
    assert same[0]
    assert sum(same) >= (8 if mode == "block" else 4)  # ranks of close pixels may swap in float16
    assert cached.statistics().attributed < usual.statistics().attributed


def test_agreement_falls_when_the_model_changes(model, batch):
    images, labels = batch
    reldrop = RelDrop(model, p=1.0, alpha=0.0, cache_epochs=2)
    reldrop(images, labels, samples=SAMPLES)
    reldrop(images, labels, samples=SAMPLES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * parameter.std().nan_to_num(1.0))
    reldrop(images, labels, samples=SAMPLES)
    assert 0 <= reldrop.cache_statistics().agreement < 0.8


def test_the_state_goes_on_where_it_was(model, batch):
    images, labels = batch
    settings = dict(p=1.0, alpha=0.0, cache_epochs=4, seed=1)
    first = RelDrop(model, **settings)
    for _ in range(2):
        first(images, labels, samples=SAMPLES)
    state = first.state_dict()
    second = RelDrop(model, **settings)
    second.load_state_dict(state)
    for step in range(4):
        expected = seen_by(model, lambda: first(images, labels, samples=SAMPLES))
        assert seen_by(model, lambda: second(images, labels, samples=SAMPLES)) == expected == ([N] if step == 2 else [])
    first.start_step(9)
    second.start_step(9)
    assert torch.equal(first(images, labels, samples=SAMPLES), second(images, labels, samples=SAMPLES))
    uncached = RelDrop(model, p=1.0)
    uncached.load_state_dict(state)
    assert uncached.state_dict() == {"step": 2}


def test_cutmix_and_clouds_keep_relevance_too(model, batch):
    images, labels = batch
    for guide in ("image", "source"):
        mix = RelCutMix(model, 5, p=1.0, alpha=0.0, guide=guide, cache_epochs=3)
        for _ in range(3):
            mix(images, labels, samples=SAMPLES)
        assert mix.statistics().attributed == N
    net = small_pointnet2()
    points, kinds = point_batch(N)
    drop = RelDropPoints(net, cache_epochs=3)
    fresh = RelDropPoints(net)(points, kinds)
    assert torch.equal(drop(points, kinds, samples=SAMPLES), fresh)
    half = torch.arange(N) % 2 == 0
    drop(points[half], kinds[half], samples=SAMPLES[half])
    drop(points, kinds, samples=SAMPLES)
    found = drop.cache_statistics()
    assert (found.computed, found.reused) == (N, N + N // 2)
    drop(points, kinds, samples=SAMPLES)  # the first half is at its fourth visit, the other at its third
    assert drop.cache_statistics().computed == N + N // 2


def test_samples_are_asked_for(model, batch):
    reldrop = RelDrop(model, cache_epochs=2)
    for samples in (None, SAMPLES[:3], SAMPLES.float()):
        with pytest.raises(ValueError, match=r"samples must be int64 of shape .*cache_epochs is above 1"):
            reldrop(*batch, samples=samples)
    with pytest.raises(ValueError, match="cache_epochs must be an int of at least 1, got 0"):
        RelDrop(model, cache_epochs=0)
    cache = RelevanceCache(2)
    cache.visit([1, 2])
    cache.of([1], lambda places: torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match=r"relevance must always have the same shape .*got \(5, 4\) after \(4, 4\)"):
        cache.of([2], lambda places: torch.ones(1, 5, 4))
