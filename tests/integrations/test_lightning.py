"""AD-DROP in Lightning's Trainer does what a plain loop does."""

import pytest
import torch
from models import batch, build
from sentences import Sentences
from torch.utils.data import DataLoader

from attrdrop import ADDrop

EPOCHS, ACCUMULATED = 2, 2
SETTINGS = dict(p=0.4, q=0.5)


@pytest.fixture(scope="module")
def lightning():
    return pytest.importorskip("lightning.pytorch", reason="needs the extra lightning")


def rows():
    return DataLoader(Sentences(8), batch_size=2)


def plainly():
    """The weights and the fraction dropped in the second epoch."""
    model = build("bert", torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    addrop = ADDrop(model, accumulation_steps=ACCUMULATED, **SETTINGS)
    for epoch in range(1, EPOCHS + 1):
        addrop.start_epoch(epoch)
        for number, inputs in enumerate(rows(), 1):
            (addrop(**inputs).loss / ACCUMULATED).backward()
            if number % ACCUMULATED == 0:
                optimizer.step()
                optimizer.zero_grad()
    return dict(model.named_parameters()), addrop.statistics().fraction_dropped


@pytest.mark.slow
@pytest.mark.parametrize("optimisation", ["automatic", "manual"])
def test_it_trains_as_a_plain_loop(lightning, tmp_path, optimisation):
    from attrdrop.integrations.lightning import ADDropCallback

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = build("bert", torch.float64)
            self.automatic_optimization = optimisation == "automatic"

        def training_step(self, inputs, index):
            loss = self.addrop(**inputs).loss
            if not self.automatic_optimization:
                self.manual_backward(loss / ACCUMULATED)
                if (index + 1) % ACCUMULATED == 0:
                    self.optimizers().step()
                    self.optimizers().zero_grad()
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    options = {"accumulate_grad_batches": ACCUMULATED} if optimisation == "automatic" else {}
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=EPOCHS, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[ADDropCallback(model="net", **SETTINGS)], **options,
    )  # fmt: skip
    classifier = Classifier()
    trainer.fit(classifier, rows())
    weights, dropped = plainly()
    for name, weight in classifier.net.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=1e-9, atol=1e-9, msg=name)
    assert trainer.callback_metrics["addrop_fraction_dropped"].item() == pytest.approx(dropped)


@pytest.mark.slow
def test_fabric_is_unwrapped(lightning):
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model = build("bert")
    wrapped = fabric.setup(model)
    addrop = ADDrop(wrapped, cross_tuning=False, **SETTINGS)
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
