"""RelDropPoints: what is attributed, what is dropped, and that nothing else changes."""

import copy

import pytest
import torch
from forwards import seen_by
from point_models import CLASSES, POINTS, point_batch, small_pointnet2
from torch import nn
from torch.nn import functional

import attrdrop
from attrdrop import RelDropPoints, lrp, occlude_points, schedules
from attrdrop._core.seeds import derive_seed
from attrdrop.models import pointnet

N = 6


@pytest.fixture
def model():
    return small_pointnet2()


@pytest.fixture
def batch():
    return point_batch(N)


@pytest.mark.parametrize("rule", [lrp.EpsilonFlat(1e-6), lrp.Epsilon(), lrp.AbsGradient()])
@pytest.mark.parametrize("mode", ["threshold", "calibrated"])
def test_points_drop_where_relevance_says(model, batch, rule, mode):
    points, labels = batch
    reldrop = RelDropPoints(model, alpha=0.4, beta=0.3, mode=mode, rule=rule, seed=5)
    out = reldrop(points, labels)
    relevance = lrp.relevance(model, points, labels, rule=rule)
    assert relevance.shape == points.shape
    expected, dropped = occlude_points(points, relevance, alpha=0.4, beta=0.3, mode=mode, seed=derive_seed(5, 0))
    assert torch.equal(out, expected)
    statistics = reldrop.statistics()
    assert statistics.dropped == int(dropped.sum()) > 0
    assert statistics.as_dict() == {
        "clouds": N, "points": N * POINTS, "dropped": statistics.dropped, "attributed": N, "steps": 1,
    }  # fmt: skip


def test_by_default_the_share_beta_goes(model, batch):
    reldrop = RelDropPoints(model)
    reldrop(*batch)
    assert reldrop.statistics().dropped == N * round(0.15 * POINTS)


def test_the_released_rule_drops_much_less_at_the_same_numbers(model, batch):
    """clip(r - 0.7, 0, 1) in mean, and not the share 0.15."""
    reldrop = RelDropPoints(model, mode="threshold")
    points, labels = batch
    relevance = lrp.relevance(model, points, labels, rule=lrp.EpsilonFlat(1e-6)).sum(-1)
    low, high = relevance.aminmax(dim=1, keepdim=True)
    expected = ((relevance - low) / (high - low) - 0.7).clamp(0, 1)
    for _ in range(60):
        reldrop(points, labels)
    share = reldrop.statistics().dropped / reldrop.statistics().points
    assert share == pytest.approx(expected.mean().item(), abs=0.01)
    assert share < 0.05


def test_flat_is_the_default_rule(model, batch):
    settings = dict(mode="calibrated", alpha=0.2, seed=1)
    expected = RelDropPoints(model, rule=lrp.EpsilonFlat(1e-6), **settings)(*batch)
    assert torch.equal(RelDropPoints(model, **settings)(*batch), expected)


def test_chance_alone_needs_no_attribution(model, batch):
    points, labels = batch
    expected = occlude_points(points, alpha=1.0, beta=0.4, seed=derive_seed(2, 0))[0]
    for settings in ({"alpha": 1.0}, {"rule": "random"}):
        reldrop = RelDropPoints(model, **{"beta": 0.4, "seed": 2, **settings})
        assert seen_by(model, lambda reldrop=reldrop: reldrop(points)) == []
        assert reldrop.statistics().attributed == 0
        reldrop.start_step(0)
        assert torch.equal(reldrop(points, labels), expected)
    reldrop = RelDropPoints(model, beta=0.0)
    assert seen_by(model, lambda: reldrop(points, labels)) == []
    assert torch.equal(reldrop(points, labels), points)


def test_attribution_leaves_the_model_alone(batch):
    model = small_pointnet2()
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm1d))
    norm.eval()
    model.head[-1].weight.requires_grad_(False)
    flags = [(module, module.training, dict(module._forward_hooks)) for module in model.modules()]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    RelDropPoints(model)(*batch)
    with pytest.raises(ValueError, match="target must lie in"):
        RelDropPoints(model)(batch[0], batch[1] + 100)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [(module, module.training, dict(module._forward_hooks)) for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)


def test_draws_depend_on_seed_and_step_alone(model, batch):
    settings = dict(mode="calibrated", value="resample")
    first = RelDropPoints(model, seed=2, **settings)
    outs = [first(*batch) for _ in range(3)]
    assert not torch.equal(outs[0], outs[1])
    second = RelDropPoints(model, seed=2, **settings)
    second.load_state_dict({"step": 2})
    assert torch.equal(second(*batch), outs[2])
    assert second.state_dict() == {"step": 3}
    assert not torch.equal(RelDropPoints(model, seed=3, **settings)(*batch), outs[0])


def test_evaluation_mode_does_nothing(model, batch):
    reldrop = RelDropPoints(model.eval(), beta=1.0)
    assert reldrop(*batch) is batch[0]
    assert reldrop.statistics().steps == 0


def test_warm_up_schedules_and_every(model, batch):
    reldrop = RelDropPoints(
        model, alpha=0.0, beta=schedules.linear(0.0, 0.8, 4), mode="calibrated", warmup=2, every=2, seed=4
    )
    counts = []
    for _ in range(6):
        reldrop.reset_statistics()
        reldrop(*batch)
        counts.append((reldrop.statistics().dropped, reldrop.statistics().attributed))
    assert counts[:2] == [(0, 0), (0, 0)]
    assert counts[2] == (N * round(0.4 * POINTS), N)
    assert counts[3] == (N * round(0.6 * POINTS), 0)
    assert counts[4] == (N * round(0.8 * POINTS), N)


def test_own_attributions(model, batch):
    points, labels = batch
    height = points[..., 2]
    settings = dict(alpha=0.0, beta=0.25, mode="calibrated")
    expected, dropped = occlude_points(points, height, seed=derive_seed(0, 0), **settings)
    highest = height.topk(POINTS // 4, dim=1).indices.sort(1).values
    assert torch.equal(dropped.nonzero()[:, 1].view(N, -1), highest)
    given = []

    def attribute(net, x, y):
        given.append((net, x, y))
        return x[..., 2]

    assert torch.equal(RelDropPoints(model, rule=attribute, **settings)(points, labels), expected)
    assert given[0][0] is model
    assert torch.equal(given[0][2], labels)
    reldrop = RelDropPoints(model, **settings)
    assert seen_by(model, lambda: reldrop(points, labels, height)) == []
    reldrop.start_step(0)
    assert torch.equal(reldrop(points, relevance=height), expected)


def test_targets_and_starts(model, batch):
    points, labels = batch
    predicted = model.eval()(points).argmax(1)
    model.train()
    settings = dict(alpha=0.0, mode="calibrated")
    by_prediction = RelDropPoints(model, target="pred", **settings)(points)
    assert torch.equal(by_prediction, RelDropPoints(model, **settings)(points, predicted))
    with pytest.raises(ValueError, match="labels are needed for target='label'"):
        RelDropPoints(model, **settings)(points)
    relevance = lrp.relevance(model, points, labels, rule=lrp.EpsilonFlat(1e-6), start="contrastive")
    contrastive = RelDropPoints(model, start="contrastive", **settings)
    assert torch.equal(contrastive(points, labels), RelDropPoints(model, **settings)(points, relevance=relevance))


@pytest.mark.parametrize("make", [small_pointnet2, lambda: pointnet(CLASSES, width=0.125).train()])
def test_padding_stays(make):
    model = make()
    points, labels = point_batch(N)
    valid = torch.arange(POINTS) < torch.tensor([64, 40, 9, 3, 2, 1])[:, None]
    points[~valid] = 7.0
    reldrop = RelDropPoints(model, alpha=0.2, beta=0.5, mode="calibrated")
    out = reldrop(points, labels, valid=valid)
    assert torch.equal(out[~valid], points[~valid])
    assert reldrop.statistics().points == int(valid.sum())
    assert reldrop.statistics().dropped == sum(int(0.5 * n + 0.5) for n in valid.sum(1).tolist())
    elsewhere = points.clone()
    elsewhere[~valid] = -3.0
    again = RelDropPoints(model, alpha=0.2, beta=0.5, mode="calibrated")(elsewhere, labels, valid=valid)
    assert torch.equal(again[valid], out[valid])


def test_neighbours_serve_both_passes(model, batch):
    points, labels = batch
    neighbours = model.neighbours(points)
    expected = RelDropPoints(model, mode="calibrated")(points, labels)
    out = RelDropPoints(model, mode="calibrated")(points, labels, neighbours=neighbours)
    assert torch.equal(out, expected)
    functional.cross_entropy(model(out, neighbours=neighbours), labels).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_features_and_values(batch):
    points, labels = point_batch(N, 6)
    model = small_pointnet2(6)
    plain = RelDropPoints(model, mode="calibrated", seed=7)(points, labels)
    gone = (plain == 0).all(-1)
    assert gone.sum(1).tolist() == [round(0.15 * POINTS)] * N
    filled = RelDropPoints(model, mode="calibrated", seed=7, value=(1, 2, 3, 4, 5, 6))(points, labels)
    assert torch.equal(filled[gone].unique(dim=0), torch.arange(1.0, 7.0)[None])
    assert torch.equal(filled[~gone], points[~gone])
    copied = points.clone()
    assert RelDropPoints(model, mode="calibrated", seed=7, inplace=True)(copied, labels) is copied
    assert torch.equal(copied, plain)


def test_wrapped_models(model, batch):
    settings = dict(alpha=0.0, mode="calibrated")
    expected = RelDropPoints(model, **settings)(*batch)
    assert torch.equal(RelDropPoints(torch.compile(model, backend="eager"), **settings)(*batch), expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = RelDropPoints(model, **settings)(*batch)
    assert half.dtype == torch.float32
    assert (half == 0).all(-1).sum() == (expected == 0).all(-1).sum()
    channels_first = batch[0].mT.contiguous().mT
    torch.testing.assert_close(RelDropPoints(model, **settings)(channels_first, batch[1]), expected)


@pytest.mark.parametrize("points", [torch.zeros(3, POINTS, 3), torch.ones(3, 1, 3), torch.rand(3, 5, 3)])
@pytest.mark.parametrize(
    "settings", [{}, {"mode": "threshold"}, {"beta": 1.0}, {"mode": "threshold", "beta": 1.0, "value": "resample"}]
)
def test_degenerate_clouds_train(points, settings):
    model = small_pointnet2()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    reldrop = RelDropPoints(model, **settings)
    labels = torch.arange(3)
    for _ in range(3):
        functional.cross_entropy(model(reldrop(points, labels)), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert reldrop.statistics().clouds == 9


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"alpha": 1.5}, ValueError, r"alpha must lie in \[0, 1\], got 1.5"),
        ({"beta": "much"}, TypeError, "beta must be a number in .* or a callable, got str"),
        ({"beta": -0.1}, ValueError, "beta must lie in"),
        ({"mode": "exact"}, ValueError, "mode must be one of threshold, calibrated, got 'exact'"),
        ({"norm": "l2"}, ValueError, "norm must be one of"),
        ({"value": "mean"}, ValueError, "value must be"),
        ({"rule": "lrp"}, TypeError, "rule must be a rule of attrdrop.lrp, 'random' or a callable"),
        ({"target": "gold"}, ValueError, "target must be one of label, pred"),
        ({"every": 0}, ValueError, "every must be an int of at least 1"),
        ({"warmup": -1}, ValueError, "warmup must be an int of at least 0"),
        ({"p": 0.5}, TypeError, "unexpected keyword argument 'p'"),
    ],
)
def test_settings_are_checked_at_once(model, settings, error, message):
    with pytest.raises(error, match=message):
        RelDropPoints(model, **settings)


CLOUDS, LABELS = point_batch(2)


@pytest.mark.parametrize(
    ("points", "labels", "settings", "error", "message"),
    [
        (CLOUDS[0], LABELS, {}, ValueError, r"points must be a tensor of shape \(N, P, C\), got \(64, 3\)"),
        (CLOUDS.long(), LABELS, {}, TypeError, "points must be floating point"),
        (CLOUDS, LABELS.int(), {}, ValueError, r"labels must be int64 of shape \(2,\)"),
        (CLOUDS, LABELS + 7, {}, ValueError, r"target must lie in \[0, 5\)"),
        (CLOUDS * torch.nan, LABELS, {}, ValueError, "points hold NaN or infinite values"),
        (CLOUDS.masked_fill(CLOUDS > 0.9, torch.inf), LABELS, {"rule": "random"}, ValueError, "points hold NaN"),
        (CLOUDS[..., :2], LABELS, {}, ValueError, r"points must have shape \(N, P, 3\)"),
        (CLOUDS, LABELS, {"beta": lambda step: 2.0}, ValueError, "beta must lie in"),
        (CLOUDS, LABELS, {"rule": lambda *given: torch.full((2, 64), torch.nan)}, ValueError, "relevance must"),
        (CLOUDS, LABELS, {"rule": lambda *given: torch.ones(2, 63)}, ValueError, "relevance must"),
        (CLOUDS, LABELS, {"value": (1.0, 2.0)}, ValueError, "value must have one number for each of the 3 channels"),
    ],
)
def test_bad_batches_leave_the_points_alone(model, points, labels, settings, error, message):
    before = points.clone()
    with pytest.raises(error, match=message):
        RelDropPoints(model, **{"alpha": 0.3, "beta": 0.5, "inplace": True, **settings})(points, labels)
    assert torch.equal(points.nan_to_num(), before.nan_to_num())


def test_names_are_found_on_the_package():
    assert attrdrop.RelDropPoints is RelDropPoints
    assert {"RelDropPoints", "PointStatistics"} <= set(attrdrop.__all__)


@pytest.mark.parametrize("channels", [3, 6, 9])
@pytest.mark.parametrize("rule", ["random", None])
def test_transposed_clouds_are_refused(channels, rule):
    points, labels = torch.randn(2, channels, 64), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"points must have shape \(N, P, C\), .*; pass points.transpose\(1, 2\)"):
        RelDropPoints(nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, 3)), rule=rule)(points, labels)
