"""Whole steps with a model that torch.compile runs: masks, losses and gradients of eager steps, from step to step."""

import copy

import pytest
import torch
from eager import bits_of, gradients_of
from image_models import image_batch
from models import NO_DROPOUT, SIZE, batch, build
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from attrdrop import ADDrop, RelDrop
from attrdrop.models import ResNet


def small_bert():
    torch.manual_seed(0)
    sizes = {**SIZE, "num_hidden_layers": 1}
    return BertForSequenceClassification(BertConfig(**sizes, **NO_DROPOUT, attn_implementation="attrdrop")).train()


def trained(model, other, graphs, run):
    """What ``run`` gives by step, of an eager model and of its compiled double, after each step's update.

    The third step is the last that may compile: seeds are numbers that a graph takes for constants until they change.
    """
    compiled = torch.compile(other, backend=graphs)
    optimizers = [torch.optim.SGD(found.parameters(), lr=0.1) for found in (model, other)]
    counts = []
    for step in range(5):
        for found, optimizer in zip((model, compiled), optimizers, strict=True):
            run(step, found).backward()
            optimizer.step()
        counts.append(graphs.frame_count)
        ours, theirs = gradients_of(other), gradients_of(model)
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-3, msg=name)
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert counts[0] > 0
    assert counts[2] == counts[-1]


@pytest.mark.slow
@pytest.mark.parametrize("attribution", [None, "GA", "RD"])
def test_a_model_that_inductor_compiled(attribution):
    torch._dynamo.reset()
    eager = small_bert()
    inputs, made, masks = batch("bert"), {}, {}

    def run(step, model):
        if attribution is None:
            return model(**inputs).loss
        if model not in made:
            made[model] = ADDrop(model, p=0.4, q=0.5, attribution=attribution, cross_tuning=False)
        made[model].start_step(step)
        found = made[model].attribute(**inputs)
        loss = model(**inputs, attrdrop=found).loss
        masks.setdefault(model, []).append(bits_of(found)[0])
        return loss

    trained(eager, copy.deepcopy(eager), CompileCounterWithBackend("inductor"), run)
    if attribution is not None:
        ours, theirs = masks.values()
        assert all(map(torch.equal, ours, theirs))
        assert not any(map(torch.equal, ours, ours[1:]))


@pytest.mark.slow
def test_reldrop_on_a_model_that_inductor_compiled():
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = ResNet([1, 1], 5, width=16).train()  # with 6 channels inductor of torch 2.13 writes past its own buffers
    images, labels = image_batch(4)
    made, taken = {}, {}

    def run(_step, model):
        if model not in made:
            made[model] = RelDrop(model, p=1.0, alpha=0.5)
        found = made[model](images, labels)
        taken.setdefault(model, []).append(found)
        return functional.cross_entropy(model(found), labels)

    trained(eager, copy.deepcopy(eager), CompileCounterWithBackend("inductor"), run)
    ours, theirs = taken.values()
    assert all(map(torch.equal, ours, theirs))
    assert not any(map(torch.equal, ours, ours[1:]))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options", [{}, dict(attribution="AA"), dict(attribution="RD"), dict(sample_share=0.5)], ids=str
)
def test_a_step_never_waits_for_the_device(options):
    model = build("bert").cuda()
    inputs = {name: x.cuda() for name, x in batch("bert").items()}
    optimizer = torch.optim.AdamW(model.parameters())
    addrop = ADDrop(model, cross_tuning=False, **options)

    def step():
        addrop(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # finds the layers, compiles kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert addrop.statistics().dropped > 0
