"""Figures: valid PNGs of a sensible size that depend on what is drawn."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from drawings import drawn, pixels, size
from matplotlib.figure import Figure

from attrdrop.plots import flipping_curves, loss_curves, point_loss_curves
from attrdrop.plots.images import compared_maps, contact_sheet, heat_maps, occlusion_sheet
from attrdrop.plots.letters import spelled

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MAPS = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **options: saved.append(figure))
    return saved


@pytest.mark.parametrize("title", ["猫, taken for 犬", "größe", "кот", "𓀀 😀"])
def test_no_letter_of_a_title_is_an_empty_box(title):
    """A font that has it, or its code point; matplotlib warns of every glyph that is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(heat_maps, IMAGES, MAPS, titles=[title] * 3)
        drawn(contact_sheet, IMAGES, titles=[title] * 3)
    assert spelled("größe") == "größe"
    assert spelled(title) == title or "U+" in spelled(title)


def test_the_colours_say_what_the_relevance_is_of(figures):
    heat_maps(IMAGES, MAPS, None, label="relevance of the true class")
    heat_maps(IMAGES, MAPS, None)
    assert [figure.axes[-1].get_title() for figure in figures] == ["relevance of the true class", ""]


@pytest.mark.parametrize("draw", [flipping_curves, point_loss_curves])
def test_curves_say_what_their_score_is(draw, figures):
    frame = pd.DataFrame({"arm": "a", "order": "random", "fraction": [0.0, 0.5], "score": [1.0, 0.5]})
    draw(frame, None, score="test accuracy")
    draw(frame, None)
    assert [figure.axes[0].get_ylabel() for figure in figures] == ["test accuracy", "score of the target"]


def test_a_legend_covers_no_line(figures):
    columns = {"seed": 0, "train_loss": 1.0, "dev_loss": 1.0, "active": False}
    loss_curves(pd.DataFrame({"arm": arm, "epoch": epoch} | columns for arm in "ab" for epoch in (1, 2)), None)
    train, dev = figures[0].axes
    assert train.get_legend() is None
    figures[0].draw_without_rendering()
    assert dev.get_legend().get_window_extent().x0 >= dev.get_window_extent().x1


def test_heat_maps_colour_relevance_by_its_sign():
    grey = torch.full((1, 1, 8, 8), 0.5)
    relevance = torch.zeros(1, 8, 8)
    relevance[:, :, :4], relevance[:, :, 4:] = 2, -2
    picture = pixels(drawn(heat_maps, grey, relevance))
    height, width, _ = picture.shape
    line = picture[height // 3]
    red, blue = line[int(0.58 * width)], line[int(0.85 * width)]
    assert red[0] > 2 * red[2]
    assert blue[2] > 2 * blue[0]
    assert np.ptp(line[width // 4]) < 0.01


def test_heat_maps_do_not_depend_on_the_scale_of_relevance():
    png = drawn(heat_maps, IMAGES, MAPS)
    assert png == drawn(heat_maps, IMAGES, 64 * MAPS)
    assert png == drawn(heat_maps, IMAGES, torch.stack([2 * MAPS, -MAPS], 1))
    assert png != drawn(heat_maps, IMAGES, -MAPS)
    assert png != drawn(heat_maps, 1 - IMAGES, MAPS)
    assert size(drawn(heat_maps, IMAGES, torch.zeros(3, 8, 8))) == size(png)


@pytest.mark.parametrize("draw", [lambda x, **rest: heat_maps(x, x[:, 0] - 0.5, **rest), contact_sheet])
def test_sheets_of_1_and_64_images_fit_a_page(draw, tmp_path):
    for count in (1, 64):
        images = torch.rand(count, 1, 4, 4)
        path = tmp_path / f"{count}.png"
        draw(images, target=path, titles=[f"image {i} with a title of several words" for i in range(count)])
        width, height = size(path.read_bytes())
        assert 400 < width < 2400
        assert 400 < height < 3000


def test_bytes_and_floats_draw_the_same():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert drawn(contact_sheet, images) == drawn(contact_sheet, images / 255)


def test_contact_sheet_outlines_boxes():
    images = torch.zeros(2, 1, 8, 8)
    plain = pixels(drawn(contact_sheet, images))
    boxed = pixels(drawn(contact_sheet, images, boxes=torch.tensor([[2, 2, 4, 100], [3, 3, 0, 2]])))
    assert plain.shape == boxed.shape
    changed = (plain != boxed).any(-1).nonzero()
    assert changed[1].max() < plain.shape[1] // 2  # the second box is empty
    is_red = (boxed == (1, 0, 0)).all(-1)
    assert is_red.any()
    assert is_red.nonzero()[0].max() < 0.8 * plain.shape[0]


def test_an_occlusion_sheet_shows_image_relevance_and_what_is_left(figures):
    left = IMAGES.clone()
    left[:, :, 2:5, 3:6] = 0.5
    occlusion_sheet(IMAGES, MAPS, left, None, ["cat", "dog", "cow"])
    panels = [axes for axes in figures[0].axes if axes.images]
    assert [axes.get_title() for axes in panels] == [
        title for name in ("cat", "dog", "cow") for title in (name, "relevance", "occluded")
    ]
    shown = [np.asarray(axes.images[0].get_array()) for axes in panels]
    np.testing.assert_allclose(shown[3], IMAGES[1].permute(1, 2, 0).double().numpy())
    np.testing.assert_allclose(shown[5], left[1].permute(1, 2, 0).double().numpy())


def test_columns_shape_the_sheet():
    wide, tall = (size(drawn(contact_sheet, IMAGES, columns=columns)) for columns in (8, 1))
    assert wide == tall[::-1]


def test_flipping_curves():
    rows = [
        (arm, order, fraction, score + bonus)
        for arm, bonus in (("plain", 0.0), ("reldrop", 0.1))
        for order in ("descending", "random")
        for fraction, score in ((0.0, 1.0), (0.5, 0.4), (1.0, 0.1))
        for _ in range(2)
    ]
    frame = pd.DataFrame(rows, columns=["arm", "order", "fraction", "score"])
    png = drawn(flipping_curves, frame, title="title")
    assert size(png) == (1350, 600)  # a panel for each order
    assert png != drawn(flipping_curves, frame.assign(score=1 - frame["score"]), title="title")
    assert size(drawn(flipping_curves, frame[frame["order"] == "random"])) == (1125, 600)
    with pytest.raises(ValueError, match="frame must have the columns arm, order, fraction, score, got"):
        drawn(flipping_curves, frame.drop(columns="arm"))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: drawn(heat_maps, IMAGES.numpy(), MAPS), TypeError, "images must be a uint8 or floating-point tensor"),
        (lambda: drawn(heat_maps, IMAGES[:, :2], MAPS), ValueError, r"images must have shape \(N, C, H, W\), C 1 or 3"),
        (lambda: drawn(heat_maps, 2 * IMAGES - 1, MAPS), ValueError, "images must lie in .*, got -.*undo their"),
        (lambda: drawn(heat_maps, IMAGES, MAPS[:2]), ValueError, r"relevance must have shape .*got \(2, 8, 8\)"),
        (lambda: drawn(heat_maps, IMAGES, MAPS, titles=["a"]), ValueError, "titles must be a list of 3, one per image"),
        (lambda: drawn(occlusion_sheet, IMAGES, MAPS, IMAGES[:2]), ValueError, "occluded must have the shape"),
        (lambda: drawn(occlusion_sheet, IMAGES, MAPS[:2], IMAGES), ValueError, r"relevance must be .*got \(2, 8, 8\)"),
        (lambda: drawn(contact_sheet, IMAGES, columns=0), ValueError, "columns must be a positive int, got 0"),
        (lambda: drawn(contact_sheet, IMAGES, boxes=[1]), TypeError, "boxes must be a torch.Tensor, got list"),
        (lambda: drawn(contact_sheet, IMAGES, boxes=torch.ones(3, 2)), ValueError, r"boxes must have .*got \(3, 2\)"),
        (lambda: drawn(contact_sheet, IMAGES, boxes=-torch.ones(3, 4)), ValueError, "boxes must have heights"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_maps_of_several_rules_stand_beside_their_image(figures):
    rules = {"z+": MAPS, "epsilon": -MAPS}
    scores = {"z+": ["RRA 10 %", "RRA 20 %", ""]}
    compared_maps(IMAGES, rules, None, ["cat", "dog", "cow"], scores)
    panels = [axes for axes in figures[0].axes if axes.images]
    titles = [axes.get_title().replace("\n", " ") for axes in panels]
    assert titles == ["cat", "z+, RRA 10 %", "epsilon", "dog", "z+, RRA 20 %", "epsilon", "cow", "z+", "epsilon"]
    shown = [np.asarray(axes.images[0].get_array()) for axes in panels]
    np.testing.assert_allclose(shown[3], IMAGES[1].permute(1, 2, 0).double().numpy())
    assert not np.allclose(shown[1], shown[2])
    drawn(compared_maps, IMAGES[:1], {"z+": MAPS[:1]})


@pytest.mark.parametrize(
    ("maps", "scores", "message"),
    [
        ({}, None, "maps must hold relevance by at least one rule"),
        ({"z+": MAPS[:2]}, None, r"maps\['z\+'\] and its scores must be one for each image"),
        ({"z+": MAPS}, {"z+": ["a"]}, "got .* and 1 scores"),
    ],
)
def test_maps_that_do_not_fit_their_images(maps, scores, message):
    with pytest.raises(ValueError, match=message):
        compared_maps(IMAGES, maps, None, scores=scores)
