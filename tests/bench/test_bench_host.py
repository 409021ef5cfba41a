"""What steps ask of the host, counted: a new launch in a step of ours shows here."""

import pytest
import torch
from bench_setup import compiled_kernels, one_thread  # noqa: F401
from torch import nn

from bench.steps import host

text = pytest.importorskip("bench.steps.text")
images = pytest.importorskip("bench.steps.images")
TEXT = text.Settings(model="tiny", batch=4, n=8, attention_dropout=0.0)
IMAGES = images.Settings(model="resnet10", batch=8, size=8)


def test_views_and_empty_memory_are_no_calls():
    x = torch.ones(4, 4)

    def step():
        y = x.t()[1:].unsqueeze(0)
        torch.empty(3)
        (y + 1).mul_(2).clone()
        return x.sum().item()

    cost = host.counted(step)
    assert cost.calls == {"add": 1, "mul_": 1, "clone": 1, "sum": 1, "_local_scalar_dense": 1}
    assert cost.allocations == 4
    assert (cost.ours, cost.of(*host.COPIES), cost.of(*host.WAITS)) == (0, 1, 1)


def test_backwards_count_and_optimizers_do_not():
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def step():
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    cost = host.counted(step)
    assert cost.calls["mm"] == 1  # of the weight's gradient
    assert not any("foreach" in name or name == "add_" for name in cost.calls)


def beyond(bench, settings, arm):
    """Calls of an arm that the plain step does not make, and allocations likewise."""
    plain, cost = (host.counted(bench.build(settings, name)) for name in ("plain", arm))
    more = cost.calls - plain.calls
    return more, cost.allocations - plain.allocations


@pytest.mark.parametrize(
    ("arm", "own", "calls", "allocations"),
    [
        (
            "ADDrop",  # pass 1's walk back ends in the lower layer, and selects on its way through the upper one
            {"masked_attention": 4, "ranked_attention_backward": 1, "keep_mask": 1},
            118,
            125,
        ),
        ("ADDrop, AA", {"masked_attention": 3, "keep_mask": 2}, 56, 54),
        ("ADDrop, RD", {"masked_attention": 2, "random_keep_mask": 2}, 10, 6),
    ],
)
def test_a_step_of_addrop_calls_this_much_beyond_a_plain_one(arm, own, calls, allocations):
    """own: of our operators, in two layers; the batch is padded, so pass 1 attends by them too."""
    more, made = beyond(text.BENCH, TEXT, arm)
    ours = {name.removeprefix("attrdrop::"): count for name, count in more.items() if name.startswith("attrdrop")}
    assert ours == {"pack_mask": 1, "masked_attention_backward": 2, **own}
    assert (more.total(), made) == (calls, allocations)


@pytest.mark.parametrize(
    ("arm", "ours", "calls", "allocations"),
    [("RelDrop", 26, 263, 239), ("epsilon, p=.5", 27, 165, 163), ("random erasing", 2, 13, 13)],
)
def test_a_step_of_reldrop_calls_this_much_beyond_a_plain_one(arm, ours, calls, allocations):
    more, made = beyond(images.BENCH, IMAGES, arm)
    assert sum(count for name, count in more.items() if name.startswith("attrdrop")) == ours
    assert (more.total(), made) == (calls, allocations)
