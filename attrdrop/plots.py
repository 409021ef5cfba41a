"""Figures, drawn from data frames without a display."""

from pathlib import Path
from typing import IO

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure


def loss_curves(curves: pd.DataFrame, target: Path | IO[bytes], title: str = "") -> None:
    """Training and development loss by epoch, one colour per arm; bands show the standard deviation over seeds.

    `curves` has the columns arm, seed, epoch, active (whether the arm did not train plainly then), train_loss and
    dev_loss; `target` receives a PNG.
    """
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(9, 4), layout="constrained")  # pyplot would look for a display
        panels = figure.subplots(ncols=2, sharey=True)
    arms = sorted(curves["arm"].unique(), key=lambda arm: (arm != "plain", arm))
    alternating = sorted(curves.loc[curves["active"] & (curves["arm"] == "ad-drop"), "epoch"].unique())
    for axes, split in zip(panels, ("train", "dev"), strict=True):
        for epoch in alternating:
            axes.axvspan(epoch - 0.5, epoch + 0.5, color="grey", alpha=0.12, linewidth=0)
        sns.lineplot(
            curves,
            x="epoch",
            y=f"{split}_loss",
            hue="arm",
            style="arm",
            hue_order=arms,
            style_order=arms,
            markers=True,
            errorbar="sd",
            legend=split == "train",
            ax=axes,
        )
        axes.set(title=split, ylabel="loss", xlim=(0.5, curves["epoch"].max() + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.suptitle(f"{title} (grey: AD-DROP epochs)" if alternating else title)
    figure.savefig(target, format="png", dpi=150)


def training_curves(frame: pd.DataFrame, target: Path | IO[bytes], title: str = "") -> None:
    """Training loss and test accuracy by epoch, one colour per arm; bands show the standard deviation over seeds.

    `frame` has the columns arm, epoch, train_loss and test_accuracy; `target` receives a PNG.
    """
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(9, 4), layout="constrained")
        panels = figure.subplots(ncols=2)
    shown = frame.assign(test_accuracy=100 * frame["test_accuracy"])
    for axes, column, label in zip(
        panels, ("train_loss", "test_accuracy"), ("training loss", "test accuracy (%)"), strict=True
    ):
        sns.lineplot(
            shown, x="epoch", y=column, hue="arm", style="arm", markers=True, errorbar="sd",
            err_kws={"alpha": 0.12, "linewidth": 0}, legend=column == "test_accuracy", ax=axes,
        )  # fmt: skip
        axes.set(ylabel=label, xlim=(0.5, frame["epoch"].max() + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    sns.move_legend(panels[1], "center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.suptitle(title)
    figure.savefig(target, format="png", dpi=150)


def flipping_curves(frame: pd.DataFrame, target: Path | IO[bytes], title: str = "") -> None:
    """Mean score by the fraction of features flipped, one colour per arm, one dash per order, bands of one deviation.

    `frame` has the columns arm, order, fraction (0 to 1) and score, such as one row per sample and step of
    :func:`attrdrop.metrics.flipping_curve`; `target` receives a PNG.
    """
    _check_columns(frame, "arm", "order", "fraction", "score")
    style = "order" if frame["order"].nunique() > 1 else None
    _score_curves(frame, target, title, "features flipped (%)", style)


def point_loss_curves(frame: pd.DataFrame, target: Path | IO[bytes], title: str = "") -> None:
    """Mean score by the fraction of points lost, one colour per arm, bands of one deviation.

    `frame` has the columns arm, fraction (0 to 1) and score, such as one row per cloud and fraction of
    :func:`attrdrop.metrics.point_loss_curve`; `target` receives a PNG.
    """
    _check_columns(frame, "arm", "fraction", "score")
    _score_curves(frame, target, title, "points lost at random (%)")


def _check_columns(frame: pd.DataFrame, *names: str) -> None:
    if set(names) - set(frame.columns):
        raise ValueError(f"frame must have the columns {', '.join(names)}, got {list(frame.columns)}")


def _score_curves(
    frame: pd.DataFrame, target: Path | IO[bytes], title: str, what: str, style: str | None = None
) -> None:
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(7.5, 4), layout="constrained")
        axes = figure.subplots()
    sns.lineplot(
        frame.assign(percent=100 * frame["fraction"]),
        x="percent",
        y="score",
        hue="arm",
        style=style,
        errorbar="sd",
        err_kws={"alpha": 0.12, "linewidth": 0},
        ax=axes,
    )
    axes.set(title=title, xlabel=what, ylabel="score of the target", xlim=(0, 100))
    sns.move_legend(axes, "center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(target, format="png", dpi=150)
