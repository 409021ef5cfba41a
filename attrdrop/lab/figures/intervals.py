"""Differences of arms with their intervals."""

from pathlib import Path
from typing import IO

import pandas as pd
from matplotlib.ticker import MaxNLocator

from attrdrop.plots.panels import panels
from attrdrop.plots.sheets import save


def forest(compared: pd.DataFrame, target: Path | IO[bytes]) -> None:
    """One panel for each setting, one line for each comparison; `target` receives a PNG.

    `compared` has the columns setting, first, second, measure, lower (whether low values are better), difference and
    student, an interval. Improvements point to the right.
    """
    groups = list(compared.groupby("setting", sort=False))
    figure, grid = panels(6, 1.1 + 0.35 * max(len(rows) for _, rows in groups), len(groups), 1)
    for axes, (name, rows) in zip(grid, groups, strict=True):
        sign = -1 if rows["lower"].iloc[0] else 1
        for place, row in enumerate(rows.to_dict("records")):
            low, high = sorted(sign * end for end in row["student"])
            axes.plot([low, high], [place, place], color="C0", linewidth=2)
            axes.plot([sign * row["difference"]], [place], "o", color="C0")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [f"{row.first} vs. {row.second}" for row in rows.itertuples()])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(str(name), fontsize=9, parse_math=False)
        change = "decrease" if sign < 0 else "increase"
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(f"{change} in {rows['measure'].iloc[0].replace('_', ' ')}, with 95 % interval")
    save(figure, target)
