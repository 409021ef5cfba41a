"""`--measure-every`: flipping after some epochs, in their table and figure; training stays as it is."""

import numpy as np
import pandas as pd
import pytest
import torch
from lab_runs import one_thread, squares, sticks  # noqa: F401
from typer.testing import CliRunner

from attrdrop import lrp, metrics
from attrdrop.lab.cli.main import app
from attrdrop.lab.images.data import load_task as image_task
from attrdrop.lab.images.settings import ImageSettings
from attrdrop.lab.images.training import ImageTrainer
from attrdrop.lab.points.data import load_task as point_task
from attrdrop.lab.points.readers import Reading
from attrdrop.lab.points.settings import PointSettings
from attrdrop.lab.points.training import PointTrainer

COMMON = {"device": "cpu", "epochs": 2, "batch_size": 16, "arms": ("reldrop",), "seeds": 1}


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    """By kind: makes a trainer with these settings."""
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "squares.npz", **squares(40))
    np.savez(folder / "sticks.npz", **sticks())
    images = image_task("npz", folder / "squares.npz", 16, None, None)
    clouds = point_task("npz", folder / "sticks.npz", Reading(16))
    small = {"model": "pointnet", "width": 0.125, "points": 16}
    return {
        "images": lambda **given: ImageTrainer(ImageSettings(**COMMON, **given), images),
        "points": lambda **given: PointTrainer(PointSettings(**COMMON, **small, **given), clouds),
    }


@pytest.mark.parametrize("kind", ["images", "points"])
def test_flipping_is_measured_after_every_nth_epoch(trainers, kind):
    trainer = trainers[kind](measure_every=2)
    found, model = trainer.trained("reldrop", 0)
    assert [epoch.flipping is None for epoch in found.epochs] == [True, False]
    x, y = trainer.batch(trainer.task.test, torch.arange(len(trainer.task.test.labels)))
    rule = lrp.EpsilonPlusFlat() if kind == "images" else lrp.EpsilonFlat(1e-6)
    relevance = lrp.relevance(model.eval(), x, y, rule=rule)
    how = {"steps": 16, "patch": 4} if kind == "images" else {"steps": 16}
    flipped = metrics.flipping_curve(model, x, y, relevance, score="probability", **how)
    assert found.epochs[-1].flipping == pytest.approx(float(flipped.auc.mean()), rel=1e-4)
    assert all((epoch.rank_accuracy is None) == (kind == "points") for epoch in found.epochs)

    plain, same = trainers[kind]().trained("reldrop", 0)
    assert all(epoch.flipping is None for epoch in plain.epochs)
    assert [epoch.train_loss for epoch in plain.epochs] == [epoch.train_loss for epoch in found.epochs]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True))


def test_it_stands_in_the_table_and_the_figure(tmp_path):
    np.savez(tmp_path / "sticks.npz", **sticks())
    small = "--model pointnet --width 0.125 --points 16 --epochs 2 --batch-size 16 --arms plain --seeds 1 --dataset npz"
    data = ["--data", str(tmp_path / "sticks.npz"), "--output", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app, ["train-points", *small.split(), *data, "--measure-every", "2"])
    assert outcome.exit_code == 0, outcome.output
    frame = pd.read_csv(tmp_path / "out" / "curves.csv")
    assert frame.flipping.notna().tolist() == [False, True]
    assert "rank_accuracy" not in frame  # clouds have no masks
    png = (tmp_path / "out" / "curves.png").read_bytes()
    assert int.from_bytes(png[16:20]) == 3 * 675  # panels, in pixels
