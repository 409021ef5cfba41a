"""Relevance in captum's shape: its own LRP's values where captum is there, targets, arguments, bad input."""

import pytest
import torch
from nets import build, prepare
from torch import nn

from attrdrop import lrp
from attrdrop.integrations.captum import LRP

TARGET = torch.tensor([1, 3])


@pytest.fixture
def vgg():
    return build("vgg")


class Plain(nn.Module):
    """Of the layers that captum knows."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Dropout()
        )
        self.head = nn.Sequential(nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 5))

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def test_relevance_is_that_of_captum():
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    net, x = prepare(Plain()), torch.randn(2, 3, 14, 14).double()
    for target in (TARGET, 2):
        wanted, left = attr.LRP(net).attribute(x, target=target, return_convergence_delta=True)
        found, delta = LRP(net).attribute(x, target=target, return_convergence_delta=True)
        assert wanted.abs().max() > 1e-6
        assert (found - wanted).abs().max() <= 1e-7 * wanted.abs().max()
        assert (delta - left).abs().max() <= 1e-7
    tunnel = attr.NoiseTunnel(LRP(net)).attribute(x, target=2, nt_samples=2, stdevs=0.0)
    assert torch.allclose(tunnel, found, atol=1e-12)


def test_every_kind_of_target_and_inputs(vgg):
    net, x, _ = vgg
    wanted = lrp.relevance(net, x, TARGET, rule=lrp.Epsilon(1e-9))
    for target in (TARGET, [1, 3], [(1,), (3,)]):
        assert torch.equal(LRP(net).attribute(x, target), wanted)
    (packed,) = LRP(net).attribute((x,), TARGET)
    assert torch.equal(packed, wanted)
    alike = lrp.relevance(net, x, torch.tensor([2, 2]), rule=lrp.ZPlus())
    for target in (2, (2,), torch.tensor(2), torch.tensor([2])):
        assert torch.equal(LRP(net, lrp.ZPlus()).attribute(x, target), alike)
    _, delta = LRP(net.train()).attribute(x, TARGET, return_convergence_delta=True)
    assert net.training
    outputs = net.eval()(x.clone()).gather(1, TARGET[:, None])[:, 0]
    assert torch.allclose(delta, outputs - wanted.flatten(1).sum(1))


class Shifted(nn.Module):
    """(N, T, D) to (N, T, 3), (N, 3) or (N,), and further arguments."""

    def __init__(self, dims=3):
        super().__init__()
        self.layer, self.dims = nn.Linear(4, 3), dims

    def forward(self, x, shift, scale=1.0):
        y = self.layer(x + shift) * scale
        return {3: lambda: y, 2: lambda: y.sum(1), 1: lambda: y.sum((1, 2))}[self.dims]()


def test_more_dimensions_one_output_and_further_arguments():
    torch.manual_seed(0)
    x, shift, rule = torch.randn(2, 5, 4).double(), torch.randn(5, 4).double(), lrp.Epsilon(1e-9)
    net = prepare(Shifted())
    wanted = torch.zeros_like(x)
    for sample, (place, kind) in enumerate([(4, 2), (0, 1)]):
        wanted[sample, place] = x[sample, place] * net.layer.weight[kind].detach() * 2
    found = LRP(net).attribute(x, [(4, 2), (0, 1)], (shift, 2.0))
    assert torch.allclose(found, wanted, atol=1e-6)
    assert torch.allclose(LRP(net).attribute(x[:1], (4, 2), (shift, 2.0)), wanted[:1], atol=1e-6)
    one = LRP(Shifted(1).double()).attribute(x, None, shift)
    assert one.shape == x.shape
    net = prepare(Shifted(2))
    same = lrp.relevance(net, x, torch.tensor([1, 1]), rule=rule, arguments={"shift": shift})
    assert torch.equal(LRP(net).attribute(x, 1, shift), same)


@pytest.mark.parametrize(
    ("inputs", "target", "others", "error", "message"),
    [
        ("pair", 1, None, TypeError, "inputs must be one tensor, the others additional_forward_args, got a tuple of 2"),
        (None, 1, None, TypeError, "inputs must be one tensor, .* got NoneType"),
        (
            "x",
            None,
            None,
            ValueError,
            r"target must be given for outputs with more than one number per sample, \(2, 5\)",
        ),
        ("x", 5, None, ValueError, r"target must lie in \[-5, 5\), got 5 to 5"),
        ("x", [1, 2, 3], None, ValueError, r"target must be an index, or one per sample, 2, got torch.int64 of shape"),
        ("x", 1.5, None, ValueError, "target must be an index, or one per sample, 2, got torch.float32"),
        (
            "x",
            "cat",
            None,
            TypeError,
            "target must be an index, a tuple of indices or one of these per sample, got 'c",
        ),
        ("x", (1, 2), None, ValueError, "target must have 1 indices per sample for outputs of shape"),
        (
            "x",
            1,
            (1, 2),
            ValueError,
            "additional_forward_args must be at most those .* Sequential takes .*, 0, got 2",
        ),
    ],
)
def test_errors_name_the_argument(inputs, target, others, error, message, vgg):
    net, x, _ = vgg
    given = {"pair": (x, x), "x": x}.get(inputs)
    with pytest.raises(error, match=message):
        LRP(net).attribute(given, target, others)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        LRP(lambda x: x)
