"""Figures, drawn from data frames without a display."""

from pathlib import Path
from typing import IO

import pandas as pd
import seaborn as sns

from attrdrop.plots.panels import BAND, check_columns, epoch_axis, legend_beside, loss_panels, panels
from attrdrop.plots.sheets import save

TRAINING = {  # columns of the curves of training, and what they are called
    "train_loss": "training loss",
    "test_accuracy": "test accuracy (%)",
    "rank_accuracy": "relevance on the object (%)",
    "flipping": "probability, most relevant flipped (%)",
}
ORDERS = {
    "descending": "most relevant first", "ascending": "least relevant first", "random": "in random order",
}  # fmt: skip


def loss_curves(curves: pd.DataFrame, target: Path | IO[bytes], title: str = "") -> None:
    """Training and development loss by epoch, one colour per arm; bands show the standard deviation over seeds.

    `curves` has the columns arm, seed, epoch, active (whether the arm did not train plainly then), train_loss and
    dev_loss; `target` receives a PNG.
    """
    arms = sorted(curves["arm"].unique(), key=lambda arm: (arm != "plain", arm))
    alternating = sorted(curves.loc[curves["active"] & (curves["arm"] == "ad-drop"), "epoch"].unique())
    figure, both = loss_panels(curves, "arm", arms)
    for axes in both:
        for epoch in alternating:
            axes.axvspan(epoch - 0.5, epoch + 0.5, color="grey", alpha=0.12, linewidth=0)
    figure.suptitle(f"{title} (grey: AD-DROP epochs)" if alternating else title)
    save(figure, target)


def training_curves(frame: pd.DataFrame, target: Path | IO[bytes], title: str = "") -> None:
    """Training loss and test accuracy by epoch, one colour per arm; bands show the standard deviation over seeds.

    `frame` has the columns arm, epoch, train_loss and test_accuracy; rank_accuracy and flipping get panels if they are
    present and have values; `target` receives a PNG.
    """
    check_columns(frame, "arm", "epoch", "train_loss", "test_accuracy")
    names = [name for name in TRAINING if name in frame and frame[name].notna().any()]
    last = 2 if len(names) == 3 else 1  # of the first row
    figure, grid = panels(4.5, 4, len(names), columns=last + 1)
    shown = frame.assign(**{name: 100 * frame[name] for name in names if TRAINING[name].endswith("(%)")})
    arms = list(dict.fromkeys(frame["arm"]))
    for place, (axes, name) in enumerate(zip(grid, names, strict=True)):
        sns.lineplot(
            shown[shown[name].notna()], x="epoch", y=name, hue="arm", style="arm", hue_order=arms, style_order=arms,
            markers=True, errorbar="sd", err_kws=BAND, legend=place == last, ax=axes,
        )  # fmt: skip
        axes.set_ylabel(TRAINING[name])
        epoch_axis(axes, frame)
    legend_beside(grid[last])
    figure.suptitle(title)
    save(figure, target)


def flipping_curves(
    frame: pd.DataFrame, target: Path | IO[bytes], title: str = "", score: str = "score of the target"
) -> None:
    """Mean score by the fraction of features flipped, one panel per order, one colour per arm, bands of one deviation.

    `frame` has the columns arm, order, fraction (0 to 1) and score, such as one row per sample and step of
    :func:`attrdrop.metrics.flipping_curve`; `target` receives a PNG; `score` says what the scores are.
    """
    check_columns(frame, "arm", "order", "fraction", "score")
    _score_curves(frame, target, title, "features flipped (%)", score, "order")


def point_loss_curves(
    frame: pd.DataFrame, target: Path | IO[bytes], title: str = "", score: str = "score of the target"
) -> None:
    """Mean score by the fraction of points lost, one colour per arm, bands of one deviation.

    `frame` has the columns arm, fraction (0 to 1) and score, such as one row per cloud and fraction of
    :func:`attrdrop.metrics.point_loss_curve`; `target` receives a PNG; `score` says what the scores are.
    """
    check_columns(frame, "arm", "fraction", "score")
    _score_curves(frame, target, title, "points lost at random (%)", score)


def _score_curves(
    frame: pd.DataFrame, target: Path | IO[bytes], title: str, what: str, score: str, by: str | None = None
) -> None:
    """A panel for each value of the column `by`."""
    shown = frame.assign(percent=100 * frame["fraction"])
    parts = [("", shown)] if by is None else [(ORDERS.get(name, name), rows) for name, rows in shown.groupby(by)]
    figure, grid = panels(7.5 if len(parts) == 1 else 4.5, 4, len(parts), sharey=True)
    arms = list(dict.fromkeys(frame["arm"]))
    for axes, (name, rows) in zip(grid, parts, strict=True):
        sns.lineplot(
            rows, x="percent", y="score", hue="arm", hue_order=arms, errorbar="sd", err_kws=BAND,
            legend=axes is grid[-1], ax=axes,
        )  # fmt: skip
        axes.set(title=name, xlabel=what, ylabel=score, xlim=(0, 100))
    legend_beside(grid[-1])
    figure.suptitle(title)
    save(figure, target)
