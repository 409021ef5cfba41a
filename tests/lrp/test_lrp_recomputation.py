"""Blocks that run again in the backward: relevance is that of the model without checkpointing."""

from functools import partial

import pytest
import torch
from nets import NETS, prepare
from torch import nn
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from attrdrop import RelDrop, lrp

RULES = [lrp.Epsilon(), None, lrp.Gamma(), lrp.GradientTimesInput()]
WAYS = {
    "reentrant": partial(checkpoint, use_reentrant=True),
    "not_reentrant": partial(checkpoint, use_reentrant=False),
    "through_the_module": lambda block, x: checkpoints.checkpoint(block, x, use_reentrant=False),
    "no_early_stop": partial(checkpoint, use_reentrant=False, determinism_check="none", preserve_rng_state=False),
    "sequential": lambda block, x: checkpoint_sequential(list(block), 2, x, use_reentrant=False),
    "nested": lambda block, x: checkpoint(
        lambda y: checkpoint(block, y, use_reentrant=False), x, use_reentrant=True
    ),
}  # fmt: skip


class Checkpointed(nn.Module):
    def __init__(self, block, way):
        super().__init__()
        self.block, self.way = block, way

    def forward(self, x):
        return self.way(self.block, x)


def net_of(way=None):
    torch.manual_seed(3)
    blocks = [nn.Sequential(nn.Conv2d(a, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)) for a in (3, 6, 6)]
    if way is not None:
        blocks = [Checkpointed(block, way) for block in blocks]
    return prepare(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)))


class MemoryEfficient(nn.Module):
    """A dense layer as torchvision's DenseNet has it with memory_efficient=True."""

    def __init__(self, dense, is_checkpointed):
        super().__init__()
        self.dense, self.is_checkpointed = dense, is_checkpointed

    def forward(self, x):
        def bottleneck(*inputs):
            return self.dense.conv1(torch.relu(self.dense.norm1(torch.cat(inputs, 1))))

        parts = x[:, :2], x[:, 2:]
        y = bottleneck(*parts)
        if self.is_checkpointed and any(part.requires_grad for part in parts):
            y = checkpoints.checkpoint(bottleneck, *parts, use_reentrant=False)
        return torch.cat([x, self.dense.conv2(torch.relu(self.dense.norm2(y)))], 1)


@pytest.mark.parametrize("stop_at", [None, "1"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", WAYS)
def test_a_checkpointed_model_gets_the_map_of_the_unchecked(way, rule, stop_at):
    x, target = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 4])
    found = lrp.relevance(net_of(WAYS[way]), x, target, rule=rule, stop_at=stop_at)
    assert torch.equal(found, lrp.relevance(net_of(), x, target, rule=rule, stop_at=stop_at))


@pytest.mark.parametrize("rule", RULES)
def test_memory_efficient_dense_layers(rule):
    torch.manual_seed(0)
    dense = prepare(NETS["densenet"][0]())
    nets = [
        nn.Sequential(*(MemoryEfficient(m, is_checkpointed) if type(m).__name__ == "Dense" else m for m in dense))
        for is_checkpointed in (True, False)
    ]
    x, target = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 4])
    assert torch.equal(*(lrp.relevance(net, x, target, rule=rule) for net in nets))


@pytest.mark.parametrize("way", ["reentrant", "not_reentrant"])
def test_training_checkpoints_again_after_an_attribution(way):
    net, x, labels = net_of(WAYS[way]).train(), torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.eps = 1e-5  # it trains
    runs = []
    net[1].block.register_forward_pre_hook(lambda *_: runs.append(1))
    dropped = RelDrop(net, p=1.0, alpha=0.0)(x, labels)
    assert len(runs) == 1
    with pytest.raises(ValueError, match="target must lie in"):
        lrp.relevance(net, x, labels + 5)
    runs.clear()
    nn.functional.cross_entropy(net(dropped.requires_grad_(True)), labels).backward()
    assert len(runs) == 2
    assert net[0].block[0].weight.grad.abs().sum() > 0
