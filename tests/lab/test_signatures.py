"""Signs that training goes wrong: told when they show, once, and not where all is well."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lab_runs import one_thread, squares  # noqa: F401

from attrdrop.lab.images.data import ArrayImages, ImageTask
from attrdrop.lab.images.settings import ImageSettings
from attrdrop.lab.images.training import ImageTrainer
from attrdrop.lab.runs.signatures import of_run, of_runs


def epochs(losses, ranks=None):
    ranks = ranks or [None] * len(losses)
    return [SimpleNamespace(train_loss=loss, rank_accuracy=rank) for loss, rank in zip(losses, ranks, strict=True)]


@pytest.mark.parametrize(
    ("losses", "ranks", "planned", "signs"),
    [
        ([2.3, 1.9, 1.5], None, 6, set()),
        ([2.3, 1.0, 1.6], None, 9, {"diverges"}),
        ([2.3, 1.0, float("nan")], None, 9, {"diverges"}),
        ([2.3, 2.29], None, 4, {"plateau"}),
        ([2.3, 2.29], None, 9, set()),  # not yet half way
        ([2.3, 2.0], [0.5, 0.46], 9, set()),
        ([2.3, 2.0, 1.8], [0.5, 0.6, 0.54], 9, {"background"}),
        ([2.3, 2.0, 3.8], [0.5, 0.6, 0.3], 9, {"diverges", "background"}),
        ([2.3, 2.0, 1.8], [0.5, None, 0.49], 9, set()),
    ],
)
def test_signs_of_a_run(losses, ranks, planned, signs):
    assert set(of_run(epochs(losses, ranks), planned, "--beta")) == signs


def run(arm, seed, accuracy):
    return {"arm": arm, "seed": seed, "test_accuracy": accuracy}


def test_signs_of_runs():
    runs = [run(arm, seed, accuracy) for seed in (0, 1) for arm, accuracy in (("plain", 0.9), ("erasing", 0.8))]
    assert of_runs(runs, "erasing", ("reldrop",)) == ""
    runs.append(run("reldrop", 0, 0.75))
    assert of_runs(runs, "erasing", ("reldrop",)) == ""  # one seed says nothing
    runs.append(run("reldrop", 1, 0.79))
    said = of_runs(runs, "erasing", ("reldrop",))
    assert "no gain over erasing so far: reldrop has -3.0 points over 2 seeds;" in said
    assert "--epsilon" in said
    runs += [run("reldrop beta=0.3", seed, 0.81) for seed in (0, 1)]
    assert of_runs(runs, "erasing", ("reldrop",)) == ""
    assert of_runs([run("reldrop", 0, 0.1)], "erasing", ("reldrop",)) == ""


def test_training_warns_once_of_what_goes_wrong():
    arrays = squares(48)
    pixels = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).contiguous()
    images = ArrayImages(pixels, torch.from_numpy(arrays["y"]), torch.from_numpy(arrays["mask"]))
    task = ImageTask("squares", ["a", "b", "c"], images, images, [0.4] * 3, [0.3] * 3, "none")
    settings = ImageSettings(device="cpu", epochs=4, batch_size=16, lr=1e-9, arms=("plain", "reldrop"))
    trainer = ImageTrainer(settings, task)
    with pytest.warns(UserWarning, match="reldrop, seed 0, epoch 2: the training loss stagnates") as caught:
        found, _ = trainer.trained("reldrop", 0)
    assert len([one for one in caught if "stagnates" in str(one.message)]) == 1
    assert all(0 <= epoch.rank_accuracy <= 1 for epoch in found.epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.trained("plain", 0)  # of plain training nothing is said: nothing is taken away
    assert np.isfinite(found.epochs[-1].train_loss)
