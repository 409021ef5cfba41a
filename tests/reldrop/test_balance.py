"""Balance: the number goes to where the gap is, and its state travels with the transform's."""

import pytest
import torch

import attrdrop
from attrdrop.models import resnet10
from attrdrop.schedules import Balance

WHICH = torch.tensor([True, False, True, False])


def losses(gap):
    return torch.where(WHICH, 1.0 + gap, 1.0)


@pytest.mark.parametrize(("harder", "sign"), [("lower", 1), ("higher", -1)])
def test_it_moves_towards_the_gap(harder, sign):
    balance = Balance(0.5, gap=0.4, harder=harder, rate=0.1, every=2)
    balance.observe(losses(0.6), WHICH)
    assert balance(0) == 0.5
    balance.observe(losses(0.4), WHICH)
    assert balance.found == pytest.approx(0.5)
    assert balance(3) == pytest.approx(0.5 + sign * 0.1 * 0.25)
    for _ in range(40):
        balance.observe(losses(5.0), WHICH)  # far too hard: the whole rate each time, to the end of the range
    assert balance(0) == (1.0 if sign > 0 else 0.0)
    for _ in range(4):
        balance.observe(losses(-3.0), WHICH)
    assert balance(0) == pytest.approx(0.8 if sign > 0 else 0.2)


def test_it_finds_the_number_that_gives_the_gap():
    balance = Balance(0.9, gap=0.3, rate=0.1, every=1)
    for step in range(200):
        balance.observe(losses(1.0 - balance(step)), WHICH)
    assert balance(0) == pytest.approx(0.7, abs=1e-3)


def test_what_tells_nothing_changes_nothing():
    balance = Balance(every=1)
    balance.observe(losses(9.0), None)
    balance.observe(losses(9.0), torch.zeros(4, dtype=torch.bool))
    assert balance(0) == 0.5
    balance.observe(torch.full((4,), 9.0), torch.ones(4, dtype=torch.bool))  # both kinds are there now
    assert balance.found == pytest.approx(9.0 - 5.5)
    before = balance(0)
    balance.observe(losses(torch.nan), WHICH)
    assert balance(0) == before


def test_state_comes_back_with_the_transform():
    model = resnet10(classes=3, width=4).train()
    images, labels = torch.rand(8, 3, 16, 16), torch.randint(3, (8,))

    def transform():
        return attrdrop.RelDrop(model, alpha=Balance(0.6, every=3), scale=(0.1, 0.3))

    def step(reldrop):
        reldrop(images, labels)
        reldrop.alpha.observe(torch.rand(8, generator=torch.Generator().manual_seed(reldrop._step)), reldrop.occluded)

    whole, part = transform(), transform()
    for _ in range(4):
        step(whole), step(part)
    resumed = transform()
    resumed.load_state_dict(part.state_dict())
    for _ in range(4):
        step(whole), step(resumed)
    assert whole.alpha(0) == resumed.alpha(0) != 0.6
    assert set(attrdrop.RelDrop(model).state_dict()) == {"step"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(gap=0), "gap must be a finite number above 0, got 0"),
        (dict(rate=0), "rate must be above 0"),
        (dict(start=0.1, low=0.2), r"start must lie between low and high, \[0.2, 1.0\], got 0.1"),
        (dict(harder="up"), "harder must be 'lower' or 'higher', got 'up'"),
        (dict(every=0), "every must be a positive int"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Balance(**arguments)


def test_bad_observations_are_refused():
    with pytest.raises(ValueError, match="losses must have shape \\(N,\\), one per sample"):
        Balance().observe(torch.tensor(1.0), WHICH)
    with pytest.raises(ValueError, match="occluded must be bool of shape \\(4,\\)"):
        Balance().observe(losses(1), WHICH.float())
