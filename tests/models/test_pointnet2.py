"""PointNet and PointNet++: restated slowly, their sizes, padding, given neighbours, bad input, learning."""

import pytest
import torch
from nets import prepare
from torch import nn
from torch.nn import functional

from attrdrop.models import pointnet, pointnet2_msg, pointnet2_ssg

MODELS = {"ssg": pointnet2_ssg, "msg": pointnet2_msg, "pointnet": pointnet}


def small(name, channels=3):
    torch.manual_seed(0)
    options = {"width": 0.125} if name == "pointnet" else {"width": 0.125, "points": 64}
    return MODELS[name](5, channels, **options)


def clouds(count=3, size=64, channels=3):
    points = torch.randn(count, size, channels, generator=torch.Generator().manual_seed(1))
    return points / points.norm(dim=-1, keepdim=True)


def by_definition(net, cloud):
    """PointNet++ of one cloud: sampling, balls and maxima point by point (Qi et al., 2017b, Sec. 3)."""
    places, features = cloud, None
    for level in net.levels:
        chosen = [0]
        while len(chosen) < level.samples:
            gaps = [min(float(((p[:3] - places[c][:3]) ** 2).sum()) for c in chosen) for p in places]
            chosen.append(gaps.index(max(gaps)))
        pooled = []
        for layers, radius, k in zip(level.scales, level.radii, level.neighbours, strict=True):
            maxima = []
            for c in chosen:
                centre = places[c][:3]
                inside = [j for j, p in enumerate(places) if ((p[:3] - centre) ** 2).sum() <= radius * radius][:k]
                rows = [torch.cat((places[j][:3] - centre, places[j][3:])) for j in inside]
                if features is not None:
                    rows = [torch.cat((row, features[j])) for row, j in zip(rows, inside, strict=True)]
                maxima.append(layers(torch.stack(rows)).max(0).values)
            pooled.append(torch.stack(maxima))
        places, features = places[chosen][:, :3], torch.cat(pooled, 1)
    return net.head(net.top(torch.cat((places, features), 1)).max(0).values[None])[0]


@pytest.mark.parametrize(("name", "channels"), [("ssg", 3), ("ssg", 6), ("msg", 4)])
def test_a_forward_is_the_definition(name, channels):
    net, points = prepare(small(name, channels)), clouds(2, 64, channels).double()
    expected = torch.stack([by_definition(net, cloud) for cloud in points])
    assert expected.std() > 0
    torch.testing.assert_close(net(points), expected, rtol=1e-9, atol=1e-12)


def test_published_sizes():
    counts = {name: sum(p.numel() for p in make(40).parameters()) for name, make in MODELS.items()}
    assert 1.45e6 < counts["ssg"] < 1.5e6  # 1.48 M and 1.74 M are the published models'
    assert 1.7e6 < counts["msg"] < 1.8e6
    net = pointnet2_ssg(40)
    assert [(level.samples, level.radii, level.neighbours) for level in net.levels] == [
        (512, (0.2,), (32,)),
        (128, (0.4,), (64,)),
    ]
    half = pointnet2_msg(40, points=512)
    assert [(level.samples, level.neighbours) for level in half.levels] == [(256, (8, 16, 64)), (64, (16, 32, 64))]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [1, 7, 63, 64, 111, 1000])
def test_any_number_of_points(name, size):
    net = small(name).train()
    logits = net(clouds(2, size))
    assert logits.shape == (2, 5)
    functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    net.eval()
    assert net(clouds(0, size)).shape == (0, 5)
    torch.testing.assert_close(net(clouds(3, size))[:1], net(clouds(3, size)[:1]))


@pytest.mark.parametrize("name", MODELS)
def test_equal_points_are_one_point(name):
    net = small(name).eval()
    one = clouds(2, 1)
    same = net(one.expand(-1, 50, -1))
    assert same.isfinite().all()
    torch.testing.assert_close(same, net(one))


@pytest.mark.parametrize("name", MODELS)
def test_padding_is_not_seen(name):
    net, points = small(name).eval(), clouds(3, 50)
    size = torch.tensor([50, 20, 1])
    valid = torch.arange(64) < size[:, None]
    padded = torch.cat((points, torch.full((3, 14, 3), torch.nan)), 1).masked_fill(~valid[..., None], 0.3)
    expected = torch.cat([net(cloud[None, :n]) for cloud, n in zip(points, size.tolist(), strict=True)])
    torch.testing.assert_close(net(padded, valid), expected)


def test_neighbours_found_before():
    net, points = small("msg", 6).eval(), clouds(3, 64, 6)
    neighbours = net.neighbours(points)
    assert torch.equal(net(points, neighbours=neighbours), net(points))
    moved = points.clone()
    moved[:, ::5] = 0
    assert not torch.equal(net(moved, neighbours=neighbours), net(moved))


@pytest.mark.parametrize("name", ["pointnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ssg", "msg"))])
def test_compiles_without_graph_breaks(name):
    net, points = small(name).train(), clouds()
    valid = torch.rand(3, 64, generator=torch.Generator().manual_seed(2)) < 0.8
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for arguments in ((points,), (points, valid)):
        torch.testing.assert_close(compiled(*arguments), net(*arguments))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("points", "valid", "message"),
    [
        (clouds(channels=4), None, r"points must have shape \(N, P, 3\) with at least one point, got \(3, 64, 4\)"),
        (clouds()[0], None, r"points must have shape \(N, P, 3\)"),
        (clouds(size=0), None, "at least one point"),
        (clouds(), torch.ones(3, 63).bool(), r"valid must be bool of shape \(3, 64\), got torch.bool of shape"),
        (clouds(), torch.ones(3, 64), "valid must be bool"),
    ],
)
def test_bad_input(name, points, valid, message):
    with pytest.raises(ValueError, match=message):
        small(name)(points, valid)


@pytest.mark.parametrize("name", MODELS)
def test_it_learns_to_tell_spheres_from_cubes(name):
    points = clouds(16, 64)
    labels = torch.arange(16) % 2
    points[1::2] /= points[1::2].abs().amax(-1, keepdim=True)
    net = small(name).train()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(80):
        loss = functional.cross_entropy(net(points), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (net.eval()(points).argmax(1) == labels).float().mean() >= 0.9
