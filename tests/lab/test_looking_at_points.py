"""`attrdrop maps-points` and `attrdrop evaluate-points`: rules side by side, scores of a saved model."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from lab_runs import names, one_thread, sticks  # noqa: F401
from refusals import assert_refused
from torch.nn import functional
from typer.testing import CliRunner

from attrdrop import lrp, metrics
from attrdrop.lab.cli.main import app
from attrdrop.lab.points.data import load_task
from attrdrop.lab.points.readers import Reading
from attrdrop.lab.points.settings import PointSettings
from attrdrop.lab.points.training import PointTrainer
from attrdrop.lab.runs.models import ModelStore
from attrdrop.models import pointnet

SHAPE = ["--model", "pointnet", "--width", "0.125", "--points", "16"]


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sticks.npz"
    np.savez(path, **sticks())
    return path


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def saved(npz, tmp_path_factory):
    """The folder of a trained model, as an experiment keeps it."""
    settings = PointSettings(model="pointnet", width=0.125, points=16, epochs=1, batch_size=16, device="cpu")
    trainer = PointTrainer(settings, load_task("npz", npz, Reading(16)))
    _, model = trainer.trained("reldrop", 0)
    store = ModelStore(tmp_path_factory.mktemp("trained"))
    card = {"kind": "train-points", "settings": dataclasses.asdict(settings), **trainer.facts()}
    store.save("reldrop", 0, lambda folder: trainer.save(model, folder), card)
    store.settle("reldrop", [0])
    return store.folder / "reldrop"


def model_of(folder):
    model = pointnet(3, channels=3, width=0.125)
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return model.eval()


def test_a_saved_model_is_scored_as_what_it_was(saved, npz, tmp_path):
    table = tmp_path / "new" / "scores.csv"
    outcome = run("evaluate-points", saved, "--dataset", "npz", "--data", npz, "--output", table)
    assert outcome.exit_code == 0, outcome.output
    assert max(map(len, outcome.output.splitlines())) <= 80
    row = pd.read_csv(table).iloc[0]
    test = load_task("npz", npz, Reading(16)).test
    model, x = model_of(saved), test.points[:, :16]
    with torch.no_grad():
        logits = model(x)
    assert (row["set"], row.clouds, row.classes) == ("sticks test", 12, 3)
    assert row.loss == pytest.approx(functional.cross_entropy(logits, test.labels).item(), rel=1e-5)
    is_right = logits.argmax(1) == test.labels
    assert [row.accuracy, row.accuracy_lost_0] == pytest.approx([float(is_right.float().mean())] * 2)
    by_class = [float(is_right[test.labels == label].float().mean()) for label in range(3)]
    assert row.class_accuracy == pytest.approx(sum(by_class) / 3)
    curve = metrics.point_loss_curve(model, x, test.labels, repeats=3)
    assert row.point_loss == pytest.approx(float(curve.auc.mean()))
    assert row.accuracy_lost_50 == pytest.approx(float(curve.scores[:, 5].mean()))
    for text in (f"{row.loss:.3f}", f"{100 * row.accuracy:.1f}", "class acc., %", "Points lost"):
        assert text in outcome.output


def test_what_is_no_such_model_or_set_is_refused(saved, npz, tmp_path):
    data, table = ["--dataset", "npz", "--data", npz], tmp_path / "scores.csv"
    assert_refused(
        run("evaluate-points", tmp_path / "nowhere", *data, "--output", table), table, "MODEL: ", "not there"
    )
    assert_refused(
        run("evaluate-points", npz.parent, *data, "--output", table),
        table,
        "MODEL: ",
        "saved by 'attrdrop train-points --save'",
    )
    assert_refused(
        run("evaluate-points", saved, "--output", table),
        table,
        "--dataset: furniture has other classes than the model,",
    )
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "attrdrop.json").write_text((saved / "attrdrop.json").read_text())
    assert_refused(
        run("evaluate-points", broken, *data, "--output", table), table, "MODEL: ", "weights.pt cannot be read"
    )
    (broken / "attrdrop.json").write_text(json.dumps({"kind": "train-points"}))
    assert_refused(
        run("evaluate-points", broken, *data, "--output", table), table, "does not say how the model was trained"
    )


def test_maps_of_clouds_compare_rules_before_and_after_training(npz, tmp_path):
    output = tmp_path / "maps"
    arguments = [*SHAPE, "--dataset", "npz", "--data", npz, "--epochs", 1, "--batch-size", 16, "--device", "cpu"]
    rules = ["--rules", "epsilon-flat,epsilon,abs-gradient", "--epsilons", "1e-6,0.1", "--samples", 2]
    outcome = run("maps-points", *arguments, *rules, "--train", "--output", output)
    assert outcome.exit_code == 0, outcome.output
    assert names(output) == ["maps_after.png", "maps_before.png", "rules.csv"]
    frame = pd.read_csv(output / "rules.csv")
    with_epsilon = [f"{rule} {epsilon}" for rule in ("epsilon-flat", "epsilon") for epsilon in ("1e-06", "0.1")]
    assert list(frame.rule) == 2 * [*with_epsilon, "abs-gradient", "random order"]
    assert frame.rank_accuracy.isna().all()
    assert "rank acc., %" not in outcome.output
    assert "before training" in outcome.output

    torch.manual_seed(0)
    model, test = pointnet(3, channels=3, width=0.125).eval(), load_task("npz", npz, Reading(16)).test
    x = test.points[:, :16]
    relevance = lrp.relevance(model, x, test.labels, rule=lrp.Epsilon(0.1))
    flipped = metrics.flipping_curve(model, x, test.labels, relevance, steps=16, score="probability")
    assert frame.flipping[3] == pytest.approx(float(flipped.auc.mean()), rel=1e-5)
