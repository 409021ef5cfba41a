"""RelMixUp: which pixels show the other image, by how much, and what becomes of the labels."""

import pytest
import torch
from forwards import seen_by
from image_models import N
from torch.nn import functional

from attrdrop import RelMixUp, draw_images, lrp
from attrdrop._core.seeds import derive_seed
from attrdrop.reldrop.mixing import partners


def shares_of(images, mixed, order):
    """The share of the other image at each pixel, (N, H, W), by least squares over the channels."""
    other = images[order] - images
    return ((mixed - images) * other).sum(1) / (other**2).sum(1).clamp_min(1e-12)


def rank_by_definition(values):
    count = len(values)
    return [(sum(y < x for y in values) + (sum(y == x for y in values) - 1) / 2) / (count - 1) for x in values]


@pytest.mark.parametrize("guide", ["image", "source"])
def test_the_other_image_shows_where_relevance_is_high(model, batch, guide):
    images, labels = batch
    mix = RelMixUp(model, 5, p=0.8, alpha=0.3, guide=guide, seed=6)
    mixed, targets = mix(images, labels)
    seed, order = derive_seed(6, 0), partners(N, 6, 0)
    drawn, guided = draw_images(N, 0.8, seed=seed), draw_images(N, 0.8, alpha=0.3, seed=seed)
    assert 0 < guided.sum() < drawn.sum() < N
    shares = shares_of(images, mixed, order)
    relevance = lrp.relevance(model, images, labels).sum(1)
    onehot = functional.one_hot(labels, 5).float()
    for n in range(N):
        mean = shares[n].mean() if order[n] != n else torch.tensor(0.0)
        expected = onehot[n] + (onehot[order[n]] - onehot[n]) * (mean if order[n] != n else 0)
        assert torch.allclose(targets[n], expected, atol=1e-4)
        if order[n] == n or not drawn[n]:
            assert torch.equal(mixed[n], images[n]) or torch.allclose(mixed[n], images[n])
        elif not guided[n]:
            assert shares[n].std() < 1e-3
            assert 0 < mean <= 0.5
        else:
            of = relevance[n if guide == "image" else order[n]].flatten().tolist()
            rank = torch.tensor(rank_by_definition(of)).view(16, 16)
            assert torch.allclose(shares[n], 2 * mean * rank, atol=1e-3)
    assert torch.allclose(targets.sum(1), torch.ones(N))
    found = mix.statistics()
    assert (found.images, found.occluded, found.attributed) == (N, int(drawn.sum()), int(guided.sum()))


def test_alpha_one_is_mixup(model, batch):
    images, labels = batch
    for settings in ({"alpha": 1.0}, {"rule": "random"}):
        mix = RelMixUp(model, 5, **{"p": 1.0, "concentration": 0.4, "seed": 2, **settings})
        assert seen_by(model, lambda mix=mix: mix(images, labels)) == []
        mix.start_step(0)
        mixed, targets = mix(images, labels)
        order = partners(N, 2, 0)
        other = order != torch.arange(N)
        share = shares_of(images, mixed, order).mean((1, 2))[other]
        weight = 1 - share[:, None, None, None]
        assert torch.allclose(mixed[other], weight * images[other] + (1 - weight) * images[order[other]], atol=1e-5)
        differs = labels[other] != labels[order[other]]
        assert torch.allclose(targets[other].amax(1)[differs], 1 - share[differs], atol=1e-5)


def test_weights_follow_their_distribution(model, batch):
    mix = RelMixUp(model, 5, p=1.0, alpha=1.0, concentration=1.0)
    shares = []
    for _ in range(60):
        mix.reset_statistics()
        mix(*batch)
        shares.append(mix.statistics().area)
    assert sum(shares) / 60 == pytest.approx(0.25, abs=0.03)  # 1 - max(u, 1 - u), u uniform


def test_coarse_and_given_relevance(model, batch):
    images, labels = batch
    settings = dict(p=1.0, alpha=0.0, seed=3)
    coarse = lrp.relevance(model, images, labels, stop_at="stages.1")
    expected = RelMixUp(model, 5, **settings)(images, labels, relevance=coarse)
    found = RelMixUp(model, 5, stop_at="stages.1", **settings)(images, labels)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    even, targets = RelMixUp(model, 5, **settings)(images, labels, relevance=torch.zeros(N, 16, 16))
    plain, others = RelMixUp(model, 5, p=1.0, alpha=1.0, seed=3)(images, labels)
    assert torch.allclose(even, plain, atol=1e-6)  # all equal: as much everywhere
    assert torch.allclose(targets, others, atol=1e-6)


def test_evaluation_warm_up_and_training(model, batch):
    images, labels = batch
    mix = RelMixUp(model.eval(), 5)
    assert mix(images, labels)[0] is images
    model.train()
    mix = RelMixUp(model, 5, p=1.0, warmup=1)
    assert torch.equal(mix(images, labels)[0], images)
    mixed, targets = mix(images, labels)
    functional.cross_entropy(model(mixed), targets).backward()
    assert not torch.equal(mixed, images)


@pytest.mark.parametrize(
    ("settings", "labels", "error", "message"),
    [
        ({"concentration": 0.0}, None, ValueError, "concentration must be a finite number above 0, got 0.0"),
        ({"guide": "both"}, None, ValueError, "guide must be one of image, source"),
        ({"p": 2.0}, None, ValueError, r"p must lie in \[0, 1\]"),
        ({}, torch.full((N,), 9), ValueError, r"labels must lie in \[0, 5\)"),
        ({"rule": lambda *given: torch.full((N, 4, 4), torch.nan)}, None, ValueError, "relevance must be finite"),
    ],
)
def test_what_is_wrong_is_named(model, batch, settings, labels, error, message):
    with pytest.raises(error, match=message):
        RelMixUp(model, 5, **{"p": 1.0, "alpha": 0.0, **settings})(batch[0], batch[1] if labels is None else labels)
