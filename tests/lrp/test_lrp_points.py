"""Relevance of point clouds: PointNet++ against the rules restated slowly, and grouping in the propagation."""

import pytest
import torch
from nets import prepare
from pointnet_restatement import restated
from torch import Tensor, nn

from attrdrop import group_points, lrp
from attrdrop.models import pointnet, pointnet2_msg, pointnet2_ssg

NETS = {
    "ssg": lambda: pointnet2_ssg(5, points=64, width=0.125),
    "ssg, normals": lambda: pointnet2_ssg(5, 6, points=64, width=0.125),
    "msg": lambda: pointnet2_msg(5, 5, points=48, width=0.125),
    "pointnet": lambda: pointnet(5, 4, width=0.125, turns=False),
}
RULES = {"epsilon": (lrp.Epsilon, False), "epsilon-flat": (lrp.EpsilonFlat, True)}


def build(name: str, has_shift: bool = True, clouds: int = 2, size: int = 64) -> tuple[nn.Module, Tensor, Tensor]:
    """A net in float64 and eval mode without eps in BatchNorm, clouds in the unit sphere, targets."""
    torch.manual_seed(3)
    net = prepare(NETS[name](), has_shift)
    points = 0.4 * torch.randn(clouds, size, net.channels, dtype=torch.float64)
    return net, points, torch.arange(clouds) % 5


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NETS)
def test_maps_are_the_rules_restated(name, rule, eps):
    net, points, target = build(name)
    make, is_flat = RULES[rule]
    found = lrp.relevance(net, points, target, rule=make(eps))
    expected = restated(net, points, target, eps, is_flat)
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NETS)
def test_relevance_is_conserved_without_biases(name, rule):
    net, points, target = build(name, has_shift=False)
    found = lrp.relevance(net, points, target, rule=RULES[rule][0](1e-12))
    logits = net(points).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(found.sum((1, 2)), logits, rtol=1e-6, atol=0)


def test_contrastive_start_is_the_logits_against_their_softmax():
    net, points, _ = build("ssg")
    rule = lrp.EpsilonFlat(1e-6)
    weight = net(points).softmax(1)
    parts = torch.stack([lrp.relevance(net, points, torch.full((2,), c), rule=rule) for c in range(5)], 1)
    target = torch.tensor([1, 4])
    expected = parts[[0, 1], target] - (weight[..., None, None] * parts).sum(1)
    found = lrp.relevance(net, points, target, rule=rule, start="contrastive")
    torch.testing.assert_close(found, expected)


def test_padding_has_no_relevance_and_changes_nothing():
    for name in NETS:
        net, points, target = build(name)
        valid = torch.ones(2, 80, dtype=torch.bool)
        valid[:, 64:] = False
        padded = torch.cat((points, torch.full((2, 16, points.shape[2]), 9.0, dtype=torch.float64)), 1)
        assert torch.equal(net(padded, valid), net(points))
        found = lrp.relevance(net, padded, target, rule=lrp.EpsilonFlat(), arguments={"valid": valid})
        torch.testing.assert_close(found[:, :64], lrp.relevance(net, points, target, rule=lrp.EpsilonFlat()))
        assert not found[:, 64:].any()


def test_neighbours_are_found_once_for_several_passes():
    net, points, target = build("msg")
    neighbours = net.neighbours(points)
    again = lrp.relevance(net, points, target, rule=lrp.Epsilon(), arguments={"neighbours": neighbours})
    assert torch.equal(again, lrp.relevance(net, points, target, rule=lrp.Epsilon()))


class Grouped(nn.Module):
    """Points, or a linear map of them, seen from the first point, then a linear layer."""

    def __init__(self, maps: bool) -> None:
        super().__init__()
        self.map = nn.Linear(3, 3, bias=False) if maps else nn.Identity()
        self.layer = nn.Linear(3, 2, bias=False)

    def forward(self, points: Tensor) -> Tensor:
        seen = self.map(points)
        index = torch.arange(points.shape[1]).expand(len(points), 1, -1)
        return self.layer(group_points(seen, index, seen[:, :1].contiguous())).sum((1, 2))


@pytest.mark.parametrize("maps", [False, True])
def test_a_centre_is_a_constant_wherever_it_comes_from(maps):
    torch.manual_seed(0)
    net, points, eps = Grouped(maps).double().eval(), torch.randn(2, 7, 3, dtype=torch.float64), 1e-3
    target = torch.tensor([0, 1])
    found = lrp.relevance(net, points, target, rule=lrp.Epsilon(eps))

    def ratio(r, z):
        return r / torch.where(z < 0, z - eps, z + eps)

    seen = net.map(points).detach()
    rows = seen - seen[:, :1]
    z = net.layer(rows)
    logits = z.sum(1)
    r = z / logits[:, None] * (logits * nn.functional.one_hot(target, 2))[:, None]
    r = rows * (ratio(r, z) @ net.layer.weight)  # of the rows, and so of the points
    if maps:
        stabilised = seen + torch.where(seen < 0, -1e-6, 1e-6)
        r = points * (ratio(r / stabilised * seen, seen) @ net.map.weight)
    torch.testing.assert_close(found, r.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_it_compiles_without_graph_breaks():
    net, points, target = build("ssg")
    expected = lrp.relevance(net, points, target, rule=lrp.EpsilonFlat())
    neighbours = net.neighbours(points)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(points, target):
        arguments = {"neighbours": neighbours}
        return lrp.relevance(net, points, target, rule=lrp.EpsilonFlat(), arguments=arguments)

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch.testing.assert_close(compiled(points, target), expected)
