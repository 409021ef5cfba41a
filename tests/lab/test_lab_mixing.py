"""Arms that mix images: RelDrop before and after, with labels by what is mixed."""

import pytest
import torch
from lab_runs import one_thread, squares  # noqa: F401

from attrdrop.lab.images.data import ArrayImages, ImageTask
from attrdrop.lab.images.settings import CHAINS, GUIDED, ImageSettings
from attrdrop.lab.images.training import ImageTrainer

MIXING = ("cutmix", "relcutmix", "mixup", "relmixup", *CHAINS)


@pytest.fixture
def trainer():
    arrays = squares(48)
    pixels = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).contiguous()
    images = ArrayImages(pixels, torch.from_numpy(arrays["y"]))
    task = ImageTask("squares", ["a", "b", "c"], images, images, [0.4] * 3, [0.3] * 3, "none")
    settings = ImageSettings(device="cpu", epochs=1, batch_size=16, p=1.0, arms=("plain", *MIXING))
    return ImageTrainer(settings, task)


@pytest.mark.parametrize("arm", MIXING)
def test_every_arm_trains_and_counts(trainer, arm):
    run, _ = trainer.trained(arm, 0)
    assert (run.attributed > 0) == (arm in GUIDED)
    assert 0 < run.epochs[0].changed < 1
    assert run.epochs[0].train_loss > 0


@pytest.mark.parametrize("arm", MIXING)
def test_labels_are_shares_of_two_classes(trainer, arm):
    model = trainer.build(0).train()
    indices = torch.arange(16)
    x, y = trainer.batch(trainer.task.train, indices)
    made = trainer.arms[arm](model, trainer.settings, trainer.task, 3)
    _, target = made(x, y, indices)
    assert target.shape == (16, 3)
    assert torch.allclose(target.sum(1), torch.ones(16), atol=1e-6)
    assert (target > 0).sum(1).max() == 2
    assert (target[indices, y] > 0).all()


@pytest.mark.parametrize(("chain", "mix"), [("reldrop+cutmix", "cutmix"), ("reldrop+mixup", "mixup")])
def test_occlusion_changes_no_label(trainer, chain, mix):
    """The mixture of occluded images has the labels that the same mixture of whole ones has."""
    model = trainer.build(0).train()
    indices = torch.arange(16)
    x, y = trainer.batch(trainer.task.train, indices)
    both = trainer.arms[chain](model, trainer.settings, trainer.task, 3)
    alone = both.arms[1].__class__(model, trainer.settings, trainer.task, 3 + (1 << 32))
    occluded, labels = both.arms[0](x, y, indices)
    assert torch.equal(labels, y)
    expected, target = alone(occluded, y, indices)
    fresh = trainer.arms[chain](model, trainer.settings, trainer.task, 3)
    mixed, found = fresh(x, y, indices)
    assert torch.equal(mixed, expected)
    assert torch.equal(found, target)
    assert torch.equal(alone.__class__(model, trainer.settings, trainer.task, 3 + (1 << 32))(x, y, indices)[1], target)


@pytest.mark.parametrize("chain", ["cutmix+reldrop", "mixup+reldrop"])
def test_a_mixture_is_attributed_for_its_larger_part(trainer, chain, monkeypatch):
    model = trainer.build(0).train()
    indices = torch.arange(16)
    x, y = trainer.batch(trainer.task.train, indices)
    made = trainer.arms[chain](model, trainer.settings, trainer.task, 3)
    first, second = made.arms
    mixed, target = first(x, y, indices)
    asked = []
    monkeypatch.setattr(second, "transform", lambda x, labels, samples: asked.append(labels) or x)
    out, kept = second(mixed, target, indices)
    assert torch.equal(asked[0], target.argmax(1))
    assert torch.equal(kept, target)
    assert torch.equal(out, mixed)


def test_the_two_of_a_chain_draw_for_themselves(trainer):
    model = trainer.build(0).train()
    settings = ImageSettings(device="cpu", p=0.5, arms=("plain",))
    made = trainer.arms["reldrop+cutmix"](model, settings, trainer.task, 3)
    x, y = trainer.batch(trainer.task.train, torch.arange(48))
    occluded, _ = made.arms[0](x, y, torch.arange(48))
    mixed, _ = made.arms[1](x, y, torch.arange(48))
    first, second = ((changed != x).flatten(1).any(1) for changed in (occluded, mixed))
    assert 0.2 < (first == second).float().mean() < 0.8
