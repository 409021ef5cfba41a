"""Sheets of panels, drawn without a display: their layout, titles and colour bar."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from attrdrop.plots.letters import make_legible

DPI = 150
MARGIN = 0.2  # inches, around the sheet and between panels
TITLE_LINE = 0.14  # inches, at the font size below
TITLE_SIZE = 8
CHARACTER = 0.065  # inches, about, at that size
SCALE = 0.5  # inches, for the colour bar below the sheet
COLOURS = matplotlib.colormaps["RdBu_r"]


def sheet(
    count: int,
    shape: float,
    columns: int,
    titles: Sequence[str] | None,
    what: str,
    footer: float = 0.0,
    **panel: Any,
) -> tuple[Figure, list[Any]]:
    """A figure with one panel per picture, as large as they and their titles need.

    shape: height of a panel / its width. what: a picture in the error about titles. panel: passed on to each axes.
    """
    check_titles(titles, count, what)
    rows = math.ceil(count / columns)
    panel_width = max(0.8, min(3.2 / shape, 12 / columns))
    panel_height = panel_width * shape
    wrapped = ["\n".join(_wrap(title, panel_width)) for title in titles or ()]
    head = TITLE_LINE * max((title.count("\n") + 1 for title in wrapped), default=0)
    row_height = panel_height + head + MARGIN
    sheet_width = columns * (panel_width + MARGIN) + MARGIN
    sheet_height = rows * row_height + MARGIN + footer
    figure = Figure(figsize=(sheet_width, sheet_height))  # pyplot would look for a display
    panels: list[Axes] = []
    for index in range(count):
        row, column = divmod(index, columns)
        left = MARGIN + column * (panel_width + MARGIN)
        bottom = sheet_height - (row + 1) * row_height
        place = (left / sheet_width, bottom / sheet_height, panel_width / sheet_width, panel_height / sheet_height)
        axes = figure.add_axes(place, **panel)
        axes.set_axis_off()
        if wrapped:
            axes.set_title(wrapped[index], fontsize=TITLE_SIZE, pad=3.5, linespacing=1.1, parse_math=False)
        panels.append(axes)
    return figure, panels


def check_titles(titles: Sequence[str] | None, count: int, what: str) -> None:
    """Raise ValueError where there is not one per picture."""
    if titles is not None and (isinstance(titles, str) or len(titles) != count):
        raise ValueError(f"titles must be a list of {count}, one per {what}, got {titles!r}")


def add_relevance_scale(figure: Figure, label: str = "") -> None:
    """The colours of relevance, in the footer of a sheet; label: what it is the relevance of."""
    width, height = figure.get_size_inches()
    bar_width = min(2.4, 0.6 * width)
    bar = figure.add_axes(((width - bar_width) / 2 / width, 0.36 / height, bar_width / width, 0.08 / height))
    figure.colorbar(ScalarMappable(Normalize(-1, 1), COLOURS), cax=bar, orientation="horizontal", ticks=[-1, 0, 1])
    bar.set_xticklabels(["negative", "0", "positive"], fontsize=TITLE_SIZE)
    bar.tick_params(length=2)
    bar.set_title(label, fontsize=TITLE_SIZE, pad=3, parse_math=False)


def save(figure: Figure, target: Path | IO[bytes]) -> None:
    """Write a PNG to a path or buffer."""
    make_legible(figure)
    figure.savefig(target, format="png", dpi=DPI)


def _wrap(title: str, width: float) -> list[str]:
    return textwrap.wrap(str(title), max(4, int(width / CHARACTER)), max_lines=2, placeholder="…")
