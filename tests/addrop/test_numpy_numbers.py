"""NumPy's numbers are numbers, and what is none is refused where it is given."""

import numpy as np
import pytest
import torch
from eager import bits_of
from models import batch, build

from attrdrop import ADDrop, ADDropConfig, RelDrop, keep_mask


@pytest.mark.parametrize("attribution", ["GA", "IGA", "RD"])
def test_addrop_takes_them_as_its_own(attribution):
    model, inputs = build("bert"), batch("bert")
    own = dict(p=0.5, q=0.25, seed=3, layers=[0, 2], iga_steps=2, every=1)
    theirs = dict(
        p=np.float32(0.5), q=np.float64(0.25), seed=np.int64(3), layers=np.array([0, 2]), iga_steps=np.int32(2),
        every=np.uint8(1),
    )  # fmt: skip
    found = []
    for fields in (own, theirs):
        addrop = ADDrop(model, attribution=attribution, accumulation_steps=type(fields["seed"])(1), **fields)
        addrop.start_epoch(type(fields["seed"])(2))
        addrop.start_step(type(fields["seed"])(4))
        masks = addrop.attribute(**inputs)
        model(**inputs, attrdrop=masks)
        found.append((bits_of(masks), addrop.state_dict()))
    (expected, state), (bits, other_state) = found
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(expected, bits, strict=True))
    assert state == other_state
    assert all(type(value) is int for value in other_state.values())


def test_operators_and_reldrop_take_them():
    x = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    own = keep_mask(x, x, p=0.5, q=0.5, seed=3, layer=1)
    theirs = keep_mask(x, x, p=np.float32(0.5), q=np.float64(0.5), seed=np.int64(3), layer=np.int32(1))
    assert torch.equal(own.rows, theirs.rows)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).train()
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    first, second = (
        RelDrop(network, p=number(1), alpha=real(0.5), seed=number(3))(images, labels)
        for number, real in ((int, float), (np.int64, np.float32))
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("seed", [1.5, "3", True, None])
def test_seeds_are_checked_at_construction(seed):
    for make in (ADDropConfig, lambda seed: RelDrop(torch.nn.Linear(1, 1), seed=seed)):
        with pytest.raises(TypeError, match="seed must be an int"):
            make(seed=seed)


def test_steps_are_checked():
    for started in (ADDrop(build("bert")), RelDrop(torch.nn.Linear(1, 1))):
        with pytest.raises(TypeError, match="step must be an int, got float"):
            started.start_step(1.5)
