"""Rivals of AD-DROP that change weights or their gradients: each equals its definition, restated entry by entry."""

import math

import pytest
import torch
from double_steps import assert_equal_steps, step, task
from eager import gradients_of
from torch import nn

from attrdrop.lab.text.methods.base import Method
from attrdrop.lab.text.methods.child_tuning import ChildTuning
from attrdrop.lab.text.methods.mixout import Mixout, linear_weights

RATE = 0.3
FAMILIES = ("bert", "bert-regression", "albert", "gpt2", "llama-lm", "t5")  # shared, transposed and tied weights


def moved(model):
    """Changes every parameter, as training does."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


def kept(shape, generator):
    """Bool: which entries stay."""
    return torch.empty(shape, dtype=torch.bool).bernoulli_(1 - RATE, generator=generator)


def linear_names(model):
    """Below the head of a BERT."""
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if name.startswith("bert.") and isinstance(module, nn.Linear)
    ]


def test_mixout_equals_its_formula():
    model, inputs = task("bert", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method = Mixout(model, rate=RATE, seed=3)
    moved(model)
    ours = step(model, lambda: method(**inputs))

    names, generator = linear_names(model), torch.Generator().manual_seed(3)
    assert len(names) == 3 * 6 + 1
    other, _ = task("bert")
    other.load_state_dict(model.state_dict())
    masks = {name: kept(before[name].shape, generator) for name in names}
    for name, m in masks.items():
        w, u = model.get_parameter(name).detach(), before[name]
        mixed = (torch.where(m, w, u) - RATE * u) / (1 - RATE)
        other.get_parameter(name).data.copy_(mixed)
    loss, gradients = step(other, lambda: Method(other)(**inputs))
    expected = {
        name: gradient * masks[name] / (1 - RATE) if name in masks else gradient for name, gradient in gradients.items()
    }
    assert_equal_steps(ours, (loss, expected))
    entries, dropped = (sum(int(f(m)) for m in masks.values()) for f in (torch.numel, lambda m: (~m).sum()))
    assert method.statistics() == {"valid": entries, "dropped": dropped, "fraction_dropped": dropped / entries}


def test_mixout_uses_the_trained_weights_in_the_mean_and_in_evaluation():
    model, inputs = task("bert")
    method = Mixout(model, rate=0.5)
    moved(model)
    name = "bert.encoder.layer.1.output.dense.weight"
    total = sum(method._mixed()[name].detach() for _ in range(60)) / 60
    change = model.get_parameter(name) - method._before[name]
    assert ((total - model.get_parameter(name)).abs() < 6 * change.abs() / math.sqrt(60)).all()
    assert torch.equal(method.model.eval()(**inputs).loss, method(**inputs))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_under_mixout(name):
    model, inputs = task(name, torch.float32)
    first, again, other = (Mixout(model, rate=RATE, seed=seed) for seed in (5, 5, 6))
    untrained = Method(model)(**inputs)
    assert torch.allclose(first(**inputs), untrained, atol=1e-5)  # nothing has moved yet
    again(**inputs)
    moved(model)
    loss = first(**inputs)
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients_of(model).values())
    assert torch.equal(loss, again(**inputs))
    assert loss != other(**inputs)
    assert first.statistics()["fraction_dropped"] == pytest.approx(RATE, abs=0.02)
    head = model.get_output_embeddings()
    assert all(head is None or model.get_parameter(name) is not head.weight for name in linear_weights(model))


@pytest.mark.parametrize("name", FAMILIES)
def test_child_tuning_drops_and_scales_gradients(name):
    model, inputs = task(name)
    loss, plain = step(model, lambda: Method(model)(**inputs))
    method, generator = ChildTuning(model, rate=RATE, seed=3), torch.Generator().manual_seed(3)
    for number in (1, 2):
        method.start_epoch(number)
        ours = step(model, lambda: method(**inputs))
        masks = {name: kept(value.shape, generator) for name, value in model.named_parameters()}
        expected = {name: gradient * masks[name] / (1 - RATE) for name, gradient in plain.items()}
        assert_equal_steps(ours, (loss, expected))
        entries, dropped = (sum(int(f(m)) for m in masks.values()) for f in (torch.numel, lambda m: (~m).sum()))
        assert method.statistics() == {"valid": entries, "dropped": dropped, "fraction_dropped": dropped / entries}
    model.eval()
    assert_equal_steps(step(model, lambda: method(**inputs)), step(model, lambda: Method(model)(**inputs)))


@pytest.mark.parametrize("method", [Mixout, ChildTuning])
def test_to_drop_nothing_is_plain_training(method):
    model, inputs = task("bert")
    method = method(model, rate=0.0)
    moved(model)
    plain = step(model, lambda: Method(model)(**inputs))
    assert_equal_steps(step(model, lambda: method(**inputs)), plain)
    assert method.statistics() is None


@pytest.mark.parametrize("method", [Mixout, ChildTuning])
def test_what_cannot_work_is_refused(method):
    model, inputs = task("bert")
    with pytest.raises(ValueError, match="rate must be below 1, because at 1 nothing is left to scale up, got 1"):
        method(model, rate=1.0)
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=f"^{method.__name__} would draw anew .* turn gradient checkpointing off"):
        method(model, rate=RATE)(**inputs)


def test_child_tuning_leaves_frozen_parameters_alone():
    model, inputs = task("bert")
    model.bert.embeddings.requires_grad_(False)
    method = ChildTuning(model, rate=RATE)
    method(**inputs).backward()
    assert all(parameter.grad is None for parameter in model.bert.embeddings.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert method.statistics()["valid"] == trained
