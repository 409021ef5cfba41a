"""Backwards that torch functions of the model did not make: hooks, custom functions that give back their input."""

import pytest
import torch
from nets import prepare
from torch import nn

from attrdrop import lrp

RULES = [lrp.Epsilon(), None, lrp.Gamma()]
X, TARGET = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 4])


def net_of(place=None, layer=None):
    """conv, norm, relu, conv, relu, pool, flatten, linear, with a layer put in."""
    torch.manual_seed(3)
    layers = [
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU()),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
    ]  # fmt: skip
    net = prepare(nn.Sequential(*layers))
    if layer is not None:
        net.insert(place, layer)
    return net


class Applied(nn.Module):
    def __init__(self, apply):
        super().__init__()
        self.apply_to = apply

    def forward(self, x):
        return self.apply_to(x)


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("rule", [*RULES, lrp.GradientTimesInput()])
def test_hooks_on_the_backward_change_nothing_and_see_nothing(register, rule):
    wanted = lrp.relevance(net_of(), X, TARGET, rule=rule)
    for name in ("0", "1", "2", "3", "3.0", "6", ""):
        net, calls = net_of(), []
        getattr(net.get_submodule(name), register)(lambda *_, calls=calls: calls.append(1))
        assert torch.equal(lrp.relevance(net, X, TARGET, rule=rule), wanted)
        assert calls == []
        net(X.clone().requires_grad_(True)).sum().backward()
        assert calls == [1]


def function(forward, backward):
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Custom", (torch.autograd.Function,), members).apply


FORMS = [lambda ctx, x: x, lambda ctx, x: x.view_as(x), lambda ctx, x: x.view_as(x)[:]]
FACTORS = [1, -0.5]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", RULES)
def test_custom_identities(rule, form, factor):
    """Seen where the rule of the layer before is in place already, refused where it is not."""
    wanted = lrp.relevance(net_of(), X, TARGET, rule=rule)
    apply = function(form, lambda ctx, grad: factor * grad)
    for place in (3, 4, 5, 6):
        found = lrp.relevance(net_of(place, Applied(apply)), X, TARGET, rule=rule)
        assert (found - factor * wanted).abs().max() <= 1e-12 * wanted.abs().max()
    for place in (1, 2, 7):
        with pytest.raises(ValueError, match="the result of code that attribution cannot see into"):
            lrp.relevance(net_of(place, Applied(apply)), X, TARGET, rule=rule)


@pytest.mark.parametrize("place", range(1, 8))
@pytest.mark.parametrize(
    "forward",
    [lambda ctx, x: torch.relu(x), lambda ctx, x: torch.sigmoid(x), lambda ctx, x: x.relu().view_as(x)],
)
@pytest.mark.parametrize("rule", RULES)
def test_functions_of_torch_inside_custom_ones_are_not_seen(rule, forward, place):
    apply = function(forward, lambda ctx, grad: grad)
    with pytest.raises(ValueError, match="the result of code that attribution cannot see into"):
        lrp.relevance(net_of(place, Applied(apply)), X, TARGET, rule=rule)


def test_two_inputs_of_which_one_has_not_met_its_rule():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.side = net_of(), nn.Conv2d(3, 6, 3).double()

        def forward(self, x):
            y = function(lambda ctx, a, b: a, lambda ctx, grad: (grad, grad))(self.net[:3](x), self.side(x))
            return self.net[3:](y)

    with pytest.raises(ValueError, match="the result of code that attribution cannot see into"):
        lrp.relevance(Two(), X, TARGET)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("place", range(8))
def test_looking_without_gradients_changes_nothing(place, rule):
    seen = []

    def look(x):
        with torch.no_grad():
            seen.append(float((x * 2).mean()))
            x.relu()
        return x

    found = lrp.relevance(net_of(place, Applied(look)), X, TARGET, rule=rule)
    wanted = lrp.relevance(net_of(), X, TARGET, rule=rule)
    if place != 1 and place != 2:  # the norm is part of the convolution, or the ReLU of both, unless one looks between
        assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()
    assert found.abs().max() > 0
    assert seen == [pytest.approx(2 * float(net_of()[:place](X).mean()))]


def without_gradients(x):
    with torch.no_grad():
        return x.mul_(2)


def dirty(ctx, x):
    ctx.mark_dirty(x)
    return x.mul_(2)


@pytest.mark.parametrize("change", [without_gradients, function(dirty, lambda ctx, grad: 2 * grad)])
@pytest.mark.parametrize("place", range(8))
def test_changes_in_place_without_gradients_are_refused(place, change):
    kept = X.clone()
    with pytest.raises(ValueError, match="changes an activation in place where gradients are off"):
        lrp.relevance(net_of(place, Applied(change)), X, TARGET)
    assert torch.equal(X, kept)
