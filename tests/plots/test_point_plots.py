"""Sheets of point clouds: valid PNGs of a sensible size that depend on what is drawn."""

import pandas as pd
import pytest
import torch
from drawings import drawn, pixels, size

from attrdrop.plots import point_loss_curves
from attrdrop.plots.points import compared_clouds, dropped_clouds, relevance_clouds

CLOUDS = torch.rand(3, 40, 3, generator=torch.Generator().manual_seed(0))
RELEVANCE = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
DROPPED = RELEVANCE > 1


def count_of(picture, colour):
    """Pixels in which one channel exceeds the others, above the colour bar."""
    height = picture.shape[0] - 90
    others = [channel for channel in range(3) if channel != colour]
    return int((picture[:height, :, colour] > picture[:height, :, others].max(-1) + 0.1).sum())


def test_relevance_colours_points_by_its_sign():
    red, blue = (pixels(drawn(relevance_clouds, CLOUDS, sign * torch.ones(3, 40))) for sign in (1, -1))
    grey = pixels(drawn(relevance_clouds, CLOUDS, torch.zeros(3, 40)))
    assert count_of(red, 0) > 50
    assert count_of(red, 2) == 0
    assert count_of(blue, 2) > 50
    assert count_of(blue, 0) == 0
    assert count_of(grey, 0) == count_of(grey, 2) == 0
    assert (grey < 0.9).any()


def test_relevance_is_scaled_in_each_cloud_and_summed_over_channels():
    png = drawn(relevance_clouds, CLOUDS, RELEVANCE)
    assert png == drawn(relevance_clouds, CLOUDS, RELEVANCE * torch.tensor([1.0, 8.0, 0.25])[:, None])
    assert png == drawn(relevance_clouds, CLOUDS, torch.stack([2 * RELEVANCE, -RELEVANCE, 0 * RELEVANCE], 2))
    assert png == drawn(relevance_clouds, torch.cat([CLOUDS, CLOUDS], 2), RELEVANCE)  # with normals
    assert png != drawn(relevance_clouds, CLOUDS, -RELEVANCE)
    assert png != drawn(relevance_clouds, CLOUDS.flip(2), RELEVANCE)


def test_rules_are_compared_cloud_by_cloud():
    maps = {"epsilon": RELEVANCE, "flat": 3 * RELEVANCE[..., None].expand(-1, -1, 3)}
    png = drawn(compared_clouds, CLOUDS, maps, titles=["a", "b", "c"])
    assert png == drawn(compared_clouds, CLOUDS, {"epsilon": 2 * RELEVANCE, "flat": RELEVANCE}, titles=["a", "b", "c"])
    assert png != drawn(compared_clouds, CLOUDS, {"epsilon": RELEVANCE, "flat": -RELEVANCE}, titles=["a", "b", "c"])
    assert png != drawn(compared_clouds, CLOUDS, maps, titles=["b", "a", "c"])
    red = pixels(drawn(compared_clouds, CLOUDS[:1], {"one": torch.ones(1, 40), "other": -torch.ones(1, 40)}))
    left, right = red[:, : red.shape[1] // 2], red[:, red.shape[1] // 2 :]
    assert count_of(left, 0) > 50
    assert count_of(left, 2) == count_of(right, 0) == 0
    with pytest.raises(ValueError, match="maps must hold relevance by at least one rule, got none"):
        drawn(compared_clouds, CLOUDS, {})
    with pytest.raises(ValueError, match=r"maps\['flat'\] must have shape \(N, P\)"):
        drawn(compared_clouds, CLOUDS, {"flat": RELEVANCE[:2]})
    with pytest.raises(ValueError, match="titles must be a list of 3, one per cloud"):
        drawn(compared_clouds, CLOUDS, maps, titles=["a"])


def test_y_is_drawn_upwards():
    column = torch.zeros(1, 40, 3)
    column[0, :, 1] = torch.linspace(-1, 1, 40)
    dark = pixels(drawn(dropped_clouds, column, torch.zeros(1, 40, dtype=torch.bool))).min(-1) < 0.7
    rows, columns = dark.nonzero()
    assert rows.max() - rows.min() > 5 * (columns.max() - columns.min())


def test_dropped_points_are_crossed_out_where_they_were():
    none, some = (pixels(drawn(dropped_clouds, CLOUDS, mask)) for mask in (DROPPED & False, DROPPED))
    assert count_of(none, 0) == 0
    assert count_of(some, 0) > 50
    assert none.shape == some.shape


@pytest.mark.parametrize("draw", [relevance_clouds, dropped_clouds])
@pytest.mark.parametrize("count", [1, 7, 64])
def test_sheets_fit_a_page(draw, count, tmp_path):
    points, values = torch.randn(count, 5, 3), torch.randn(count, 5)
    path = tmp_path / "sheet.png"
    draw(points, values if draw is relevance_clouds else values > 0, path, [f"cloud {i}" for i in range(count)])
    width, height = size(path.read_bytes())
    assert 400 < width < 2400
    assert 400 < height < 3000


def test_a_cloud_of_one_point():
    assert size(drawn(relevance_clouds, CLOUDS[:1, :1], RELEVANCE[:1, :1]))


def test_point_loss_curves():
    rows = [(arm, x, y + 0.1 * (arm == "reldrop")) for arm in ("plain", "reldrop") for x, y in ((0.0, 1.0), (0.9, 0.2))]
    frame = pd.DataFrame(rows, columns=["arm", "fraction", "score"])
    png = drawn(point_loss_curves, frame, title="title")
    assert size(png) == (1125, 600)
    assert png != drawn(point_loss_curves, frame.assign(score=1 - frame["score"]), title="title")
    with pytest.raises(ValueError, match="frame must have the columns arm, fraction, score, got"):
        drawn(point_loss_curves, frame.drop(columns="score"))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: drawn(relevance_clouds, CLOUDS.numpy(), RELEVANCE), TypeError, "points must be a torch.Tensor, got"),
        (lambda: drawn(relevance_clouds, CLOUDS.int(), RELEVANCE), TypeError, "points must be a floating-point"),
        (lambda: drawn(relevance_clouds, CLOUDS[0], RELEVANCE), ValueError, r"points must have shape \(N, P, C\), C 3"),
        (lambda: drawn(relevance_clouds, CLOUDS[..., :2], RELEVANCE), ValueError, r"not empty, got \(3, 40, 2\)"),
        (lambda: drawn(relevance_clouds, CLOUDS / 0, RELEVANCE), ValueError, "points must be finite, got NaN"),
        (lambda: drawn(relevance_clouds, CLOUDS, RELEVANCE / 0), ValueError, "relevance must be finite, got NaN"),
        (lambda: drawn(relevance_clouds, CLOUDS, RELEVANCE[:2]), ValueError, r"relevance must .*got \(2, 40\)"),
        (lambda: drawn(relevance_clouds, CLOUDS, RELEVANCE, titles=["a"]), ValueError, "titles must .* one per cloud"),
        (lambda: drawn(dropped_clouds, CLOUDS, RELEVANCE), TypeError, "dropped must be a bool tensor, got torch.float"),
        (lambda: drawn(dropped_clouds, CLOUDS, [True]), TypeError, "dropped must be a bool tensor, got list"),
        (lambda: drawn(dropped_clouds, CLOUDS, DROPPED[:, :5]), ValueError, r"= \(3, 40\), got \(3, 5\)"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
