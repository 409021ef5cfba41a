"""Relevance that has a gradient: of the same values, against finite differences, and refused where there is none."""

import pytest
import torch
from nets import NETS, build, prepare
from torch import nn

from attrdrop import lrp


class Attends(nn.Module):
    """A transformer's block over embeddings, with the norms, activations and products that have rules of their own."""

    def __init__(self, fused):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 3)
        self.attention, self.fused = nn.MultiheadAttention(4, 2, batch_first=True), fused
        self.up, self.gate, self.down = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, tokens):
        x = self.embed(tokens)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=not self.fused)[0]
        x = x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        x = nn.functional.rms_norm(x, (4,), self.norm.weight)
        return self.head(nn.functional.gelu(x).mean(1))


class Recurs(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(9, 3), kind(3, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens))[0][:, -1])


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.Sigmoid(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3),
    )  # fmt: skip


IMAGES, TOKENS = (2, 2, 8, 8), torch.tensor([[1, 5, 2, 2], [3, 0, 8, 4]])
CASES = {
    "convolutional": (convolutional, None),
    "attention": (lambda: Attends(fused=False), TOKENS),
    "lstm": (lambda: Recurs(nn.LSTM), TOKENS),
    "gru": (lambda: Recurs(nn.GRU), TOKENS),
}
RULES = [lrp.Epsilon(0.1), lrp.Zero(), lrp.ZPlus(0.1), lrp.Gamma(0.5, 0.1), lrp.GradientTimesInput(), lrp.AbsGradient()]
TARGET = torch.tensor([2, 0])


def case(name):
    make, x = CASES[name]
    torch.manual_seed(0)
    net = prepare(make())
    return net, torch.randn(IMAGES, dtype=torch.float64) if x is None else x


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_relevance_is_that_of_finite_differences(name, rule):
    net, x = case(name)
    parameters = tuple(net.parameters())
    for values in parameters:
        values.data.add_(0.1 * torch.randn_like(values))  # biases of 0 are where z+ has a kink
    inputs = (x.requires_grad_(True), *parameters) if x.is_floating_point() else parameters

    def relevance(*given):
        x = given[0] if len(given) > len(parameters) else TOKENS
        return lrp.relevance(net, x, TARGET, rule=rule, create_graph=True)

    assert torch.autograd.gradcheck(relevance, inputs, fast_mode=True)


@pytest.mark.parametrize("options", [{"start": "one"}, {"start": "contrastive"}, {"attention": "detach"}], ids=str)
def test_starts_and_attention_have_their_gradients(options):
    torch.manual_seed(0)
    net, x = prepare(Attends(fused=True)), TOKENS

    def relevance(*_):
        return lrp.relevance(net, x, TARGET, rule=lrp.Epsilon(0.1), create_graph=True, **options)

    assert torch.autograd.gradcheck(relevance, tuple(net.parameters()), fast_mode=True)


@pytest.mark.parametrize("rule", [lrp.Epsilon(0.1), lrp.Gamma()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("name", NETS)
def test_values_are_the_same(name, rule):
    net, x, target = build(name)
    wanted = lrp.relevance(net, x, target, rule=rule)
    found = lrp.relevance(net, x, target, rule=rule, create_graph=True)
    assert found.requires_grad
    assert not wanted.requires_grad
    assert (found.detach() - wanted).abs().max() <= 1e-12 * wanted.abs().max()


def test_relevance_of_a_layer_has_a_gradient():
    net, x = case("convolutional")
    wanted = lrp.relevance(net, x, TARGET, rule=lrp.Epsilon(0.1), stop_at="3")
    found = lrp.relevance(net, x, TARGET, rule=lrp.Epsilon(0.1), stop_at="3", create_graph=True)
    assert torch.equal(found.detach(), wanted)
    assert torch.autograd.gradcheck(
        lambda *_: lrp.relevance(net, x, TARGET, rule=lrp.Epsilon(0.1), stop_at="3", create_graph=True),
        tuple(net.parameters()), fast_mode=True,
    )  # fmt: skip


def test_what_the_model_cuts_off_has_no_gradient():
    class Cuts(nn.Module):
        def __init__(self):
            super().__init__()
            self.below, self.above = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.above(x + self.below(x).detach())

    net = prepare(Cuts())
    relevance = lrp.relevance(net, torch.randn(2, 3).double(), TARGET, rule=lrp.Epsilon(0.1), create_graph=True)
    grads = torch.autograd.grad(relevance.square().sum(), list(net.parameters()), allow_unused=True)
    assert [grad is None for grad in grads] == [True, True, False, False]
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("rule", "options", "error", "message"),
    [
        (
            None,
            {},
            ValueError,
            r"layer 0 \(Conv2d\): create_graph supports Epsilon, Zero, ZPlus and Gamma, got Flat",
        ),
        (lrp.AlphaBeta(), {}, ValueError, "create_graph supports Epsilon, Zero, ZPlus and Gamma, got AlphaBeta"),
        (lrp.Epsilon(), {"create_graph": 1}, TypeError, "create_graph must be True or False, got 1"),
    ],
)
def test_errors_name_the_argument(rule, options, error, message):
    net, x = case("convolutional")
    with pytest.raises(error, match=message):
        lrp.relevance(net, x, TARGET, rule=rule, **{"create_graph": True, **options})
