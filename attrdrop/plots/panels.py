"""What figures of data frames share: panels without a display, the axis of epochs, the legend."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BAND = {"alpha": 0.12, "linewidth": 0}


def check_columns(frame: pd.DataFrame, *names: str, argument: str = "frame") -> None:
    """Raise ValueError where a column is missing; argument: the frame's name in the error."""
    if missing := [name for name in names if name not in frame.columns]:
        raise ValueError(
            f"{argument} must have the columns {', '.join(names)}, got {list(frame.columns)}, "
            f"without {', '.join(missing)}"
        )


def panels(width: float, height: float, count: int = 1, columns: int = 4, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each so many inches wide and high, at most `columns` in a row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    with sns.axes_style("whitegrid"):
        # pyplot would look for a display
        figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, **options)
    for axes in grid.flat[count:]:
        axes.remove()
    return figure, list(grid.flat[:count])


def loss_panels(curves: pd.DataFrame, by: str, order: list[str]) -> tuple[Figure, list[Axes]]:
    """Training and development loss by epoch, one colour per value of the column `by`, bands of one deviation."""
    figure, (train, dev) = panels(4.5, 4, 2, sharey=True)
    for axes, split in ((train, "train"), (dev, "dev")):
        sns.lineplot(
            curves, x="epoch", y=f"{split}_loss", hue=by, style=by, hue_order=order, style_order=order,
            markers=True, errorbar="sd", legend=axes is dev, ax=axes,
        )  # fmt: skip
        axes.set(title=split, ylabel="loss")
        epoch_axis(axes, curves)
    legend_beside(dev)
    return figure, [train, dev]


def epoch_axis(axes: Axes, curves: pd.DataFrame) -> None:
    """Whole epochs, from the first to the last."""
    axes.set_xlim(0.5, curves["epoch"].max() + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def legend_beside(axes: Axes) -> None:
    """Move the legend out of the panel, to its right."""
    sns.move_legend(axes, "center left", bbox_to_anchor=(1, 0.5), frameon=False)
