"""Figures of sweeps of AD-DROP, and of what it does to attention, drawn without a display."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.ticker import EngFormatter
from scipy import stats

from attrdrop.lab.figures.frames import (
    DROPS,
    SETTING,
    TRIALS,
    VARIANT,
    against_plain,
    at_best_setting,
    difference_label,
    digits,
    labelled,
    metric_label,
    ordered,
    outcome,
    score_label,
    scored,
)
from attrdrop.lab.names import PLAIN, WORDS
from attrdrop.plots.letters import families, spelled
from attrdrop.plots.panels import BAND, check_columns, legend_beside, loss_panels, panels
from attrdrop.plots.sheets import COLOURS, save

MOST_TOKENS = 30  # named along an axis
TOKEN_LENGTH = 10  # characters
SIDES = {True: "with", False: "without"}  # cross-tuning


class AttentionMap(NamedTuple):
    """What happened in one map of n queries (rows) and n keys (columns); its arrays may be tensors on the CPU.

    tokens: n. attribution: floating point (n, n); NaN is left blank. candidates: bool (n, n), or None where no region
    was chosen. dropped: bool (n, n).
    """

    title: str
    tokens: Sequence[str]
    attribution: np.ndarray
    candidates: np.ndarray | None
    dropped: np.ndarray


def attention_maps(maps: Sequence[AttentionMap], target: Path | IO[bytes], title: str = "") -> None:
    """Attribution of attention positions: the darker, the higher its rank among the keys of its query.

    A red dotted line surrounds the candidates, a crossed circle marks what was dropped. `target` receives a PNG.

    Raises:
        TypeError: candidates or dropped are not bool. ValueError: there is no map, or a shape does not fit its tokens.
    """
    maps = [_checked(AttentionMap(*one)) for one in maps]
    if not maps:
        raise ValueError("maps must hold at least one map, got none")
    side = min(max(3.4, 0.2 * max(len(one.tokens) for one in maps)), 6.5)  # inches
    figure, grid = panels(side + 1.4, side + 0.6, len(maps), columns=3)
    for axes, one in zip(grid, maps, strict=True):
        axes.grid(False)
        image = axes.imshow(_ranked(one.attribution), cmap="Blues", vmin=0, vmax=1)
        bar = figure.colorbar(image, ax=axes, shrink=0.7, ticks=[0, 1], label="attribution within its row")
        bar.set_ticklabels(["lowest", "highest"])
        cell = 72 * 0.8 * side / len(one.tokens)  # points
        if one.candidates is not None:
            box = LineCollection(_outline(one.candidates), colors="red", linestyles=":", linewidths=1.6)
            axes.add_collection(box, autolim=False).set_clip_on(False)
        query, key = one.dropped.nonzero()
        halo = patheffects.withStroke(linewidth=1.5, foreground="white")
        size = min(0.75 * cell, 12) ** 2
        axes.scatter(key, query, s=size, marker=r"$\otimes$", color="black", linewidths=0.2, path_effects=[halo])
        _name_tokens(axes, one.tokens, cell)
        axes.set_title(one.title, parse_math=False)
    figure.suptitle(title, parse_math=False)
    save(figure, target)


def region_curves(curves: pd.DataFrame, target: Path | IO[bytes], title: str = "") -> None:
    """Training and development loss by epoch, one colour per region that is dropped; bands of one deviation over seeds.

    `curves` has the columns drop (high, low, random or none), seed, epoch, train_loss and dev_loss; `target` receives a
    PNG.
    """
    check_columns(curves, "drop", "seed", "epoch", "train_loss", "dev_loss", argument="curves")
    drops = set(curves["drop"])
    if drops - set(DROPS):
        raise ValueError(f"drop must be one of {', '.join(DROPS)}, got {sorted(map(str, drops))}")
    figure, _ = loss_panels(curves, "drop", [name for name in DROPS if name in drops])
    figure.suptitle(title)
    save(figure, target)


def probe_curves(rows: pd.DataFrame, target: Path | IO[bytes], title: str = "") -> None:
    """Score by the share of positions that masks drop of a model trained without, one panel per masked layers.

    `rows` has the columns layers, drop (high, low, random, or none at rate 0), rate (0 to 1), score, metric and
    percent; `target` receives a PNG.
    """
    check_columns(rows, "layers", "drop", "rate", "score", "metric", "percent", argument="rows")
    parts = list(rows.groupby("layers", sort=False))
    figure, grid = panels(4.5, 4, len(parts), sharey=True)
    drops = [name for name in DROPS if name != "none"]
    for axes, (layers, part) in zip(grid, parts, strict=True):
        shares = part.assign(share=100 * part["rate"], shown=part["score"] * (100 if part["percent"].iloc[0] else 1))
        whole = shares.loc[shares["drop"] == "none", "shown"].mean()
        sns.lineplot(
            shares[shares["drop"] != "none"], x="share", y="shown", hue="drop", style="drop", hue_order=drops,
            style_order=drops, markers=True, legend=axes is grid[-1], ax=axes,
        )  # fmt: skip
        axes.axhline(whole, color="0.3", linestyle=":", linewidth=1.4, label="nothing dropped")
        axes.set(title=WORDS["layers"](layers), xlabel="positions dropped (%)", ylabel=f"dev {metric_label(part)}")
    grid[-1].legend()
    legend_beside(grid[-1])
    figure.suptitle(title)
    save(figure, target)


def cross_tuning_distribution(frame: pd.DataFrame, target: Path | IO[bytes], title: str = "") -> None:
    """The scores of AD-DROP over all p and q, with and without cross-tuning; the dashed line is plain training.

    A point is the mean over seeds at one p and q, the grey band one deviation of plain training over seeds. `frame` has
    one row per trial with the columns of a sweep; `target` receives a PNG.
    """
    compared = against_plain(frame, ["layers", "attribution", "target", "region"])
    figure, grid = panels(5, 4.2, len(compared), columns=3)
    for axes, (name, addrop, plain) in zip(grid, compared, strict=True):
        points = addrop.groupby([*SETTING, "cross_tuning"])["score"].mean().reset_index()
        points["cross_tuning"] = points["cross_tuning"].map(SIDES)
        order = [side for side in SIDES.values() if side in set(points["cross_tuning"])]
        look: dict[str, Any] = {"x": "cross_tuning", "y": "score", "hue": "cross_tuning", "legend": False, "ax": axes}
        look |= {"order": order, "hue_order": order}
        sns.violinplot(points, **look, inner=None, cut=0, alpha=0.25, linewidth=0, density_norm="width")
        sns.swarmplot(points, **look, size=3.5, warn_thresh=1)
        mean, deviation = plain["score"].mean(), plain["score"].std()
        axes.axhline(mean, color="0.3", linestyle="--", linewidth=1.2, label="plain")
        if deviation > 0:  # not NaN, as of one seed
            axes.axhspan(mean - deviation, mean + deviation, color="grey", **BAND)
        sides = {side: rows for side, rows in addrop.assign(side=addrop["cross_tuning"].map(SIDES)).groupby("side")}
        axes.set_xticks(range(len(order)), [f"{side}\n{outcome(sides[side]).counted}" for side in order])
        axes.set(title=name, xlabel="cross-tuning", ylabel=score_label(addrop))
    grid[-1].legend()
    legend_beside(grid[-1])
    figure.suptitle(title)
    save(figure, target)


def size_curve(frame: pd.DataFrame, target: Path | IO[bytes], title: str = "") -> None:
    """The score by the share of the training split that was used, or by the number of examples where no share was.

    One colour per method, AD-DROP at the setting that the dev split chose at each size, bands of one deviation over
    seeds; the dotted line is plain training at its largest size. `frame` has one row per trial with the columns of a
    sweep; `target` receives a PNG.
    """
    check_columns(frame, *TRIALS)
    chosen = labelled(at_best_setting(frame))
    by_share = bool(chosen["share"].notna().any())
    if by_share:
        chosen = chosen[chosen["shots"].isna()]
    if chosen.empty:
        raise ValueError("frame must have trials on whole training splits or shares of them, got none")
    chosen["size"] = 100 * chosen["share"].astype(float).fillna(1) if by_share else chosen["train_size"]
    order = ordered(chosen["label"])
    tasks = list(chosen.groupby("task", sort=False))
    figure, grid = panels(5, 4, len(tasks), columns=3)
    for axes, (task, rows) in zip(grid, tasks, strict=True):
        rows = scored(rows)
        sns.lineplot(
            rows, x="size", y="score", hue="label", style="label", hue_order=order, style_order=order, dashes=False,
            markers=True, errorbar="sd", err_kws=BAND, legend=axes is grid[-1], ax=axes,
        )  # fmt: skip
        plain = rows[rows["method"] == PLAIN]
        most = plain.loc[plain["size"] == plain["size"].max(), "score"].mean()
        axes.axhline(most, color="0.3", linestyle=":", linewidth=1.4, label="plain at its largest size")
        size = "training examples (%)" if by_share else "training examples"
        axes.set(title=task, xlabel=size, ylabel=score_label(rows))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k
    grid[-1].legend()
    legend_beside(grid[-1])
    figure.suptitle(title)
    save(figure, target)


def pq_heatmap(frame: pd.DataFrame, target: Path | IO[bytes], title: str = "") -> None:
    """What AD-DROP gains over plain training at each p (rows) and q (columns): red is better than plain, blue worse.

    Each cell holds the mean difference over seeds, paired by seed; its colour is the gain over the largest of its
    panel, from -1 to 1. Pairs that were not tried are hatched. `frame` has one row per trial with the columns of a
    sweep; `target` receives a PNG.
    """
    compared = against_plain(frame, ["layers", *VARIANT])
    shapes = [(addrop["p"].nunique(), addrop["q"].nunique()) for _, addrop, _ in compared]
    height, width = (max(3.4, 0.42 * max(lengths) + 1) for lengths in zip(*shapes, strict=True))
    figure, grid = panels(width, height + 0.6, len(compared), columns=2)
    for axes, (name, addrop, _) in zip(grid, compared, strict=True):
        gains = addrop.pivot_table(index="p", columns="q", values="gain")
        largest = np.nanmax(np.abs(gains))
        better = addrop["better"].iloc[0] * gains / (largest if largest > 0 else 1)
        axes.grid(False)
        axes.patch.set(facecolor="0.97", edgecolor="0.8", hatch="///")
        sns.heatmap(
            better, annot=gains, fmt=f"+.{digits(addrop)}f", annot_kws={"fontsize": 7}, cmap=COLOURS, vmin=-1, vmax=1,
            square=True, linewidths=0.5, cbar=False, ax=axes,
        )  # fmt: skip
        head = "\n".join(textwrap.fill(text, 40) for text in (name, difference_label(addrop)))
        axes.set(xlabel="q", ylabel="p")
        axes.set_title(head, fontsize="small")
        axes.tick_params("y", rotation=0)
    colours = ScalarMappable(Normalize(-1, 1), COLOURS)
    figure.colorbar(colours, ax=grid, shrink=0.7, ticks=[-1, 0, 1], label="gain / largest")
    figure.suptitle(title)
    save(figure, target)


def _checked(one: AttentionMap) -> AttentionMap:
    arrays = {name: getattr(one, name) for name in ("attribution", "candidates", "dropped")}
    arrays = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    length = len(one.tokens)
    for name, array in arrays.items():
        if name != "attribution" and array.dtype != bool:
            raise TypeError(f"{name} must be bool, got {array.dtype}")
        if array.shape != (length, length) or not length:
            raise ValueError(f"{name} must have shape (n, n) of the n tokens, here {length}, got {array.shape}")
    return AttentionMap(**(one._asdict() | arrays))


def _ranked(attribution: np.ndarray) -> np.ndarray:
    """Ranks within each row from 0 to 1, those of ties in the middle; NaN stays."""
    ranks = stats.rankdata(attribution, axis=1, nan_policy="omit") - 1
    most = np.sum(~np.isnan(attribution), axis=1, keepdims=True) - 1
    return np.where(most > 0, ranks / np.maximum(most, 1), ranks)


def _outline(region: np.ndarray) -> list[list[tuple[float, float]]]:
    """Segments (x, y) between the cells of a bool (n, n) region and those around it."""
    upright = np.argwhere(np.diff(np.pad(region, ((0, 0), (1, 1))), axis=1)) - 0.5
    level = np.argwhere(np.diff(np.pad(region, ((1, 1), (0, 0))), axis=0)) - 0.5
    return [[(x, y), (x, y + 1)] for y, x in upright] + [[(x, y), (x + 1, y)] for y, x in level]


def _name_tokens(axes: Axes, tokens: Sequence[str], cell: float) -> None:
    step = -(-len(tokens) // MOST_TOKENS)
    places = range(0, len(tokens), step)
    font = families(tokens)
    names = [
        token if len(token) <= TOKEN_LENGTH else f"{token[: TOKEN_LENGTH - 1]}…"
        for token in map(spelled, tokens[::step])
    ]
    size = min(9.0, max(5.0, 0.75 * step * cell))
    axes.set_xticks(places, names, rotation=90, fontsize=size, fontfamily=font, parse_math=False)
    axes.set_yticks(places, names, fontsize=size, fontfamily=font, parse_math=False)
    axes.set(xlabel="key", ylabel="query")
