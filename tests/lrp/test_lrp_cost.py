"""What relevance costs beside its arithmetic: Python calls, counted, and what is kept for the backward."""

import sys
from pathlib import Path

import nets
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

import attrdrop
from attrdrop import lrp
from attrdrop.lrp.calls import LinearCall

OURS = str(Path(attrdrop.__file__).parent)


def python_calls(call):
    """Calls of Python functions of this library meanwhile, and how many of them were of the mode."""
    counts = {"all": 0, "seen": 0}

    def count(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            counts["all"] += 1
            counts["seen"] += frame.f_code.co_name == "__torch_function__"

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return counts


def test_a_torch_function_costs_few_python_calls():
    """In small models these are most of the cost. The bound has 30 % to spare."""
    pytest.importorskip("transformers")
    import texts

    model, batch = texts.build("llama"), texts.batch("llama")

    def call():
        lrp.relevance(model, batch, torch.tensor([1, 2]), rule=lrp.Zero(), position=-1)

    call()  # what functions mean is looked up once
    counts = python_calls(call)
    assert counts["seen"] > 100
    assert counts["all"] < 11.5 * counts["seen"], counts


def test_what_is_captured_costs_none():
    model, x, target = nets.build("resnet10")
    captured = lrp.capture(model, x, target, rule=lrp.Zero())
    counts = python_calls(lambda: captured(x, target))
    assert counts["seen"] == 0
    assert counts["all"] < 70  # they look at the batch, whatever the model
    assert python_calls(lambda: lrp.relevance(model, x, target, rule=lrp.Zero()))["all"] > 400


LAYERS = {
    "linear": (F.linear, (5, 7), (6, 7), (), 1),
    "linear of places": (F.linear, (2, 5, 7), (6, 7), (), 1),
    "convolution": (F.conv2d, (2, 4, 5, 5), (6, 2, 3, 3), (1, 1, 1, 2), 1),
    "transposed convolution": (F.conv_transpose2d, (2, 4, 5, 5), (4, 3, 3, 3), (2, 1, 0, 2), 2),
}


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_changed_weights_are_made_again_for_the_backward(name, is_scaled):
    func, shape, of_weight, rest, groups = LAYERS[name]
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(of_weight)
    is_transposed = func is F.conv_transpose2d
    scale = torch.randn(of_weight[1] * groups if is_transposed else of_weight[0]) if is_scaled else None
    call = LinearCall(func, x, weight, None, rest, {}, "conv" in name, is_transposed, False, scale=scale)
    made = []

    def change(weight, out):
        assert (out is not None) == is_scaled
        changed = torch.clamp_min(weight, 0, out=out)
        made.append(StorageWeakRef(changed.untyped_storage()))
        return changed

    found, wanted = call.weighed(x, change, None), call.run(x, call.folded_weight.clamp_min(0), None)
    assert torch.equal(found, wanted)
    assert [of.expired() for of in made] == [True]
    seed = torch.randn_like(found)
    assert torch.equal(*(torch.autograd.grad(y, x, seed)[0] for y in (found, wanted)))
    assert len(made) == 2
