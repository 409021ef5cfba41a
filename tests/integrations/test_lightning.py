"""AD-DROP in Lightning's Trainer does what a plain loop does."""

import pytest
import torch
from models import batch, build
from torchrun import run

from attrdrop import ADDrop


@pytest.fixture(scope="module")
def lightning():
    return pytest.importorskip("lightning.pytorch", reason="needs the extra lightning")


@pytest.fixture(scope="module")
def training(lightning):
    import lightning_training

    return lightning_training


def check(training, attribution, weights, dropped):
    """What Lightning gave is what a plain loop gives."""
    model = build("bert", torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    addrop = ADDrop(model, accumulation_steps=training.ACCUMULATED, attribution=attribution, **training.SETTINGS)
    for epoch in range(1, training.EPOCHS + 1):
        addrop.reset_statistics()
        addrop.start_epoch(epoch)
        for number, inputs in enumerate(training.rows(), 1):
            (addrop(**inputs).loss / training.ACCUMULATED).backward()
            if number % training.ACCUMULATED == 0:
                optimizer.step()
                optimizer.zero_grad()
    plain = dict(model.named_parameters())
    assert weights.keys() == plain.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-9, atol=1e-9, msg=name)
    assert dropped > 0
    assert dropped == pytest.approx(addrop.statistics().fraction_dropped)


@pytest.mark.slow
@pytest.mark.parametrize("optimisation", ["automatic", "manual"])
def test_it_trains_as_a_plain_loop(training, tmp_path, monkeypatch, optimisation):
    monkeypatch.chdir(tmp_path)
    check(training, "GA", *training.train(optimisation, "GA"))


@pytest.mark.slow
def test_two_processes_train_as_a_plain_loop(training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = ["automatic:GA", "manual:GA", "automatic:IGA", "automatic:AA", "automatic:RD"]
    run("lightning_training.py", tmp_path / "results.pt", *cases)
    for case, found in torch.load(tmp_path / "results.pt").items():
        check(training, case.split(":")[1], *found)


@pytest.mark.slow
def test_fabric_is_unwrapped(lightning):
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model = build("bert")
    wrapped = fabric.setup(model)
    addrop = ADDrop(wrapped, cross_tuning=False)
    fabric.backward(addrop(**batch("bert")).loss)
    assert addrop.statistics().dropped > 0


@pytest.mark.slow
def test_a_wrong_name_is_named(lightning, tmp_path):
    from attrdrop.integrations.lightning import ADDropCallback

    callback = ADDropCallback(model="encoder")
    with pytest.raises(ValueError, match="must name the attribute of LightningModule with the model, got 'encoder'"):
        callback.on_train_start(None, lightning.LightningModule())
    with pytest.raises(TypeError, match="either config or its fields"):
        ADDropCallback(callback.config, p=0.1)
