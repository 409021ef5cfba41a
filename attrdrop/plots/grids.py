"""Figures of grids of settings, drawn without a display."""

from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import seaborn as sns

from attrdrop.plots.panels import check_columns, panels
from attrdrop.plots.sheets import save

SPLITS = ("dev", "test")
CELL = 0.75  # inches


def heat_maps(
    frame: pd.DataFrame, target: Path | IO[bytes], x: str, y: str | None = None, title: str = "", by: str = "arm"
) -> None:
    """Accuracy at each value of one or two settings: an arm a row, the development split beside the test split.

    If a cell covers several combinations of other settings, it shows the best one by the development split, and its
    test accuracy. Cells without a run are hatched.

    Args:
        frame: one row per combination, with the columns of x and y, `by`, "dev accuracy, %" (may be empty) and "test
            accuracy, %".
        target: receives a PNG. x, y: the settings along the axes.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    scores = [f"{split} accuracy, %" for split in SPLITS]
    check_columns(frame, by, x, *([y] if y else []), *scores)
    if frame.empty:
        raise ValueError("frame must have a row for each combination of settings, got none")
    shown = [score for score in scores if frame[score].notna().any()]
    arms = [(arm, rows[rows[x].notna()]) for arm, rows in frame.groupby(by, sort=False)]
    arms = [(arm, rows) for arm, rows in arms if len(rows)]
    columns, lines = frame[x].nunique(), frame[y].nunique() if y else 1
    width, height = max(3.0, CELL * columns + 1.4), max(1.9, CELL * lines + 1.3)
    figure, grid = panels(width, height, len(arms) * len(shown), columns=len(shown))
    places = [(arm, rows, score) for arm, rows in arms for score in shown]
    for axes, (arm, rows, score) in zip(grid, places, strict=True):
        table = _best(rows, x, y, shown[0])[score]
        table = table.unstack(0) if y else table.to_frame().T
        table = table[[value for value in frame[x].dropna().unique() if value in table]]
        axes.grid(False)
        axes.patch.set(facecolor="0.97", edgecolor="0.8", hatch="///")
        sns.heatmap(
            table.astype(float), annot=True, fmt=".1f", annot_kws={"fontsize": 8}, cmap="viridis", square=True,
            linewidths=0.5, cbar=False, ax=axes, yticklabels=y is not None,
        )  # fmt: skip
        axes.set(xlabel=x, ylabel=y or "")
        axes.set_title(f"{arm}, {score}", fontsize="small")
        axes.tick_params("y", rotation=0)
    figure.suptitle(title)
    save(figure, target)


def _best(rows: pd.DataFrame, x: str, y: str | None, score: str) -> pd.DataFrame:
    """By x and y, the row of the best score."""
    keys = [x, *([y] if y else [])]
    rows = rows.dropna(subset=[*keys, score]).reset_index(drop=True)
    best = rows.groupby(keys, sort=False)[score].idxmax()
    return rows.loc[np.asarray(best, dtype=int)].set_index(keys)
