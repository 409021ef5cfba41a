"""`attrdrop train-points` end to end on made-up clouds of 24 points, and what becomes of bad input."""

import numpy as np
import pandas as pd
import pytest
import torch
from lab_runs import names, one_thread, results, sticks  # noqa: F401
from refusals import assert_refused
from typer.testing import CliRunner

from attrdrop.lab.cli.main import app
from attrdrop.lab.points.data import load_task
from attrdrop.lab.points.readers import Reading
from attrdrop.lab.points.settings import ARMS, MODELS, PointSettings
from attrdrop.lab.points.training import PointTrainer, class_accuracy

TABLES = [".lock", "curves.csv", "flipping.csv", "point_loss.csv", "results.json", "runs.csv", "trials"]
SMALL = ["--dataset", "npz", "--model", "pointnet", "--width", "0.125", "--points", "16", "--epochs", "1",
         "--batch-size", "16", "--beta", "0.25"]  # fmt: skip


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sticks.npz"
    np.savez(path, **sticks())
    return path


@pytest.fixture
def train(npz, tmp_path):
    def train(*arguments, file=npz):
        output = tmp_path / "out"
        command = ["train-points", *SMALL, "--data", str(file), "--output", str(output), *map(str, arguments)]
        return CliRunner().invoke(app, command, env={"COLUMNS": "80"}), output

    return train


@pytest.mark.slow
def test_three_arms_at_two_seeds(train):
    arguments = "--seeds", 2
    outcome, output = train(*arguments)
    assert outcome.exit_code == 0, outcome.output
    figures = ["curves.png", "dropped.png", "flipping.png", "point_loss.png", *(f"relevance_{arm}.png" for arm in ARMS)]
    assert names(output) == sorted([*TABLES, *figures])
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in figures)

    content = results(output)
    assert content["complete"]
    assert content["task"]["sizes"] == {"train": 48, "test": 12}
    assert content["task"]["points"] == [16, 3]
    order = [(run["seed"], run["arm"]) for run in content["runs"]]
    assert order == [(0, arm) for arm in ARMS] + [(1, arm) for arm in (*ARMS[1:], ARMS[0])]
    for run in content["runs"]:
        assert 0 <= run["class_accuracy"] <= 1
        assert list(run["flipping_auc"]) == ["descending", "random", "ascending"]
        assert len(run["flipping"]["random"]) == len(run["flipping"]["fraction"]) == 17
        assert run["point_loss"]["fraction"] == pytest.approx([int(0.1 * i * 16) / 16 for i in range(10)])
        assert 0 <= run["point_loss_auc"] <= 1
        assert run["attributed"] == (run["arm"] == "reldrop")
        assert run["epochs"][0]["changed"] == (0 if run["arm"] == "plain" else pytest.approx(0.25))

    frame = pd.read_csv(output / "runs.csv")
    assert list(frame.arm) == [arm for _, arm in order]
    assert (frame[frame.arm == "plain"].step_ratio == 1).all()
    assert len(pd.read_csv(output / "curves.csv")) == 6
    assert len(pd.read_csv(output / "flipping.csv")) == 6 * 3 * 17
    assert len(pd.read_csv(output / "point_loss.csv")) == 6 * 10
    assert list(content["summary"]["accuracy_difference_to_plain"]) == list(ARMS[1:])
    for text in ("class acc., %", "dropped, %", "point loss, %", "2 seeds", "48 train, 12 test", "dropped.png"):
        assert text in outcome.output
    assert max(len(line) for line in outcome.output.splitlines() if not line.startswith("Warning: ")) <= 80

    again, _ = train(*arguments)
    assert again.exit_code == 0
    assert "6 of 6 runs are in" in again.output
    assert results(output) == content
    shown = CliRunner().invoke(app, ["report", str(output)])
    assert shown.exit_code == 0
    assert "point loss, %" in shown.output

    other, _ = train(*arguments, "--points", 12)
    assert other.exit_code == 2
    assert "other settings or data" in other.output
    assert results(output) == content
    fewer, _ = train("--arms", "dropout", "--seeds", 1, "--overwrite")
    assert fewer.exit_code == 0, fewer.output
    assert names(output) == sorted([*TABLES, "curves.png", "flipping.png", "point_loss.png", "relevance_dropout.png"])


@pytest.mark.parametrize("arm", ARMS[1:])
def test_no_drops_train_like_the_plain_arm(npz, arm):
    settings = PointSettings(device="cpu", model="pointnet", width=0.125, points=16, beta=0.0, batch_size=16)
    task = load_task("npz", npz, Reading(16))
    trainer = PointTrainer(settings, task)
    losses = []
    for name in ("plain", arm):
        model = trainer.build(5)
        changing = trainer.arms[name](model, settings, task, 5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        order = torch.Generator().manual_seed(5)
        torch.manual_seed(5)
        part = trainer._train_epoch(1, model, changing, optimizer, schedule, order, lambda work: None)
        losses.append(part[0])
        assert part[2] == 0
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_with_normals(tmp_path, model):
    np.savez(tmp_path / "normals.npz", **sticks(30, points=40, channels=6))
    task = load_task("npz", tmp_path / "normals.npz", Reading(32, normals=True))
    settings = PointSettings(
        device="cpu", model=model, width=0.125, points=32, normals=True, epochs=1, batch_size=8, rotate=True
    )
    trainer = PointTrainer(settings, task)
    trainer.check()
    advanced = []
    run, trained = trainer.trained("reldrop", 0, advanced.append)
    assert sum(advanced) == pytest.approx(trainer.work("reldrop"))
    assert 0 <= run.flipping_auc["random"] <= 1
    points, relevance, titles = trainer.maps(trained)
    assert points.shape == relevance.shape == (6, 32, 6)
    assert all(title.split(", ")[0] in "012" for title in titles)
    points, dropped, titles = trainer.dropped(trained)
    assert dropped.shape == points.shape[:2] == (8, 32)
    assert dropped.dtype == torch.bool


def test_class_accuracy_weighs_classes_alike():
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 2, 2, 3])  # class 1 does not occur
    taken = torch.tensor([0, 0, 0, 0, 0, 1, 2, 0, 1])
    assert class_accuracy(torch.eye(4)[taken], labels) == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)


def bad_options():
    yield ["--dataset", "scannet"], ["--dataset: 'scannet'", "furniture, modelnet40, shapenet, npz"]
    yield ["--dataset", "furniture"], ["--data: furniture is bundled"]
    yield ["--data", "none.npz"], ["--data", "none.npz"]
    yield ["--model", "pointnet3"], ["--model: 'pointnet3'", "pointnet2-msg"]
    yield ["--rule", "lrp"], ["--rule: 'lrp'", "epsilon-flat"]
    yield ["--mode", "random"], ["--mode: 'random'", "threshold, calibrated"]
    yield ["--value", "mean"], ["--value: 'mean'", "origin, first, resample"]
    yield ["--sampling", "last"], ["--sampling: 'last'", "first, farthest"]
    yield ["--arms", "plain,foo"], ["--arms: 'foo'", "reldrop"]
    yield ["--arms", "plain,plain"], ["--arms", "each once"]
    yield ["--beta", "1.5"], ["--beta: 1.5", "0 to 1"]
    yield ["--vary", "beta=0.1; beta=0.2"], ["--vary: 'beta=0.2'", "given once"]
    yield ["--dev-size", "48"], ["--dev-size: 48 leaves none of the 48"]
    yield ["--beta", "nan"], ["--beta: nan", "0 to 1"]
    yield ["--alpha", "-0.1"], ["--alpha: -0.1", "0 to 1"]
    yield ["--points", "1"], ["--points", "2 points or more, got 1"]
    yield ["--points", "25"], ["--points: 25", "24 that clouds"]
    yield ["--normals"], ["--normals", "have none"]
    yield ["--jitter", "nan"], ["--jitter: nan"]
    yield ["--width", "0"], ["--width: 0.0"]
    yield ["--lr", "0"], ["--lr: 0.0"]
    yield ["--batch-size", "49"], ["--batch-size: 49", "48 training clouds"]
    yield ["--train-size", "2"], ["--train-size: 2", "3 classes"]
    yield ["--device", "gpu"], ["--device: 'gpu'", "auto, cpu, cuda"]


@pytest.mark.parametrize(("arguments", "fragments"), bad_options(), ids=lambda value: " ".join(value)[:30])
def test_bad_options_are_one_sentence_and_nothing_written(train, arguments, fragments):
    outcome, output = train(*arguments)
    assert_refused(outcome, output, *fragments)


def test_clouds_with_nan_are_refused(train, tmp_path):
    arrays = sticks()
    arrays["x"][7, 2] = np.nan
    np.savez(tmp_path / "bad.npz", **arrays)
    assert_refused(*train(file=tmp_path / "bad.npz"), "bad.npz", "NaN or infinity in cloud 7")
