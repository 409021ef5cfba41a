"""Half precision: what float16 cannot hold on the way must not turn relevance into NaN."""

import copy

import pytest
import torch
from torch import nn

from attrdrop import lrp, relevance_gate
from attrdrop.models import resnet10


def net_and_batch(device):
    """Branches of residual blocks end without a ReLU: where z+ divides by next to nothing, large outputs meet it."""
    torch.manual_seed(0)
    net = resnet10(5, 8).eval()
    with torch.no_grad():
        net.head.weight.mul_(1e3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0, 0.5)
    x = torch.randn(2, 3, 16, 16)
    x[:, :, :8] = 0
    return net.to(device), x.to(device), torch.tensor([1, 2], device=device)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("way", ["autocast", "half"])
@pytest.mark.parametrize("rule", [None, lrp.EpsilonPlus(), lrp.ZPlus(), lrp.Epsilon(), lrp.EpsilonFlat()])
def test_large_logits_give_finite_relevance(rule, way, device):
    net, x, target = net_and_batch(device)
    wanted = lrp.relevance(net, x, target, rule=rule)
    if way == "half":
        found = lrp.relevance(copy.deepcopy(net).half(), x.half(), target, rule=rule)
    else:
        with torch.autocast(device, torch.float16):
            found = lrp.relevance(net, x, target, rule=rule)
    assert found.isfinite().all()
    assert wanted.abs().max() > 0
    assert nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), 0) > 0.98


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_the_gate_stops_at_the_largest_half(backend):
    most = torch.finfo(torch.float16).max
    z = torch.tensor([-100.0, 100.0, 0.0, 3.0], dtype=torch.float16)
    surrogate = torch.zeros(4, dtype=torch.float16, requires_grad=True)
    y = relevance_gate(z, 1e-6, surrogate=surrogate, backend=backend)
    (found,) = torch.autograd.grad(y, surrogate, torch.tensor([1.0, 1.0, torch.inf, -torch.inf]).half())
    assert found.tolist() == [-most, most, 0.0, -most]
