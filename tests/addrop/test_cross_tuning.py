"""When a step of ADDrop has two passes: cross-tuning by epochs and by steps, and evaluation."""

import warnings

import pytest
import torch
from models import batch, build

from attrdrop import ADDrop


def test_cross_tuning_and_evaluation():
    model, inputs = build("bert"), batch("bert")
    addrop = ADDrop(model)
    plain = model(**inputs).loss
    for epoch, is_active in ((1, False), (2, True), (3, False)):
        addrop.start_epoch(epoch)
        assert addrop.is_active is is_active
        assert torch.equal(addrop(**inputs).loss, plain) is not is_active
    model.eval()
    addrop.start_epoch(2)
    with torch.no_grad():
        assert torch.equal(addrop(**inputs).loss, model(**inputs).loss)
    assert addrop.statistics().steps == 1


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.filterwarnings("ignore:the model is in evaluation mode")
def test_evaluation_through_the_object_changes_no_later_mask(accumulation_steps, with_gradients):
    """Before training, between two epochs, and in the middle of an accumulated step."""
    model, inputs = build("bert"), batch("bert")

    def losses(evaluates):
        addrop = ADDrop(model, accumulation_steps=accumulation_steps)
        found = []
        for epoch in (2, 4):
            addrop.start_epoch(epoch)
            for _ in range(3):
                if evaluates:
                    model.eval()
                    with torch.set_grad_enabled(with_gradients):
                        addrop(**inputs)
                        addrop.attribute(**inputs)
                    model.train()
                found.append(addrop(**inputs).loss.item())
        return found, addrop.state_dict()

    assert losses(evaluates=True) == losses(evaluates=False)


@pytest.mark.parametrize(("every", "active"), [(1, "-+-+-+"), (2, "--++--"), (3, "---+++")])
def test_cross_tuning_by_steps(every, active):
    model, inputs = build("bert"), batch("bert")
    addrop = ADDrop(model, alternate="steps", every=every, accumulation_steps=2)
    found = ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            addrop.reset_statistics()
            assert addrop(**inputs).loss.isfinite()
            addrop(**inputs)
            found += {0: "-", 2: "+"}[addrop.statistics().steps]
    assert found == active
    by_epochs = ADDrop(model, every=every)
    for epoch, sign in enumerate(active, start=1):
        by_epochs.start_epoch(epoch)
        assert by_epochs.is_active == (sign == "+")


def test_evaluation_mode_is_said_once_where_gradients_flow():
    model, inputs = build("bert").eval(), batch("bert")
    addrop = ADDrop(model, cross_tuning=False)
    with torch.no_grad():
        addrop(**inputs)
    with pytest.warns(UserWarning, match=r"call model.train\(\) before training"):
        addrop(**inputs)


@pytest.mark.parametrize("run", ["call", "attribute", "compiled"])
def test_warnings_name_the_line_that_calls(run):
    model, inputs = build("bert").eval(), batch("bert")
    addrop = ADDrop(model)
    calls = {"call": addrop, "attribute": addrop.attribute, "compiled": torch.compile(addrop, backend="eager")}
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"model.train\(\)|start_epoch\(2\)") as found:
            calls[run](**inputs)
        assert [entry.filename for entry in found] == [__file__]
        model.train()


def test_training_that_never_names_an_epoch_is_said_once():
    model, inputs = build("bert"), batch("bert")
    addrop = ADDrop(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            model.eval()
            addrop(**inputs)
        model.train()
    with pytest.warns(UserWarning, match=r"nothing will be dropped until start_epoch\(2\)") as found:
        addrop(**inputs)
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        addrop(**inputs)
        told = ADDrop(model)
        told.start_epoch(1)
        told(**inputs)
        resumed = ADDrop(model)
        resumed.load_state_dict(told.state_dict())
        resumed(**inputs)
        ADDrop(model, cross_tuning=False)(**inputs)
