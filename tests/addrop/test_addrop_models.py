"""ADDrop on every kind of model: one step equals the paper's text carried out on the model's own eager attention."""

import pytest
import torch
from eager import bits_of, gradients_of
from models import ALL, batch, build
from own_attention import InDouble, eager_step

from attrdrop import ADDrop


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layers", ["all", "first"])
def test_a_step_equals_the_eager_one_in_float64(name, layers):
    model, inputs = build(name, torch.float64), batch(name, dtype=torch.float64)
    addrop = ADDrop(model, p=0.3, q=0.4, layers=layers, cross_tuning=False)
    with InDouble():
        masks = addrop.attribute(**inputs)
        assert all(p.grad is None for p in model.parameters())
        loss = model(**inputs, attrdrop=masks).loss
        loss.backward()
        eager = build(name, torch.float64, attention="eager")
        count = sum(len(entry) for entry in masks._order._sites.values())
        chosen = range(count) if layers == "all" else [0]
        expected_loss, keeps = eager_step(eager, inputs, addrop, chosen, 0.3, 0.4)
    for layer, mine in enumerate(bits_of(masks)):
        theirs = keeps.get(layer)
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)
    assert addrop.statistics().dropped > 0
    assert abs(float(loss.detach() - expected_loss)) < 1e-9
    ours, theirs = gradients_of(model), gradients_of(eager)
    assert ours.keys() == theirs.keys()
    for parameter, gradient in theirs.items():
        torch.testing.assert_close(ours[parameter], gradient, atol=1e-9, rtol=1e-9, msg=parameter)
