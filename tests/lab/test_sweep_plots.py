"""Figures of sweeps: valid PNGs of a sensible size that depend on what is drawn."""

import numpy as np
import pandas as pd
import pytest
import torch
from drawings import drawn, pixels, size
from sweep_frames import ADDROP, PLAIN, RTE, STSB, WIKI, frame, repeated, trial

from attrdrop.lab.figures.sweeps import (
    AttentionMap,
    attention_maps,
    cross_tuning_distribution,
    pq_heatmap,
    region_curves,
    size_curve,
)

OF_TRIALS = (cross_tuning_distribution, size_curve, pq_heatmap)
pytestmark = pytest.mark.filterwarnings("error")


def attention_map(n=8, **changed):
    random = np.random.default_rng(0)
    attribution = random.random((n, n))
    region = attribution >= np.quantile(attribution, 0.7, axis=1, keepdims=True)
    one = AttentionMap(
        title="AD-DROP",
        tokens=[f"token{i}" for i in range(n)],
        attribution=attribution,
        candidates=region,
        dropped=region & (random.random((n, n)) < 0.5),
    )
    return one._replace(**changed)


def grid(gain, task=RTE, base=0.7, **columns):
    """Plain training, and AD-DROP at two p and three q, so much above it."""
    addrop = [
        trial(base + gain(p, q), task=task, p=p, q=q, **columns) for p in (0.1, 0.1 + 0.2) for q in (0.1, 0.5, 0.9)
    ]
    return frame(trial(base, task=task, method=PLAIN), *addrop)


def count(picture, colour):
    """Strongly red (0) or blue (2) pixels, left of the colour bar."""
    picture = picture[:, : int(0.7 * picture.shape[1])]
    return int((picture[..., colour] > picture[..., 2 - colour] + 0.3).sum())


@pytest.mark.parametrize("corner", [0, -1])
def test_attention_is_darker_where_attribution_is_higher(corner):
    """Within each row, however large the row's values are."""
    attribution = np.array([[1e-9, 2e-9, 3e-9], [5.0, 6.0, 7.0], [-3.0, -2.0, -1.0]])
    attribution = attribution if corner else -attribution
    one = attention_map(3, candidates=None, dropped=np.zeros((3, 3), dtype=bool), attribution=attribution)
    picture = pixels(drawn(attention_maps, [one]))[:, :480]  # left of the colour bar
    blue = np.argwhere((picture[..., 2] > picture[..., 0] + 0.3) & (picture[..., 0] < 0.2))
    white = np.argwhere((picture > 0.95).all(-1) & (picture[..., 2] > picture[..., 0]))  # the palest blue
    assert len(blue) > 1000
    assert (blue[:, 1].mean() > white[:, 1].mean()) == (corner == -1)
    assert abs(blue[:, 0].mean() - white[:, 0].mean()) < 3  # in all three rows


def test_candidates_are_surrounded_in_red_and_drops_crossed_out():
    def red(one):
        picture = pixels(drawn(attention_maps, [one]))
        return int(((picture[..., 0] > 0.9) & (picture[..., 1:] < 0.2).all(-1)).sum())

    every = np.ones((8, 8), dtype=bool)
    assert red(attention_map(candidates=None)) == 0
    assert 0 < red(attention_map(candidates=every)) < red(attention_map())  # one box round everything
    assert drawn(attention_maps, [attention_map()]) != drawn(attention_maps, [attention_map(dropped=~every)])
    assert drawn(attention_maps, [attention_map()]) != drawn(attention_maps, [attention_map(dropped=every)])


def test_tensors_draw_as_arrays_do_and_tokens_are_plain_text():
    arrays = attention_map(tokens=["$", "$\\frac$", "a_b", *("a very long token " + str(i) for i in range(5))])
    tensors = {name: torch.from_numpy(getattr(arrays, name)) for name in ("attribution", "candidates", "dropped")}
    assert drawn(attention_maps, [arrays], title="$5") == drawn(
        attention_maps, [arrays._replace(**tensors)], title="$5"
    )


@pytest.mark.parametrize("n", [1, 8, 30, 100])
@pytest.mark.parametrize("maps", [1, 4])
def test_attention_maps_fit_a_page(n, maps):
    width, height = size(drawn(attention_maps, [attention_map(n)] * maps, title="title"))
    assert 400 < width < 3700
    assert 400 < height < 2200


def test_attribution_that_is_partly_unknown_is_left_blank():
    attribution = attention_map().attribution
    attribution[:, 5:] = np.nan
    assert drawn(attention_maps, [attention_map(attribution=attribution)]) != drawn(attention_maps, [attention_map()])


@pytest.mark.parametrize(
    ("maps", "error", "message"),
    [
        ([], ValueError, "maps must hold at least one map"),
        ([attention_map(tokens=["a"])], ValueError, r"attribution must have .*, here 1, got \(8, 8\)"),
        ([attention_map(dropped=np.ones((8, 7), bool))], ValueError, r"dropped must have .*, here 8, got \(8, 7\)"),
        ([attention_map(candidates=np.ones((8, 8)))], TypeError, "candidates must be bool, got float64"),
    ],
)  # fmt: skip
def test_errors_name_the_part_of_a_map(maps, error, message):
    with pytest.raises(error, match=message):
        drawn(attention_maps, maps)


@pytest.mark.parametrize("seeds", [1, 3])
def test_region_curves(seeds):
    curves = pd.DataFrame(
        {"drop": drop, "seed": seed, "epoch": epoch, "train_loss": 1 / epoch, "dev_loss": 0.5 + seed / 10}
        for drop in ("none", "random", "low", "high")
        for seed in range(seeds)
        for epoch in (1, 2, 3)
    )
    png = drawn(region_curves, curves, title="title")
    assert size(png) == (1350, 600)
    assert png == drawn(region_curves, curves[::-1], title="title")
    assert png != drawn(region_curves, curves[curves["drop"] != "low"], title="title")
    assert png != drawn(region_curves, curves.assign(dev_loss=curves["dev_loss"].where(curves["epoch"] != 2)))
    with pytest.raises(ValueError, match=r"curves must have the columns drop, .*without epoch$"):
        drawn(region_curves, curves.drop(columns="epoch"))
    with pytest.raises(ValueError, match="drop must be one of high, low, random, none"):
        drawn(region_curves, curves.assign(drop="middle"))


@pytest.mark.parametrize(("task", "better", "worse"), [(RTE, 0, 2), (WIKI, 2, 0)], ids=["accuracy", "perplexity"])
def test_heat_maps_are_red_where_the_score_is_better_than_plain(task, better, worse):
    higher = pixels(drawn(pq_heatmap, grid(lambda p, q: 0.1 * p * q, task)))
    assert count(higher, better) > 1000
    assert count(higher, worse) == 0
    lower = pixels(drawn(pq_heatmap, grid(lambda p, q: -0.1 * p * q, task)))
    assert count(lower, worse) > 1000
    assert count(lower, better) == 0


def test_heat_map_of_no_difference_is_neither_red_nor_blue_nor_hatched():
    trials = grid(lambda p, q: 0)
    picture, hatched = (pixels(drawn(pq_heatmap, found)) for found in (trials, trials[:-1]))  # without the last pair
    assert count(picture, 0) == count(picture, 2) == 0
    lines, more = (int((np.abs(one - 0.8) < 0.02).all(-1).sum()) for one in (picture, hatched))
    assert 3 * lines < more  # text has such greys too


def test_heat_maps_are_of_means_over_seeds_with_a_panel_each():
    one = grid(lambda p, q: 0.25 * p)
    two = pd.concat([one, one.assign(seed=1)])
    assert drawn(pq_heatmap, one) == drawn(pq_heatmap, two)
    two["dev_score"] += np.where(two["method"] == "plain", 0, 0.25 * two["seed"])
    assert drawn(pq_heatmap, one) != drawn(pq_heatmap, two)
    more = pd.concat([one, grid(lambda p, q: 0, STSB), one[one["method"] == "ad-drop"].assign(cross_tuning=False)])
    width, height = size(drawn(pq_heatmap, one))
    assert size(drawn(pq_heatmap, more)) == (2 * width, 2 * height)


def test_distribution_of_a_grid():
    trials = grid(lambda p, q: 0.1 * p - 0.1 * q)
    png = drawn(cross_tuning_distribution, trials, title="title")
    assert size(png) == (750, 630)
    both = pd.concat([trials, trials[1:].assign(cross_tuning=False, dev_score=0.5)])
    assert drawn(cross_tuning_distribution, both, title="title") != png
    plain = trials[trials["method"] == "plain"].assign(seed=1, dev_score=0.75)
    dropping = trials[trials["method"] == "ad-drop"].assign(seed=1)
    lonely, seeds = pd.concat([both, plain]), pd.concat([both, plain, dropping])
    assert drawn(cross_tuning_distribution, lonely) == drawn(cross_tuning_distribution, both)
    assert drawn(cross_tuning_distribution, seeds) != drawn(cross_tuning_distribution, both)
    # luck of a seed that AD-DROP was not tried with is no gain
    assert drawn(pq_heatmap, lonely) == drawn(pq_heatmap, both)
    with pytest.raises(ValueError, match="same examples and seeds"):
        drawn(pq_heatmap, pd.concat([plain, trials[trials["method"] == "ad-drop"]]))
    assert size(drawn(cross_tuning_distribution, pd.concat([both, grid(lambda p, q: q, WIKI)]))) == (1500, 630)


def test_distribution_of_many_equal_scores_touches_no_random_numbers():
    pairs = [(p / 10, q / 10) for p in range(1, 10) for q in range(1, 10)]
    trials = frame(trial(0.7, method=PLAIN), *(trial(0.5, p=p, q=q, cross_tuning=q > 0.5) for p, q in pairs))
    before = np.random.get_state()[1].tolist()
    assert drawn(cross_tuning_distribution, trials) == drawn(cross_tuning_distribution, trials)
    assert np.random.get_state()[1].tolist() == before


def sizes(**columns):
    return frame(
        *(
            one
            for share in (0.5, 1.0)
            for method, bonus in ((PLAIN, 0), (ADDROP, 0.02))
            for one in repeated(
                [share / 2 + bonus, share / 2 + 2 * bonus],
                method=method,
                **{"share": share, "train_size": 1000 * share} | columns,
            )
        )
    )


def test_size_curve():
    trials = sizes()
    png = drawn(size_curve, trials, title="title")
    assert size(png) == (750, 600)
    assert png == drawn(size_curve, trials.assign(share=trials["share"].where(trials["share"] < 1)), title="title")
    assert png == drawn(size_curve, pd.concat([trials, frame(trial(0.9, 0.9, shots=16, train_size=32))]), title="title")
    assert png != drawn(size_curve, sizes(share=np.nan), title="title")
    assert png != drawn(size_curve, trials.assign(test_score=trials["test_score"] / 2), title="title")


def test_size_curve_shows_what_the_dev_split_chose():
    rejected = [
        one | {"dev_score": 0.0, "test_score": 0.99}
        for share in (0.5, 1.0)
        for one in repeated([0, 0], q=0.9, share=share, train_size=1000 * share)
    ]
    assert drawn(size_curve, pd.concat([sizes(), frame(*rejected)])) == drawn(size_curve, sizes())


@pytest.mark.parametrize("draw", OF_TRIALS)
def test_one_trial_of_each_method_and_missing_scores(draw):
    trials = frame(trial(0.7, method=PLAIN), trial(0.72))
    png = drawn(draw, trials)
    assert min(size(png)) >= 400
    assert drawn(draw, pd.concat([trials, frame(trial(np.nan, q=0.9, seed=1))])) == png
    assert drawn(draw, trials.assign(dev_score=[0.7, 0.6])) != png


@pytest.mark.parametrize("draw", OF_TRIALS)
def test_errors_name_what_the_frame_lacks(draw):
    trials = grid(lambda p, q: 0)
    with pytest.raises(ValueError, match=r"frame must have the columns task, .*, without q$"):
        drawn(draw, trials.drop(columns="q"))
    with pytest.raises(ValueError, match="frame must have"):
        drawn(draw, trials.iloc[:0])


@pytest.mark.parametrize("draw", [cross_tuning_distribution, pq_heatmap])
def test_plain_training_has_to_be_there(draw):
    with pytest.raises(
        ValueError, match=r"frame must have scores of .* on the same examples and seeds, got those of \['ad-drop'\]"
    ):
        drawn(draw, grid(lambda p, q: 0)[1:])
