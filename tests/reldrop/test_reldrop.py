"""RelDrop and RelCutMix: what is attributed, what is occluded, and that nothing else changes."""

import copy
from functools import partial

import pytest
import torch
from forwards import seen_by
from image_models import N, image_batch, small_resnet
from torch import nn
from torch.nn import functional

import attrdrop
from attrdrop import RelCutMix, RelDrop, RelDropPoints, draw_images, lrp, occlude_blocks, schedules
from attrdrop._core.seeds import derive_seed


def changed(before, after):
    """bool (N, H, W): pixels that are not what they were."""
    return (before != after).any(1)


def train(model, images, labels, transform=None, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        x = images if transform is None else transform(images, labels)
        functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize("rule", [lrp.EpsilonPlusFlat(), lrp.Epsilon(), lrp.AbsGradient()])
def test_blocks_lie_where_relevance_of_the_whole_batch_says(model, batch, rule):
    images, labels = batch
    reldrop = RelDrop(model, p=0.6, alpha=0.3, rule=rule, seed=5)
    out = reldrop(images, labels)
    relevance = lrp.relevance(model, images, labels, rule=rule)
    expected, boxes = occlude_blocks(images, relevance, p=0.6, alpha=0.3, seed=derive_seed(5, 0))
    assert torch.equal(out, expected)
    statistics = reldrop.statistics()
    areas = boxes[:, 2:].prod(1).double()
    assert statistics.occluded == int((areas > 0).sum()) > 0
    assert statistics.area == pytest.approx(areas.sum().item() / statistics.occluded / images[0, 0].numel())
    assert (statistics.images, statistics.steps) == (N, 1)


def test_only_guided_images_are_attributed(model, batch):
    reldrop = RelDrop(model, p=0.7, alpha=0.4, seed=1)
    guided = int(draw_images(N, 0.7, alpha=0.4, seed=derive_seed(1, 0)).sum())
    assert 0 < guided < N
    assert seen_by(model, lambda: reldrop(*batch)) == [guided]
    assert reldrop.statistics().attributed == guided
    for settings in ({"p": 0.0}, {"alpha": 1.0}, {"rule": "random"}):
        assert seen_by(model, lambda settings=settings: RelDrop(model, **{"p": 1.0, **settings})(*batch)) == []


def test_without_probability_training_is_plain_training(batch):
    plain, dropping = small_resnet(), small_resnet()
    transform = RelDrop(dropping, p=0.0)
    expected, found = train(plain, *batch), train(dropping, *batch, transform)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert transform.statistics().occluded == 0


def test_attribution_leaves_the_model_alone(batch):
    model = small_resnet(dropout=0.5)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.eval()
    model.head.weight.requires_grad_(False)
    flags = [(module, module.training, dict(module._forward_hooks)) for module in model.modules()]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for settings in ({}, {"stop_at": "stages.0"}, {"rule": lrp.GradientTimesInput()}):
        RelDrop(model, p=1.0, alpha=0.0, **settings)(*batch)
    with pytest.raises(ValueError, match="target must lie in"):
        RelDrop(model, p=1.0, alpha=0.0)(batch[0], batch[1] + 100)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.head.weight.requires_grad
    assert [(module, module.training, dict(module._forward_hooks)) for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)


def test_draws_depend_on_seed_and_step_alone(model, batch):
    settings = dict(p=0.6, alpha=0.5, value="random")
    first = RelDrop(model, seed=2, **settings)
    outs = [first(*batch) for _ in range(3)]
    assert not torch.equal(outs[0], outs[1])
    second = RelDrop(model, seed=2, **settings)
    second.load_state_dict({"step": 2})
    assert torch.equal(second(*batch), outs[2])
    assert second.state_dict() == {"step": 3}
    second.start_step(1)
    assert torch.equal(second(*batch), outs[1])
    assert not torch.equal(RelDrop(model, seed=3, **settings)(*batch), outs[0])


def test_evaluation_mode_does_nothing(model, batch):
    reldrop = RelDrop(model.eval(), p=1.0)
    assert reldrop(*batch) is batch[0]
    assert reldrop.statistics().steps == 0
    mixed, targets = RelCutMix(model, 5, p=1.0)(*batch)
    assert mixed is batch[0]
    assert torch.equal(targets.argmax(1), batch[1])


def test_warm_up_schedules_and_every(model, batch):
    reldrop = RelDrop(model, p=schedules.linear(0.0, 1.0, 4), alpha=0.0, warmup=2, every=2, seed=4)
    counts = []
    for _ in range(6):
        reldrop.reset_statistics()
        reldrop(*batch)
        counts.append((reldrop.statistics().occluded, reldrop.statistics().attributed))
    assert counts[:2] == [(0, 0), (0, 0)]
    assert counts[3][0] > 0
    assert counts[4] == (N, N)
    assert counts[5] == (N, 0)


@pytest.mark.parametrize(
    ("schedule", "at_start", "middle"),
    [
        (schedules.constant(0.3), 0.3, 0.3),
        (schedules.linear(0.0, 0.4, 10), 0.0, 0.2),
        (schedules.cosine(1.0, 0.0, 10), 1.0, 0.5),
    ],
)
def test_schedules(schedule, at_start, middle):
    assert schedule(0) == pytest.approx(at_start)
    assert schedule(5) == pytest.approx(middle)
    assert schedule(10) == schedule(99)


def test_own_attributions(model, batch):
    images, labels = batch
    point = torch.zeros(N, 16, 16)
    point[:, 12, 3] = 1
    settings = dict(p=1.0, alpha=0.0, scale=(0.1, 0.1), ratio=(1.0, 1.0))
    expected = occlude_blocks(images, point, seed=derive_seed(0, 0), scale=(0.1, 0.1), ratio=(1.0, 1.0))[0]
    given = []

    def attribute(net, x, y):
        given.append((net, len(x), y))
        return point[: len(x)]

    assert torch.equal(RelDrop(model, rule=attribute, **settings)(images, labels), expected)
    assert given[0][0] is model
    assert given[0][1] == N
    assert torch.equal(given[0][2], labels)
    assert torch.equal(RelDrop(model, **settings)(images, relevance=point), expected)
    assert seen_by(model, lambda: RelDrop(model, **settings)(images, labels, point)) == []


def test_targets(model, batch):
    images, _ = batch
    predicted = model.eval()(images).argmax(1)
    model.train()
    settings = dict(p=1.0, alpha=0.0)
    by_prediction = RelDrop(model, target="pred", **settings)(images)
    assert torch.equal(by_prediction, RelDrop(model, **settings)(images, predicted))
    with pytest.raises(ValueError, match="labels are needed for target='label'"):
        RelDrop(model, **settings)(images)


def test_a_stage_places_blocks_coarsely(model, batch):
    images, labels = batch
    settings = dict(p=1.0, alpha=0.0, seed=7)
    out = RelDrop(model, stop_at="stages.1", **settings)(images, labels)
    relevance = lrp.relevance(model, images, labels, stop_at="stages.1")
    assert relevance.shape[2:] == (8, 8)
    assert torch.equal(out, occlude_blocks(images, relevance, seed=derive_seed(7, 0))[0])
    assert torch.equal(out, RelDrop(model, stop_at=model.stages[1], **settings)(images, labels))
    with pytest.raises(ValueError, match="stop_at must give relevance of shape"):
        RelDrop(model, stop_at="head", **settings)(images, labels)


def test_fill_policy_and_place(model, batch):
    images, labels = batch
    settings = dict(p=1.0, alpha=0.0, seed=7, border="shift")
    dropped = RelDrop(model, value=(1.0, 2.0, 3.0), **settings)(images, labels)
    kept = RelDrop(model, value=9.0, policy="keep", **settings)(images, labels)
    inside = changed(images, dropped)
    assert torch.equal(changed(images, kept), ~inside)
    assert torch.equal(dropped[inside[:, None].expand_as(images)].unique(), torch.tensor([1.0, 2.0, 3.0]))
    copied = images.clone()
    assert RelDrop(model, value=(1.0, 2.0, 3.0), inplace=True, **settings)(copied, labels) is copied
    assert torch.equal(copied, dropped)


def test_a_whole_batch_or_none_of_it(model, batch):
    reldrop = RelDrop(model, p=0.5, per="batch")
    shares = {changed(batch[0], reldrop(*batch)).flatten(1).any(1).float().mean().item() for _ in range(12)}
    assert shares == {0.0, 1.0}


@pytest.mark.parametrize("guide", ["image", "source"])
def test_cutmix(model, batch, guide):
    images, labels = batch
    mix = RelCutMix(model, 5, p=1.0, alpha=0.0, guide=guide, seed=3)
    mixed, targets = mix(images, labels)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(derive_seed(3, 0, 1)))
    relevance = lrp.relevance(model, images, labels)
    guiding = relevance if guide == "image" else relevance[order]
    expected, boxes = occlude_blocks(images, guiding, seed=derive_seed(3, 0), source=images, source_index=order)
    assert torch.equal(mixed, expected)
    share = boxes[:, 2:].prod(1) / (16 * 16)
    onehot = functional.one_hot(labels, 5)
    assert torch.allclose(targets, (1 - share)[:, None] * onehot + share[:, None] * onehot[order])
    assert mix.statistics().attributed == N
    functional.cross_entropy(model(mixed), targets).backward()
    given = RelCutMix(model, 5, p=1.0, alpha=0.0, guide=guide, seed=3)(images, labels, relevance)
    assert torch.equal(given[0], mixed)


def test_wrapped_models(model, batch):
    expected = RelDrop(model, p=1.0)(*batch)
    assert torch.equal(RelDrop(torch.compile(model, backend="eager"), p=1.0)(*batch), expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = RelDrop(model, p=1.0)(*batch)
    assert half.dtype == torch.float32
    assert changed(batch[0], half).any()
    last = batch[0].contiguous(memory_format=torch.channels_last)
    out = RelDrop(model, p=1.0)(last, batch[1])
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, expected)


IMAGES, LABELS = image_batch(2)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"p": 1.5}, ValueError, r"p must lie in \[0, 1\], got 1.5"),
        ({"alpha": "half"}, TypeError, "alpha must be a number in .* or a callable, got str"),
        ({"scale": (0.5, 0.1)}, ValueError, "scale must be"),
        ({"ratio": (0, 1)}, ValueError, "ratio must be"),
        ({"border": "wrap"}, ValueError, "border must be one of clip, shift"),
        ({"per": "epoch"}, ValueError, "per must be one of image, batch"),
        ({"policy": "blur"}, ValueError, "policy must be one of drop, keep"),
        ({"rule": "lrp"}, TypeError, "rule must be a rule of attrdrop.lrp, 'random' or a callable"),
        ({"target": "gold"}, ValueError, "target must be one of label, pred"),
        ({"every": 0}, ValueError, "every must be an int of at least 1"),
        ({"warmup": -1}, ValueError, "warmup must be an int of at least 0"),
        ({"k_centers": 0}, ValueError, "k_centers must be at least 1"),
    ],
)
def test_settings_are_checked_at_once(model, settings, error, message):
    with pytest.raises(error, match=message):
        RelDrop(model, **settings)


@pytest.mark.parametrize(
    ("images", "labels", "settings", "error", "message"),
    [
        (IMAGES[0], LABELS, {}, ValueError, r"images must be a tensor of shape \(N, C, H, W\)"),
        (IMAGES.byte(), LABELS, {}, TypeError, "images must be floating point"),
        (IMAGES, LABELS.int(), {}, ValueError, r"labels must be int64 of shape \(2,\)"),
        (IMAGES, LABELS + 7, {}, ValueError, r"target must lie in \[0, 5\)"),
        (IMAGES * torch.nan, LABELS, {}, ValueError, "inputs hold NaN"),
        (IMAGES, LABELS, {"stop_at": "layer9"}, ValueError, "stop_at must name a submodule such as stem"),
        (IMAGES, LABELS, {"p": lambda step: 2.0}, ValueError, "p must lie in"),
        (IMAGES, LABELS, {"rule": lambda *given: torch.full((2, 4, 4), torch.nan)}, ValueError, "must not have NaN"),
        (IMAGES, LABELS, {"rule": lambda *given: torch.ones(3, 4, 4)}, ValueError, "index must be int64 of shape"),
    ],
)
def test_bad_batches_leave_the_images_alone(model, images, labels, settings, error, message):
    before = images.clone()
    with pytest.raises(error, match=message):
        RelDrop(model, **{"p": 1.0, "alpha": 0.0, "inplace": True, **settings})(images, labels)
    assert torch.equal(images.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("rule", ["random", None])
@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (IMAGES, torch.tensor([1, -1]), ValueError, r"labels must lie in \[0, 5\), the classes to mix, got -1"),
        (IMAGES, torch.tensor([5, 0]), ValueError, r"labels must lie in \[0, 5\), the classes to mix, got 5"),
        (IMAGES.byte(), LABELS, TypeError, "images must be floating point.*, got torch.uint8"),
        (IMAGES, LABELS.tolist(), TypeError, r"labels must be an int64 tensor of shape \(2,\), .*, got list"),
        (IMAGES, LABELS.numpy(), TypeError, "labels must be an int64 tensor .*, got ndarray"),
    ],
)
@pytest.mark.parametrize("is_training", [True, False])
def test_labels_that_cannot_be_mixed(model, rule, images, labels, error, message, is_training):
    mix = RelCutMix(model.train(is_training), 5, p=1.0, rule=rule)
    with pytest.raises(error, match=message):
        mix(images, labels)
    if not isinstance(labels, torch.Tensor):
        with pytest.raises(error, match=message):
            RelDrop(model, p=1.0, rule=rule)(images, labels)


class Occluded(torch.utils.data.Dataset):
    """Samples on which a transform runs where they are loaded."""

    def __init__(self, transform, samples):
        self.transform, self.samples = transform, samples

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.transform(self.samples)


@pytest.mark.parametrize("make", [RelDrop, lambda model, **p: RelCutMix(model, 5, **p), RelDropPoints])
def test_workers_of_a_loader_are_refused(model, make):
    transform = make(model, rule="random")
    samples = IMAGES[:, 0] if make is RelDropPoints else IMAGES
    data = Occluded(partial(occluded, transform, labels=LABELS), samples)
    with pytest.raises(RuntimeError, match="runs in a worker of a DataLoader, where the model is a copy"):
        next(iter(torch.utils.data.DataLoader(data, num_workers=1, multiprocessing_context="fork")))
    assert len(transform(samples, LABELS)) == 2  # here it may


def occluded(transform, samples, labels):
    out = transform(samples, labels)
    return out[0] if isinstance(out, tuple) else out


def test_models_without_linear_layers(batch):
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    with pytest.raises(ValueError, match="no linear layer"):
        RelDrop(Mean().train(), p=1.0, alpha=0.0)(batch[0], batch[1] % 3)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        RelDrop("resnet")
    with pytest.raises(ValueError, match="num_classes must be a positive int"):
        RelCutMix(Mean(), 0)


def test_names_are_found_on_the_package():
    assert attrdrop.RelDrop is RelDrop
    assert attrdrop.lrp is lrp
    assert {"RelDrop", "RelCutMix", "lrp", "metrics", "schedules"} <= set(attrdrop.__all__)
