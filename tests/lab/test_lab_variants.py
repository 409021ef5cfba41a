"""Arms with settings of their own: a sweep in one command, the choice on the development split, what is drawn."""

import numpy as np
import pandas as pd
import pytest
import torch
from lab_runs import one_thread, results, squares, sticks  # noqa: F401
from typer.testing import CliRunner

from attrdrop.lab.cli.main import app
from attrdrop.lab.errors import InputError
from attrdrop.lab.images.data import ArrayImages, ImageTask
from attrdrop.lab.images.settings import ARMS, USES, ImageSettings
from attrdrop.lab.images.training import ImageTrainer
from attrdrop.lab.points.settings import ARMS as POINT_ARMS
from attrdrop.lab.points.settings import USES as POINT_USES
from attrdrop.lab.points.settings import PointSettings
from attrdrop.lab.runs.settings import options_of
from attrdrop.lab.runs.variants import arm_of, axes_of, changed, changes_of, grid
from attrdrop.plots import grids


def test_labels_say_what_is_changed():
    label = "reldrop beta=0.3 stop_at=none rule=epsilon"
    assert arm_of(label) == "reldrop"
    assert changes_of(label) == {"beta": "0.3", "stop_at": "none", "rule": "epsilon"}
    settings = changed(ImageSettings(stop_at="stages.1"), label, USES)
    assert (settings.beta, settings.stop_at, settings.rule) == (0.3, None, "epsilon")
    assert changed(ImageSettings(), "plain", USES) == ImageSettings()
    assert changed(ImageSettings(), "reldrop every=4", USES).every == 4
    for wrong in ("reldrop every=4.5", "reldrop every=0", "reldrop lr=1", "erasing alpha=0", "reldrop rule=lrp"):
        with pytest.raises(InputError):
            changed(ImageSettings(), wrong, USES)


def test_a_grid_is_of_what_tells_on_an_arm():
    assert grid(("plain", "dropout", "reldrop"), "beta=0.15, 0.3,0.15; --alpha=0,1", POINT_USES) == (
        "plain", "dropout beta=0.15", "dropout beta=0.3", "reldrop beta=0.15 alpha=0", "reldrop beta=0.15 alpha=1",
        "reldrop beta=0.3 alpha=0", "reldrop beta=0.3 alpha=1",
    )  # fmt: skip
    assert grid(("plain", "reldrop"), "", POINT_USES) == ("plain", "reldrop")
    assert grid(("reldrop",), "min-area=0.1", USES) == ("reldrop min_area=0.1",)
    assert axes_of(["plain", "reldrop beta=1 alpha=0", "dropout beta=2"]) == {"beta": ["1", "2"], "alpha": ["0"]}


@pytest.mark.parametrize(
    ("kind", "arms", "uses"), [(ImageSettings, ARMS, USES), (PointSettings, POINT_ARMS, POINT_USES)]
)
def test_all_that_can_be_varied_are_settings_of_known_arms(kind, arms, uses):
    assert tuple(uses) == arms
    assert set().union(*uses.values()) <= set(options_of(kind))
    named = {"rule", "epsilon", "alpha", "alpha_end", "beta", "every", "value", "mode"}  # by the summary and the issue
    if kind is ImageSettings:
        named |= {"p", "min_area", "max_area", "border", "k_centers", "stop_at", "cache_epochs"}
    assert named <= uses["reldrop"]


@pytest.fixture
def sweep(tmp_path):
    """Experiment 2 of the summary: beta 0.15, 0.3 and 0.5 on clouds, in one command."""
    np.savez(tmp_path / "sticks.npz", **sticks())
    command = [
        "train-points", "--dataset", "npz", "--data", tmp_path / "sticks.npz", "--model", "pointnet", "--width", 0.125,
        "--points", 16, "--epochs", 1, "--batch-size", 16, "--seeds", 1, "--vary", "beta=0.15,0.3,0.5",
    ]  # fmt: skip

    def run(*arguments):
        chosen = [*command, "--output", tmp_path / "out", *arguments]
        return CliRunner().invoke(app, list(map(str, chosen)), env={"COLUMNS": "120"}), tmp_path / "out"

    return run


@pytest.mark.slow
def test_a_sweep_chooses_on_dev_and_reports_on_test(sweep):
    outcome, output = sweep()
    assert outcome.exit_code == 0, outcome.output
    content = results(output)
    labels = ["plain", *(f"{arm} beta={beta}" for arm in ("dropout", "reldrop") for beta in ("0.15", "0.3", "0.5"))]
    assert content["settings"]["arms"] == labels
    assert content["task"]["sizes"] == {"train": 39, "dev": 9, "test": 12}
    assert len(content["runs"]) == 7
    for run in content["runs"]:
        assert run["dev_accuracy"] in [n / 9 for n in range(10)]
        share = float(changes_of(run["arm"]).get("beta", 0))
        assert run["epochs"][0]["changed"] == pytest.approx(int(share * 16 + 0.5) / 16)

    frame = pd.read_csv(output / "grid.csv")
    assert list(frame.columns[:2]) == ["arm", "beta"]
    assert list(zip(frame.arm, frame.beta, strict=True)) == [
        (arm, beta) for arm in ("dropout", "reldrop") for beta in (0.15, 0.3, 0.5)
    ]
    assert (output / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in output.glob("relevance_*")] == ["relevance_plain.png"]  # none of each combination
    assert set(pd.read_csv(output / "flipping.csv").arm) == set(labels)

    shown = " ".join(outcome.output.split())
    means = {arm: content["summary"]["arms"][arm]["dev_accuracy"]["mean"] for arm in labels[1:]}
    for arm in ("dropout", "reldrop"):
        tried = [label for label in labels if arm_of(label) == arm]
        assert max(tried, key=means.__getitem__) in shown.partition("The development split chose:")[2]
    assert "reldrop beta=0.3" in shown
    assert "dev acc., %" in shown
    again, _ = sweep()
    assert "7 of 7 runs are in" in again.output
    other, _ = sweep("--alpha", 0.2)
    assert other.exit_code == 2
    assert "--alpha was 0.5, is now 0.2" in other.output


def test_without_a_development_split_nothing_is_chosen(sweep):
    outcome, output = sweep("--vary", "", "--arms", "plain,reldrop,reldrop beta=0.5")
    assert outcome.exit_code == 0, outcome.output
    assert results(output)["task"]["sizes"] == {"train": 48, "test": 12}
    assert [run["dev_accuracy"] for run in results(output)["runs"]] == [None] * 3
    assert "hold one out with --dev-size" in " ".join(outcome.output.split())
    assert "relevance_reldrop.png" in [path.name for path in output.iterdir()]


def grid_table(**columns):
    rows = [
        {"arm": "reldrop", "beta": beta, "alpha": alpha, "p": p, "dev accuracy, %": dev, "test accuracy, %": test}
        for beta, alpha, p, dev, test in (
            ("0.1", "0", "1", 90.0, 80.0), ("0.1", "0", "0.5", 91.0, 70.0), ("0.1", "1", "1", 50.0, 51.0),
            ("0.3", "0", "1", 60.0, 61.0),
        )
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**columns)


def test_a_cell_of_a_heat_map_is_the_best_by_dev(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(grids.sns, "heatmap", lambda table, **options: drawn.append(table))
    grids.heat_maps(grid_table(), tmp_path / "grid.png", "beta", "alpha")
    dev, test = drawn
    assert (list(dev.columns), list(dev.index)) == (["0.1", "0.3"], ["0", "1"])
    assert dev.loc["0", "0.1"] == 91
    assert test.loc["0", "0.1"] == 70
    assert dev.isna().loc["1", "0.3"]
    drawn.clear()
    grids.heat_maps(grid_table(**{"dev accuracy, %": None}), tmp_path / "grid.png", "beta")
    (only,) = drawn
    assert only.iloc[0].to_dict() == {"0.1": 80, "0.3": 61}


def test_heat_maps_need_rows_and_columns(tmp_path):
    with pytest.raises(ValueError, match=r"frame must have the columns .*gamma"):
        grids.heat_maps(grid_table(), tmp_path / "grid.png", "gamma")
    with pytest.raises(ValueError, match="frame must have a row"):
        grids.heat_maps(grid_table().iloc[:0], tmp_path / "grid.png", "beta")
    grids.heat_maps(grid_table(), tmp_path / "grid.png", "alpha", "p", "A title")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_kept_relevance_and_a_changing_alpha_are_counted_in_a_run():
    arrays = squares(48)
    pixels = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).contiguous()
    images = ArrayImages(pixels, torch.from_numpy(arrays["y"]))
    task = ImageTask("squares", ["a", "b", "c"], images, images, [0.4] * 3, [0.3] * 3, "none")
    settings = ImageSettings(
        device="cpu", epochs=4, batch_size=16, p=1.0, alpha=0.0, arms=("reldrop cache_epochs=3", "reldrop every=2")
    )
    trainer = ImageTrainer(settings, task)
    run, _ = trainer.trained("reldrop cache_epochs=3", 0)
    assert (run.attributed, run.reused) == (0.5, 0.5)  # anew in the epochs 1 and 4
    assert run.cache_bytes == 64 * 16 * 16 * 2  # memory is taken in doublings
    assert 0 < run.agreement <= 1
    run, _ = trainer.trained("reldrop alpha_end=1", 0)
    assert 0.3 < run.attributed < 0.7  # from all of them to none
    run, _ = trainer.trained("reldrop every=2", 0)
    assert (run.attributed, run.reused, run.cache_bytes, run.agreement) == (0.5, 0, 0, None)
