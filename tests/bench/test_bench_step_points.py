"""The benchmark of RelDrop's training steps on clouds: what each arm does to points, its rows, its arguments."""

from dataclasses import replace

import pytest
import torch
from bench_setup import CPU, compiled_kernels, one_thread  # noqa: F401

from attrdrop import RelDropPoints
from bench import plot
from bench.steps import points as step_points

TINY = step_points.Settings(batch=4, points=64)
ALL = replace(TINY, batch=3, model="pointnet"), TINY, replace(TINY, model="msg", channels=6)


def given_to_model(arm, settings=TINY):
    """The model, the clouds, and the clouds as the arm gives them to the model."""
    model = step_points.build_model(settings)
    points, labels = step_points.build_batch(settings)
    found = step_points.ARMS[arm](model, settings)(points, labels)
    return model, points, found[0] if isinstance(found, tuple) else found


@pytest.mark.slow
def test_every_arm_fills_its_rows(tmp_path):
    output = tmp_path / "rows.csv"
    arguments = ["--batch", "4", "--points", "64", "--device", "cpu", "--seconds", "0", "--no-memory"]
    assert step_points.main([*arguments, "--output", str(output)]) == 0
    found = plot.load([output])
    assert list(found.variant) == list(step_points.BENCH.every)
    assert set(found.op) == {"step points"}
    assert set(found["shape"]) == {"ssg B4 64x3"}
    assert (found[["median_ms", "low_ms", "high_ms", "ratio"]] > 0).all(axis=None)
    by_arm = found.set_index("variant")
    assert by_arm.backend["plain"].startswith("sampling ")
    assert "gates " in by_arm.backend["RelDrop"]
    assert by_arm.backend["plain, ops in torch"] == "sampling reference"
    assert "| step points | arm |" in plot.markdown(found)


@pytest.mark.parametrize("settings", ALL, ids=str)
@pytest.mark.parametrize("arm", step_points.BENCH.every)
def test_an_arm_trains(arm, settings):
    found = step_points.BENCH.build(settings, arm)()
    assert found.isfinite().all()
    steps = step_points.BENCH.steps.get(arm, 1)
    assert found.shape == ((settings.batch, 64, settings.channels) if arm in step_points.ALONE else (steps,))


@pytest.mark.parametrize("arm", step_points.ARMS)
def test_points_move_to_the_origin_or_stay(arm):
    settings = replace(TINY, batch=16)
    _, points, found = given_to_model(arm, settings)
    gone = (found != points).any(-1)
    assert not found[gone].any()
    if arm.startswith("plain"):
        assert not gone.any()
    elif "calibrated" in arm:
        assert gone.sum(1).tolist() == [round(0.15 * 64)] * 16
    elif "random" in arm:
        assert 0.1 < gone.float().mean() < 0.2
    else:
        assert 0 < gone.float().mean() < 0.1


def test_the_loop_restates_the_rule_of_ours():
    """Its draws are its own, so what it drops is compared in number, over many steps."""
    settings = replace(TINY, batch=64)
    model = step_points.build_model(settings)
    points, labels = step_points.build_batch(settings)
    shares = {}
    for arm in ("cloud by cloud", "RelDrop"):
        torch.manual_seed(0)
        transform = step_points.ARMS[arm](model, settings)
        shares[arm] = torch.stack([(transform(points, labels) != points).any(-1) for _ in range(10)]).float().mean()
    assert shares["cloud by cloud"] == pytest.approx(shares["RelDrop"].item(), abs=0.004)


def test_neighbours_are_found_in_the_whole_clouds(monkeypatch):
    settings = replace(TINY, batch=2)
    model = step_points.build_model(settings)
    points, labels = step_points.build_batch(settings)
    occluded, valid, neighbours = step_points.ARMS["RelDrop, neighbours found once"](model, settings)(points, labels)
    assert valid is None
    assert torch.equal(occluded, RelDropPoints(model, mode="threshold")(points, labels))
    for found, expected in zip(neighbours, model.neighbours(points), strict=True):
        assert torch.equal(found.centres, expected.centres)
