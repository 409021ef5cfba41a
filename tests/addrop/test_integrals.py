"""Other rules for the integral of IGA, and the other reading of its scope, against Eq. 3 restated in float64."""

import numpy as np
import pytest
import torch
from eager import bits_of, check_a_step, eager_masks, equal_bits, gradients_of
from models import batch, build, with_dropout

from attrdrop import ADDrop, ADDropConfig
from attrdrop.addrop import integrated
from attrdrop.addrop.integrated import IntegratedPass1, JointPass1
from attrdrop.addrop.passes import Draws
from attrdrop.addrop.quadrature import RULES, nodes
from attrdrop.addrop.replay import Repeat

SCOPES = ("layer", "joint")


def new_addrop(model, **options):
    return ADDrop(model, **{**dict(p=0.45, q=0.7, attribution="IGA", cross_tuning=False), **options})


@pytest.fixture
def scores(monkeypatch):
    """By layer, what IGA ranks: A * (sum of weighed dO Vᵀ) over the sum of the weights, in float64."""
    found, real = {}, integrated.IntegratedPass1._rank

    def noting(self, integrand):
        call = integrand.call
        sums = sum(x.double() @ value.double().transpose(-1, -2) for x, value in integrand.sums)
        products = call.query.double() @ call.key.double().transpose(-1, -2) * call.score_scale()
        valid = call.valid()
        products = products if valid is None else products.masked_fill(~valid, -torch.inf)
        found[integrand.site.index] = products.softmax(-1) * sums / self._total
        real(self, integrand)

    monkeypatch.setattr(IntegratedPass1, "_rank", noting)
    return found


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("layers", "steps"), [("all", 1), ([1], 3), ([0, -1], 3)], ids=str)
def test_each_is_its_equation(rule, scope, steps, layers):
    model, inputs = build("bert", torch.float64), batch("bert", dtype=torch.float64)
    addrop = new_addrop(model, iga_rule=rule, iga_scope=scope, iga_steps=steps, layers=layers)
    chosen = None if layers == "all" else {index % 3 for index in layers}
    assert equal_bits(bits_of(addrop.attribute(**inputs)), eager_masks(model, inputs, addrop, chosen))


@pytest.mark.parametrize("name", ["albert", "llama", "t5", "swin", "deberta-v3", "mpnet"])
def test_joint_steps_of_other_models(name):
    model, inputs = build(name, torch.float64), batch(name, dtype=torch.float64)
    check_a_step(model, inputs, new_addrop(model, iga_rule="gauss", iga_scope="joint", iga_steps=2))


def test_the_scopes_are_the_same_where_one_layer_is_masked():
    model, inputs = build("bert", torch.float64), batch("bert", dtype=torch.float64)
    alone, joint = (
        bits_of(new_addrop(model, iga_scope=scope, iga_steps=4, layers=[1]).attribute(**inputs)) for scope in SCOPES
    )
    assert equal_bits(alone, joint)
    alone, joint = (bits_of(new_addrop(model, iga_scope=scope, iga_steps=4).attribute(**inputs)) for scope in SCOPES)
    assert not equal_bits(alone, joint)


def test_what_all_layers_are_given_adds_up_to_what_attention_does_to_the_target(scores):
    """Completeness of integrated gradients, where A of all layers is one variable."""
    model, inputs = build("bert", torch.float64), batch("bert", dtype=torch.float64)
    new_addrop(model, iga_scope="joint", iga_rule="gauss", iga_steps=12).attribute(**inputs)
    whole, none = (
        model(**inputs, attrdrop=Scaled(share)).logits.gather(-1, model(**inputs).logits.argmax(-1, keepdim=True)).sum()
        for share in (1.0, 0.0)
    )
    assert abs(whole - none) > 1e-3
    torch.testing.assert_close(sum(b.sum() for b in scores.values()), whole - none, rtol=1e-4, atol=0)


class Scaled:
    """Plain attention times a number."""

    def __init__(self, share):
        self.share = share

    def attend(self, call, plain):
        return plain() * self.share


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_gauss_nodes_integrate_polynomials(count):
    found = nodes("gauss", count)
    total = sum(node.weight for node in found)
    for degree in range(2 * count):
        integral = sum(node.weight * node.share**degree for node in found) / total
        assert integral == pytest.approx(1 / (degree + 1), rel=1e-13)
    assert all(0 < node.share < 1 for node in found)


@pytest.mark.parametrize("scope", SCOPES)
def test_four_gauss_nodes_are_closer_to_the_integral_than_twenty_steps(scores, scope):
    """Of these models; bench/approximations.py has trained ones."""
    model, inputs = build("bert", torch.float64), batch("bert", dtype=torch.float64)

    def attributions(rule, steps):
        new_addrop(model, iga_rule=rule, iga_steps=steps, iga_scope=scope).attribute(**inputs)
        return dict(scores)

    def error(found):
        return max(float((found[layer] - exact[layer]).norm() / exact[layer].norm()) for layer in exact)

    exact = attributions("gauss", 12)
    twenty = error(attributions("riemann", 20))
    assert error(attributions("riemann", 40)) < 0.6 * twenty  # so that what is taken for exact is the limit of Eq. 3
    assert error(attributions("gauss", 4)) < 0.1 * twenty


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_joint_steps_see_the_dropout_of_the_first(name):
    """At the share 1 a joint step is step m, whose attention drops out by our kernel on a CPU."""
    model, inputs = with_dropout(build(name)), batch(name)
    draws = Draws(0.3, 0.4, 0, torch.arange(3))
    pass1 = IntegratedPass1(draws, ADDrop(model)._scope, (), nodes("riemann", 1), is_joint=True)
    logits = pass1.run(model, inputs).logits
    for site in pass1.sites:
        site.is_masked = True
    pass1.walk_back(logits.sum())
    with pass1._replay.replayed(0, Repeat(3, 1)):
        pass1._before.restore()
        joint = JointPass1(draws, pass1.sites, pass1._integrands, 1.0)
        torch.testing.assert_close(model(**inputs, attrdrop=joint).logits, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [dict(iga_rule="gauss"), dict(iga_scope="joint")], ids=str)
def test_steps_repeat_and_leave_nothing_behind(options):
    model, inputs = with_dropout(build("bert")), batch("bert")

    def bits():
        torch.manual_seed(3)
        found = bits_of(new_addrop(model, iga_steps=3, **options).attribute(**inputs))
        return found, torch.get_rng_state()

    (first, state), (second, again) = bits(), bits()
    assert equal_bits(first, second)
    torch.manual_seed(3)
    new_addrop(model, attribution="GA").attribute(**inputs)
    assert torch.equal(state, again)
    assert torch.equal(state, torch.get_rng_state())
    assert not gradients_of(model)
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("scope", SCOPES)
def test_checkpointed_layers_change_no_bit(scope):
    model, inputs = with_dropout(build("bert")), batch("bert")

    def bits():
        torch.manual_seed(3)
        return bits_of(new_addrop(model, iga_steps=3, iga_scope=scope).attribute(**inputs))

    expected = bits()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert equal_bits(bits(), expected)


def test_gauss_nodes_in_one_batch_are_the_nodes_one_by_one():
    model, inputs = build("bert", torch.float64), batch("bert", dtype=torch.float64)
    single, several = (
        bits_of(new_addrop(model, iga_rule="gauss", iga_batch=n, pass1="eval").attribute(**inputs)) for n in (1, 3)
    )
    assert equal_bits(single, several)


def test_how_many_nodes_there_are_unless_told():
    assert [node.share for node in ADDropConfig().iga_nodes] == [k / 20 for k in range(1, 21)]
    assert len(ADDropConfig(iga_rule="gauss").iga_nodes) == 5
    assert len(ADDropConfig(iga_rule="gauss", iga_steps=np.int64(4)).iga_nodes) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(iga_rule="simpson"), "iga_rule must be 'riemann' or 'gauss', got 'simpson'"),
        (dict(iga_scope="all"), "iga_scope must be 'layer' or 'joint', got 'all'"),
        (dict(iga_scope="joint", iga_batch=2, pass1="eval"), "iga_batch must be 1 if iga_scope is 'joint', got 2"),
    ],
)
def test_wrong_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ADDropConfig(**fields)
